"""What a group is made of: slots, and the members in them; and what it tells."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

from .._listener import Listener, Listeners
from .._socket import Socket, queue_of

if TYPE_CHECKING:
    from .._acceptor import Acceptor
    from .._types import OnOverload

EMPTY, USED, LEAVING = "empty", "used", "leaving"
"""States of a slot."""


class Retired(tuple[Socket, ...]):
    """What `Group.retire` found: the connections that were still in the queue, non-blocking, which are the caller's."""

    waited: float
    """Seconds until the last handshake was over."""
    lost_at_most: int | None
    """Handshakes that were still open at the deadline. Their clients are not reset: they come into the queue of the
    slot, and whoever gets that next serves them. None where the system does not tell of handshakes."""

    def __new__(cls, connections: Iterable[Socket], waited: float, lost_at_most: int | None) -> Self:
        self = super().__new__(cls, connections)
        self.waited = waited
        self.lost_at_most = lost_at_most
        return self

    @property
    def connections(self) -> tuple[Socket, ...]:
        """The connections, as a plain tuple."""
        return tuple(self)

    def __repr__(self) -> str:
        return f"<harken.Retired {len(self)} queued, waited {self.waited:.3f} s, lost at most {self.lost_at_most}>"


class MemberStats:
    """Figures of one member of a group; None where the system does not report one."""

    __slots__ = ("backlog", "drops", "member", "open", "queued", "serving", "slot")

    member: int
    slot: int | None
    """In which slot it is; None if it was retired."""
    serving: bool
    """Do new connections go there?"""
    queued: int | None
    """Connections that wait for accept(), on all of its listeners."""
    backlog: int | None
    """How many may."""
    drops: int | None
    """How many its listeners have dropped."""
    open: int | None
    """Connections that the member's acceptors have open; None if it has none."""

    def __init__(self, **facts: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, facts[name])

    def __repr__(self) -> str:
        names = ("member", "slot", "serving", "queued", "backlog", "drops", "open")
        return f"MemberStats({', '.join(f'{name}={getattr(self, name)}' for name in names)})"


class Member(Listeners):
    """The listeners of one member of a group: duplicates of what the group keeps. To close them, or to give them away,
    does nothing to connections that wait or to the group."""

    _slot: Slot

    def acceptor(
        self,
        *,
        batch: int | None = None,
        limit: int | None = None,
        on_overload: OnOverload = "pause",
        engine: str | None = None,
    ) -> Acceptor:
        """As of any `Listeners`; what it has open is what the policy "least" goes by."""
        made = super().acceptor(batch=batch, limit=limit, on_overload=on_overload, engine=engine)
        self._slot.add(made)
        return made


class Slot:
    """A place for a member, whose listeners are open as long as the group is."""

    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self.listeners = listeners
        self.state = EMPTY
        self.turn = 0  # how often it was given up
        self.member: Member | None = None  # the duplicates
        self.taken: list[Socket] = []  # out of the queue, and not given to the caller yet
        self._acceptors: list[weakref.ref[Acceptor]] = []
        self.count: Callable[[], int] | None = None  # connections that another process has open

    def add(self, acceptor: Acceptor) -> None:
        self._acceptors.append(weakref.ref(acceptor, self._acceptors.remove))

    def acceptors(self) -> list[Acceptor]:
        """Those that are there. Any thread may make one meanwhile, which a WeakSet would not let us walk through."""
        return [one for reference in self._acceptors.copy() if (one := reference()) is not None]

    def forget_acceptors(self) -> None:
        self._acceptors = []

    def open(self) -> int | None:
        if self.count is not None:
            return self.count()
        made = [acceptor.stats().open for acceptor in self.acceptors()]
        return sum(made) if made else None

    def load(self) -> int:
        return (self.open() or 0) + sum(queue_of(listener)[0] or 0 for listener in self.listeners)
