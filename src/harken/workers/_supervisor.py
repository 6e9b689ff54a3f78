"""The process that starts the workers.

A worker is in a slot of a `Group`, and has a number, which is its successor's later on:

    STARTING  forked, and not proven to accept: a connection of our own waits in the queue of its slot
    SERVING   it has accepted that; new connections go there
    LEAVING   steered away from: open handshakes, and what is in its queue, are waited for
    ENDING    it accepts no more, and its connections end
    STOPPING  SIGTERM was sent, and SIGKILL will be

While one serves, new connections go to those that do; before the first one does, to those that are starting, where
they wait in the queue. Only when there is neither they are dropped by the sink, and come again a second later.

The supervisor waits for nothing but its next look: `_Supervisor.run` looks at everything every few milliseconds while
something is under way, and otherwise twice a second.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from .._bind import Bind
from .._group.addresses import Steered
from .._group.groups import Group, make
from .._group.members import EMPTY, USED
from .._group.members import LEAVING as SLOT_LEAVING
from .._handshakes import WITHOUT_SIGHT, Client, handshakes
from .._listener import Listeners
from .._loading import preload
from .._socket import Socket, queue_of
from .._steering import hurry, place_of
from .._system import SYSTEM
from .._types import Policy
from . import _worker
from ._board import CLOSE, DRAIN, Board
from ._busy import connections

STARTING, SERVING, LEAVING, ENDING, STOPPING = "starting", "serving", "leaving", "ending", "stopping"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0  # seconds before a worker that failed is started again
_WELL_AFTER = 10.0  # seconds of serving, after which a failure is the first one again
_TRIES = 5  # failures in a row before any worker was ready: then nobody needs a sixth
_LAST_PATIENCE = 5.0  # seconds between SIGTERM, when there is no time left, and SIGKILL
_QUIET = 3  # looks in a row at which a worker has nothing to do
_GRACE = 1.0  # seconds in which a target returns when its last connection is closed
_BUSY, _IDLE = 0.02, 0.5  # seconds between two looks

OK, NEVER_READY, CUT = 0, 3, 4
"""What `serve` returns."""

_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGCHLD")

_log = logging.getLogger("harken.workers")


class _Worker:
    """A process."""

    def __init__(self, number: int, slot: int, record: int, pid: int, until: float) -> None:
        self.number, self.slot, self.pid = number, slot, pid
        self.record = record  # on the board; where nothing is steered, a successor has the slot of its predecessor
        self.state = STARTING
        self.since = time.monotonic()
        self.until = until  # when the patience with its state ends
        self.proven = False
        self.probes: list[tuple[Socket, int]] | None = None  # connections of ours, and at which address
        self.looks = 0
        self.open: set[tuple[int, Client]] = set()  # handshakes
        self.quiet = 0
        self.idle: float | None = None  # since when it has no connection
        self.killed = False

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    def drop_probes(self) -> None:
        for client, _ in self.probes or ():
            client.close()
        self.probes = []


class _Supervisor:
    def __init__(self, group: Group, target: Callable[[Listeners], object], limits: dict[str, float]) -> None:
        self.group, self.target, self.limits = group, target, limits
        self.board = Board()
        self.workers: dict[int, _Worker] = {}  # by pid
        self.current: dict[int, _Worker | None] = dict.fromkeys(range(len(group)))  # by number
        self.failures: dict[int, int] = {}  # by number, in a row
        self.due: dict[int, float] = {}  # when a number is to be started again
        self.failed = 0  # in a row, before any was ready
        self.ever = False  # was any ready?
        self.rolling: list[int] = []  # numbers that are to be replaced
        self.successor: _Worker | None = None
        self.stopping: float | None = None  # since when
        self.at_once = False
        self.code = OK
        self.told: list[int] = []  # signals
        self.lifeline = (-1, -1)
        self.wakeup: tuple[socket.socket, socket.socket] | None = None
        self.steered = [address for address in group._addresses if isinstance(address, Steered)]
        self.tended = 0.0
        self.states = {
            STARTING: self.starting,
            SERVING: self.serving,
            LEAVING: self.leaving,
            ENDING: self.ending,
            STOPPING: self.dying,
        }

    # ------------------------------------------------------------------ its life

    def run(self) -> int:
        handlers: dict[int, Any] = {}
        before = -1
        self.lifeline = os.pipe()
        self.wakeup = socket.socketpair()
        try:
            for end in self.wakeup:
                end.setblocking(False)
            try:
                before = signal.set_wakeup_fd(self.wakeup[1].fileno(), warn_on_full_buffer=False)
                for number in _numbers(_SIGNALS):
                    handlers[number] = signal.signal(number, lambda number, _: self.told.append(number))
            except ValueError:
                raise RuntimeError("serve() is called in the main thread, which gets the signals") from None
            for number in self.current:
                self.due[number] = 0.0
            poll = select.poll()  # type: ignore[attr-defined,unused-ignore]
            poll.register(self.wakeup[0], select.POLLIN)  # type: ignore[attr-defined,unused-ignore]
            while not self.over():
                self.look()
                if poll.poll(1000 * self.pause()):
                    self.heard()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            if before != -1 or handlers:
                signal.set_wakeup_fd(before)
            for worker in self.workers.values():  # after an error of our own
                worker.drop_probes()
                _kill(worker.pid, "SIGKILL")
            for descriptor in self.lifeline:
                os.close(descriptor)
            for end in self.wakeup:
                end.close()
            self.wakeup = None
        return self.code

    def over(self) -> bool:
        return self.stopping is not None and not self.workers

    def pause(self) -> float:
        moving = any(worker.state != SERVING for worker in self.workers.values())
        if moving or self.group.policy == "least":
            return _BUSY
        due = min(self.due.values(), default=time.monotonic() + _IDLE)
        return max(0.0, min(_IDLE, due - time.monotonic()))

    def heard(self) -> None:
        assert self.wakeup is not None
        try:
            while self.wakeup[0].recv(4096):
                pass
        except BlockingIOError:
            pass
        while self.told:
            self.obey(signal.Signals(self.told.pop(0)).name)

    def obey(self, name: str) -> None:
        if name in ("SIGTERM", "SIGINT", "SIGQUIT"):
            if self.stopping is not None or name == "SIGQUIT":
                self.stop_at_once()
            else:
                self.stop()
        elif name == "SIGHUP":
            if self.stopping is None:
                self.rolling += [number for number in self.current if self.rolling.count(number) < 2]
        elif name == "SIGTTIN":
            self.one_more()
        elif name == "SIGTTOU":
            self.one_less()
        elif name == "SIGUSR1":
            for worker in self.workers.values():
                _kill(worker.pid, "SIGUSR1")

    def look(self) -> None:
        """At everything, once."""
        now = time.monotonic()
        self.reap()
        if now - self.tended >= (_IDLE if self.group.policy != "least" else _BUSY):
            self.group._tend(_IDLE)
            self.tended = now
        for worker in list(self.workers.values()):
            self.states[worker.state](worker, now)
        if self.stopping is not None:
            self.go_on_stopping(now)
            return
        for number, due in list(self.due.items()):
            if now >= due:
                del self.due[number]
                self.start(number, self.group._members[number])
        if self.rolling and self.successor is None and not self.due and not self.any_in(STARTING, LEAVING, ENDING):
            number = self.rolling.pop(0)
            if number in self.current:
                self.replace(number)

    def any_in(self, *states: str) -> bool:
        return any(worker.state in states for worker in self.workers.values())

    def aim(self) -> None:
        """New connections go to those that serve."""
        by_state: dict[str, list[int]] = {SERVING: [], STARTING: []}
        for number, worker in self.current.items():
            if worker is not None and worker.state in by_state:
                by_state[worker.state].append(number)
        with self.group._locked():
            self.group._shares = dict.fromkeys(by_state[SERVING] or by_state[STARTING], 1)
            try:
                self.group._aim()
            except OSError as error:  # no memory: the next look at the group does it
                _log.warning("new connections are not steered yet: %s", error)

    # ------------------------------------------------------------------ workers come

    def start(self, number: int, slot: int, successor: bool = False) -> _Worker | None:
        used = {worker.record for worker in self.workers.values()}
        record = next(one for one in count() if one not in used)
        try:
            pid = self.fork(slot, record)
        except OSError as error:
            _log.error("worker %d cannot be started: %s", number, error)
            self.failure(number, slot, successor)
            return None
        worker = _Worker(number, slot, record, pid, time.monotonic() + self.limits["start_timeout"])
        self.workers[pid] = worker
        if not successor:
            self.current[number] = worker
            self.aim()
        return worker

    def fork(self, slot: int, record: int) -> int:
        group, board = self.group, self.board
        group._slots[slot].state = USED
        group._prepare(slot)
        board.clear(record)
        group._slots[slot].count = lambda: board.open(record)
        mine = group._member(slot)
        _flush()
        # A signal between fork() and the child's own handlers would be told to the supervisor's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers(_SIGNALS))  # type: ignore[attr-defined,unused-ignore]
        try:
            pid = os.fork()  # type: ignore[attr-defined,unused-ignore]
            if pid == 0:
                self.be_a_worker(slot, record, mine, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # type: ignore[attr-defined,unused-ignore]
        group._forget_member(slot)
        return int(pid)

    def be_a_worker(self, slot: int, record: int, mine: Any, mask: Any) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _numbers(_SIGNALS):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)  # type: ignore[attr-defined,unused-ignore]
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # type: ignore[attr-defined,unused-ignore]
            os.close(self.lifeline[1])
            for end in self.wakeup or ():
                end.close()
            for worker in self.workers.values():
                worker.drop_probes()
            self.group._slots[slot].member = None  # the worker's, which stay open
            self.group.close()
            code = _worker.run(self.target, mine, self.board, record, self.lifeline[0])
            _flush()
        finally:
            os._exit(code)

    def starting(self, worker: _Worker, now: float) -> None:
        if self.is_ready(worker):
            self.serves(worker)
        elif not self.steered and worker is not self.successor:
            worker.state = SERVING  # beside the others, as soon as it can
        elif now >= worker.until:
            _log.error("%s is not ready after %.0f seconds", worker, self.limits["start_timeout"])
            worker.drop_probes()
            worker.killed = True
            _kill(worker.pid, "SIGKILL")
            worker.until = now + self.limits["start_timeout"]

    def is_ready(self, worker: _Worker) -> bool:
        if self.board.ready(worker.record) or self.board.accepting(worker.record):
            return True
        if worker.probes is None:
            worker.probes = []
            for at, address in enumerate(self.steered):
                client = address.probe(worker.slot, self.group._table)
                if client is not None:
                    worker.probes.append((client, at))
        listeners = [address.listeners[worker.slot] for address in self.steered]
        return bool(worker.probes) and all(not queue_of(listeners[at])[0] for _, at in worker.probes)

    def serving(self, worker: _Worker, now: float) -> None:
        if not worker.proven and (self.is_ready(worker) or now - worker.since >= _WELL_AFTER):
            worker.proven, self.ever, self.failed = True, True, 0
            _log.info("%s serves", worker)

    def serves(self, worker: _Worker) -> None:
        worker.drop_probes()
        worker.proven = True
        worker.state, worker.since = SERVING, time.monotonic()
        self.ever, self.failed = True, 0
        _log.info("%s serves", worker)
        if worker is not self.successor:
            self.aim()
            return
        self.successor = None
        old = self.current[worker.number]
        with self.group._locked():
            self.group._members[worker.number] = worker.slot
        self.current[worker.number] = worker
        self.failures.pop(worker.number, None)
        self.aim()
        if old is not None:
            self.leave(old)

    # ------------------------------------------------------------------ workers go

    def reap(self) -> None:
        for pid, status in _ended(self.workers):
            worker = self.workers.pop(pid, None)
            if worker is not None:
                worker.drop_probes()
                self.ended(worker, os.waitstatus_to_exitcode(status))

    def ended(self, worker: _Worker, code: int) -> None:
        if worker is self.successor:
            self.successor = None
            self.leave_slot(worker.slot)
            self.rolling.clear()
            _log.error("%s %s before it was ready: the others stay as they are", worker, _told(code))
            return
        if self.current.get(worker.number) is not worker or worker.state in (LEAVING, ENDING, STOPPING):
            self.leave_slot(worker.slot)
            if self.current.get(worker.number) is worker:
                self.current[worker.number] = None
            _log.info("%s %s", worker, _told(code))
            return
        self.current[worker.number] = None
        self.aim()
        if worker.proven and time.monotonic() - worker.since >= _WELL_AFTER:
            self.failures.pop(worker.number, None)
        if self.stopping is not None:
            return
        if worker.proven and code == 0:
            _log.info("%s has ended by itself", worker)
            self.due[worker.number] = 0.0
            return
        _log.warning("%s %s", worker, _told(code))
        self.failure(worker.number, worker.slot, False)

    def leave_slot(self, slot: int) -> None:
        if self.group._steers:
            self.group._slots[slot].state = EMPTY

    def failure(self, number: int, slot: int, successor: bool) -> None:
        if successor:
            self.successor = None
            self.leave_slot(slot)
            self.rolling.clear()
            return
        if not self.ever:
            self.failed += 1
            if self.failed >= _TRIES:
                _log.error("no worker was ever ready, after %d attempts", self.failed)
                self.code = NEVER_READY
                self.stop()
                return
        failures = self.failures[number] = self.failures.get(number, 0) + 1
        self.due[number] = time.monotonic() + min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)

    def replace(self, number: int) -> None:
        """The successor first."""
        worker = self.current[number]
        if worker is None:
            return
        if not self.group._steers:
            slot = worker.slot
        else:
            try:
                slot = self.group._spare()
            except RuntimeError:
                self.rolling.insert(0, number)  # when one of those that leave has left
                return
        self.successor = self.start(number, slot, successor=True)

    def leave(self, worker: _Worker) -> None:
        """Nothing is steered to it any more."""
        now = time.monotonic()
        worker.state, worker.since = LEAVING, now
        worker.until = now + self.limits["settle"]
        worker.looks, worker.open = 0, set()
        self.board.give_order(worker.record, DRAIN)
        if self.group._steers:
            self.group._slots[worker.slot].state = SLOT_LEAVING
        for address in self.steered:
            hurry(address.listeners[worker.slot], 1, 0)

    def leaving(self, worker: _Worker, now: float) -> None:
        if self.steered and now < worker.until:
            seen = self.handshakes_of(worker.slot)
            if seen is None:
                if now - worker.since < WITHOUT_SIGHT:
                    return
            else:
                worker.open = worker.open | seen if worker.looks < 2 else worker.open & seen
                worker.looks += 1
                if worker.looks < 2 or worker.open:
                    return
            if any(queue_of(address.listeners[worker.slot])[0] for address in self.steered):
                return
        worker.state, worker.since = ENDING, now
        worker.until = now + self.limits["drain"]
        self.board.give_order(worker.record, CLOSE)

    def handshakes_of(self, slot: int) -> set[tuple[int, Client]] | None:
        tables = [table for table in self.group._past if slot in table]
        try:
            return {
                (at, client)
                for at, address in enumerate(self.steered)
                for client in handshakes(address.port, address.families)
                if any(table[place_of(client[1], len(table))] == slot for table in tables)
            }
        except OSError:
            return None

    def ending(self, worker: _Worker, now: float) -> None:
        """Its connections end."""
        has, wants = self.connections_of(worker)
        if has == 0:
            worker.idle = worker.idle or now
        else:
            worker.idle = None
        if self.board.accepting(worker.record):
            done = worker.idle is not None and now - worker.idle >= _GRACE
        else:
            worker.quiet = worker.quiet + 1 if (has if self.board.asks(worker.record) else wants) == 0 else 0
            done = worker.quiet >= _QUIET
        if done or now >= worker.until:
            if not done and wants:
                self.cut(worker, wants)
            self.terminate(worker, worker.until)

    def connections_of(self, worker: _Worker) -> tuple[int, int]:
        """How many it has, and how many of them want something."""
        if self.board.accepting(worker.record):
            count = self.board.open(worker.record)
            return count, count
        places = [(family, address.port) for address in self.steered for family in address.families]
        return connections(worker.pid, places) or (0, 0)

    def cut(self, worker: _Worker, connections: int) -> None:
        _log.warning("%s is stopped with %d connections that are in use", worker, connections)
        if self.stopping is not None:
            self.code = self.code or CUT

    def terminate(self, worker: _Worker, until: float) -> None:
        worker.state = STOPPING
        worker.until = max(until, time.monotonic()) + _LAST_PATIENCE
        _kill(worker.pid, "SIGTERM")

    def dying(self, worker: _Worker, now: float) -> None:
        if now >= worker.until and not worker.killed:
            worker.killed = True
            _log.warning("%s does not stop, and is killed", worker)
            if self.stopping is not None:
                self.code = self.code or CUT
            _kill(worker.pid, "SIGKILL")

    # ------------------------------------------------------------------ how many

    def one_more(self) -> None:
        if self.stopping is not None:
            return
        try:
            with self.group._locked():
                if self.group._steers and sum(slot.state == EMPTY for slot in self.group._slots) < 2:
                    self.group._one_slot_more()  # one stays for a successor
                if not self.group._steers:
                    self.group._one_slot_more()
                slot = self.group._spare()
        except OSError as error:
            _log.error("there cannot be one worker more: %s", error)
            return
        number = len(self.current)
        self.group._slots[slot].state = USED
        self.group._members.append(slot)
        self.current[number] = None
        self.due[number] = 0.0

    def one_less(self) -> None:
        if self.stopping is not None or len(self.current) == 1:
            return
        number = len(self.current) - 1
        worker = self.current.pop(number)
        self.due.pop(number, None)
        slot = self.group._members.pop()
        self.rolling = [one for one in self.rolling if one != number]
        if self.successor is not None and self.successor.number == number:
            self.terminate(self.successor, 0.0)
            self.successor = None
        self.aim()
        if worker is None:
            self.group._slots[slot].state = EMPTY
        elif worker.state == SERVING:
            self.leave(worker)
        else:
            self.terminate(worker, 0.0)

    # ------------------------------------------------------------------ its end

    def stop(self) -> None:
        self.stopping = time.monotonic()
        self.due.clear()
        self.rolling.clear()
        self.successor = None
        for worker in self.workers.values():
            self.board.give_order(worker.record, DRAIN)

    def go_on_stopping(self, now: float) -> None:
        assert self.stopping is not None
        if now - self.stopping < self.limits["drain_delay"] and not self.at_once:
            return
        first = [worker for worker in self.workers.values() if worker.state in (STARTING, SERVING)]
        if not first:
            return
        with self.group._locked():
            self.group._shares.clear()
            try:
                self.group._aim()  # to the sink: nobody is refused whose handshake has begun
            except OSError as error:
                _log.warning("new connections are not stopped: %s", error)
        for worker in first:
            if worker.state == SERVING:
                self.leave(worker)
            else:
                worker.drop_probes()
                self.terminate(worker, 0.0)

    def stop_at_once(self) -> None:
        self.stop()
        self.at_once = True
        for worker in self.workers.values():
            worker.drop_probes()
            if worker.state in (SERVING, LEAVING, ENDING) and self.connections_of(worker)[1]:
                self.code = self.code or CUT
            worker.state = STOPPING
            worker.until = time.monotonic() + 1
            _kill(worker.pid, "SIGTERM")


def serve(
    target: Callable[[Listeners], object],
    *binds: str | int | Bind,
    workers: int = 4,
    policy: Policy = "hash",
    slots: int | None = None,
    start_timeout: float = 60.0,
    settle: float = 5.0,
    drain: float = 30.0,
    drain_delay: float = 0.0,
    **options: Any,
) -> int:
    """Runs ``target(listeners)`` in several processes, made by fork(2), until a signal ends it. Returns an exit code
    for sys.exit(): 0; 3 if no worker was ever ready; 4 if connections were in use when the time was over.

    Each worker has its own member of a `harken.group` on these binds, with its policy, slots and options of
    `harken.listen`. What ``target`` returns is the worker's exit code, None being 0. A worker that ends by itself is
    started again, in the same slot, whose queue waits for it; after a failure 0.1 seconds later, then twice as long
    each time, up to 30. A worker counts as ready when it has accepted a connection of the supervisor's own, which is
    closed at once, or has made an `Acceptor`; one that shares its listener with others calls `ready`.

    SIGTERM, SIGINT: new connections are dropped, open handshakes, queues and connections in use are waited for, then
    each worker gets SIGTERM, and SIGKILL at the end; a second one, or SIGQUIT, ends this in a second. SIGHUP: each
    worker is replaced, one after the other, its successor first; if one is not ready, those that are left stay.
    SIGTTIN, SIGTTOU: one worker more, one fewer. SIGUSR1 is passed on.

    A worker that leaves gets no new connections; open handshakes and its queue are waited for, ``settle`` seconds; then
    its acceptors end, and when its connections are closed, or after ``drain`` seconds, it gets SIGTERM, if it has not
    ended. Connections that clients keep open end when the worker asks `draining`, as `asgi` does. ``start_timeout`` is
    how long a worker may take to be ready; ``drain_delay`` is how long new connections are still served after SIGTERM,
    which load balancers need.

    The logger "harken.workers" tells what happens. Raises ListenError when a bind cannot be had, RuntimeError outside
    of the main thread, io.UnsupportedOperation where there is no fork(2).
    """
    if not callable(target):
        raise TypeError(f"target is a function of listeners, and not {type(target).__name__}")
    limits = {"start_timeout": start_timeout, "settle": settle, "drain": drain, "drain_delay": drain_delay}
    for name, seconds in limits.items():
        if not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise ValueError(f"{name} is a number of seconds that is not negative, and not {seconds!r}")
    if not hasattr(os, "fork"):
        raise io.UnsupportedOperation(errno.EOPNOTSUPP, f"workers are made by fork(2), which {SYSTEM} does not have")
    preload()  # it runs for long, and its files may have been replaced when it has an error to tell
    with make(binds, workers, slots, policy, options, tended=False) as group:
        if group.shared:
            _log.info("all workers share %s", ", ".join(group.shared))
        return _Supervisor(group, target, limits).run()


def _flush() -> None:
    """What is in the buffers of this process, a forked child would write once more. Python has no stream where the
    descriptor was closed, and nobody may read the other end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                pass


def _numbers(names: Iterable[str]) -> list[int]:
    return [getattr(signal, name) for name in names]


def _kill(pid: int, name: str) -> None:
    try:
        os.killpg(pid, getattr(signal, name))  # type: ignore[attr-defined,unused-ignore]
    except OSError:  # before it leads a group of its own, or when it has ended
        try:
            os.kill(pid, getattr(signal, name))
        except OSError:
            pass


def _ended(workers: dict[int, _Worker]) -> Iterable[tuple[int, int]]:
    """Workers that have ended, with their status; as the first process of a system also whoever else has."""
    if os.getpid() == 1:
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:  # type: ignore[attr-defined,unused-ignore]
                yield found
        except ChildProcessError:
            pass
        return
    for pid in list(workers):
        try:
            found = os.waitpid(pid, os.WNOHANG)  # type: ignore[attr-defined,unused-ignore]
        except ChildProcessError:  # somebody else has asked
            found = (pid, 0)
        if found[0]:
            yield found


def _told(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"has ended with exit code {code}"
