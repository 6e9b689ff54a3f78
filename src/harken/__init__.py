"""harken: from a name to accepted connections.

The modules, in the order in which a listener comes about:

    _bind        the syntax of binds, ":8080", "[::1]:8080", "unix:/run/app.sock": `Bind`
    _resolve     name → addresses: `getaddrinfo`, `AddrInfo`                      (compiled)
    _socket      socket, bind, listen, accept, send, receive: `Socket`            (compiled)
    _options     the options of a listening socket: `Options`
    _option_table    each option: kind, limits, binds, stage, inheritance; one table
    _option_kinds    the kinds of values that options have
    _sockopt     sets options on sockets and reads them back
    _plan        when each option is set
    _in_force    options that the system accepts without putting them in force
    _listen      name → addresses → socket → bind → listen: `listen`, `bind`      (compiled)
    _collision   binds of one call that conflict with each other
    _listener    what these return: `Listeners`, `Listener`
    _unix        unix sockets: who owns a path, and when it is removed
    _paths       the steps in the directory of a unix socket                      (compiled)
    _acceptor    accepting in batches, limits, overload: `Acceptor`               (compiled)
    _overload    what is logged when descriptors run out
    _stats       the length of the queues: `stats`; counters of an acceptor: `AcceptorStats`
    _group       one port for several workers: `group`, `Group`
    _handshakes  those that are under way
    _draining    how a server stops without losing a client: `Drained`
    _steering    which of its sockets gets a connection                           (compiled)
    _handover    `socket.socket` objects for other servers
    _inherit     inherited sockets: `adopt`, `from_systemd`
    _errors      `ListenError`, `AddressInUseError`: which step failed, on which address
    _loading     which modules are imported when: `preload`
    _system      WSAStartup and WSACleanup, and the system's constants            (compiled)
    _types       types that several modules use

    workers      a server in several processes: `workers.serve`
    asyncio      the same for asyncio and uvloop: `start_server`, `create_server`
    _diagnosis   what errors and commands find out: hints, `holders`, what `check` says
    __main__     the command line; its commands are in _cli
"""

from ._acceptor import Acceptor
from ._bind import Bind
from ._errors import AddressInUseError, ListenError
from ._inherit import adopt, from_systemd
from ._listen import bind, listen
from ._listener import Listener, Listeners
from ._loading import load as _load
from ._loading import preload
from ._resolve import AddrInfo, AddrInfoEntry, getaddrinfo
from ._socket import Socket
from ._stats import AcceptorStats, ListenerStats, stats
from ._system import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_ADDRCONFIG,
    AI_ALL,
    AI_CANONNAME,
    AI_NUMERICHOST,
    AI_NUMERICSERV,
    AI_PASSIVE,
    AI_V4MAPPED,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPV6_V6ONLY,
    MSG_PEEK,
    MSG_WAITALL,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_ACCEPTCONN,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_RCVBUF,
    SO_REUSEADDR,
    SO_SNDBUF,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    SOMAXCONN,
    TCP_NODELAY,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import asyncio as asyncio
    from . import workers as workers
    from ._diagnosis.holders import Holder, holders
    from ._draining import Drained
    from ._group import Group, MemberStats, Retired, group
    from ._options import Options

__all__ = [
    "AF_INET",
    "AF_INET6",
    "AF_UNIX",
    "AF_UNSPEC",
    "AI_ADDRCONFIG",
    "AI_ALL",
    "AI_CANONNAME",
    "AI_NUMERICHOST",
    "AI_NUMERICSERV",
    "AI_PASSIVE",
    "AI_V4MAPPED",
    "Acceptor",
    "AcceptorStats",
    "AddrInfo",
    "AddrInfoEntry",
    "AddressInUseError",
    "Bind",
    "Drained",
    "Group",
    "Holder",
    "IPPROTO_IP",
    "IPPROTO_IPV6",
    "IPPROTO_TCP",
    "IPPROTO_UDP",
    "IPV6_V6ONLY",
    "ListenError",
    "Listener",
    "ListenerStats",
    "Listeners",
    "MSG_PEEK",
    "MSG_WAITALL",
    "MemberStats",
    "Options",
    "Retired",
    "SHUT_RD",
    "SHUT_RDWR",
    "SHUT_WR",
    "SOCK_DGRAM",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "SOMAXCONN",
    "SO_ACCEPTCONN",
    "SO_ERROR",
    "SO_KEEPALIVE",
    "SO_LINGER",
    "SO_RCVBUF",
    "SO_REUSEADDR",
    "SO_SNDBUF",
    "SO_TYPE",
    "Socket",
    "TCP_NODELAY",
    "adopt",
    "bind",
    "from_systemd",
    "getaddrinfo",
    "group",
    "holders",
    "listen",
    "preload",
    "stats",
]

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*__all__, "asyncio", "workers", *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> object:
    # Loaded when a program names it; `import harken` should not pay for it.
    if name == "Options":
        return _load("harken._options").Options
    if name in ("asyncio", "workers"):
        return _load(f"harken.{name}")
    if name in ("Holder", "holders"):
        return getattr(_load("harken._diagnosis.holders"), name)
    if name == "Drained":
        return _load("harken._draining").Drained
    if name in ("Group", "MemberStats", "Retired", "group"):
        return getattr(_load("harken._group"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
