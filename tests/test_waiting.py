"""Nothing that may wait runs on an event loop's thread: a detector watches everything that harken.asyncio does there.

Python's audit events tell it of files that are opened, changes to directories, look-ups of names, imports, and locks on
files. What raises no audit event is wrapped: looking at a path, or for a user, and harken's own steps, which are made
in C. Where strace is installed, it checks the system calls themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from wire import CHILD_ENVIRONMENT

from children import STRACE, needs_strace
from machine import posix_only

DETECTOR = """
import asyncio, functools, gc, grp, os, pwd, socket, sys, threading, time, traceback, warnings
import harken, harken.asyncio

PACKAGE = os.path.dirname(harken.__file__)
WAITS = ("open", "import", "time.sleep", "fcntl.", "os.", "socket.getaddrinfo", "socket.gethost", "subprocess.",
         "shutil.", "tempfile.", "glob.")
QUICK = ("os.putenv", "os.unsetenv", "os.fork")
seen = []

def look(event, arguments=()):
    if asyncio._get_running_loop() is None or not event.startswith(WAITS) or event in QUICK:
        return
    if event == "import" and arguments[0] in sys.modules:
        return
    stack, frame = [], sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            stack.append(f"{os.path.basename(name)}:{frame.f_lineno} {frame.f_code.co_name}")
        if "linecache" in name or "logging" in name:  # whoever shows an error
            return
        frame = frame.f_back
    if stack:
        seen.append(f"{event} {arguments[:1]!r} in {stack}")

def watched(owner, name):
    real = getattr(owner, name)
    @functools.wraps(real)
    def call(*args, **options):
        look(f"os. {owner.__name__}.{name}", args)
        return real(*args, **options)
    setattr(owner, name, call)

for name in ("stat", "lstat", "readlink", "access", "statvfs"):
    watched(os, name)
watched(pwd, "getpwnam")
watched(grp, "getgrnam")
watched(harken._unix, "_bind")
watched(harken._unix, "publish")
watched(harken._unix, "knock")
watched(harken._unix.UnixListener, "_begin")
watched(harken._unix.UnixListener, "close")
watched(harken._handover.ListeningSocket, "close")
sys.addaudithook(look)
here = sys.argv[1]
user = pwd.getpwuid(os.getuid())[0]

async def echo(reader, writer):
    writer.write(await reader.read(10))
    writer.close()

async def serve(server):
    async with server:
        name = getattr(server.sockets[0], "address", None) or server.sockets[0].getsockname()
        if server.sockets[0].family == socket.AF_UNIX:
            reader, writer = await asyncio.open_unix_connection(name)
        else:
            reader, writer = await asyncio.open_connection(*name[:2])
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()

SCENARIOS = {}
def scenario(function):
    SCENARIOS[function.__name__] = function
    return function

start = harken.asyncio.start_server

@scenario
async def digits():
    for host, port in (("127.0.0.1", 0), (None, 0), ("127.0.0.1:0", None), (["127.0.0.1", "127.0.0.2"], 0)):
        await serve(await start(echo, host, port))

@scenario
async def names():
    for host, port in (("localhost", 0), ("localhost:0", None), (["localhost", "127.0.0.1"], 0)):
        await serve(await start(echo, host, port))

@scenario
async def ranges_and_options():
    for bind in (":40000-50000", "127.0.0.1:0?backlog=7&nodelay=0", "127.0.0.1:0?reuse_port=1"):
        await serve(await start(echo, bind))
    await serve(await start(echo, "127.0.0.1", 0, reuse_port=True, rcvbuf=100000, interface=None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({"backlog": 10**9}, {"rcvbuf": 2**30, "fastopen": 5}, {"backlog": 10**9, "rcvbuf": 2**30}):
            await serve(await start(echo, "127.0.0.1", 0, **options))
            await serve(await start(echo, "127.0.0.1:0?sndbuf=2000000000", **options))

@scenario
async def a_name_that_is_not_ascii():
    try:
        await start(echo, "n\\u00e4he.invalid.:0")
    except (OSError, ValueError) as error:
        str(error)

@scenario
async def a_path():
    await serve(await start(echo, f"unix:{here}/a.sock"))

@scenario
async def a_path_with_a_mode_and_an_owner():
    await serve(await start(echo, f"unix:{here}/a.sock", mode=0o600, owner=user, group=os.getgid()))

@scenario
async def a_path_that_is_taken_over():
    old = await start(echo, f"unix:{here}/a.sock")
    new = await start(echo, f"unix:{here}/a.sock", exclusive=False)
    await serve(new)
    old.close()
    await old.wait_closed()

@scenario
async def a_path_that_a_dead_server_left():
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{here}/d.sock")
    await serve(await start(echo, f"unix:{here}/d.sock"))

@scenario
async def an_abstract_name():
    if sys.platform == "linux":
        await serve(await start(echo, f"unix:@{here}"))

@scenario
async def started_later():
    server = await start(echo, f"unix:{here}/a.sock", start_serving=False)
    await server.start_serving()
    await serve(server)

@scenario
async def served_for_ever():
    server = await start(echo, f"unix:{here}/a.sock", start_serving=False)
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

@scenario
async def closed_while_it_starts():
    server = await start(echo, f"unix:{here}/a.sock", start_serving=False)
    task = asyncio.create_task(server.start_serving())
    await asyncio.sleep(0)
    server.close()
    await asyncio.gather(task, return_exceptions=True)
    await server.wait_closed()

@scenario
async def cancelled_while_it_opens():
    for rounds in range(12):
        task = asyncio.create_task(start(echo, f"unix:{here}/c{rounds}.sock"))
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    while any(thread.name == "harken.aside" for thread in threading.enumerate()):
        await asyncio.sleep(0.001)

@scenario
async def dropped_before_it_serves():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await start(echo, f"unix:{here}/a.sock", start_serving=False)
        gc.collect()
    while any(thread.name == "harken.aside" for thread in threading.enumerate()):
        await asyncio.sleep(0.001)

@scenario
async def sockets_that_are_there_already():
    await serve(await start(echo, await asyncio.to_thread(harken.listen, f"unix:{here}/a.sock")))
    for give in (lambda listeners: listeners.sockets(), lambda listeners: listeners[0], lambda listeners: listeners):
        listeners = await asyncio.to_thread(harken.bind, f"unix:{here}/a.sock")
        await serve(await start(echo, sock=await asyncio.to_thread(give, listeners)))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{here}/mine{time.monotonic_ns()}.sock")
    await serve(await start(echo, sock=sock))

@scenario
async def refused_and_shown():
    told = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    taken = await start(echo, "127.0.0.1", 0)
    held = await start(echo, f"unix:{here}/a.sock")
    for host, port in (
        taken.sockets[0].getsockname(), (f"unix:{here}/a.sock", None), (f"unix:{here}/none/a.sock", None),
        ("localhost", taken.sockets[0].getsockname()[1]), ("nobody.invalid", 80), ("127.0.0.1:80?owner=me", None),
        ("192.0.2.1", 0), ("fd://12345", None), ("systemd:web", None), (f"unix:{here}/b.sock?owner=nobody-here", None),
    ):
        asyncio.ensure_future(start(echo, host, port)).add_done_callback(lambda task: None)
        await asyncio.sleep(0.05)
        while any(thread.name == "harken.aside" for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.3)
    gc.collect()
    assert len(told) >= 8, told
    for server in (taken, held):
        server.close()
        await server.wait_closed()

@scenario
async def out_of_descriptors():
    import resource
    server = await start(echo, "127.0.0.1", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(5)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 1, hard))
    try:
        more = []
        try:
            while True:
                more.append(os.dup(0))
        except OSError:
            pass
        await asyncio.sleep(0.2)
        for number in more:
            os.close(number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for client in clients:
        client.close()
    server.close()
    server.abort_clients()
    await server.wait_closed()

@scenario
async def handed_over_in_error():
    asyncio.get_running_loop().set_exception_handler(lambda _, context: str(context))
    def fail():
        raise LookupError
    async with await harken.asyncio.create_server(fail, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()

@scenario
async def thread_mode():
    await serve(await start(echo, f"unix:{here}/a.sock", engine="accept"))
    await serve(await start(echo, "127.0.0.1", 0, engine="accept"))
"""

RUN = """
import json
found = {}
for name, function in SCENARIOS.items():
    seen.clear()
    asyncio.run(function())
    found[name] = list(seen)
    assert not [one for one in os.listdir(here) if not one.startswith("mine")], (name, os.listdir(here))
print(json.dumps(found))
"""


def detect(program: str, folder: Path) -> dict[str, list[str]]:
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DETECTOR + program, folder],
        env=CHILD_ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    found: dict[str, list[str]] = json.loads(child.stdout.splitlines()[-1])
    return found


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w")  # short enough for an address


@posix_only
def test_nothing_that_can_wait_runs_on_the_loops_thread(folder: Path) -> None:
    found = detect(RUN, folder)
    assert len(found) > 15
    assert {name: seen for name, seen in found.items() if seen} == {}


@posix_only
def test_the_negative_control_the_detector_sees_blocking_calls(folder: Path) -> None:
    """The same without the threads, and harken's own calls made where a loop runs."""
    inline = """
    import harken.asyncio._threads, types
    class Inline:
        def __init__(self, target, name):
            self.start, self.join = target, lambda: None
    harken.asyncio._threads.threading = types.SimpleNamespace(**vars(threading) | {"Thread": Inline})

    @scenario
    async def opened_by_hand():
        with harken.listen(f"unix:{here}/hand.sock"):
            pass

    @scenario
    async def owned_by_hand():
        try:
            harken.listen(f"unix:{here}/hand.sock", owner="nobody-here")
        except ValueError:
            pass

    @scenario
    async def shown_by_hand():
        with harken.listen("127.0.0.1:0") as taken:
            try:
                harken.listen(taken[0].url)
            except OSError as error:
                str(error)
    """
    found = detect(textwrap.dedent(inline) + RUN, folder)
    by_tcp = {"digits", "names", "ranges_and_options", "a_name_that_is_not_ascii"}
    others = {"out_of_descriptors", "handed_over_in_error"}
    assert {name for name, seen in found.items() if not seen} <= by_tcp | others
    calls = {
        "a_path": "harken._unix._bind", "a_path_with_a_mode_and_an_owner": "getpwnam", "refused_and_shown": "open",
        "opened_by_hand": "os.", "owned_by_hand": "getpwnam", "shown_by_hand": "open",
    }  # fmt: skip
    for name, call in calls.items():
        assert any(call in one for one in found[name]), name


@posix_only
def test_blockbuster_sees_nothing_either(folder: Path) -> None:
    pytest.importorskip("blockbuster", reason="blockbuster is not installed")
    with_blockbuster = """
    from blockbuster import BlockBuster, BlockingError
    busy = BlockBuster("harken")
    busy.activate()

    @scenario
    async def control():
        try:
            harken.listen(f"unix:{here}/hand.sock").close()
        except BlockingError:
            return
        raise AssertionError("blockbuster is blind")
    """
    detect(textwrap.dedent(with_blockbuster) + RUN, folder)


WAITING_CALLS = "%file,flock,fsync,fdatasync,nanosleep,clock_nanosleep,pause,select,pselect6,wait4,waitid"


@needs_strace
def test_strace_sees_no_blocking_call_on_the_loops_thread(folder: Path, tmp_path: Path) -> None:
    marked = """
    import ctypes
    write = ctypes.CDLL(None).write
    for name in ("out_of_descriptors", "refused_and_shown"):  # which look into directories themselves
        del SCENARIOS[name]

    def mark(function, name):
        async def marked():
            write(2, f"begin {name}".encode(), 6 + len(name))
            await function()
            write(2, b"end", 3)
        return marked

    async def control():
        await asyncio.sleep(0.001)
        harken.listen(f"unix:{here}/hand.sock", mode=0o600).close()

    for name, function in [*SCENARIOS.items(), ("control", control)]:
        if name.startswith("cancelled"):
            continue
        asyncio.run(function())  # for once, so that all is loaded
        asyncio.run(mark(function, name)())
    """
    log = tmp_path / "log"
    child = subprocess.run(
        [str(STRACE), "-f", "-qq", "-e", "signal=none", "-e", f"trace=write,{WAITING_CALLS}", "-o", log,
         sys.executable, "-W", "ignore", "-c", DETECTOR + textwrap.dedent(marked), folder],
        env=CHILD_ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if "ptrace" in child.stderr:
        pytest.skip("no permission to trace")
    assert child.returncode == 0, child.stderr
    loops, name, found, ended = "", "", {}, 0
    for line in log.read_text().splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        loops = loops or thread
        if thread != loops:
            continue
        if call.startswith('write(2, "begin'):
            name = call.split()[2].rstrip('",')
            found[name] = []
        elif call.startswith('write(2, "end"'):
            name, ended = "", ended + 1
        elif name and not call.startswith(("write", "<...")) and "/cpu/online" not in call:  # of asyncio's own executor
            found[name].append(call)
    assert ended == len(found) > 12
    assert len(found.pop("control")) > 2, "strace is blind"
    assert "".join(f"{name}: {calls}" for name, calls in found.items() if calls) == ""
