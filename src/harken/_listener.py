"""Listening sockets, as a server holds them: one `Listener` an address, and `Listeners` for all of one call."""

from __future__ import annotations

from os import fsdecode

from ._bind import ANY_CID, scoped, unix_url
from ._collision import interface_of
from ._errors import AddressInUseError, ListenError, failure
from ._loading import Later, load
from ._plan import DEFAULT, Plan
from ._socket import Socket, carried, close_each, family_of, given_by, name_of, sockets, state_of
from ._stats import ListenerStats, queue, stats, warn_if_less
from ._system import AF_INET, AF_INET6, AF_VSOCK, IPPROTO_MPTCP

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    import socket as stdlib
    import typing

    from . import _acceptor, _types
else:
    typing, stdlib = Later("typing"), Later("socket")
    _types, _acceptor = Later("harken._types"), Later("harken._acceptor")


class Listener(Socket):
    """A listening socket: a `Socket` with its address, options and backlog. It is blocking at first."""

    __slots__ = ("_was", "plan")

    plan: Plan
    """How it was opened."""
    _was: tuple[_types.Address, str, int | None]
    """Address, URL and backlog when the handle was given away."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self.plan = DEFAULT
        super().__init__(family, type, proto, fileno)

    @classmethod
    def without_handle(cls, plan: Plan = DEFAULT) -> Listener:
        """A listener into which a handle will be moved."""
        made = cls.__new__(cls)
        made.plan = plan
        return made

    @property
    def address(self) -> _types.Address:
        """Where it listens: ``(host, port)``, or ``(host, port, flowinfo, scope_id)`` for IPv6, ``(cid, port)`` for
        vsock; for a unix socket its path as a str, an abstract name with the NUL in front. It stays known when the
        handle is given away, for instance by `to_socket()`, as do ``port``, ``url`` and ``backlog``."""
        if given_by(self):
            return self._was[0]
        address: _types.Address | bytes = name_of(self)
        return fsdecode(address) if isinstance(address, bytes) else address

    @property
    def port(self) -> int:
        """The port, also when the system chose it. Raises ValueError for a unix socket, which has none."""
        address = self.address
        if isinstance(address, str) or family_of(self) not in (AF_INET, AF_INET6, AF_VSOCK):
            raise ValueError(f"{self.url} has no port")
        return address[1]

    @property
    def url(self) -> str:
        """The address as a bind that `harken.listen` reads: ``tcp://[::1]:8080``, ``unix:/run/app.sock``."""
        if given_by(self):
            return self._was[1]
        address = self.address
        if isinstance(address, str) or family_of(self) in (AF_INET, AF_INET6):
            return url_of(address, "mptcp" if self.proto == IPPROTO_MPTCP else "tcp")
        if family_of(self) == AF_VSOCK:
            return f"vsock://{'*' if int(address[0]) == ANY_CID else address[0]}:{address[1]}"
        return f"fd://{self.fileno()}"  # of a family that has no URL

    @property
    def backlog(self) -> int | None:
        """How many connections may wait, as the system granted; None where it does not report it (macOS, Windows)."""
        if given_by(self):
            return self._was[2]
        self._must_be_open()
        return queue(self)[1]

    @property
    def state(self) -> str:
        """``bound``, ``listening`` or ``closed``."""
        return state_of(self)

    @property
    def options(self) -> typing.Mapping[str, object]:
        """The options that were asked for, with the values that the system has now: it rounds some, and caps others."""
        if self.plan.options is not None:
            return self.plan.read_back(self)
        asked = carried(self)[0]
        granted = None if asked < 0 else self.backlog
        return {} if asked < 0 else {"backlog": asked if granted is None else granted}

    def listen(self, backlog: int | None = None) -> None:
        """Lets clients connect: listen(2).

        ``backlog`` is how many connections may wait in the queue. None is what `harken.bind` was given, or else the
        most that the system grants.

        Raises ListenError. Warns (RuntimeWarning) if the system grants a shorter queue than was asked for, and says
        what to change.

        On a socket that listens already only a longer queue has an effect: a plain listen(2) would shorten it, for all
        processes that share the socket."""
        warn_if_less([(self, self._begin(backlog))], level=3)

    def _begin(self, backlog: int | None) -> int:
        """listen(2), and the options that the plan sets after it. Returns the backlog that was asked for, -1 for the
        most."""
        asked = self._listen_at_least(backlog)
        try:
            self.plan.after_listen(self)
        except OSError as reason:
            raise self._failed("setsockopt", reason) from None
        return asked

    def _listen_at_least(self, backlog: int | None) -> int:
        """listen(2), unless the socket listens already and its queue is as long. Returns the backlog that was asked
        for; -1 for the most, and where the queue stays as it was."""
        step = "getsockopt"
        try:
            if (backlog is None or (isinstance(backlog, int) and backlog >= 0)) and self.state == "listening":
                granted = self.backlog
                if backlog is None or granted is None or backlog <= granted:
                    return -1
            step = "listen"
            super().listen(backlog)
        except OSError as reason:
            raise self._failed(step, reason) from None
        return carried(self)[0] if backlog is None else backlog

    def _failed(self, step: str, reason: OSError) -> OSError:
        """An error of this listener as a ListenError. The error of a closed one is returned as it is."""
        handle = self.fileno()
        if handle < 0 or isinstance(reason, ListenError):
            return reason
        try:
            address: _types.Address | str = self.address
        except OSError:
            address = f"fd://{handle}"
        error = failure(step, address, reason)
        if isinstance(error, AddressInUseError):
            error._interface = interface_of(self)
        return error

    def _must_be_open(self) -> None:
        if self.fileno() < 0:
            self.getsockname()  # says why it is not

    def _about_to_move(self, _by: str) -> None:
        """Called before the handle goes. Raises where it must not."""
        self._must_be_open()
        self._was = (self.address, self.url, self.backlog)

    def _twin(self) -> Listener:
        """A listener without a handle, for this one's handle or a duplicate of it."""
        return Listener.without_handle(self.plan)

    def stats(self) -> ListenerStats:
        """Returns how many connections are queued, how many may be, and the counters of drops: `harken.stats`."""
        self._must_be_open()
        return stats(self)

    def __str__(self) -> str:
        by = given_by(self)
        if by:
            return f"{self.url} (given away by {by})"
        return self.url if self.fileno() >= 0 else "closed"

    def __repr__(self) -> str:
        return f"<harken.Listener {self}>"


class Listeners(tuple[Listener, ...]):
    """The listeners of one `harken.listen`, in the order of its binds: a tuple, and a context manager that closes
    them."""

    _left_out: typing.Sequence[tuple[_types.Address, OSError]] = ()
    _left_out_explained = False

    @property
    def left_out(self) -> typing.Sequence[tuple[_types.Address, OSError]]:
        """Addresses of a name or a wildcard that were skipped because this machine lacks their family, each with an
        error whose text says why: IPv6 is disabled, no interface has it, the system was built without it."""
        if self._left_out and not self._left_out_explained:  # looked up when it is first read
            try:
                why_left_out = load("harken._diagnosis.hints").why_left_out
            except OSError:
                return self._left_out  # without the reasons
            self._left_out = [(address, why_left_out(address, error)) for address, error in self._left_out]
            self._left_out_explained = True
        return self._left_out

    @property
    def port(self) -> int:
        """The port, if all listeners that have a port share it. Raises ValueError if there are several ports, or
        none."""
        ports = {listener.port for listener in self if family_of(listener) in (AF_INET, AF_INET6)}
        if len(ports) != 1:
            raise ValueError(f"these listeners have {len(ports) or 'no'} ports: {', '.join(map(str, self))}")
        return ports.pop()

    def listen(self, backlog: int | None = None) -> None:
        """Calls `Listener.listen` for each, in order: after `harken.bind`, clients can connect from then on.

        ``backlog`` is how many connections may wait in each queue. None is what `harken.bind` was given, or else the
        most that the system grants.

        Raises ListenError when one cannot listen; those before it listen then, those after it do not. Warns as
        `Listener.listen` does, once for all.
        """
        warn_if_less([(listener, listener._begin(backlog)) for listener in self], level=3)

    def acceptor(
        self,
        *,
        batch: int | None = None,
        limit: int | None = None,
        on_overload: _types.OnOverload = "pause",
        engine: str | None = None,
    ) -> _acceptor.Acceptor:
        """Returns an `Acceptor` for all of them, which accepts in batches and survives running out of descriptors. The
        arguments are those of `Acceptor`."""
        from ._acceptor import Acceptor

        return Acceptor(self, batch=batch, limit=limit, on_overload=on_overload, engine=engine)

    sockets = sockets  # compiled: all move in one step, or none
    close = close_each  # compiled: no signal handler runs between two of them

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<harken.Listeners {', '.join(map(str, self))}>"


for _method, _name in ((Listeners.sockets, "sockets"), (Listeners.close, "close")):  # as functions of this class
    _method.__module__, _method.__name__, _method.__qualname__ = __name__, _name, f"Listeners.{_name}"


def url_of(address: _types.Address, scheme: str = "tcp") -> str:
    """An address as a bind."""
    if isinstance(address, str):
        return unix_url(address)
    host, port = str(address[0]), address[1]
    if ":" not in host:
        return f"{scheme}://{host}:{port}"
    if len(address) > 3 and address[3]:
        host = scoped(host, int(address[3]))
    return f"{scheme}://[{host}]:{port}"
