"""Errors, overload and hand-over where Python can import nothing more: no descriptors are left, the root directory or
the user has changed, the files are gone. After `harken.preload` everything works; without it only what needs a module
fails, with an error that says so."""

from __future__ import annotations

import errno
import json
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import children
import harken
from children import NOBODY, needs_root
from harken import _loading
from machine import LINUX, linux_only, posix_only

# What a child does. `lose()` is the moment from which on nothing can be loaded; before it, `harken` is imported.
PROGRAM = """
import gc, json, os, sys
import socket as stdlib  # the test's own: with it the first listen() loads what sockets() needs
import harken
if PRELOADED:
    import asyncio, harken.asyncio
server = harken.listen("127.0.0.1:0")
other, third, fourth = harken.listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
FORBIDDEN, FDS = [], "/proc/self/fd"

class Finder:
    "Finds nothing, and remembers what others would have found."
    def find_spec(self, name, path=None, target=None):
        for finder in FINDERS:
            if finder.find_spec(name, path, target) is not None:
                FORBIDDEN.append(name)
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def by_finder():
    global FINDERS
    FINDERS = list(sys.meta_path)
    sys.meta_path.insert(0, Finder())

def by_path():
    "Every place where modules are is empty."
    sys.path[:] = []
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            try:
                module.__path__ = []
            except Exception:
                pass

def by_chroot():
    os.mkdir(f"{FOLDER}/root")
    os.chroot(f"{FOLDER}/root")
    os.chdir("/")
    os.mkdir("/folder", 0o777)
    globals()["FOLDER"] = "/folder"

def hide(mode):
    "Python's folders are covered by empty ones."
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) != 0 or libc.mount(b"none", b"/", None, 0x44000, None) != 0:
        print(json.dumps({"skip": "no mount namespace can be made here"}))
        sys.exit()
    places = {*sys.path, os.path.dirname(harken.__file__)} | {
        place for module in list(sys.modules.values()) for place in getattr(module, "__path__", ())
    }
    for place in sorted(places):
        if place and os.path.isdir(place) and place not in ("/", "/tmp") and not FOLDER.startswith(place):
            libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"mode=" + mode)

def by_deletion():
    hide(b"755")

def by_user():
    os.chmod(FOLDER, 0o777)
    hide(b"700")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)

def by_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, LIMIT[1]))
    fill()

FILLED = []
def fill():
    try:
        while True:
            FILLED.append(os.dup(1))
    except OSError:
        pass

def free(count):
    for _ in range(min(count, len(FILLED))):
        os.close(FILLED.pop())

def told(error):
    "An error, read in every way; a copy too."
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.errno, copy.step, copy.address) == (type(error), error.errno, error.step, error.address)
    repr(error), str(error), error.hint
    found = {"step": error.step, "errno": error.errno, "hint": bool(error.hint), "in use": False}
    if isinstance(error, harken.AddressInUseError):
        found |= {"in use": True, "cause": error.cause, "holders": len(error.holders)}
    return found

def attempt(name, function, *arguments, **options):
    "What came of it: a value that says so, or the error."
    try:
        results[name] = str(function(*arguments, **options) or "ok")
    except harken.ListenError as error:
        results[name] = told(error)
    except OSError as error:
        results[name] = {"oserror": error.errno, "text": str(error)}
    except BaseException as error:
        results[name] = {"wrong": repr(error)}

def opened(*binds, **options):
    with harken.listen(*binds, **options) as listeners:
        [(str(one), repr(one), one.backlog, one.options, one.stats()) for one in listeners]
        listeners.left_out

results = {}
if PRELOADED:
    harken.preload()
    harken.preload()
import pickle
if os.name != "nt":
    import resource
    LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)
client = stdlib.create_connection(server[0].address)
globals()[HOW]()
try:
    harken.listen("127.0.0.1:0").close()
except harken.ListenError as error:
    results["first"] = told(error)
for bind in ("127.0.0.1:0", ":0", "localhost:0", "n\\xe4he.invalid:0", "unix:FOLDER/a", "vsock://*:0", "fd://2",
             f"127.0.0.1:{server.port}", ":0?nodelay=1", "mptcp://127.0.0.1:0", "systemd:web"):
    attempt(bind.replace(str(server.port), "taken"), opened, bind.replace("FOLDER", FOLDER))
attempt("options", opened, ":0", reuse_port=True, keepalive_idle=5)
attempt("mode", opened, f"unix:{FOLDER}/b", mode=0o600)
attempt("owner", opened, f"unix:{FOLDER}/c", owner=str(os.getuid()))
attempt("interface", opened, "127.0.0.1:0", interface="lo")
attempt("backlog", opened, "127.0.0.1:0", backlog=10**6)
attempt("bind", lambda: harken.bind("127.0.0.1:0").close())
attempt("Options", lambda: str(harken.Options(nodelay=True)))
attempt("holders", lambda: bool(harken.holders(server[0].address[1])))
attempt("getaddrinfo", lambda: str(harken.getaddrinfo("127.0.0.1", 80)[0]))
attempt("no name", lambda: harken.getaddrinfo("name.invalid", 80))
attempt("stats", lambda: str(server[0].stats()))

def accepting():
    with server.acceptor(limit=100) as acceptor:
        found = acceptor.accept_many()
        acceptor.stats(), repr(acceptor)
        [one.close() for one in found]
        return len(found)
attempt("acceptor", accepting)
attempt("accept", lambda: bool(server[0].settimeout(0)) or server[0].accept_many())
attempt("adopt", lambda: str(harken.adopt(other.detach())))
attempt("to_socket", lambda: third.to_socket().close())
third.close()
attempt("sockets", lambda: [one.close() for one in harken.Listeners([fourth]).sockets()] and "ok")
fourth.close()

def overloaded():
    "The log's line: to standard error, where nobody has set up the log."
    with harken.listen("127.0.0.1:0") as listeners, listeners.acceptor() as acceptor:
        more = stdlib.create_connection(listeners[0].address)
        highest = max(map(int, os.listdir(FDS)), default=0) if os.path.isdir(FDS) else 200
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, LIMIT[1]))
        fill()
        try:
            assert acceptor.accept_many() == []
            assert acceptor.stats().failed
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, LIMIT)
            free(1000)
            more.close()
        assert acceptor.wait(5)
        [one.close() for one in acceptor.accept_many()]

async def with_asyncio():
    async def serve(reader, writer):
        writer.write(await reader.read(4))
        writer.close()
    server = await harken.asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"ping")
    answer = await reader.read()
    writer.close()
    server.close()
    await server.wait_closed()
    return answer.decode()

def pickled():
    from multiprocessing import reduction, resource_sharer
    with harken.listen("127.0.0.1:0").sockets()[0] as listener:
        with reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(listener)) as copy:
            assert copy.getsockname() == listener.getsockname()
    resource_sharer.stop()

if HOW != "by_descriptors":
    if os.name != "nt":
        attempt("overload", overloaded)
    if PRELOADED:
        attempt("asyncio", lambda: asyncio.run(with_asyncio()))
    if HOW == "by_finder" and PRELOADED:
        attempt("pickled", pickled)
        for name in harken.__all__:
            getattr(harken, name)
attempt("closed", server.close)
gc.collect()
print(json.dumps({"results": results, "forbidden": FORBIDDEN}))
"""


def run(how: str, preloaded: bool, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What came of each operation, and what Python tried to load."""
    head = f"HOW, PRELOADED, FOLDER, NOBODY = {how!r}, {preloaded}, {str(folder)!r}, {NOBODY}\n"
    command = [sys.executable, "-W", "ignore", "-c", head + PROGRAM]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, encoding="utf-8")
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout.splitlines()[-1])
    if "skip" in said:
        pytest.skip(said["skip"])
    print(json.dumps(said, indent=1), child.stderr)
    assert {name: told for name, told in said["results"].items() if "wrong" in told} == {}
    if how != "by_descriptors":
        assert said["results"]["overload"] == "ok"
        assert child.stderr.count("cannot accept: [Errno 24]") == 1
    assert len(child.stderr.splitlines()) <= 1
    return said["results"], said["forbidden"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where other users get to, and whose path is short."""
    with tempfile.TemporaryDirectory(prefix="harken-") as made:
        yield Path(made)


pytestmark = posix_only
WAYS = [
    "by_finder",
    "by_path",
    pytest.param("by_chroot", marks=needs_root),
    pytest.param("by_deletion", marks=[linux_only, needs_root]),
    pytest.param("by_user", marks=[linux_only, needs_root]),
]
NEED_A_MODULE = {":0?nodelay=1", "options", "mode", "owner", "Options"}


@pytest.mark.parametrize("how", WAYS)
def test_everything_works_where_nothing_can_be_loaded(how: str, folder: Path) -> None:
    results, forbidden = run(how, True, folder)
    assert forbidden == []
    no_way = {"mode"} if how == "by_chroot" else set()  # the mode of a path is set through /proc
    for name in {
        "127.0.0.1:0",
        ":0",
        "bind",
        "adopt",
        "to_socket",
        "sockets",
        "closed",
        "unix:FOLDER/a",
        *NEED_A_MODULE,
    } - no_way:
        assert "step" not in results[name], name
        assert "oserror" not in results[name], name
    assert results["acceptor"] == "1"
    assert results["asyncio"] == "ping"
    taken = results["127.0.0.1:taken"]
    assert (taken["step"], taken["in use"], taken["hint"]) == ("bind", True, True)
    assert how != "by_finder" or results["pickled"] == "ok"
    if LINUX and how != "by_chroot":  # without /proc nobody's processes are seen
        assert (taken["cause"], taken["holders"]) == ("listener", 1)


@pytest.mark.parametrize("how", WAYS)
def test_a_module_that_cannot_be_loaded_is_named_in_the_error(how: str, folder: Path) -> None:
    results, forbidden = run(how, False, folder)
    assert (how == "by_finder") == ("harken._diagnosis" in forbidden)  # or nothing was tried above
    for name in ("127.0.0.1:0", ":0", "unix:FOLDER/a", "bind", "adopt", "to_socket", "sockets", "stats", "closed"):
        assert "step" not in results[name], name
        assert "oserror" not in results[name], name
    assert results["acceptor"] == "1"
    for name in NEED_A_MODULE:
        if "oserror" in results[name]:
            assert results[name]["oserror"] == errno.ENOENT
            assert "harken.preload() loads it beforehand" in results[name]["text"]
        else:
            assert (results[name]["step"], results[name]["errno"]) == ("import", 2), name
    assert results["127.0.0.1:taken"] == {
        "step": "bind", "errno": errno.EADDRINUSE, "hint": False, "in use": True, "cause": "unknown", "holders": 0
    }  # fmt: skip


@pytest.mark.parametrize("preloaded", [False, True])
def test_the_first_listen_without_descriptors_says_so(preloaded: bool, folder: Path) -> None:
    results, _ = run("by_descriptors", preloaded, folder)
    plain = {"step": "socket", "errno": errno.EMFILE, "hint": preloaded, "in use": False}
    assert results["first"] == plain
    for name in (
        "127.0.0.1:0", ":0", "127.0.0.1:taken", ":0?nodelay=1", "mptcp://127.0.0.1:0", "unix:FOLDER/a", "options",
        "mode", "owner", "interface", "backlog", "bind",
    ):  # fmt: skip
        assert results[name] == plain, name
    for name in ("localhost:0", "n\xe4he.invalid:0"):
        assert results[name] == plain | {"step": "getaddrinfo"}
    for name in ("acceptor", "accept"):
        assert results[name]["oserror"] == errno.EMFILE


def test_each_module_is_loaded_by_import_or_by_preload_or_is_a_command() -> None:
    commands = {"__main__", "_cli", "_cli.check", "_cli.serve", "_cli.table", "_cli.who"}
    of_asyncio = {"asyncio", "asyncio._hosts", "asyncio._server", "asyncio._start", "asyncio._threads"}
    of_asyncio |= {"asyncio._transports", "_uvloop"}
    program = "import sys, harken; print(*(name for name in sys.modules if name.startswith('harken.')))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    names = {module.name.removeprefix("harken.") for module in pkgutil.walk_packages(harken.__path__, "harken.")}
    names -= {name.removeprefix("harken.") for name in loaded} | {*_loading.PARTS, "_diagnosis"}
    of_workers = {"workers", "workers._board", "workers._busy", "workers._supervisor", "workers._worker"}
    assert names == commands | of_asyncio | of_workers | {"pytest_plugin"}


def test_threads_may_preload_at_once() -> None:
    program = """if 1:
        import harken, threading
        barrier, failed = threading.Barrier(8), []
        def load():
            barrier.wait()
            try:
                harken.preload()
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=load) for _ in range(8)]
        [one.start() for one in threads], [one.join() for one in threads]
        assert failed == [], failed
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_error_for_a_failed_import_has_the_systems_reason(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("import harken\nraise SyntaxError('cut off')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(OSError, match=r"cut off \(the module half cannot be loaded") as caught:
            _loading.load("half")
    assert (caught.value.errno, type(caught.value.__cause__)) == (errno.ENOENT, SyntaxError)


def test_a_failed_import_gets_no_hint_about_the_address(tmp_path: Path) -> None:
    program = f"""
    import sys
    import harken, harken._diagnosis.hints
    sys.modules["harken._sockopt"] = None
    try:
        harken.listen("unix:{tmp_path}/missing/a.sock", mode=0o600)
    except FileNotFoundError as error:
        tell(step=error.step, hint=error.hint)
    """
    assert children.run(program) == {"step": "import", "hint": ""}
