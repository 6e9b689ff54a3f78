"""Imports of modules when they are first needed; and `preload`, which imports them all.

A program may run out of descriptors, change its root directory or its user, or have its files replaced: from then on
Python can import nothing more. So `import harken` imports what opening and accepting need, and what their errors are
made of. The rest, which takes longer to import than all of that, is imported when it is needed: the modules that
explain an error, those that set options, and those of the standard library that a hand-over needs.
"""

from __future__ import annotations

from sys import modules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PARTS = (
    "_diagnosis.foresee", "_diagnosis.hints", "_diagnosis.holders", "_diagnosis.mistakes", "_diagnosis.netlink",
    "_draining", "_group", "_group.addresses", "_group.groups", "_group.members", "_handover", "_handshakes",
    "_in_force", "_inherit", "_option_kinds", "_option_table", "_options", "_paths", "_plan", "_sockopt", "_stats",
    "_steering", "_types", "_unix",
)  # fmt: skip
"""The modules of this package that `preload` imports; the rest are commands, asyncio's, or there already."""

_OTHERS = (
    "logging", "warnings", "traceback", "linecache", "tokenize", "tracemalloc",  # what Python reports with
    # By which a worker is sent a socket.
    "multiprocessing.reduction", "multiprocessing.resource_sharer", "multiprocessing.connection", "hmac", "tempfile",
)  # fmt: skip
_WHERE_THERE_ARE = ("fcntl", "grp", "pwd", "resource", "psutil")  # not on every system, or not installed

# A file may be missing, unreadable, or cut off: of source, of compiled code, of an extension.
_BROKEN = (ImportError, OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, AttributeError, NameError)


def load(name: str) -> Any:
    """The module of this name. Raises OSError where it cannot be loaded, with the reason of the system if it is one:
    EMFILE, for example; else ENOENT."""
    module = modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        return module
    try:
        return __import__(name, None, None, ("__name__",))
    except _BROKEN as error:  # and not what a signal handler raises meanwhile
        reason = _reason(error)
        why = f"{reason.strerror} (the module {name} cannot be loaded; harken.preload() loads it beforehand)"
        raise OSError(reason.errno, why) from error


class Later:
    """A module that is imported when something in it is asked for: typing.get_type_hints() finds what annotations name,
    and `import harken` does not pay for it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(load(self._name), name)


def idna(host: str) -> bytes:
    """A name in the encoding of international domain names. Raises UnicodeError for what is no name, and OSError where
    the codec cannot be loaded, which is then tried again the next time: Python itself would never find it again."""
    for module in ("encodings.idna", "encodings.punycode"):
        load(module)
    return host.encode("idna")


def _reason(error: Exception) -> OSError:
    if isinstance(error, OSError) and error.errno:
        return error
    if path := getattr(error, "path", None):  # of an extension, whose loader does not pass on the number
        try:
            open(path, "rb").close()
        except OSError as reason:
            return reason
    return OSError(2, str(error))


def for_hand_over() -> bool:
    """After the first listen(): where the program has loaded ``socket`` itself, what `Listeners.sockets` needs besides
    costs little. True when there is nothing left to load."""
    if "socket" not in modules:
        return False
    try:
        load("harken._handover")
    except OSError:
        return False  # the listeners are there; sockets() will tell
    return True


def preload() -> None:
    """Imports every module that harken may need later: for errors and their hints, options, overload, and sockets that
    are handed over to other servers.

    Call it before this process loses access to Python's files (chroot(2), setuid(2), a sandbox), or may run out of
    descriptors. Without it, harken imports these modules when it needs them; if they cannot be read then, the call
    fails with an OSError that says so, and errors have no hints and holders.

    The first call takes some 100 milliseconds, later ones nothing; any thread may call it. It does not import
    `harken.asyncio`. Raises OSError when a module cannot be loaded.
    """
    for part in PARTS:
        load(f"harken.{part}")
    for name in _OTHERS:
        load(name)
    for name in _WHERE_THERE_ARE:
        try:
            __import__(name)
        except ImportError:
            pass
    import codecs
    import locale

    idna("harken\u00e9")  # it has tables, which are loaded when they are first used
    for encoding in {"utf-8", "ascii", "latin-1", "unicode_escape", locale.getpreferredencoding(False)}:
        codecs.lookup(encoding)
    if "harken.asyncio" in modules:
        load("harken.asyncio._transports")
