"""The lifecycle, in child processes: Winsock is started once and ended once, whatever happened before, and a messy exit
is silent. On POSIX the same programs run; there is nothing to start, and nothing may be printed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from machine import posix_only, windows_only

MESSES = {
    "nothing": "",
    "sockets left open": """
        keep = harken.listen("127.0.0.1:0", "127.0.0.1:0")
        results = harken.getaddrinfo("127.0.0.1", 1)
    """,
    "a reference cycle": """
        class Holder: pass
        holder = Holder()
        holder.self, holder.listeners = holder, harken.listen("127.0.0.1:0")
        del holder
    """,
    "an exception that nobody caught": """
        import atexit
        keep = harken.listen("127.0.0.1:0")
        sys.excepthook = lambda *error: None
        raise RuntimeError
    """,
    "held by a module that outlives its own globals": """
        sys.modules["keeper"] = keeper = type(sys)("keeper")
        keeper.listeners = harken.listen("127.0.0.1:0")
        keeper.function = lambda: keeper.listeners
    """,
    "a socket used in atexit": """
        import atexit
        listeners = harken.listen("127.0.0.1:0")
        atexit.register(lambda: harken.listen("127.0.0.1:0").close())
        atexit.register(listeners.close)
    """,
    "a daemon thread in accept": """
        import threading
        listeners = harken.listen("127.0.0.1:0")
        waiting = threading.Event()
        def accept():
            waiting.set()
            listeners[0].accept()
        threading.Thread(target=accept, daemon=True).start()
        waiting.wait()
    """,
    "a listener closed by a finaliser under a daemon thread in accept": """
        import threading
        class Server:
            def __init__(self):
                self.listener = harken.listen("127.0.0.1:0")[0]
            def __del__(self):
                self.listener.close()
        server = Server()
        # No frame of Python's own, which would keep this module's names, and so the server, alive.
        threading.Thread(target=list, args=(iter(server.listener.accept, None),), daemon=True).start()
        client = harken.Socket()
        client.connect(server.listener.address)
        while server.listener.stats().queued:
            pass
    """,
    "beside the standard library's own start": """
        import socket
        theirs = socket.create_server(("127.0.0.1", 0))
        ours = harken.listen("127.0.0.1:0")
        theirs.close()
    """,
    "an import that was undone": """
        keep = harken.listen("127.0.0.1:0")
        for name in [name for name in sys.modules if name.startswith("harken")]:
            del sys.modules[name]
        del harken
    """,
    "a subprocess that does the same": """
        import subprocess
        keep = harken.listen("127.0.0.1:0")
        subprocess.run([sys.executable, "-c", "import harken; x = harken.listen('127.0.0.1:0')"], check=True)
    """,
    "leaving without goodbye": """
        keep = harken.listen("127.0.0.1:0")
        import os
        os._exit(0)
    """,
}
SUBINTERPRETERS = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    program = '''if True:
        import harken, sys
        with harken.listen("127.0.0.1:0") as listeners:
            client = harken.Socket()
            client.connect(listeners[0].address)
            client.sendall(b"x")
            assert listeners[0].accept()[0].recv(1) == b"x"
            client.close()
        left_open = harken.listen("127.0.0.1:0")
    '''
    for _ in range(3):
        one = interpreters.create()
        interpreters.run_string(one, program)
        interpreters.destroy(one)
    listeners = harken.listen("127.0.0.1:0")
    client = harken.Socket()
    client.connect(listeners[0].address)
    client.sendall(b"y")
    assert listeners[0].accept()[0].recv(1) == b"y"
"""
# Two interpreters beside the main one: one serves all the time, while others come, have listeners of their own, leave
# them open with clients in the queue, and end.
ONE_SERVES_WHILE_ANOTHER_ENDS = """
    import os, threading
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    here, there = os.pipe()
    serves = '''if True:
        import harken, os
        listeners = harken.listen("127.0.0.1:0")
        os.write(%d, b"%%05d" %% listeners.port)
        for connection in SERVING:
            with connection:
                connection.setblocking(True)
                byte = connection.recv(1)
                connection.sendall(byte)
            if byte == b"q":
                break
        listeners.close()
    ''' % there
    has_listeners = '''if True:
        import harken
        keep = harken.listen("127.0.0.1:0", "127.0.0.1:0")
        results = harken.getaddrinfo("127.0.0.1", 1)
        clients = [harken.Socket() for _ in keep]
        for client, listener in zip(clients, keep):
            client.connect(listener.address)
        connections = BESIDE
        taken = next(connections)
    '''

    def run(interpreter, program):
        assert interpreters.run_string(interpreter, program) is None

    def create():
        interpreter = interpreters.create()
        if hasattr(interpreters, "get_config"):
            assert interpreters.get_config(interpreter).gil == "own"
        return interpreter

    def ask(byte):
        with harken.Socket() as client:
            client.connect(("127.0.0.1", port))
            client.sendall(byte)
            assert client.recv(1) == byte

    def ask_on():
        global answers
        while not enough.is_set():
            ask(b"a")
            answers += 1

    def wait_for_answers(more):
        seen = answers
        while answers < seen + more and asking.is_alive():
            pass

    server = create()
    serving = threading.Thread(target=run, args=(server, serves))
    serving.start()
    port = int(os.read(here, 5))
    answers, enough = 0, threading.Event()
    asking = threading.Thread(target=ask_on)
    asking.start()
    for _ in range(3):
        other = create()
        run(other, has_listeners)
        wait_for_answers(3)
        interpreters.destroy(other)
        wait_for_answers(3)
    enough.set()
    asking.join()
    ask(b"q")
    serving.join()
    interpreters.destroy(server)
    print("served to the end")
"""


def run(program: str, imports: str = "import harken, sys", **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"{imports}\n{textwrap.dedent(program)}"
    return subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("mess", MESSES)
def test_a_messy_exit_is_silent(mess: str) -> None:
    ended = run(MESSES[mess])
    assert (ended.stdout, ended.stderr) == ("", "")
    assert ended.returncode == (1 if mess == "an exception that nobody caught" else 0)


@posix_only
def test_a_fork_child_ends_like_its_parent() -> None:
    ended = run("""
        import os
        listeners = harken.listen("127.0.0.1:0")
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert status == 0
    """)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_subinterpreters_come_and_go() -> None:
    ended = run(SUBINTERPRETERS)
    if "No module named '_xxsubinterpreters'" in ended.stderr:
        pytest.skip("this Python was built without its subinterpreter module")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="interpreters have a GIL of their own since CPython 3.12")
@pytest.mark.parametrize(
    ("serving", "beside"),
    [
        ("(connection for connection, _ in iter(listeners[0].accept, None))", "iter(keep[0].accept, None)"),
        ("listeners.acceptor()", "keep.acceptor()"),
    ],
    ids=["listeners", "acceptors"],
)
def test_an_interpreter_serves_while_another_ends(serving: str, beside: str) -> None:
    ended = run(ONE_SERVES_WHILE_ANOTHER_ENDS.replace("SERVING", serving).replace("BESIDE", beside))
    if "No module named '_xxsubinterpreters'" in ended.stderr:
        pytest.skip("this Python was built without its subinterpreter module")
    assert (ended.stdout, ended.stderr) == ("served to the end\n", "")
    assert ended.returncode == 0


EMBEDDED = f"""
import sys, warnings
sys.path[:] = {sys.path!r}
warnings.simplefilter("ignore")
import asyncio, socket
import harken, harken.asyncio
with harken.listen("127.0.0.1:0", reuse_port=True) as listeners, listeners.acceptor() as acceptor:
    with socket.create_connection(listeners[0].address):
        assert acceptor.wait(5)
        [connection] = acceptor.accept_many()
        connection.close()
    assert listeners[0].stats().queued in (0, None)
    try:
        harken.listen(f"127.0.0.1:{{listeners.port}}")
    except harken.AddressInUseError as error:
        str(error)
try:
    harken.listen("no-such-name.invalid:0")
except harken.ListenError as error:
    assert isinstance(error, socket.gaierror)
async def main():
    server = await harken.asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()
asyncio.run(main())
"""


@posix_only
@pytest.mark.parametrize(
    "left", ["", *(pytest.param(one, marks=pytest.mark.proof) for one in MESSES.values())], ids=["all closed", *MESSES]
)
def test_python_may_be_ended_and_started_again(left: str, again: Path) -> None:
    if any(word in left for word in ("raise RuntimeError", "thread", "subprocess")):
        pytest.skip("Python does not come to its end, or is not what sys.executable says")
    program = EMBEDDED + textwrap.dedent(left)
    environment = os.environ | {"PYTHONHOME": sys.base_prefix}
    ended = subprocess.run(
        [str(again), program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@posix_only
def test_what_an_audit_hook_keeps_is_freed_after_all_modules() -> None:
    """Objects that only a hook's globals reach outlive the dictionaries of the interpreter."""
    ended = run(
        """
        import socket, sys, harken
        def hook(event, arguments): pass
        sys.addaudithook(hook)
        listeners = harken.listen("127.0.0.1:0")
        acceptor = listeners.acceptor()
        client = socket.create_connection(listeners[0].address)
        connections = []
        while not connections:
            connections = acceptor.accept_many()
        for one in (*connections, client, acceptor, listeners):
            one.close()
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_each_compiled_module_may_be_imported_by_the_next_interpreter() -> None:
    sources = sorted((Path(__file__).parent.parent / "ext" / "harken").glob("*.pyx"))
    assert [path.name for path in sources if not path.read_text("utf-8").endswith('\n\ninclude "ending.pxi"\n')] == []


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program again.c, with this Python in it."""
    compiler, made = shutil.which("cc") or shutil.which("gcc"), tmp_path_factory.mktemp("again") / "again"
    variable = sysconfig.get_config_var
    if compiler is None or not variable("Py_ENABLE_SHARED"):
        pytest.skip("no C compiler, or no library of this Python to link with")
    flags = [f"-I{sysconfig.get_path('include')}", f"-L{variable('LIBDIR')}", f"-Wl,-rpath,{variable('LIBDIR')}"]
    flags += [f"-lpython{variable('LDVERSION')}", *variable("LIBS").split(), *variable("SYSLIBS").split()]
    command = [compiler, "-o", str(made), str(Path(__file__).with_name("again.c")), *flags]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"this Python cannot be embedded: {built.stderr.splitlines()[-1]}")
    environment = os.environ | {"PYTHONHOME": sys.base_prefix}
    alone = [str(made), "import asyncio, socket"]
    if subprocess.run(alone, env=environment, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("this Python crashes when it is started again, without harken too (CPython 3.12.1 does)")
    return made


def test_dropping_an_open_socket_warns_as_the_standard_library_does() -> None:
    ended = run("harken.Socket()", PYTHONWARNINGS="always")
    assert "ResourceWarning: unclosed harken.Socket" in ended.stderr


@pytest.mark.parametrize(
    "module",
    ["socket", "typing", "asyncio", "threading", "enum", "collections", "functools", "contextlib", "re", "dataclasses"],
)
def test_importing_harken_and_listening_does_not_import(module: str) -> None:
    program = f"""if 1:
        import sys; sys.path[:] = {sys.path!r}
        import harken
        with harken.listen("127.0.0.1:0") as (listener,):
            harken.listen(":0").close()
            harken.adopt(listener.detach()).close()
        print({module!r} in sys.modules)
    """
    ended = subprocess.run(
        [sys.executable, "-S", "-E", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.strip() == "False"


# The standard library starts Winsock too: CPython 3.11 once, later versions once an interpreter.
COUNT_STARTS = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    for _ in range(MORE):
        one = interpreters.create()
        interpreters.run_string(one, "PROGRAM")
        interpreters.destroy(one)
    PROGRAM
    import ctypes, sys
    winsock = ctypes.WinDLL("ws2_32")
    count = 0
    while winsock.WSACleanup() == 0:
        count += 1
    print(count)
    import os
    sys.stdout.flush()
    os._exit(0)
"""


@windows_only
@pytest.mark.parametrize("interpreters", [0, 3])
def test_winsock_is_started_once_for_the_process(interpreters: int) -> None:
    def starts(program: str) -> int:
        code = COUNT_STARTS.replace("MORE", str(interpreters)).replace("PROGRAM", program)
        return int(run(code, "import sys").stdout)

    theirs = starts("import socket")
    assert theirs >= 1
    assert starts("import socket, harken; left_open = harken.listen('127.0.0.1:0')") == theirs + 1


@windows_only
@pytest.mark.parametrize("mess", [mess for mess in MESSES if mess != "leaving without goodbye"])
def test_winsock_is_ended_once_after_everything_else(mess: str) -> None:
    witness = os.environ.get("HARKEN_WITNESS")
    if not witness:
        pytest.skip("HARKEN_WITNESS does not name the DLL that is made from tests/witness.c")
    program = f"""if True:
        import ctypes, sys
        data = ctypes.create_string_buffer(512)
        assert ctypes.WinDLL("ws2_32").WSAStartup(0x0202, data) == 0
        ctypes.pythonapi.Py_AtExit(ctypes.cast(ctypes.CDLL({witness!r}).report, ctypes.c_void_p))
        import harken
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program) + textwrap.dedent(MESSES[mess])],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    theirs = 1 if "standard library" in mess else 0  # ended by _socket's own Py_AtExit, before or after the witness
    assert ended.stdout.splitlines()[-1] in {f"starts left: {1 + n}" for n in range(theirs + 1)}


@windows_only
def test_a_stray_cleanup_elsewhere_does_not_end_our_sockets() -> None:
    ended = run("""
        import ctypes
        winsock = ctypes.WinDLL("ws2_32")
        winsock.WSAStartup(0x0202, ctypes.create_string_buffer(512))
        listeners = harken.listen("127.0.0.1:0")
        winsock.WSACleanup()
        listeners[0].getsockname()
    """)
    assert (ended.returncode, ended.stderr) == (0, "")
