"""Several listeners on one port, one for each worker: `group`, `Group`.

On Linux each address of a group is a SO_REUSEPORT group of the kernel's, in which a small program (`_steering`) says
who gets a connection. A connection belongs to the listener that got its first packet, and is lost when that one is
closed, whether it waits in the queue or its handshake is still under way. So nothing is closed before the end. Members
of the group are in slots, there are more slots than members, and to replace a member is to steer its share to another
slot, and then to wait: until every handshake is over that was open when it was steered away. sock_diag(7) tells those
with the client's port, by which the program has chosen, so it is known whose they are.

The group as a whole stops without refusing anybody whose handshake has begun: then all are steered to the sink, which
takes nobody (`addresses`).

Where the system cannot steer (macOS, Windows), and for what has no such groups (unix sockets, vsock, MPTCP, inherited
sockets), all members share one listener, and whoever accepts first gets the connection. FreeBSD spreads connections
over members by itself (SO_REUSEPORT_LB), and cannot be told to leave one out.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self, overload

from .._bind import Bind
from .._handshakes import LOOK, Client, handshakes, wait
from .._listen import bind
from .._listener import Listener, Listeners
from .._options import for_binds
from .._socket import drops_of, family_of, queue_of
from .._stats import queue, warn_if_less
from .._steering import STEERS, hurry, place_of
from .._system import AF_INET, AF_INET6, OPTIONS, SYSTEM
from .._types import Address as SocketAddress
from .._types import Policy
from .addresses import Address, Balanced, Steered, answers, for_address
from .members import EMPTY, LEAVING, USED, Member, MemberStats, Retired, Slot

POLICIES = ("hash", "least", "weights")

MOST = 2000
"""Slots: a program of the kernel has 4096 instructions, of which a place takes two."""
_LIFE = 130.0  # seconds that a handshake may last: its answer is repeated for 63, by default
_REPAIR = 0.5  # seconds between two repairs of the program, which whoever has a member's descriptor may detach
_QUICK, _SLOW = 0.005, 0.1  # seconds between two looks at the loads


class Group(Sequence[Listeners]):
    """Members on one port, one for each worker: what `harken.group` returns. A sequence of `Listeners`, and a context
    manager.

    ``group[i]`` are the listeners of member ``i``, on which its worker accepts. The numbers of members never change.
    All methods may be called from any thread; `retire`, `replace`, `resize` and `drain` wait, so an event loop calls
    them in a thread. A forked child has the members, and may close the group; only the process that made it steers.
    """

    def __init__(self) -> None:
        raise TypeError("harken.group() makes a Group")

    # ------------------------------------------------------------------ made by `group`

    def _open(self, binds: Sequence[Bind], size: int, slots: int, policy: Policy, options: Mapping[str, Any]) -> None:
        chosen = for_binds("group()", binds, dict(options))  # all are checked before the first socket exists
        for one, of_bind in zip(binds, chosen, strict=True):
            if of_bind.reuse_port not in (None, True):
                raise ValueError(
                    f"{one}: group() makes a group of its own, reuse_port={of_bind.reuse_port!r} is not for it"
                )
        for one, of_bind in zip(binds, chosen, strict=True):
            given = {name: getattr(of_bind, name) for name in of_bind if name != "reuse_port"}
            for kind, listener in self._bound(one, given):
                self._addresses.append(kind(listener, for_address(given, listener)))
        where = [address.url for address in self._addresses]
        for url in where:
            if where.count(url) > 1:
                raise ValueError(f"{url} is given twice")
        for address in self._addresses:
            address.begin()
        for _ in range(slots if self._steers else size):
            self._one_slot_more()
        for address in self._addresses:
            listener = self._slots[0].listeners[self._addresses.index(address)]
            warn_if_less([(listener, _asked(address.options))], level=4)
        self._policy = policy
        for number in range(size):
            self._slots[number].state = USED
            self._members.append(number)
            self._shares[number] = 1
        self._aim()

    def _bound(self, one: Bind, options: dict[str, Any]) -> list[tuple[type[Address], Listener]]:
        tcp = one.scheme in ("tcp", "tcp4", "tcp6")
        balanced = tcp and not self._may_steer and "reuse_port" in OPTIONS
        joins: dict[str, Any] = {"reuse_port": True} if balanced else {}
        made = bind(one, **options, **joins)
        self._left_out.extend(made.left_out)
        kind = Steered if tcp and self._may_steer else Balanced if balanced else Address
        return [(kind, listener) for listener in made]

    def _one_slot_more(self) -> None:
        self._slots.append(Slot(tuple(address.slot() for address in self._addresses)))

    _may_steer = STEERS

    # ------------------------------------------------------------------ a sequence

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Listeners: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Listeners]: ...
    def __getitem__(self, index: int | slice) -> Listeners | Sequence[Listeners]:
        with self._locked():
            numbers = range(len(self._members))[index]
            if isinstance(numbers, range):
                return [self._member_of(number) for number in numbers]
            return self._member_of(numbers)

    def _member_of(self, number: int) -> Member:
        slot = self._members[number]
        return self._member(slot) if slot >= 0 else self._retired[number]

    def _member(self, slot: int) -> Member:
        """Made when it is asked for: in a process that only steers, nobody needs it."""
        one = self._slots[slot]
        if one.member is None:
            made: list[Listener] = []
            try:
                for listener in one.listeners:
                    twin = listener.dup()
                    made.append(twin)  # type: ignore[arg-type]
                member = Member(made)
                member._slot = one
                one.member = member
            except BaseException:
                for twin in made:
                    twin.close()
                raise
        return one.member

    # ------------------------------------------------------------------ what it is

    @property
    def port(self) -> int:
        """The port that all members share, also when the system chose it. Raises ValueError if there are several
        ports, or none."""
        return Listeners([address.first for address in self._addresses]).port

    @property
    def slots(self) -> int:
        """How many slots there are for members."""
        return len(self._slots)

    @property
    def policy(self) -> Policy:
        """``hash``, ``least`` or ``weights``."""
        return self._policy

    @property
    def serving(self) -> tuple[int, ...]:
        """The numbers of the members that get new connections."""
        with self._locked():
            return tuple(sorted(self._shares))

    @property
    def left_out(self) -> Sequence[tuple[SocketAddress, OSError]]:
        """As `Listeners.left_out`: addresses of a name or a wildcard that this machine does not have."""
        return tuple(self._left_out)

    @property
    def shared(self) -> tuple[str, ...]:
        """The addresses on which nothing is steered: the members share one listener there, or the system chooses."""
        return tuple(address.url for address in self._addresses if not address.steered)

    @property
    def _steers(self) -> bool:
        return any(address.steered for address in self._addresses)

    @property
    def _spreads(self) -> bool:
        """Is it the system that chooses?"""
        return any(isinstance(address, Balanced) and not address.steered for address in self._addresses)

    def stats(self) -> tuple[MemberStats, ...]:
        """The figures of each member, as they are now."""
        with self._locked():
            return tuple(self._stats_of(number) for number in range(len(self._members)))

    def _stats_of(self, number: int) -> MemberStats:
        at = self._members[number]
        if at < 0:
            facts = dict.fromkeys(MemberStats.__slots__)
            return MemberStats(**facts | {"member": number, "serving": False})
        slot = self._slots[at]
        queues = [queue(listener) for listener in slot.listeners]
        drops = [drops_of(one) for one in slot.listeners if family_of(one) in (AF_INET, AF_INET6)]
        return MemberStats(
            member=number, slot=at, serving=number in self._shares, queued=_sum(one[0] for one in queues),
            backlog=_sum(one[1] for one in queues), drops=_sum(drops), open=slot.open(),
        )  # fmt: skip

    def __repr__(self) -> str:
        if self._closed:
            return "<harken.Group closed>"
        where = ", ".join(address.url for address in self._addresses)
        some = f", {len(self.serving)} of them serving" if len(self.serving) < len(self) else ""
        if self._steers:
            how = f"in {self.slots} slots, policy {self._policy}"
            if self.shared:
                how += f", all on {', '.join(self.shared)}"
        elif self._spreads:
            how = f"among which {SYSTEM} chooses"
        else:
            how = f"which share {'one listener' if len(self._addresses) == 1 else 'listeners'}: {self._why_shared()}"
        return f"<harken.Group {where}: {len(self)} members{some}, {how}>"

    def _why_shared(self) -> str:
        if not self._may_steer:
            return f"{SYSTEM} does not let a program choose among the sockets of a port"
        return f"{', '.join(self.shared)} cannot be steered"

    # ------------------------------------------------------------------ who gets connections

    def steer(self, indices: Iterable[int] | Mapping[int, int], policy: Policy | None = None) -> None:
        """From now on new connections go to these members, and to no other: setsockopt(SO_ATTACH_REUSEPORT_CBPF).
        Connections whose handshake has begun stay where they are; `retire` waits for them.

        ``policy``, which stays as it is by default: ``"hash"``, by a hash of the client's port; ``"least"``, to those
        that have fewer connections open than the average; ``"weights"``, by the hash in shares: a mapping of members to
        weights, or members some of which stand there more than once. With no members, nobody gets any: clients try
        again after a second or later.

        Raises ValueError for a member that there is not, that was retired or that stands there twice without weights;
        io.UnsupportedOperation, an OSError, where the system cannot leave one out."""
        with self._locked():
            self._must_be_ours()
            policy = _policy(self._policy if policy is None else policy)
            shares = _shares(indices, policy)
            for number in shares:
                if not 0 <= number < len(self._members):
                    raise ValueError(f"there is no member {number}: they are 0 to {len(self._members) - 1}")
                if not self._is_used(number):
                    raise ValueError(f"member {number} was retired: replace({number}) gives it a new slot")
            if not self._steers and shares.keys() != {n for n in range(len(self)) if self._is_used(n)}:
                self._cannot("leave members out")
            if sum(shares.values()) > MOST:
                raise ValueError(f"the sum of the weights is {sum(shares.values())}, and may be {MOST} at most")
            self._shares, self._policy = shares, policy
            self._aim()

    def _is_used(self, number: int) -> bool:
        slot = self._members[number]
        return slot >= 0 and self._slots[slot].state == USED

    def _cannot(self, what: str) -> None:
        raise io.UnsupportedOperation(errno.EOPNOTSUPP, f"a group cannot {what} here: {self._why_shared()}")

    def _aim(self) -> None:
        """With the lock: the program is made to be what it has to be."""
        table = self._table_now()
        if table != self._table:
            now = time.monotonic()
            self._past = {one: when for one, when in self._past.items() if now - when < _LIFE}
            self._past[self._table] = now  # before it is out of force, for `_settle`
            self._table = table
        for address in self._addresses:
            address.steer(self._table)

    def _table_now(self) -> tuple[int, ...]:
        """Slots, by the places that the hash of a port may give; none stands for the sink."""
        numbers = sorted(self._shares)
        if self._policy == "least" and len(numbers) > 1:
            loads = [self._slots[self._members[number]].load() for number in numbers]
            numbers = [number for number, load in zip(numbers, loads, strict=True) if load * len(loads) <= sum(loads)]
        return tuple(self._members[number] for number in numbers for _ in range(self._shares[number]))

    def _tend(self, every: float) -> float:
        """In the group's thread: repairs the program, and looks at the loads. Returns seconds until the next time."""
        with self._locked():
            if self._closed:
                return _REPAIR
            before = self._table
            try:
                self._aim()
            except OSError:
                pass  # no memory: then the next time
            if self._policy != "least":
                return _REPAIR
            return _QUICK if self._table != before else min(2 * every, _SLOW)

    # ------------------------------------------------------------------ members come and go

    def retire(self, index: int, deadline: float = 5.0, *, drain: bool = True) -> Retired:
        """Takes a member out without losing a connection, and returns the connections that nobody has accepted.

        New connections go to the others; TCP_DEFER_ACCEPT is switched off on its listeners, and the answer to a silent
        client is repeated once; then this waits until each handshake is over that was open (sock_diag), its own
        ``group[index]`` is closed, which ends the acceptors on it, and what is in the queue is accepted. Whoever
        accepts on the member goes on meanwhile. ``deadline`` is how many seconds this may take. With a lossy network
        between, it is a second or two, at loopback 20 ms.

        ``drain=False`` is for a member on which another process accepts: what is in the queue is left to that, and
        this waits until it is empty.

        The member keeps its number and gets no connections until `replace` gives it another slot. Without members that
        serve, clients try again until there is one. Where the system cannot steer, and members share one listener,
        nothing has to be waited for: connections wait for the others.

        Raises IndexError if there is no such member, OSError if descriptors run out: then what was not accepted yet
        is accepted by another call.
        """
        deadline = _seconds(deadline)
        with self._locked():
            self._must_be_ours()
            number = range(len(self._members))[index]
            slot = self._members[number]
            if slot < 0:
                return Retired((), 0.0, 0)
            if self._spreads:
                self._cannot("leave members out")
            self._shares.pop(number, None)
            leaving = self._leave([slot])
            self._aim()
        return self._settle(leaving, deadline, drain)

    def replace(
        self, index: int, deadline: float = 5.0, *, start: Callable[[Listeners], object] | None = None,
        drain: bool = True,
    ) -> Retired:  # fmt: skip
        """Gives a member another slot, then retires the one it had: as `retire`, but its share goes to its successor at
        once. ``group[index]`` is the successor's from the beginning.

        ``start`` is called with the successor's listeners before anything is steered to them, to begin accepting there
        or to find out whether it works; if it raises, everything stays as it was. Without it, connections wait in the
        successor's queue until somebody accepts on ``group[index]``.

        Raises RuntimeError when all slots are in use, which only other calls of this kind at the same time can do, and
        when another call has drained the group meanwhile.
        """
        deadline = _seconds(deadline)
        with self._locked():
            self._must_be_ours()
            number = range(len(self._members))[index]
            if not self._steers:
                return self._replace_shared(number, start)
            new = self._spare()
            self._slots[new].state = USED  # so nobody else takes it
            turn = self._slots[new].turn
        try:
            self._prepare(new)
            if start is not None:
                start(self._member(new))
            with self._locked():
                self._must_be_ours()
                if self._slots[new].state != USED or self._slots[new].turn != turn:
                    raise RuntimeError("the group was drained meanwhile")
                # The slot that it has now: another call may have replaced it while start() ran.
                old, self._members[number] = self._members[number], new
                self._shares.setdefault(number, 1)
                leaving = self._leave([old] if old >= 0 else [])
                self._aim()
        except BaseException:
            with self._locked():
                mine = self._slots[new].state == USED and self._slots[new].turn == turn
                if mine and (number >= len(self._members) or self._members[number] != new):
                    self._forget_member(new)
                    self._free(new)
            raise
        return self._settle(leaving, deadline, drain) if leaving else Retired((), 0.0, 0)

    def _replace_shared(self, number: int, start: Callable[[Listeners], object] | None) -> Retired:
        """The successor accepts on the same listener."""
        slot = self._slots[self._members[number]]
        before, slot.member = slot.member, None
        try:
            if start is not None:
                start(self._member(self._members[number]))
        except BaseException:
            self._forget_member(self._members[number])
            slot.member = before
            raise
        slot.state = USED
        self._shares.setdefault(number, 1)
        if before is not None:
            before.close()
        return Retired((), 0.0, 0)

    def resize(self, size: int, deadline: float = 5.0) -> tuple[Retired, ...]:
        """Makes it a group of ``size`` members. New ones are the last, and in spare slots; when there are too few of
        these, more are opened. Of members that go, the last ones, it returns what `retire` does for each.

        Raises ListenError when no more slots can be opened: after the process has changed its user, for one."""
        size = _count("size", size, 1, MOST - 1)
        deadline = _seconds(deadline)
        with self._locked():
            self._must_be_ours()
            if self._spreads:
                self._cannot("change its size")
            while len(self._slots) < size + (1 if self._steers else 0):
                self._one_slot_more()
            while len(self._members) < size:
                slot = self._spare()
                self._prepare(slot)
                self._slots[slot].state = USED
                self._members.append(slot)
                self._shares[len(self._members) - 1] = 1
            last = [slot for slot in self._members[size:] if slot >= 0]
            for number in range(size, len(self._members)):
                self._shares.pop(number, None)
            del self._members[size:]
            leaving = self._leave(last)
            self._aim()
        if not leaving:
            return ()
        together = self._settle(leaving, deadline, False, again=True)
        return tuple(self._settle({slot: turn}, 0.0, True, told=together) for slot, turn in leaving.items())

    def drain(self, deadline: float = 5.0) -> Retired:
        """For the end: no member gets new connections, and what `retire` does for one is done for all. The group still
        holds its port. Clients that come now are not refused: they try again after a second, and then get whoever has
        the port by then, or are refused if nobody has it.

        Where the system cannot steer, what is in the queue is accepted."""
        deadline = _seconds(deadline)
        with self._locked():
            self._must_be_ours()
            self._shares.clear()
            leaving = self._leave(range(len(self._slots)))  # spare ones may have connections that nobody accepted
            self._aim()
        return self._settle(leaving, deadline, True, last=True)

    def _leave(self, slots: Sequence[int]) -> dict[int, int]:
        """With the lock: these slots are left, each in its turn."""
        for slot in slots:
            self._slots[slot].state = LEAVING
        return {slot: self._slots[slot].turn for slot in slots}

    def _still(self, slots: Mapping[int, int]) -> list[int]:
        """With the lock: those that no other call has given up meanwhile, and perhaps somebody else has by now."""
        return [slot for slot, turn in slots.items() if self._slots[slot].turn == turn]

    def _spare(self) -> int:
        for number, slot in enumerate(self._slots):
            if slot.state == EMPTY:
                return number
        raise RuntimeError(
            f"all {len(self._slots)} slots are in use: members that leave have theirs until they are gone"
        )

    def _prepare(self, slot: int) -> None:
        """A slot as it was at the beginning."""
        one = self._slots[slot]
        self._forget_member(slot)
        one.forget_acceptors()
        one.count = None
        for address, listener in zip(self._addresses, one.listeners, strict=True):
            if isinstance(address, Steered):
                hurry(listener, answers(), address.defer)
                listener.setblocking(True)

    def _end_member(self, slot: int) -> Member:
        """Its listeners are closed; they still tell where they listened."""
        one = self._slots[slot]
        try:
            member = self._member(slot)
        except OSError:  # no descriptors: then there was nothing to close
            member = one.member = Member()
            member._slot = one
        member.close()
        return member

    def _forget_member(self, slot: int) -> None:
        member, self._slots[slot].member = self._slots[slot].member, None
        if member is not None:
            member.close()

    def _settle(
        self,
        slots: Mapping[int, int],
        deadline: float,
        drain: bool,
        *,
        again: bool = False,
        last: bool = False,
        told: Retired | None = None,
    ) -> Retired:
        """After nothing is steered to these slots any more: waits, and takes what is in their queues. ``again``: there
        will be another call for them, with what this one has ``told``. Another thread may leave the same slot; whoever
        comes to the end first gives it up."""
        begun = time.monotonic()
        missing: int | None = 0
        try:
            waited = 0.0
            if told is not None:
                missing, waited = told.lost_at_most, told.waited
            else:
                missing = self._wait_for_handshakes(slots, begun + deadline, drain)
                if not drain and not again:
                    missing = self._wait_for_queues(slots, begun + deadline, missing)
                waited = time.monotonic() - begun if self._steers else 0.0
            if drain:
                with self._locked():
                    for slot in self._still(slots):
                        self._end_member(slot)
                        self._take(slot, last)
        except BaseException:
            with self._locked():
                for slot in set(self._still(slots)).difference(self._members):  # else another call goes on with it
                    self._free(slot)
            raise
        with self._locked():
            still = self._still(slots)
            found = [connection for slot in still for connection in self._slots[slot].taken]
            result = Retired(found, waited, missing)
            for slot in still:
                self._slots[slot].taken = []
                if self._steers and not again:
                    self._give_up(slot)
        return result

    def _give_up(self, slot: int) -> None:
        """From now on it is free. Its member, if it is still that one's, has none."""
        if slot in self._members:
            number = self._members.index(slot)
            self._retired[number] = self._end_member(slot)
            self._members[number] = -1
        self._forget_member(slot)
        self._free(slot)

    def _free(self, slot: int) -> None:
        self._slots[slot].state = EMPTY
        self._slots[slot].turn += 1

    def _wait_for_handshakes(self, slots: Mapping[int, int], until: float, drain: bool) -> int | None:
        addresses = [address for address in self._addresses if isinstance(address, Steered)]
        if not self._steers:
            return 0
        for slot in slots:
            for listener in self._own(slot):
                hurry(listener, 1, 0)  # a client that stays silent is given up after three seconds
        leaving = frozenset(slots)
        with self._locked():
            tables = [table for table in self._past if leaving.intersection(table)]

        def look() -> set[tuple[int, Client]]:
            return {
                (at, client)
                for at, address in enumerate(addresses)
                for client in handshakes(address.port, address.families)
                if any(table[place_of(client[1], len(table))] in leaving for table in tables)
            }

        return wait(look, until, partial(self._make_room, slots) if drain else partial(int))

    def _own(self, slot: int) -> list[Listener]:
        """The listeners of this slot alone."""
        pairs = zip(self._addresses, self._slots[slot].listeners, strict=True)
        return [listener for address, listener in pairs if address.steered]

    def _wait_for_queues(self, slots: Mapping[int, int], until: float, missing: int | None) -> int | None:
        """Another process accepts."""
        while True:
            waiting = sum(queue_of(one)[0] or 0 for slot in self._still(slots) for one in self._own(slot))
            if not waiting or time.monotonic() >= until:
                return None if missing is None else missing + waiting
            time.sleep(LOOK)

    def _make_room(self, slots: Mapping[int, int]) -> None:
        """A queue that fills up would drop clients."""
        with self._locked():
            for slot in self._still(slots):
                for listener in self._own(slot):
                    queued, limit = queue_of(listener)
                    if queued and limit is not None and 2 * queued > limit:
                        self._take(slot, False)
                        break

    def _take(self, slot: int, last: bool) -> None:
        """What is in the queues, into the slot's own list: an exception loses nobody. ``last``: there are no others for
        whom it would be."""
        one = self._slots[slot]
        for listener in one.listeners if last else self._own(slot):
            listener.settimeout(0)
            while found := listener.accept_many():
                one.taken += found

    # ------------------------------------------------------------------ its end

    def chown(self, user: int, group: int = -1) -> None:
        """fchown(2) of all sockets. Linux lets only one user add sockets to a port: for a process that opens its group
        as root, becomes another user, and resizes the group then. A port below 1024 cannot be added to even so."""
        self._must_be_ours()
        for address in self._addresses:
            for listener in (address.first, *address.listeners):
                os.fchown(listener.fileno(), user, group)  # type: ignore[attr-defined,unused-ignore]

    def close(self) -> None:
        """Closes all sockets, those of the members too; connections that wait are reset: call `drain` first to serve
        them. In a forked child it closes only the child's copies. A second call does nothing."""
        with self._locked():
            ours = self._pid == os.getpid()
            if ours and not self._closed:
                self._shares.clear()
                try:
                    self._aim()  # whoever comes now is not given to a socket that is about to be closed
                except OSError:
                    pass
            self._closed = True
            self._stop.set()
            for slot in self._slots:
                if slot.member is not None:
                    slot.member.close()
                while slot.taken:
                    slot.taken.pop().close()
            for address in self._addresses:
                address.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _locked(self) -> threading.RLock:  # type: ignore[valid-type,unused-ignore]
        """The lock. A thread of the parent, which a forked child does not have, may have had it."""
        if self._process != os.getpid():
            self._lock = threading.RLock()
            self._process = os.getpid()
        return self._lock

    def _must_be_ours(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "this group is closed")
        if self._pid != os.getpid():
            raise RuntimeError("this group is the parent's: only the process that made it steers, retires and replaces")

    # Set by group().
    _addresses: list[Address]
    _slots: list[Slot]
    _members: list[int]  # member → slot, -1 when it was retired
    _retired: dict[int, Member]  # the closed listeners of those
    _shares: dict[int, int]  # the members that serve, with their weights
    _table: tuple[int, ...]
    _past: dict[tuple[int, ...], float]  # tables, and until when each was in force
    _left_out: list[tuple[SocketAddress, OSError]]
    _policy: Policy
    _closed: bool
    _pid: int
    _process: int  # whose lock it is
    _lock: threading.RLock  # type: ignore[valid-type,unused-ignore]
    _stop: threading.Event


def group(
    binds: str | int | Bind | Iterable[str | int | Bind],
    size: int,
    *,
    slots: int | None = None,
    policy: Policy = "hash",
    **options: Any,
) -> Group:
    """Opens one port for several workers, so that each has a queue of its own, and can be replaced without one lost
    connection: ``size`` members, each a `Listeners`.

    ``binds`` is one bind of `harken.listen`, or several, and ``options`` are its options. Each slot of the group is a
    socket: SO_REUSEPORT on Linux, SO_REUSEPORT_LB on FreeBSD. Where the system has no such thing, and for unix sockets,
    vsock, MPTCP and inherited sockets, the members share one listener; `Group.shared` and repr() tell. ``slots`` is how
    many members there may be at the same time, with those that are leaving; by default twice ``size``. ``policy`` is
    how connections are spread: see `Group.steer`.

    No other process gets into the group: not one of another user, which the kernel refuses, and one of the same user
    gets no connections. The port must be nobody's, nor this process's own.

    Returns a `Group`. Raises TypeError or ValueError for invalid arguments, ListenError when a step fails, and then
    nothing stays open.
    """
    return make(binds, size, slots, policy, options)


def make(
    binds: str | int | Bind | Iterable[str | int | Bind],
    size: int,
    slots: int | None,
    policy: Policy,
    options: Mapping[str, Any],
    tended: bool = True,
) -> Group:
    """`group`. ``tended``: by a thread of its own, and not by the caller."""
    size = _count("size", size, 1, MOST - 1)
    slots = min(2 * size, MOST) if slots is None else _count("slots", slots, size + 1, MOST)
    policy = _policy(policy)
    several = [binds] if isinstance(binds, (str, int, Bind)) else list(binds)
    if not several:
        raise TypeError("group() needs at least one bind, as in '127.0.0.1:8080'")
    made = Group.__new__(Group)
    made._addresses, made._slots, made._members, made._shares = [], [], [], {}
    made._retired = {}
    made._table, made._past, made._left_out, made._policy = (), {}, [], policy
    made._process = os.getpid()
    made._closed, made._pid, made._lock, made._stop = False, os.getpid(), threading.RLock(), threading.Event()
    try:
        made._open([Bind(one) for one in several], size, slots, policy, options)
        if made._steers and tended:
            arguments = (weakref.ref(made), made._stop)
            threading.Thread(target=_tend, args=arguments, name="harken.group", daemon=True).start()
    except BaseException:
        made.close()
        raise
    return made


def _tend(reference: weakref.ref[Group], stop: threading.Event) -> None:
    """The thread of a group, which ends with it."""
    every = _QUICK
    while not stop.wait(every):
        found = reference()
        if found is None:
            return
        every = found._tend(every)
        del found


def _asked(options: Mapping[str, Any]) -> int:
    asked = options.get("backlog")
    return -1 if asked is None else int(asked)


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _count(name: str, number: Any, least: int, most: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} is an int, and not {type(number).__name__}")
    if not least <= number <= most:
        raise ValueError(f"{name} is from {least} to {most}, and not {number}")
    return int(number)


def _seconds(deadline: Any) -> float:
    if not isinstance(deadline, (int, float)) or not deadline >= 0:
        raise ValueError(f"deadline is a number of seconds that is not negative, and not {deadline!r}")
    return float(deadline)


def _policy(policy: Any) -> Policy:
    if not isinstance(policy, str):
        raise TypeError(f"policy is a str, and not {type(policy).__name__}")
    if policy not in POLICIES:
        raise ValueError(f"policy is 'hash', 'least' or 'weights', and not {policy!r}")
    return policy  # type: ignore[return-value]


def _shares(indices: Any, policy: Policy) -> dict[int, int]:
    shares: dict[int, int] = {}
    if isinstance(indices, Mapping):
        if policy != "weights":
            raise ValueError(f"weights are for the policy 'weights', and this is {policy!r}")
        weights = {_index(number): _count("a weight", weight, 0, MOST) for number, weight in indices.items()}
        return {number: weight for number, weight in weights.items() if weight}
    for number in indices:
        number = _index(number)  # noqa: PLW2901
        if number in shares and policy != "weights":
            raise ValueError(f"member {number} stands there twice, which is for the policy 'weights'")
        shares[number] = shares.get(number, 0) + 1
    return shares


def _index(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"a member is an int, and not {type(number).__name__}")
    return int(number)
