"""Interrupts every public operation at every line, and counts what is lost. Linux.

    python tests/interrupted.py [--rounds N] [--long] [--every N] [--only WORD] [--without WORD] [-v]

There are two kinds of interruption. A trace function raises at each line in turn of harken's Python code, and of the
standard library's where harken calls it. And real signals (SIGALRM by setitimer(2), after a random time), N for each
operation, whose handler raises. After each interruption the following are compared with what they were before: the
descriptors of this process and what they refer to, the paths in the directory, the threads, and the handles of the
caller's objects and of the operation's result. An operation that did not return must have changed nothing; one that
returned must have done everything. Then everything is closed, while an unrelated file is open at the lowest free
number, which must still be open afterwards. An operation that closes several objects, or that starts to listen, may
have been done in part: then each object must be as before or as asked, and a second call must do the rest.

The negative controls are operations that are wrong on purpose. If they are not found, the program fails.

The result is kept by list.extend(starmap(operation, ...)), in C, so that no signal comes between the operation's return
and the list: that moment is the caller's responsibility, as with every function that returns an object to be closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from multiprocessing import resource_sharer
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import harken
import harken.asyncio
from harken import _inherit
from harken._cli import check as _check
from harken._handover import ListeningSocket
from harken._listener import Listener
from harken._socket import empty, move

HOUSE = str(Path(harken.__file__).parent)
OURSELVES = os.path.abspath(__file__)
# It notes a thread before there is one, and keeps the note when it is interrupted. What it calls is traced.
STARTING = threading.Thread.start.__code__
NOT_OURS = ("multiprocessing", "importlib", "<frozen")  # nobody could make these safe from outside

warnings.simplefilter("ignore", ResourceWarning)  # a result that was lost to an interruption is closed when dropped
warnings.simplefilter("ignore", RuntimeWarning)


NOWHERE = open(os.devnull, "w")  # noqa: SIM115


class Interrupted(KeyboardInterrupt):
    pass


# ---------------------------------------------------------------------------- what is counted


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found  # without the directory itself, which is closed by now


def paths(folder: str) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(at, name), folder) for at, dirs, files in os.walk(folder) for name in dirs + files
    )


def handles(things: Any) -> list[int]:
    """The handles of objects, or of lists of them; a number is one that the caller owns."""
    found = []
    for thing in things if isinstance(things, (list, tuple)) else [things]:
        if isinstance(thing, (list, tuple)):
            found += handles([one for one in thing if not is_handle(one)] if type(thing) is tuple else thing)
        elif is_handle(thing):
            found.append(thing)
        elif hasattr(thing, "fileno"):
            found.append(thing.fileno())
    return found


def is_handle(thing: Any) -> bool:
    return isinstance(thing, int) and not isinstance(thing, bool)


class Scene:
    """What an operation finds, and what it leaves."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.owners: list[Any] = []  # the caller's objects
        self.others: list[Any] = []  # that are not to change
        self.results: list[Any] = []
        self.arguments: list[Any] = []
        self.loop: Any = None
        self.ends = False
        self.threads = threading.active_count()
        self.notes: dict[str, Any] = {}

    def path(self, name: str = "a.sock") -> str:
        return os.path.join(self.folder, name)

    def look(self) -> tuple[Any, ...]:
        return descriptors(), paths(self.folder), handles(self.owners), threading.active_count()

    def close(self) -> None:
        self.ends = True
        for thing in [*self.results, *self.owners, *self.others]:
            close(thing)
        self.results, self.owners, self.others = [], [], []


def close(thing: Any) -> None:
    if isinstance(thing, (list, tuple)) and not hasattr(thing, "close"):
        for one in thing:
            close(one)
    elif is_handle(thing):
        with contextlib.suppress(OSError):
            os.close(thing)
    elif hasattr(thing, "close"):
        thing.close()


class Operation:
    """``prepare`` sets the scene, ``call`` is what is interrupted, ``verify`` says what is wrong when it has
    returned, ``keeps`` what must hold however it ended."""

    def __init__(
        self,
        name: str,
        prepare: Callable[[Scene], None],
        call: Callable[[Any], Any],
        *,
        partial: bool = False,
        verify: Callable[[Scene], str] | None = None,
        keeps: Callable[[Scene], str] | None = None,
        settle: Callable[[Scene], None] | None = None,
        control: bool = False,
        stormed: bool = True,
    ) -> None:
        self.name, self.prepare, self.call, self.partial = name, prepare, call, partial
        self.verify, self.keeps, self.settle, self.control, self.stormed = verify, keeps, settle, control, stormed


class Count:
    operations = lines = interrupted = signals = 0
    lost: ClassVar[list[str]] = []


# ---------------------------------------------------------------------------- interrupting


class Tracer:
    """Raises at the nth line below harken."""

    def __init__(self, nth: int) -> None:
        self.left, self.seen, self.at = nth, 0, ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if any(word in name for word in NOT_OURS) or name == OURSELVES or frame.f_code is STARTING:
            return None
        if event == "line" and below_harken(frame):
            self.seen += 1
            self.left -= 1
            if self.left == 0:
                self.at = f"{os.path.basename(name)}:{frame.f_lineno}"
                raise Interrupted
        return self


def below_harken(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(HOUSE):
            return True
        frame = frame.f_back
    return False


class Alarm:
    armed = struck = False
    only_below_harken = False


def on_alarm(_: int, frame: FrameType | None) -> None:
    if Alarm.armed and (not Alarm.only_below_harken or below_harken(frame)):
        Alarm.armed, Alarm.struck = False, True
        raise Interrupted


def begin(scene: Scene, operation: Operation) -> None:
    """In C from the operation to the list: see above."""
    arguments = [one if type(one) is tuple else (one,) for one in scene.arguments]
    scene.results.extend(starmap(operation.call, arguments))


def by_trace(operation: Operation, nth: int, folder: str) -> tuple[str, bool]:
    """What went wrong, and whether there was an nth line."""
    tracer = Tracer(nth)

    def run(scene: Scene) -> None:
        sys.settrace(tracer)
        try:
            begin(scene, operation)
        finally:
            sys.settrace(None)

    wrong = play(operation, run, folder)
    Count.lines += tracer.at != ""
    Count.interrupted += tracer.at != ""
    return (f"{operation.name}, at {tracer.at}: {wrong}" if wrong else ""), tracer.at != ""


def by_signal(operation: Operation, within: float, folder: str) -> str:
    def run(scene: Scene) -> None:
        Alarm.only_below_harken = scene.loop is not None
        Alarm.struck = False
        try:
            Alarm.armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, within))
            begin(scene, operation)
        finally:
            Alarm.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    wrong = play(operation, run, folder)
    Count.interrupted += Alarm.struck
    Count.signals += Alarm.struck
    return f"{operation.name}, by a signal: {wrong}" if wrong else ""


def play(operation: Operation, run: Callable[[Scene], None], folder: str) -> str:
    """One round; what is wrong with what it left."""
    scene = Scene(folder)
    empty_stage = (descriptors(), paths(folder), threading.active_count())
    operation.prepare(scene)
    before = scene.look()
    try:
        run(scene)
    except Interrupted:
        pass
    except Exception as error:  # what an interruption became on its way
        if not any(isinstance(one, Interrupted) for one in chain(error)):
            scene.notes["error"] = error
    wrong = judge(operation, scene, before)
    # A stranger's file has the lowest number now: whoever closes what is not his own closes this.
    stranger = os.open("/etc/hostname" if os.path.exists("/etc/hostname") else "/etc/passwd", os.O_RDONLY)
    target = os.readlink(f"/proc/self/fd/{stranger}")
    try:
        scene.close()
        if operation.settle is not None:
            operation.settle(scene)
        scene.owners = scene.results = []
        scene.notes = {}
        scene.arguments = []
        scene.loop = None
    except OSError as error:
        wrong = wrong or f"afterwards: {error!r}"
    if descriptors().get(stranger) != target:
        return wrong or "a stranger's file was closed"
    os.close(stranger)
    if (descriptors(), paths(folder), threading.active_count()) != empty_stage:
        gc.collect()
        until(lambda: threading.active_count() <= empty_stage[2])
        now = (descriptors(), paths(folder), threading.active_count())
        if now != empty_stage:
            for number in now[0].keys() - empty_stage[0].keys():
                os.close(number)
            clear(folder)
            wrong = wrong or f"left behind: {difference(now, empty_stage)}"
    return wrong


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what was being handled when it was raised: an interrupted ``with`` of a lock that its own body has
    released, as in threading.Condition.wait(), ends with the RuntimeError of the second release."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def judge(operation: Operation, scene: Scene, before: tuple[Any, ...]) -> str:
    if operation.settle is not None:
        operation.settle(scene)
    after = scene.look()
    if "error" in scene.notes:
        return f"it raised {' during '.join(repr(one) for one in chain(scene.notes['error']))}"
    if after != before and not scene.results:
        gc.collect()
        until(lambda: threading.active_count() <= before[3])
        after = scene.look()
    wrong = ""
    if scene.results:  # a number is the result's now
        scene.owners = [one for one in scene.owners if not isinstance(one, int)]
    if not scene.results and not operation.partial:
        wrong = "" if after == before else f"it has not returned, and changed {difference(after, before)}"
    else:
        opened = handles(scene.owners) + handles(scene.results) + handles(scene.others)
        claimed = [number for number in opened if number >= 0]
        if len(set(claimed)) != len(claimed):
            wrong = f"two owners: {claimed}"
        elif not set(claimed) <= set(after[0]):
            wrong = f"an owner of what is not open: {claimed}, {after[0]}"
        elif operation.partial and not scene.results:
            changed = [(was, now) for was, now in zip(before[2], after[2], strict=True) if now not in (was, -1)]
            wrong = f"handles became others: {changed}" if changed else ""
        elif operation.verify is not None:
            wrong = operation.verify(scene)
    return wrong or (operation.keeps(scene) if operation.keeps is not None else "")


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not happened() and time.monotonic() < end:
        time.sleep(0.001)


def difference(now: tuple[Any, ...], then: tuple[Any, ...]) -> str:
    return "; ".join(f"{b} -> {a}" for a, b in zip(now, then, strict=True) if a != b)


def clear(folder: str) -> None:
    for at, dirs, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(at, name))
        for name in dirs:
            os.rmdir(os.path.join(at, name))


# ---------------------------------------------------------------------------- the operations


def plain(listening: bool = True, kind: type[socket.socket] = socket.socket) -> socket.socket:
    sock = kind()
    sock.bind(("127.0.0.1", 0))
    if listening:
        sock.listen()
    return sock


def gone(scene: Scene) -> str:
    """The caller's objects have given their handles away."""
    left = [number for number in handles(scene.owners) if number >= 0]
    return f"it has returned, and they have {left}" if left else ""


class Careful(socket.socket):
    def detach(self) -> int:
        return super().detach()


RANGE = random.randrange(20000, 30000)


def creating(name: str, call: Callable[..., Any], *binds: str, **more: Any) -> Operation:
    """Of what nothing was there before. In a bind {} is the directory."""

    def prepare(scene: Scene) -> None:
        scene.arguments = [tuple(bind.format(scene.folder) for bind in binds)]

    return Operation(name, prepare, call, **more)


def moving(name: str, make: Callable[[Scene], Any], call: Callable[[Any], Any], **more: Any) -> Operation:
    """From the caller's object into the result."""

    def prepare(scene: Scene) -> None:
        thing = make(scene)
        scene.owners, scene.arguments = [thing], [(thing, empty(socket.socket), 1) if call is move else thing]

    return Operation(name, prepare, call, **{"verify": gone, **more})


def reading(name: str, make: Callable[[Scene], Any], call: Callable[[Any], Any]) -> Operation:
    """Nothing changes at all."""

    def prepare(scene: Scene) -> None:
        thing = make(scene)
        scene.owners, scene.arguments = [thing], [thing]
        scene.notes["before"] = scene.look()

    def verify(scene: Scene) -> str:
        now = scene.look()
        return "" if now == scene.notes["before"] else f"it changed {difference(now, scene.notes['before'])}"

    return Operation(name, prepare, in_one(call), verify=verify)


def accepted(scene: Scene) -> Any:
    (listener,) = scene.notes["listeners"] = harken.listen("127.0.0.1:0")
    client = socket.create_connection(listener.address)
    scene.others = [client, listener]
    return listener.accept()[0]


def counted(scene: Scene) -> Any:
    """One that an acceptor counts."""
    listeners = harken.listen("127.0.0.1:0")
    acceptor = listeners.acceptor()
    client = socket.create_connection(listeners[0].address)
    scene.others = [client, *listeners]
    scene.notes["acceptor"] = acceptor
    (connection,) = acceptor.accept_many()
    acceptor.close()
    return connection


def live(scene: Scene) -> None:
    """A server that has the path already."""
    old = harken.listen(f"unix:{scene.path()}")
    scene.others = list(old)
    scene.arguments = [f"unix:{scene.path()}"]


def answered(scene: Scene) -> str:
    """The path leads to a server that lives: to the old one, or the one that has taken it over."""
    servers = [one for one in [*scene.others, *flat(scene.results), *flat(scene.owners)] if isinstance(one, Listener)]
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(scene.path())
        except OSError as error:
            return f"nobody answers at the path: {error!r}"
        for server in servers:
            if server.fileno() >= 0 and server.state == "listening":
                server.settimeout(0)
                for connection in server.accept_many():
                    connection.close()
                    if scene.results and server in scene.others:
                        return "it has returned, and the old server has the path"
                    return ""
    return "whoever answers at the path is none of ours"


def flat(things: list[Any]) -> list[Any]:
    return [one for thing in things for one in (thing if isinstance(thing, (list, tuple)) else [thing])]


def takeover_that_is_held(scene: Scene) -> None:
    live(scene)
    new = harken.bind(f"unix:{scene.path()}", exclusive=False)
    scene.owners, scene.arguments = [list(new)], [new]


def whole_paths(scene: Scene) -> str:
    """A unix listener that is closed has no path any more: it goes first, and a second close() ends what was begun."""
    unix = [one for one in flat(scene.owners) if isinstance(one, Listener) and one.family == socket.AF_UNIX]
    left = any(one.fileno() < 0 for one in unix) and os.path.exists(scene.notes["path"])
    return "it is closed, and the path is there" if left else ""


def several(scene: Scene) -> Any:
    listeners = harken.listen("127.0.0.1:0", f"unix:{scene.path()}", "127.0.0.1:0")
    scene.notes["path"] = scene.path()
    scene.owners, scene.arguments = [list(listeners)], [listeners]


def on_unix(scene: Scene) -> Any:
    listeners = harken.listen(f"unix:{scene.path()}")
    scene.notes["path"] = scene.path()
    scene.owners, scene.arguments = [list(listeners)], [listeners]


def in_one(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose result is no owner."""
    return lambda *arguments: (call(*arguments), True)[1]


PASSED = _inherit.FIRST = 50  # where systemd's descriptors begin here: nothing else has these numbers


def as_passed(scene: Scene, name: str = "web") -> None:
    _inherit._passed.clear()
    _inherit._owned.clear()
    _inherit._by_number.clear()
    for number in (PASSED, PASSED + 1):
        with plain() as sock:
            os.dup2(sock.fileno(), number, inheritable=True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="web:api")
    scene.arguments = [name]
    scene.others = [Closing(lambda: close([PASSED, PASSED + 1]))]


def open_again(scene: Scene) -> str:
    """What systemd has passed is with the result, or can be had."""
    had = handles(flat(scene.results))
    if not had:
        with contextlib.suppress(OSError):
            again = harken.from_systemd("web")
            (number,) = [one.detach() for one in again]
            return "" if number == PASSED else "another one"
        return "it cannot be had any more"
    return "" if had == [PASSED] else f"it is {had}"


def queue(scene: Scene) -> Any:
    """A listener with a client that waits."""
    (listener,) = harken.listen("127.0.0.1:0")
    listener.settimeout(5)
    scene.notes["client"] = client = socket.create_connection(listener.address)
    scene.others = [client]
    scene.owners, scene.arguments = [listener], [listener]


def client_is_there(scene: Scene) -> str:
    """Accepted and given, or in the queue still."""
    found = [one for one in flat(flat(scene.results)) if isinstance(one, harken.Socket)]
    (listener,) = scene.owners
    if not found:
        listener.settimeout(2)
        try:
            found = [listener.accept()[0]]
            scene.others.append(found[0])
        except OSError as error:
            return f"the client was lost: {error!r}"
    return "" if found[0].getpeername() == scene.notes["client"].getsockname() else "another client"


def with_acceptor(scene: Scene) -> None:
    queue(scene)
    scene.notes["acceptor"] = acceptor = harken.Acceptor(scene.owners)
    scene.arguments = [acceptor]
    scene.others.append(Closing(acceptor.close))


class Closing:
    """Closes something that is not counted."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


def client_of_acceptor(scene: Scene) -> str:
    found = [one for one in flat(flat(scene.results)) if isinstance(one, harken.Socket)]
    if not found:
        found = scene.notes["acceptor"].accept_many()
        scene.others += found
    if not found:
        return "the client was lost"
    return "" if found[0].getpeername() == scene.notes["client"].getsockname() else "another client"


def talking(scene: Scene, argument: Any) -> None:
    connection = accepted(scene)
    scene.others[0].sendall(b"abc")
    connection.settimeout(5)
    scene.owners, scene.arguments = [connection], [(connection, argument)]


def nothing_unread(scene: Scene) -> str:
    (connection,) = scene.owners
    got = next((one for one in scene.results if isinstance(one, bytes)), b"")
    connection.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        got += connection.recv(10)
    return "" if got == b"abc" else f"of b'abc' came {got!r}"


# Loops


def on_loop(loops: Callable[[], Any], start: Callable[[Scene], Any]) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.loop = loops()
        scene.arguments = [scene]
        scene.notes["coroutine"] = start

    return prepare


def drive(scene: Scene) -> Any:
    return scene.loop.run_until_complete(scene.notes["coroutine"](scene))


def settle_loop(scene: Scene) -> None:
    """As asyncio.run() ends. What was started stays; twice: before the counting, and at the end."""
    loop = scene.loop
    if loop is None or loop.is_closed():
        return
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        with contextlib.suppress(Interrupted):  # a task passes on what interrupted another
            loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            task.cancelled() or not task.done() or task.exception()  # somebody has looked at it
    if not scene.ends:
        loop.run_until_complete(loop.shutdown_default_executor())
        until(lambda: threading.active_count() <= scene.threads)
        return
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


class Served:
    """A server whose handles are counted, and which is closed with its loop running."""

    def __init__(self, scene: Scene, server: Any) -> None:
        self.scene, self.server = scene, server

    def close(self) -> None:
        self.server.close()
        self.scene.loop.run_until_complete(asyncio.wait_for(self.server.wait_closed(), 5))


async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def operations() -> Iterator[Operation]:
    # Those that open
    for call in (harken.listen, harken.bind):
        name = call.__name__
        for bind in (
            "127.0.0.1:0", ":0", "localhost:0", f"127.0.0.1:{RANGE}-{RANGE + 500}", "tcp4://*:0", "mptcp://127.0.0.1:0",
            "127.0.0.1:0?ttl=9&priority=3", "127.0.0.1:0?reuse_port=1", "*:0?ipv6_only=0",
        ):  # fmt: skip
            yield creating(f"{name} {bind}", call, bind)
        for more in ("", "?mode=0600", "?mode=0600&owner=0", "?sndbuf=9000"):
            if "owner" in more and os.geteuid() != 0:
                continue
            yield creating(f"{name} unix:{more}", call, f"unix:{{}}/a.sock{more}")
        yield creating(f"{name} unix:@", call, f"unix:@interrupted-{os.getpid()}")
        yield creating(f"{name} several", call, "127.0.0.1:0", "unix:{}/a", ":0")

        def left_by_a_dead_server(scene: Scene) -> None:
            scene.arguments = [f"unix:{scene.path()}"]
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(scene.path())

        def replaced(scene: Scene) -> str:
            """The dead server's path may be gone already; no other may be there."""
            there = paths(scene.folder)
            clear(scene.folder) if not scene.results else None
            return "" if set(there) <= {"a.sock"} else f"there is {there}"

        yield Operation(
            f"{name} over a dead server's path", left_by_a_dead_server,
            call, partial=True, keeps=replaced,
        )  # fmt: skip
        yield Operation(
            f"{name} a takeover", live, partial(call, exclusive=False),
            keeps=answered if call is harken.listen else None,
        )  # fmt: skip
        yield Operation(
            f"{name} a takeover with a mode", live,
            partial(call, exclusive=False, mode=0o600),
            keeps=answered if call is harken.listen else None,
        )  # fmt: skip
        for more in ("", "?ttl=9"):

            def by_number(scene: Scene, more: str = more) -> None:
                number = plain().detach()
                scene.owners, scene.arguments = [number], [f"fd://{number}{more}"]
                scene.notes["number"] = number

            def mine(scene: Scene) -> str:
                return "" if handles(flat(scene.results)) == [scene.notes["number"]] else "another handle"

            yield Operation(
                f"{name} fd://{more}", by_number, call, verify=mine,
            )  # fmt: skip
            yield Operation(
                f"{name} systemd:web{more}", partial(as_passed, name=f"systemd:web{more}"), call,
                keeps=open_again, partial=True,
            )  # fmt: skip

    yield Operation("from_systemd", as_passed, harken.from_systemd, keeps=open_again, partial=True)
    yield Operation("listen to what was held", held, harken.Listeners.listen, partial=True)
    yield Operation(
        "listen to a takeover that was held", takeover_that_is_held, harken.Listeners.listen,
        partial=True, keeps=answered,
    )  # fmt: skip

    # Those that move
    ways: list[tuple[str, Callable[[Any], Any]]] = [
        ("to_socket", harken.Listener.to_socket),
        ("detach", harken.Listener.detach),
        ("adopt", harken.adopt),
        ("move", move),
    ]
    for what, make in (
        ("a listener", lambda _: harken.listen("127.0.0.1:0")[0]),
        ("a held one", lambda _: harken.bind("127.0.0.1:0")[0]),
        ("a tuned one", lambda _: harken.listen("127.0.0.1:0?ttl=9")[0]),
        ("a unix one", lambda scene: harken.listen(f"unix:{scene.path()}")[0]),
    ):
        for name, call in ways:
            tidy = (
                (lambda s: clear(s.folder) or "")
                if "unix" in what and name in ("to_socket", "detach", "move")
                else None
            )

            def both(scene: Scene, tidy: Any = tidy) -> str:
                return gone(scene) or (tidy(scene) if tidy else "")

            yield moving(f"{name} {what}", make, call, verify=both)
    yield moving("to_socket a connection", accepted, harken.Socket.to_socket)
    yield moving("detach a connection", accepted, harken.Socket.detach)
    yield moving("to_socket one that is counted", counted, harken.Socket.to_socket)
    yield moving("sockets of three", lambda _: harken.listen(*["127.0.0.1:0"] * 3), harken.Listeners.sockets)
    yield moving(
        "sockets with a unix one", lambda s: harken.listen("127.0.0.1:0", f"unix:{s.path()}"), harken.Listeners.sockets
    )
    yield moving("adopt a socket.socket", lambda _: plain(), harken.adopt)
    yield moving("adopt one that is bound", lambda _: plain(False), harken.adopt)
    yield moving("adopt one whose detach is in Python", lambda _: plain(kind=Careful), harken.adopt)
    yield moving("adopt a ListeningSocket", lambda _: harken.listen("127.0.0.1:0").sockets()[0], harken.adopt)
    yield moving(
        "adopt a ListeningSocket with a path", lambda s: harken.listen(f"unix:{s.path()}").sockets()[0], harken.adopt
    )

    def one_of_ours(_: Scene) -> harken.Socket:
        sock = harken.Socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock

    yield moving("adopt a Socket", one_of_ours, harken.adopt)

    def number(scene: Scene) -> None:
        one = plain().detach()
        scene.owners, scene.arguments = [one], [one]

    yield Operation("adopt a number", number, harken.adopt)
    yield reading("dup", lambda _: harken.listen("127.0.0.1:0?ttl=9")[0], lambda one: close(one.dup()))
    yield Operation("dup and keep", twin, harken.Listener.dup, verify=lambda s: "" if s.results else "no twin")
    yield Operation("ListeningSocket.dup", lambda s: twin(s, True), ListeningSocket.dup)
    yield Operation(
        "pickle a ListeningSocket",
        lambda s: twin(s, True),
        lambda sock: pickle.loads(pickle.dumps(sock)),
        stormed=False,
    )
    yield moving(
        "ListeningSocket.close", lambda s: harken.listen(f"unix:{s.path()}").sockets()[0],
        ListeningSocket.close, partial=True,
    )  # fmt: skip

    # Those that close
    yield Operation("Listeners.close", several, harken.Listeners.close, partial=True, keeps=whole_paths)
    yield Operation("close a unix one", on_unix, close, partial=True, keeps=whole_paths)
    yield moving("Listener.close", lambda _: harken.listen("127.0.0.1:0")[0], harken.Listener.close)

    # Those that ask
    for name in ("address", "port", "url", "backlog", "state", "options"):
        yield reading(
            f"Listener.{name}", lambda _: harken.listen("127.0.0.1:0?ttl=9")[0],
            lambda one, name=name: getattr(one, name),
        )  # fmt: skip
    yield reading("repr", lambda _: harken.listen(":0")[0], repr)
    yield reading("Listener.stats", lambda _: harken.listen("127.0.0.1:0")[0], harken.Listener.stats)
    yield reading("stats", lambda _: plain(), harken.stats)
    yield reading("holders", lambda _: harken.listen("127.0.0.1:0")[0], lambda one: harken.holders(one.url))
    yield reading(
        "holders of a path", lambda s: harken.listen(f"unix:{s.path()}")[0], lambda one: harken.holders(one.url)
    )
    yield reading("check", lambda _: harken.listen("127.0.0.1:0")[0], lambda one: checked(one.url, "127.0.0.1:0"))
    yield reading("check a path", lambda s: harken.listen(f"unix:{s.path()}")[0], lambda one: checked(one.url))
    yield reading("an error", lambda _: harken.listen("127.0.0.1:0")[0], lambda one: failed(one.url))
    yield reading("an error of a path", lambda s: harken.listen(f"unix:{s.path()}")[0], lambda one: failed(one.url))
    yield creating("preload", harken.preload)
    yield creating("getaddrinfo", lambda: harken.getaddrinfo("localhost", 80).close())

    # Those that accept and talk
    yield Operation("accept", queue, harken.Listener.accept, keeps=client_is_there)
    yield Operation("accept_many", queue, harken.Listener.accept_many, keeps=client_is_there)
    yield Operation("an acceptor", queue, lambda one: Uncounted(harken.Acceptor([one])), partial=True)
    yield Operation("Acceptor.accept_many", with_acceptor, harken.Acceptor.accept_many, keeps=client_of_acceptor)
    yield Operation("iterating an Acceptor", with_acceptor, next, keeps=client_of_acceptor)
    yield Operation("Acceptor.stats", with_acceptor, lambda one: (one.stats(), True)[1], keeps=client_of_acceptor)
    yield Operation("Acceptor.close", with_acceptor, harken.Acceptor.close, partial=True)
    yield Operation("recv", partial(talking, argument=10), harken.Socket.recv, keeps=nothing_unread)
    yield Operation("sendall", partial(talking, argument=bytes(1000)), harken.Socket.sendall, partial=True)
    yield Operation("sendmsg", partial(talking, argument=[b"x", b"y"]), in_one(harken.Socket.sendmsg), partial=True)
    yield moving("close a connection", accepted, harken.Socket.close)

    def unconnected(scene: Scene) -> None:
        (listener,) = harken.listen("127.0.0.1:0")
        sock = harken.Socket()
        scene.notes["to"] = listener.address
        scene.others = [listener]
        scene.owners, scene.arguments = [sock], [(sock, listener.address)]

    yield Operation("connect", unconnected, harken.Socket.connect, partial=True)

    # On event loops
    for name, loops in (("asyncio", asyncio.new_event_loop), *uvloops()):
        starts: dict[str, Callable[[Scene], Any]] = {
            "a host": lambda _: harken.asyncio.start_server(talk, "127.0.0.1", 0),
            "hosts": lambda _: harken.asyncio.start_server(talk, ["127.0.0.1", "127.0.0.1"], 0),
            "a path": lambda s: harken.asyncio.start_server(talk, f"unix:{s.path()}"),
            "create_server": lambda _: harken.asyncio.create_server(asyncio.Protocol, "127.0.0.1", 0),
        }
        for what, start in starts.items():
            yield Operation(
                f"{name}: start_server, {what}", on_loop(loops, start), lambda s: Served(s, drive(s)),
                settle=settle_loop,
            )  # fmt: skip
        yield Operation(
            f"{name}: Server.close", lambda s, loops=loops: started(s, loops), close,
            settle=settle_loop, partial=True,
        )  # fmt: skip


def held(scene: Scene) -> None:
    listeners = harken.bind("127.0.0.1:0", "127.0.0.1:0?ttl=9")
    scene.owners, scene.arguments = [list(listeners)], [listeners]


def twin(scene: Scene, plain_one: bool = False) -> None:
    listeners = harken.listen("127.0.0.1:0?ttl=9")
    one = listeners.sockets()[0] if plain_one else listeners[0]
    scene.owners, scene.arguments = [one], [one]


class Uncounted:
    """An acceptor: its descriptors are its own."""

    def __init__(self, acceptor: Any) -> None:
        self.close = acceptor.close


def started(scene: Scene, loops: Callable[[], Any]) -> None:
    scene.loop = loops()
    server = scene.loop.run_until_complete(harken.asyncio.start_server(talk, [f"unix:{scene.path()}", "127.0.0.1:0"]))
    scene.others = [Served(scene, server)]
    scene.arguments = [[server]]


def checked(*binds: str) -> bool:
    _check.run(binds, True, NOWHERE)
    return True


def failed(url: str) -> bool:
    try:
        harken.listen(url).close()
    except harken.ListenError as error:
        return bool(str(error))
    return False


def uvloops() -> list[tuple[str, Callable[[], Any]]]:
    try:
        import uvloop
    except ImportError:
        return []
    return [("uvloop", uvloop.new_event_loop)]


# What is wrong on purpose: in a file that counts as harken's.
WRONG = """
def adopt(sock):
    number = sock.detach()
    listener = Listener(fileno=number)
    return listener

def listen(folder):
    with open(folder + "/a.sock", "w"):
        pass
    sock = Listener(2, 1)
    return sock
"""


def controls() -> list[Operation]:
    names: dict[str, Any] = {"Listener": harken.Socket}
    exec(compile(WRONG, os.path.join(HOUSE, "wrong on purpose"), "exec"), names)
    return [
        moving("control: adopt", lambda _: plain(), names["adopt"], control=True),
        creating("control: listen", names["listen"], "{}", control=True),
    ]


# ---------------------------------------------------------------------------- the program


def trace_all(operation: Operation, every: int, folder: str) -> list[str]:
    found, nth, more = [], random.randint(1, every), True
    while more:
        wrong, more = by_trace(operation, nth, folder)
        found += [wrong] if wrong else []
        nth += every
    return found


def storm(operation: Operation, rounds: int, folder: str) -> list[str]:
    Alarm.armed = False
    took = []
    for _ in range(3):
        scene = Scene(folder)
        operation.prepare(scene)
        begun = time.perf_counter()
        begin(scene, operation)
        took.append(time.perf_counter() - begun)
        judge(operation, scene, scene.look())
        scene.close()
        if operation.settle is not None:
            operation.settle(scene)
        gc.collect()
        clear(folder)
    within = min(took) * 1.5 + 5e-6
    return [wrong for wrong in (by_signal(operation, within, folder) for _ in range(rounds)) if wrong]


KEY = ("to_socket a listener", "sockets of three", "adopt a socket.socket", "adopt a Socket", "adopt a number")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="signals an operation (default 100)")
    parser.add_argument("--long", action="store_true", help="100,000 signals for each kind of move, 1,000 for the rest")
    parser.add_argument("--only", default="", help="operations with this word in their name")
    parser.add_argument("--without", action="append", default=[], help="no operations with this word in their name")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="at each Nth line only")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGALRM, on_alarm)
    logging.disable()  # asyncio tells of every task that was interrupted
    sys.unraisablehook = lambda _: None  # an interruption inside a finaliser goes no further
    chosen = [
        one
        for one in [*operations(), *controls()]
        if options.only in one.name and not any(word in one.name for word in options.without)
    ]
    found_by_control: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="hkn") as folder:
        for operation in chosen:
            rounds = options.rounds
            if options.long:
                rounds = 100_000 if operation.name in KEY else 1_000
            before = (Count.lines, Count.signals)
            storm_of_none = storm(operation, 0, folder)  # once undisturbed: everything is loaded then
            found = storm_of_none + trace_all(operation, 1 if operation.control else options.every, folder)
            found += storm(operation, rounds, folder) if rounds and operation.stormed else []
            Count.operations += 1
            if operation.control:
                found_by_control[operation.name] = len(found)
            else:
                Count.lost += found
            if options.verbose or (found and not operation.control):
                lines, signals = Count.lines - before[0], Count.signals - before[1]
                print(f"{operation.name}: {lines} lines, {signals} signals, {len(found)} wrong", flush=True)
                for one in found[: 20 if options.verbose else 5]:
                    print(f"    {one}", flush=True)
    resource_sharer.stop(5)
    by_trace_only = Count.interrupted - Count.signals
    print(
        f"operations {Count.operations}, lines {Count.lines}, interrupted {Count.interrupted} "
        f"({by_trace_only} by the trace function, {Count.signals} by signals), lost: {len(Count.lost)}"
    )
    for name, number in found_by_control.items():
        print(f"negative {name}: {number} found")
    return 1 if Count.lost or not all(found_by_control.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
