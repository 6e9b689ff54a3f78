"""Fixtures for pytest that hold the port of a server under test from the first moment, where picking a free number and
binding it later loses it to somebody else now and then. pytest finds them when harken is installed.

========================= ===========================================================================================
`tcp_listener`            a `ListenerFixture` that listens on 127.0.0.1, on a port that the system chose
`unix_listener`           the same on a unix socket, whose path is short enough for every system
`tcp_listener_factory`    ``make(*binds, **options)``: as many of them as a test needs; the binds of `harken.listen`
`held_port`               an int: a port of 127.0.0.1 for a server that takes only a number
`held_port_factory`       ``make(host="127.0.0.1")``: as many of them as a test needs
`serve`                   ``serve(command)``: a `Served` server in a process of its own, which accepts when it returns
========================= ===========================================================================================

All have function scope, and close what they opened. Nobody else is given these ports, so tests in parallel processes,
as pytest-xdist runs them, need no agreement."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import harken

if TYPE_CHECKING:
    import socket
    from os import PathLike
    from subprocess import Popen


class Process(Protocol):
    """What `ListenerFixture.wait_ready` watches: a `subprocess.Popen`, a `multiprocessing.Process`, or a process of
    asyncio."""

    @property
    def pid(self) -> int | None: ...


class _Named:
    """Something that listens, with the name by which clients reach it: host and port, or a path and None."""

    def __init__(self, name: tuple[str, int | None]) -> None:
        self._name = name

    @property
    def host(self) -> str:
        """Where clients of the first listener connect: for one on all addresses, the loopback address. A unix socket's
        path."""
        return self._name[0]

    @property
    def port(self) -> int:
        """The port, which all listeners share. Raises ValueError for a unix socket."""
        if self._name[1] is None:
            raise ValueError(f"{self.url} has no port")
        return self._name[1]

    @property
    def url(self) -> str:
        """``http://127.0.0.1:40000``, without a path; of a unix socket ``unix:/path``."""
        return _url_of(*self._name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


class ListenerFixture(_Named):
    """Listening sockets that belong to a test, until it gives them to a server."""

    listeners: harken.Listeners
    """What `harken.listen` returned."""

    def __init__(self, listeners: harken.Listeners) -> None:
        super().__init__(_name_of(listeners[0]))
        self.listeners = listeners
        self._given: list[socket.socket] | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors, as ``pass_fds`` of `subprocess.Popen` takes them. They remain the fixture's; empty once
        `sockets()` has given them away."""
        return () if self._given is not None else tuple(one.fileno() for one in self.listeners)

    def sockets(self) -> list[socket.socket]:
        """The listeners as sockets of the standard library, for a server in this process, which closes them; see
        `harken.Listeners.sockets`."""
        if self._given is None:
            self._given = list(self.listeners.sockets())
        return self._given

    def wait_ready(self, process: Process | None = None, timeout: float = 10.0) -> None:
        """Waits until a server accepts.

        It connects once, and asks the system how many connections wait in the accept queue (see `harken.stats`) until
        there are none. No other program can be the one that accepted, and the server need not speak HTTP.

        process: ends the wait when it ends, for clients of a listener that nobody serves wait instead of being refused
        timeout: seconds

        Raises TimeoutError when nobody accepts in time, RuntimeError when the process has ended, and
        io.UnsupportedOperation where the system does not report its queue (macOS, Windows)."""
        watched: Sequence[Any] = self.listeners if self._given is None else self._given
        with _connected(self.listeners[0].family, self._name) as probe:

            def is_ready() -> bool:
                queues = [_queued(one) for one in watched if one.fileno() >= 0]
                return bool(queues) and not any(queues)

            _wait(is_ready, process, timeout, f"nobody accepts on {self.url}", probe)

    def close(self) -> None:
        """Closes what has not been given away. Clients are refused from then on, unless a server has the socket too."""
        self.listeners.close()


class Served(_Named):
    """A server in a process of its own, which `serve` has started."""

    process: Popen[bytes]
    """The process. Its standard output and standard error are in `output`."""

    def __init__(self, name: tuple[str, int | None], process: Popen[bytes], output: Any, patience: float) -> None:
        super().__init__(name)
        self.process = process
        self._output = output
        self._patience = patience
        self._stopped = False
        self._path = _inode(name)

    @property
    def output(self) -> str:
        """What the server has written to its standard output and standard error so far."""
        if self._output.closed:
            return self._text
        self._output.seek(0)
        return str(self._output.read().decode(errors="replace"))

    def stop(self) -> int:
        """Ends the server: SIGTERM (TerminateProcess on Windows), and after ``stop_timeout`` seconds SIGKILL for it and
        for the processes that it has started. Answers its exit status. The second call does nothing but that.

        Raises RuntimeError if the server had ended before."""
        if self._stopped:
            return int(self.process.wait())
        self._stopped = True
        early = self.process.poll()
        try:
            if early is None:
                self.process.terminate()
                _end(self.process, self._patience)
        finally:
            self._text = self.output
            self._output.close()
            if self._path is not None and self._path == _inode(self._name):
                os.unlink(self.host)
        if early is not None:
            raise RuntimeError(f"the server had ended with status {early} before the test did; {_shown(self._text)}")
        return int(self.process.returncode)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} pid={self.process.pid}>"


# ---------------------------------------------------------------------------- the fixtures


@pytest.fixture
def tcp_listener_factory() -> Iterator[Callable[..., ListenerFixture]]:
    """``make(*binds, **options)`` listens as `harken.listen` does, by default on ``127.0.0.1:0``, and answers a
    `ListenerFixture`. All are closed at the end of the test."""
    with ExitStack() as stack:

        def make(*binds: Any, **options: Any) -> ListenerFixture:
            made = ListenerFixture(harken.listen(*(binds or ("127.0.0.1:0",)), **options))
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def tcp_listener(tcp_listener_factory: Callable[..., ListenerFixture]) -> ListenerFixture:
    """A `ListenerFixture` that listens on 127.0.0.1, on a port that the system chose."""
    return tcp_listener_factory()


@pytest.fixture
def unix_listener() -> Iterator[ListenerFixture]:
    """A `ListenerFixture` that listens on a unix socket in a directory of its own, which is removed at the end of the
    test. Its path is short: a socket's path has at most 107 bytes, on macOS 103, and ``tmp_path`` is often longer."""
    from tempfile import TemporaryDirectory

    from harken._bind import unix_url

    # A server may remove its path, and the directory, while this does.
    with TemporaryDirectory(prefix="harken", ignore_cleanup_errors=True) as folder:
        made = ListenerFixture(harken.listen(unix_url(f"{folder}/s")))  # a ? or % may be in it
        yield made
        made.close()


@pytest.fixture
def held_port_factory() -> Iterator[Callable[..., int]]:
    """``make(host="127.0.0.1")`` answers a port that servers can bind and that the system gives nobody else, until the
    test ends: for a server that takes only a number. Until the server listens, clients are refused.

    The port is bound with SO_REUSEADDR (`harken.bind` with ``exclusive=False``) and does not listen. Linux then lets
    other sockets with SO_REUSEADDR bind it, which nearly every server sets, but chooses it neither for a bind to port 0
    nor for an outgoing connection. Not tried on macOS, BSD and Windows."""
    with ExitStack() as stack:

        def make(host: str = "127.0.0.1") -> int:
            shown = f"[{host}]" if ":" in host else host
            return stack.enter_context(harken.bind(f"{shown}:0", exclusive=False)).port

        yield make


@pytest.fixture
def held_port(held_port_factory: Callable[..., int]) -> int:
    """A port of 127.0.0.1 that servers can bind and that the system gives nobody else; see `held_port_factory`."""
    return held_port_factory()


class Serve(Protocol):
    """The type of the fixture `serve`."""

    def __call__(
        self,
        command: Sequence[str | PathLike[str]],
        *binds: Any,
        env: dict[str, str] | None = None,
        cwd: str | PathLike[str] | None = None,
        timeout: float = 10.0,
        stop_timeout: float = 10.0,
    ) -> Served: ...


@pytest.fixture
def serve(held_port_factory: Callable[..., int]) -> Iterator[Serve]:
    """``serve(command)`` starts a server and answers a `Served` one when it accepts connections; the end of the test
    ends it.

    command: the program and its arguments. ``{fd}`` in them becomes the number of a descriptor that listens and that
        the process inherits (``["uvicorn", "app:app", "--fd", "{fd}"]``); for several listeners ``{fd0}``, ``{fd1}``.
        For a program that takes only a number, ``{port}`` becomes a held port; then it has to listen on ``{host}``.
    binds: where to listen, as `harken.listen` has it; ``127.0.0.1:0`` by default. Not with ``{port}``.
    env: variables that are added to this process's environment
    cwd: the directory in which it runs
    timeout: seconds until it has to accept
    stop_timeout: seconds that it has to end in after SIGTERM

    Its output is in the error if it ends or does not accept in time, and in pytest's report if the test fails. Raises
    RuntimeError if the process ends by itself, also if the test is over then; TimeoutError if it does not accept in
    time; ValueError if the command has neither ``{fd}`` nor ``{port}``; io.UnsupportedOperation for ``{fd}`` on
    Windows, where a process cannot inherit a listening socket by its number."""
    started: list[Served] = []

    def start(
        command: Sequence[str | PathLike[str]],
        *binds: Any,
        env: dict[str, str] | None = None,
        cwd: str | PathLike[str] | None = None,
        timeout: float = 10.0,
        stop_timeout: float = 10.0,
    ) -> Served:
        if isinstance(command, (str, bytes)):
            raise TypeError(f"the command is a list of arguments, as [{command!r}, ...]")
        arguments = [str(one) for one in command]
        if any("{port}" in one for one in arguments):
            if binds:
                raise ValueError("{port} is for a program that binds by itself: it takes no binds")
            name = ("127.0.0.1", held_port_factory())
            values = {"host": name[0], "port": str(name[1]), "url": _url_of(*name)}
            served = _start(_filled(arguments, values), (), env, cwd, name, stop_timeout)
            started.append(served)
            _wait_answered(served, timeout)
            return served
        if not any("{fd" in one for one in arguments):
            raise ValueError('the command has to say where the socket goes: "{fd}", or "{port}" for a number')
        with harken.listen(*(binds or ("127.0.0.1:0",))) as listeners:
            fixture = ListenerFixture(listeners)
            values = {f"fd{n}": str(fd) for n, fd in enumerate(fixture.fds)} | {"fd": str(fixture.fds[0])}
            values |= {"host": fixture.host, "url": fixture.url}
            served = _start(_filled(arguments, values), fixture.fds, env, cwd, fixture._name, stop_timeout)
            started.append(served)
            try:
                fixture.wait_ready(served.process, timeout)
            except (RuntimeError, TimeoutError) as error:
                raise _with_output(error, served) from None
            for one in listeners:  # so that clients are refused when the server ends; a unix socket's path stays
                one.to_socket().close()
            return served

    start_typed: Serve = start
    yield start_typed
    failed: list[BaseException] = []
    for served in reversed(started):
        try:
            served.stop()
        except RuntimeError as error:
            failed.append(error)
        if output := served.output:
            print(f"output of {served!r}:\n{output}")  # pytest shows it if the test failed
    if failed:
        raise failed[0]


# ---------------------------------------------------------------------------- what they share


def _name_of(listener: harken.Listener) -> tuple[str, int | None]:
    """Where clients connect: host and port, or a path and None."""
    address = listener.address
    if isinstance(address, str):
        return address, None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address[0]), str(address[0]))
    return host, int(address[1])


def _url_of(host: str, port: int | None) -> str:
    if port is None:
        return f"unix:{host}"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _inode(name: tuple[str, int | None]) -> tuple[int, int] | None:
    if name[1] is None and not name[0].startswith("\0"):
        with suppress(OSError):
            found = os.lstat(name[0])
            return found.st_dev, found.st_ino
    return None


def _filled(arguments: list[str], values: dict[str, str]) -> list[str]:
    """The arguments with values in the place of names in braces; other braces, as in JSON, stay."""
    filled = []
    for argument in arguments:
        for name, value in values.items():
            argument = argument.replace(f"{{{name}}}", value)  # noqa: PLW2901
        filled.append(argument)
    return filled


def _connected(family: int, name: tuple[str, int | None]) -> socket.socket:
    import socket

    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.settimeout(10)
        made.connect(name[0] if name[1] is None else name)
    except BaseException:
        made.close()
        raise
    return made


def _queued(sock: Any) -> int:
    queued = harken.stats(sock).queued
    if queued is None:
        from io import UnsupportedOperation

        raise UnsupportedOperation(
            "this system does not report the accept queue: wait for an answer of the server instead, or give it a"
            " number ({port} or held_port)"
        )
    return queued


def _status(process: Any) -> int | None:
    """The exit status of a process that has ended; None of one that runs."""
    if hasattr(process, "poll"):
        return process.poll()  # type: ignore[no-any-return]
    status = process.exitcode if hasattr(process, "exitcode") else process.returncode
    return None if status is None else int(status)


def _wait(
    is_ready: Callable[[], bool], process: Any, timeout: float, what: str, client: socket.socket | None = None
) -> None:
    """Asks every few milliseconds, for neither an accept queue nor another process's listen() can be waited for."""
    from select import select
    from time import monotonic, sleep

    end = monotonic() + timeout
    while not is_ready():
        if process is not None and (status := _status(process)) is not None:
            raise RuntimeError(f"{what}: the server has ended with status {status}")
        if monotonic() >= end:
            raise TimeoutError(f"{what} after {timeout:g} s")
        if client is None or select([client], [], [], 0.005)[0]:
            sleep(0.005)


def _start(
    command: list[str],
    fds: tuple[int, ...],
    env: dict[str, str] | None,
    cwd: str | PathLike[str] | None,
    name: tuple[str, int | None],
    patience: float,
) -> Served:
    from subprocess import DEVNULL, STDOUT, Popen
    from tempfile import TemporaryFile

    if fds and not hasattr(os, "fork"):
        from io import UnsupportedOperation

        raise UnsupportedOperation("Windows passes no listening socket by its number: use {port}")
    output = TemporaryFile()  # noqa: SIM115
    try:
        # In a group of its own, so that its workers can be ended with it.
        process = Popen(
            command, stdin=DEVNULL, stdout=output, stderr=STDOUT, cwd=cwd, env={**os.environ, **(env or {})},
            pass_fds=fds, start_new_session=True,
        )  # fmt: skip
    except BaseException:
        output.close()
        raise
    return Served(name, process, output, patience)


def _wait_answered(served: Served, timeout: float) -> None:
    """Until somebody listens on the held port: only the server has been told of it."""
    import socket

    def is_ready() -> bool:
        try:
            _connected(socket.AF_INET, served._name).close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        _wait(is_ready, served.process, timeout, f"nobody listens on {served.url}")
    except (RuntimeError, TimeoutError) as error:
        raise _with_output(error, served) from None


def _with_output(error: Exception, served: Served) -> Exception:
    return type(error)(f"{error}; {_shown(served.output)}")


def _shown(output: str) -> str:
    return f"its output:\n{output.rstrip()}" if output.strip() else "it has written nothing"


def _end(process: Popen[bytes], patience: float) -> None:
    """Waits for a process that is ending, and ends it after ``patience`` seconds; then the rest of its group."""
    from subprocess import TimeoutExpired
    from time import monotonic, sleep

    posix: Any = os
    if not hasattr(os, "waitid"):
        try:
            process.wait(patience)
        except TimeoutExpired:
            process.kill()
            process.wait()
        return
    # What is left of its group is ended before it is waited for: until then its number, which is the group's, is nobody
    # else's.
    from signal import Signals

    end = monotonic() + patience
    ended = posix.WEXITED | posix.WNOWAIT | posix.WNOHANG
    while posix.waitid(posix.P_PID, process.pid, ended) is None and monotonic() < end:
        sleep(0.005)
    with suppress(ProcessLookupError, PermissionError):
        posix.killpg(process.pid, Signals["SIGKILL"])
    process.wait()
