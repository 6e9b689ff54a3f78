"""harken: from a name to accepted connections.

The map of the house, in the order of the flow:

    _bind        what people write: ":8080", "[::1]:8080", "unix:/run/app.sock": `Bind`
    _resolve     name → addresses: `getaddrinfo`, `AddrInfo`                      (compiled)
    _socket      socket, bind, listen, accept, send, receive: `Socket`            (compiled)
    _options     what may be asked of the sockets: `Options`
    _listen      the story, name → addresses → socket → bind → listen: `listen`, `bind`
    _plan        when each option is set
    _listener    what a server holds: `Listeners`, `Listener`
    _acceptor    the accept engine: batches, limits, overload: `Acceptor`         (compiled)
    asyncio      the same for asyncio and uvloop: `start_server`, `create_server`
    _hosts       what asyncio's host and port mean, as binds
    _transport   how a connection gets a transport of the loop
    _aside       what can wait is done in a thread of its own
    _overload    what the log is told when descriptors run out
    _loading     what is loaded when: `preload`
    _stats       how long the queues are: `stats`; what an acceptor did: `AcceptorStats`
    _unix        unix sockets: whose a path is, and from when
    _handover    the same as `socket.socket` objects, for other servers
    _inherit     sockets that are there already: `adopt`, `from_systemd`
    _errors      what went wrong, in which step, on which address: `ListenError`, `AddressInUseError`
    _hints       what to do about it
    _holders     who has an address: `holders`, `Holder`
    _foresee     what a call would come to: all of it done, but listen(2), and undone
    _collision   whether a call is in its own way
    __main__     the command line; `_serve`, `_who`, `_check`: its commands

and underneath `_system`: WSAStartup and WSACleanup, and the numbers.
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
    from ._holders import Holder, holders
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
    "Options",
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
    "holders",
    "listen",
    "preload",
    "stats",
]

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*__all__, "asyncio", *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> object:
    # Loaded when a program names it; `import harken` should not pay for it.
    if name == "Options":
        return _load("harken._options").Options
    if name == "asyncio":
        return _load("harken.asyncio")
    if name in ("Holder", "holders"):
        return getattr(_load("harken._holders"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
