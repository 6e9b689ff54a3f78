"""The options of a listening socket: one table.

To add an option, add a row to `TABLE`, and its number to ``net_options`` of each system that has it
(``ext/harken/platform/on_*.h``); then run ``.ci/options``, which writes what follows from the table: the signatures of
`harken.listen`, `harken.bind` and of harken.asyncio's functions, the fields of `Options`, and the tables of
docs/options.md.
"""

# ruff: noqa: ARG001 - not every `lacks` needs both of its arguments

from __future__ import annotations

from . import _in_force
from ._option_kinds import (
    Account,
    Backlog,
    Buffer,
    FastOpen,
    Function,
    Interface,
    Kind,
    Mode,
    Sharing,
    Switch,
    Text,
    Whole,
)
from ._socket import Socket, family_of, set_exclusive
from ._system import (
    AF_INET6,
    AF_UNIX,
    EXCLUSIVE_IS_A_CHOICE,
    FASTOPEN_EARLY,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    OPTIONS,
    TAKES_BOTH,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# The kinds of binds. An option that is for TCP but not for TCP over IPv4 alone has TCP without TCP4, and so on.
TCP, TCP4, PATH, ABSTRACT, VSOCK, INHERITED = "tcp", "tcp4", "path", "abstract", "vsock", "inherited"
WHAT = {
    TCP: "TCP",
    TCP4: "IPv4",
    PATH: "a unix socket",
    ABSTRACT: "an abstract unix socket, which every local user can connect to",
    VSOCK: "a vsock",
    INHERITED: "an inherited socket",
}
"""What a message calls them."""

ANY_TCP = (TCP, TCP4)
UNIX = (PATH, ABSTRACT)
EVERY = (*ANY_TCP, *UNIX, VSOCK, INHERITED)

# When an option is set. `_plan` has the steps.
BEFORE_BIND = "before bind"
AFTER_LISTEN = "after listen"
BY_A_STEP = "by a step"
"""One of the steps does it: listen(2) takes the backlog, for example."""

# What becomes of an option on accepted connections, as the documentation says it.
YES = "yes"
AGAIN = "again"
UNUSED = "yes, unused"
LISTENER = "the listener's alone"
NOT_HERE = "-"


class Option:
    """A row of the table."""

    __slots__ = (
        "aliases", "apply", "at_accept", "binds", "connections", "doc", "elsewhere", "get", "implies", "in_force",
        "kind", "lacks", "name", "privilege", "read_back", "sets", "shortfall", "sockopt", "stage", "when",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kind: Kind,
        doc: str,
        *,
        binds: tuple[str, ...],
        sets: tuple[str, str, str, str, str],
        stage: str = BEFORE_BIND,
        when: str = "",
        connections: tuple[str, str, str] = (YES, YES, YES),
        at_accept: bool = False,
        read_back: str = "by the system",
        sockopt: bool = True,
        apply: Callable[[Socket, Any], None] | None = None,
        get: Callable[[Any], Any] | None = None,
        implies: str = "",
        lacks: Callable[[str, object, str], str] | str = "it has no such option",
        privilege: str = "",
        in_force: Callable[[int, int | None], str] | None = None,
        shortfall: tuple[str, str] | None = None,
        elsewhere: tuple[str, str, str] = (NOT_HERE, NOT_HERE, NOT_HERE),
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.kind = kind
        """Which values are valid, with their unit; how they are written in a bind and given to the system."""
        self.doc = doc
        """For ``help(harken.Options)``: constant, platforms, meaning, unit."""
        self.binds = binds
        """The kinds of binds that it applies to."""
        self.sets = sets
        """What it sets on Linux, FreeBSD, macOS, OpenBSD, Windows."""
        self.stage = stage
        """When it is set, on this system: BEFORE_BIND, AFTER_LISTEN or BY_A_STEP."""
        self.when = when or stage
        """When it is set, for the documentation."""
        self.connections = connections
        """What accepted connections have of it on Linux, on FreeBSD, macOS and OpenBSD, and on Windows."""
        self.at_accept = at_accept
        """Connections are to have it: on a system that does not pass it on, it is set when they are accepted."""
        self.read_back = read_back
        """For the documentation: what ``Listener.options`` says."""
        self.sockopt = sockopt
        """It is an option of setsockopt(), with a number in ``platform/on_*.h`` where the system has it."""
        self.apply = apply
        """Sets it, where that takes something else than setsockopt() with its number."""
        self.get = get
        """Reads it back, where that takes something else; returns None where the system does not say."""
        self.implies = implies
        """A switch that is set with it, unless that is given too."""
        self.lacks = lacks
        """Why a system does not have it: a function of the bind's kind and the value, or the text."""
        self.privilege = privilege
        """For the hint: what it needs, on Linux."""
        self.in_force = in_force
        """Finds out whether the system, which accepted the value, does less than was asked for: see `_in_force`."""
        self.shortfall = shortfall
        """For the documentation: when it is not in force, and which setting decides."""
        self.elsewhere = elsewhere
        """What HAProxy, nginx and systemd.socket call it."""
        self.aliases = aliases
        """Names under which people look for it, in lower case and without underscores; for the error message."""

    def __repr__(self) -> str:
        return f"<Option {self.name}>"

    def missing(self, kind: str, value: object, call: str) -> str:
        """Why this system cannot set it to this value, for a bind of this kind in this call, "listen()" or "bind()";
        empty where it can."""
        if not isinstance(self.lacks, str):
            return self.lacks(kind, value, call)
        return self.lacks if self.sockopt and self.name not in OPTIONS and value is not False else ""


def on(
    every: str = NOT_HERE, *, linux: str = "", freebsd: str = "", macos: str = "", openbsd: str = "", windows: str = ""
) -> tuple[str, str, str, str, str]:
    """What an option sets on each system."""
    return linux or every, freebsd or every, macos or every, openbsd or every, windows or every


def known_as(*, haproxy: str = NOT_HERE, nginx: str = NOT_HERE, systemd: str = NOT_HERE) -> tuple[str, str, str]:
    """What others call it."""
    return haproxy, nginx, systemd


def _set_exclusive(sock: Socket, value: bool) -> None:
    if family_of(sock) != AF_UNIX:  # for a path `_unix` decides
        set_exclusive(sock, value)


def _set_inheritable(sock: Socket, value: bool) -> None:
    sock.set_inheritable(value)


def _only_ipv6(listener: Socket) -> bool | None:
    return bool(listener.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)) if family_of(listener) == AF_INET6 else None


def _always_exclusive(kind: str, value: object, call: str) -> str:
    if value or kind == PATH or EXCLUSIVE_IS_A_CHOICE or call == "bind()":
        return ""
    return "two sockets can never listen on one address there, unless both have reuse_port"


def _never_both(kind: str, value: object, call: str) -> str:
    return "" if value or TAKES_BOTH else "IPv6 sockets never accept IPv4 there"


def _no_owners(kind: str, value: object, call: str) -> str:
    import os

    return "" if hasattr(os, "chown") else "paths have no permissions of this kind there"


# The order is that in which they are set: IP_TOS before SO_PRIORITY, which Linux derives from it.
TABLE: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "backlog",
            Backlog("connections"),
            "listen(2): how many connections may wait in the accept queue. By default as many as the system grants.",
            binds=EVERY,
            sets=on("listen(2)", windows="listen()"),
            sockopt=False,
            stage=BY_A_STEP,
            when="at listen",
            connections=(LISTENER, LISTENER, LISTENER),
            get=lambda listener: listener.backlog,
            read_back="as granted; as asked where the system does not say",
            shortfall=("the system grants a shorter queue", "net.core.somaxconn, kern.ipc.soacceptqueue"),
            elsewhere=known_as(haproxy="`backlog`", nginx="`backlog`", systemd="`Backlog=`"),
            aliases=("queue", "somaxconn"),
        ),
        Option(
            "reuse_port",
            Sharing("switch, or `join`"),
            "Several sockets on one port, among which the system distributes connections: SO_REUSEPORT on Linux, "
            "SO_REUSEPORT_LB on FreeBSD; on other systems one socket would get all of them. True starts such a "
            'group, or adds to one of this process; a port of another process is refused. ``"join"`` also joins '
            "a group of another process of the same user.",
            binds=ANY_TCP,
            sets=on(linux="SO_REUSEPORT", freebsd="SO_REUSEPORT_LB"),
            stage=BY_A_STEP,
            when="after listen; `join`: before bind; FreeBSD: before bind",
            connections=(UNUSED, "unused", NOT_HERE),
            lacks="one of the sockets would get all connections",
            elsewhere=known_as(haproxy="`shards`, `noreuseport` (global)", nginx="`reuseport`", systemd="`ReusePort=`"),
        ),
        Option(
            "ipv6_only",
            Switch(),
            "IPV6_V6ONLY. True, the default, accepts IPv6 only. False accepts IPv4 on the same socket, with peer "
            "addresses like ``::ffff:192.0.2.1``, so that a bind without a host is one socket instead of two.",
            binds=(TCP,),
            sets=on("IPV6_V6ONLY", openbsd="always on"),
            sockopt=False,
            stage=BY_A_STEP,
            when=BEFORE_BIND,
            connections=(LISTENER, LISTENER, LISTENER),
            get=_only_ipv6,
            lacks=_never_both,
            elsewhere=known_as(haproxy="`v6only`, `v4v6`", nginx="`ipv6only`", systemd="`BindIPv6Only=`"),
            aliases=("v4v6", "dualstack", "dualstackipv6"),
        ),
        Option(
            "exclusive",
            Switch(),
            "No other socket may bind this address or one that overlaps it. Always so on Linux. On Windows "
            "SO_EXCLUSIVEADDRUSE, which is the default; on macOS and the BSDs True leaves SO_REUSEADDR off, so "
            "that a restart has to wait for connections in TIME_WAIT. For the path of a unix socket, False takes it "
            "over from a live server. In `bind`, False reserves a port for another process: a socket that has "
            "SO_REUSEADDR can bind it, and listens on it unless the port's owner has called ``listen()`` before.",
            binds=(*ANY_TCP, *UNIX),
            sets=on("no SO_REUSEADDR", linux="always on", windows="SO_EXCLUSIVEADDRUSE"),
            sockopt=False,
            connections=(LISTENER, LISTENER, LISTENER),
            apply=_set_exclusive,
            read_back="as asked",
            lacks=_always_exclusive,
        ),
        Option(
            "nodelay",
            Switch(),
            "TCP_NODELAY: small writes are sent at once. On by default, and inherited by connections.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("TCP_NODELAY"),
            at_accept=True,
            elsewhere=known_as(
                haproxy="always on, per connection", nginx="`tcp_nodelay`, a directive of its own", systemd="`NoDelay=`"
            ),
        ),
        Option(
            "keepalive",
            Switch(),
            "SO_KEEPALIVE: idle connections are probed, and dead ones end. Implied by the next three.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("SO_KEEPALIVE"),
            connections=(YES, AGAIN, YES),
            at_accept=True,
            elsewhere=known_as(haproxy="`option clitcpka`", nginx="`so_keepalive`", systemd="`KeepAlive=`"),
        ),
        Option(
            "keepalive_idle",
            Whole("seconds", 1, 32767),  # Linux accepts no more
            "TCP_KEEPIDLE, on macOS TCP_KEEPALIVE: seconds until the first probe.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("TCP_KEEPIDLE", macos="TCP_KEEPALIVE", openbsd=NOT_HERE),
            connections=(YES, AGAIN, AGAIN),
            at_accept=True,
            implies="keepalive",
            elsewhere=known_as(
                haproxy="`clitcpka-idle`", nginx="first field of `so_keepalive`", systemd="`KeepAliveTimeSec=`"
            ),
            aliases=("keepidle",),
        ),
        Option(
            "keepalive_interval",
            Whole("seconds", 1, 32767),
            "TCP_KEEPINTVL: seconds between probes.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("TCP_KEEPINTVL", openbsd=NOT_HERE),
            connections=(YES, AGAIN, AGAIN),
            at_accept=True,
            implies="keepalive",
            elsewhere=known_as(haproxy="`clitcpka-intvl`", nginx="second field", systemd="`KeepAliveIntervalSec=`"),
            aliases=("keepintvl",),
        ),
        Option(
            "keepalive_count",
            Whole("probes", 1, 127),
            "TCP_KEEPCNT: the connection ends after this many probes without an answer.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("TCP_KEEPCNT", openbsd=NOT_HERE),
            connections=(YES, AGAIN, AGAIN),
            at_accept=True,
            implies="keepalive",
            elsewhere=known_as(haproxy="`clitcpka-cnt`", nginx="third field", systemd="`KeepAliveProbes=`"),
            aliases=("keepcnt",),
        ),
        Option(
            "user_timeout",
            Whole("milliseconds", 0),
            "TCP_USER_TIMEOUT (Linux): milliseconds that sent data may stay unacknowledged.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="TCP_USER_TIMEOUT"),
            connections=(YES, NOT_HERE, NOT_HERE),
            at_accept=True,
            elsewhere=known_as(haproxy="`tcp-ut`"),
        ),
        Option(
            "defer_accept",
            Whole("seconds", 0),
            "TCP_DEFER_ACCEPT (Linux): seconds for which a connection that has sent nothing is not accepted. Linux "
            "rounds up to the times at which it repeats the handshake: 1, 3, 7, 15 and so on.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="TCP_DEFER_ACCEPT"),
            connections=(LISTENER, NOT_HERE, NOT_HERE),
            read_back="rounded up to 1, 3, 7, 15 and so on",
            in_force=_in_force.defer_accept,
            shortfall=("longer than the kernel waits (29,887 s)", ""),
            elsewhere=known_as(haproxy="`defer-accept`", nginx="`deferred`", systemd="`DeferAcceptSec=`"),
            aliases=("deferred",),
        ),
        Option(
            "fastopen",
            FastOpen("connections", 0),
            "TCP_FASTOPEN: how many connections that brought data with their first packet may wait; 0 is none. A "
            "length on Linux, on or off on macOS and FreeBSD. Each of them may have disabled it (Linux: "
            "net.ipv4.tcp_fastopen must contain 2).",
            binds=(*ANY_TCP, INHERITED),
            sets=on("TCP_FASTOPEN, 0 or 1", linux="TCP_FASTOPEN", openbsd=NOT_HERE, windows=NOT_HERE),
            stage=BEFORE_BIND if FASTOPEN_EARLY else AFTER_LISTEN,
            when="before bind; macOS: after listen",
            connections=(LISTENER, LISTENER, NOT_HERE),
            in_force=_in_force.fastopen,
            shortfall=(
                "servers may not use it; more than the queue's limit",
                "net.ipv4.tcp_fastopen without 2 in it; net.core.somaxconn",
            ),
            elsewhere=known_as(haproxy="`tfo`", nginx="`fastopen`"),
            aliases=("tfo",),
        ),
        Option(
            "rcvbuf",
            Buffer("bytes", 1),
            "SO_RCVBUF: bytes of the receive buffer, which limits the TCP window. Turns off Linux's automatic "
            "tuning; limited by net.core.rmem_max.",
            binds=(*ANY_TCP, *UNIX, INHERITED),
            sets=on("SO_RCVBUF"),
            connections=(YES, AGAIN, YES),
            at_accept=True,
            read_back="by the system; Linux: half of what it reports, at least 1152",
            in_force=_in_force.buffer("rcvbuf", "rmem_max"),
            shortfall=("more than a process may have", "net.core.rmem_max"),
            elsewhere=known_as(haproxy="`tune.rcvbuf.client`", nginx="`rcvbuf`", systemd="`ReceiveBuffer=`"),
        ),
        Option(
            "sndbuf",
            Buffer("bytes", 1),
            "SO_SNDBUF: bytes of the send buffer; limited by net.core.wmem_max.",
            binds=(*ANY_TCP, *UNIX, INHERITED),
            sets=on("SO_SNDBUF"),
            connections=(YES, AGAIN, YES),
            at_accept=True,
            read_back="by the system; Linux: half of what it reports, at least 2304",
            in_force=_in_force.buffer("sndbuf", "wmem_max"),
            shortfall=("more than a process may have", "net.core.wmem_max"),
            elsewhere=known_as(haproxy="`tune.sndbuf.client`", nginx="`sndbuf`", systemd="`SendBuffer=`"),
        ),
        Option(
            "freebind",
            Switch(),
            "IP_FREEBIND, IPV6_FREEBIND (Linux): an address can be bound that this machine does not have yet.",
            binds=ANY_TCP,
            sets=on(linux="IP_FREEBIND, IPV6_FREEBIND"),
            connections=(UNUSED, NOT_HERE, NOT_HERE),
            elsewhere=known_as(haproxy="part of `transparent`", systemd="`FreeBind=`"),
        ),
        Option(
            "transparent",
            Switch(),
            "IP_TRANSPARENT (Linux; needs CAP_NET_ADMIN), IP_BINDANY (FreeBSD), SO_BINDANY (OpenBSD): addresses of "
            "other machines can be bound, for a proxy to which traffic is diverted.",
            binds=ANY_TCP,
            sets=on(linux="IP_TRANSPARENT, IPV6_TRANSPARENT", freebsd="IP_BINDANY, IPV6_BINDANY", openbsd="SO_BINDANY"),
            connections=(UNUSED, "unused", NOT_HERE),
            privilege="needs CAP_NET_ADMIN",
            elsewhere=known_as(haproxy="`transparent`", systemd="`Transparent=`"),
        ),
        Option(
            "interface",
            Interface("name"),
            "SO_BINDTODEVICE (Linux), IP_BOUND_IF (macOS): only connections over this network interface.",
            binds=ANY_TCP,
            sets=on(linux="SO_BINDTODEVICE", macos="IP_BOUND_IF, IPV6_BOUND_IF"),
            connections=(YES, "the route's choice", NOT_HERE),
            read_back="by the system; macOS: as asked",
            elsewhere=known_as(haproxy="`interface`", systemd="`BindToDevice=`"),
            aliases=("device", "dev", "bindtodevice"),
        ),
        Option(
            "mark",
            Whole("number", 0, 0xFFFFFFFF),
            "SO_MARK (Linux; needs CAP_NET_ADMIN): a number that firewall and routing rules can match.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="SO_MARK"),
            connections=(YES, NOT_HERE, NOT_HERE),
            at_accept=True,
            privilege="needs CAP_NET_ADMIN",
            elsewhere=known_as(haproxy="`set-fc-mark`, a rule per connection", systemd="`Mark=`"),
            aliases=("fwmark",),
        ),
        Option(
            "tos",
            Whole("byte", 0, 255),
            "IP_TOS and IPV6_TCLASS: the byte in the IP header, 0 to 255; DSCP is its upper six bits.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("IP_TOS, IPV6_TCLASS", windows=NOT_HERE),
            connections=(YES, AGAIN, NOT_HERE),
            at_accept=True,
            read_back="by the system; Linux: without the lower two bits, which are for ECN",
            in_force=_in_force.tos,
            shortfall=("the lower two bits are set", "TCP uses them for ECN"),
            elsewhere=known_as(haproxy="`set-fc-tos`, a rule per connection", systemd="`IPTOS=`"),
            aliases=("dscp",),
        ),
        Option(
            "ttl",
            Whole("hops", 1, 255),
            "IP_TTL and IPV6_UNICAST_HOPS: how many routers a packet may pass, 1 to 255.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("as on Linux", linux="IP_TTL, IPV6_UNICAST_HOPS"),
            connections=(YES, AGAIN, AGAIN),
            at_accept=True,
            elsewhere=known_as(systemd="`IPTTL=`"),
            aliases=("hops", "hoplimit"),
        ),
        Option(
            "mss",
            Whole("bytes", 88, 32767),  # as Linux
            "TCP_MAXSEG: the largest segment, in bytes, that the handshake offers.",
            binds=(*ANY_TCP, INHERITED),
            sets=on("TCP_MAXSEG", windows=NOT_HERE),
            connections=("yes, less 12 for timestamps", "by the handshake", NOT_HERE),
            elsewhere=known_as(haproxy="`mss`"),
            aliases=("maxseg",),
        ),
        Option(
            "congestion",
            Text("name"),
            "TCP_CONGESTION (Linux, FreeBSD): the congestion control algorithm, such as ``bbr``; on Linux one of "
            "net.ipv4.tcp_allowed_congestion_control.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="TCP_CONGESTION", freebsd="TCP_CONGESTION"),
            connections=(YES, "again (FreeBSD)", NOT_HERE),
            at_accept=True,
            elsewhere=known_as(haproxy="`cc`", systemd="`TCPCongestion=`"),
            aliases=("cc",),
        ),
        Option(
            "priority",
            Whole("number", 0),
            "SO_PRIORITY (Linux): the queueing class of outgoing packets; above 6 it needs CAP_NET_ADMIN. "
            "Connections do not inherit it: it is set on each when it is accepted.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="SO_PRIORITY"),
            connections=("**no: set at accept**", NOT_HERE, NOT_HERE),
            at_accept=True,
            privilege="above 6 needs CAP_NET_ADMIN",
            elsewhere=known_as(systemd="`Priority=`"),
        ),
        Option(
            "incoming_cpu",
            Whole("CPU", 0),
            "SO_INCOMING_CPU (Linux): in a reuse_port group, this socket gets the connections that arrive on that CPU.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="SO_INCOMING_CPU"),
            connections=("no: reads the CPU there", NOT_HERE, NOT_HERE),
            in_force=_in_force.incoming_cpu,
            shortfall=("this machine has no such CPU", "/sys/devices/system/cpu/possible"),
        ),
        Option(
            "busy_poll",
            Whole("microseconds", 0),
            "SO_BUSY_POLL (Linux; older kernels require CAP_NET_ADMIN to raise it): microseconds for which a read "
            "polls the network device.",
            binds=(*ANY_TCP, INHERITED),
            sets=on(linux="SO_BUSY_POLL"),
            connections=(YES, NOT_HERE, NOT_HERE),
            at_accept=True,
            privilege="needs CAP_NET_ADMIN",
        ),
        Option(
            "inheritable",
            Switch(),
            "Child processes inherit the listener. Connections are never inherited.",
            binds=EVERY,
            sets=on("no FD_CLOEXEC", windows="HANDLE_FLAG_INHERIT"),
            sockopt=False,
            connections=("never", "never", "never"),
            apply=_set_inheritable,
            get=lambda listener: listener.get_inheritable(),
            elsewhere=known_as(haproxy="`expose-fd listeners`", systemd="always, for what it passes on"),
        ),
        Option(
            "mode",
            Mode("octal"),
            "The permissions of a unix socket's path, such as 0o660; in a bind in octal, ``?mode=660``.",
            binds=(PATH,),
            sets=on("chmod(2)", windows=NOT_HERE),
            sockopt=False,
            stage=BY_A_STEP,
            when="before the path can be connected to",
            connections=("", "", NOT_HERE),
            read_back="as asked",
            lacks=_no_owners,
            elsewhere=known_as(haproxy="`mode`", nginx="always 0666", systemd="`SocketMode=`"),
            aliases=("perm", "permissions", "chmod", "umask"),
        ),
        Option(
            "owner",
            Account("name or number"),
            "The user who owns a unix socket's path, by name or number.",
            binds=(PATH,),
            sets=on("chown(2)", windows=NOT_HERE),
            sockopt=False,
            stage=BY_A_STEP,
            when="before the path can be connected to",
            connections=("", "", NOT_HERE),
            read_back="as asked",
            lacks=_no_owners,
            elsewhere=known_as(haproxy="`user`, `uid`", systemd="`SocketUser=`"),
            aliases=("user", "uid"),
        ),
        Option(
            "group",
            Account("name or number"),
            "The group of a unix socket's path, by name or number.",
            binds=(PATH,),
            sets=on("chown(2)", windows=NOT_HERE),
            sockopt=False,
            stage=BY_A_STEP,
            when="before the path can be connected to",
            connections=("", "", NOT_HERE),
            read_back="as asked",
            lacks=_no_owners,
            elsewhere=known_as(haproxy="`group`, `gid`", systemd="`SocketGroup=`"),
            aliases=("gid",),
        ),
        Option(
            "configure",
            Function("function"),
            "Called with each socket and the address that it will be bound to, for options that are not in this "
            "list. An exception that it raises is passed on, and nothing stays open.",
            binds=(*ANY_TCP, *UNIX, VSOCK),
            sets=on("yours"),
            sockopt=False,
            stage=BY_A_STEP,
            when="last before bind",
            connections=("what it sets", "what it sets", "what it sets"),
            read_back="",
        ),
    )
}


def set_at(stage: str) -> tuple[Option, ...]:
    """The options that are set at a stage, in order."""
    return tuple(option for option in TABLE.values() if option.stage == stage)


def for_connections() -> tuple[Option, ...]:
    """Those that connections are to have whether or not the system passes them on."""
    return tuple(option for option in TABLE.values() if option.at_accept)
