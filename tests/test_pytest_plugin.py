"""The fixtures that harken gives to pytest, in test files that a pytest of their own runs, and their parts here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import harken
from harken import pytest_plugin
from harken.pytest_plugin import ListenerFixture
from machine import LINUX, linux_only, posix_only

# One request and one answer a connection, on a listening descriptor, or on a port.
SERVER = """
import contextlib, os, socket, sys, time
print("it starts", flush=True)
if sys.argv[1] == "port":
    sock = socket.create_server(("127.0.0.1", int(sys.argv[2])))
else:
    sock = socket.socket(fileno=int(sys.argv[2]))
    if sys.argv[1] == "dies":
        sys.exit("no more today")
    if sys.argv[1] == "sleeps":
        time.sleep(60)
while True:
    connection, _ = sock.accept()
    with connection, contextlib.suppress(OSError):
        if connection.recv(100) == b"die":
            os._exit(3)
        connection.sendall(os.environ.get("ANSWER", "served").encode())
"""


def run(test: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest on a file, as its users run it."""
    (folder / "server.py").write_text(SERVER)
    (folder / "test_it.py").write_text(f"import os, socket, sys, pytest\n\ndef ask(at, what=b'hello'):\n"
        "    family = socket.AF_UNIX if isinstance(at, str) else socket.AF_INET\n"
        "    with socket.socket(family) as client:\n"
        "        client.settimeout(10)\n"
        "        client.connect(at)\n"
        "        client.sendall(what)\n"
        "        return client.recv(100)\n\n"
        f"PYTHON, HERE = sys.executable, {str(folder)!r}\n{test}")  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "harken.pytest_plugin", "-q"]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [*command, *arguments, "test_it.py"], cwd=folder, env=alone, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip


def passed(done: subprocess.CompletedProcess[str], count: int) -> bool:
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


def test_listeners_listen_from_the_first_line(tmp_path: Path) -> None:
    test = """
    def test_tcp(tcp_listener):
        client = socket.create_connection((tcp_listener.host, tcp_listener.port))
        connection, _ = tcp_listener.listeners[0].accept()
        assert tcp_listener.url == f"http://127.0.0.1:{tcp_listener.port}"
        assert tcp_listener.fds == (tcp_listener.listeners[0].fileno(),)
        client.close(), connection.close()

    def test_factory(tcp_listener_factory):
        one, other = tcp_listener_factory(), tcp_listener_factory("[::]:0", ipv6_only=True)
        assert one.port and other.port and (other.host, other.url) == ("::1", f"http://[::1]:{other.port}")

    @pytest.fixture
    def port(tcp_listener):
        yield tcp_listener.port

    def test_closed_afterwards(request):
        port = request.getfixturevalue("port")
        request.addfinalizer(lambda: None)
        with open("port", "w") as file:
            file.write(str(port))
    """
    assert passed(run(textwrap.dedent(test), tmp_path, "-W", "ignore"), 3)
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", int((tmp_path / "port").read_text())))


@posix_only
def test_a_unix_listener_has_a_short_path_that_is_removed(tmp_path: Path) -> None:
    test = """
def test_it(unix_listener):
    assert len(unix_listener.host) < 60 or len(unix_listener.host) < 104
    assert unix_listener.url == "unix:" + unix_listener.host
    with pytest.raises(ValueError, match="no port"):
        unix_listener.port
    open("path", "w").write(unix_listener.host)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(unix_listener.host)
"""
    assert passed(run(test, tmp_path, "-W", "ignore"), 1)
    assert not os.path.exists(os.path.dirname((tmp_path / "path").read_text()))


@posix_only
@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b"])
def test_a_unix_listener_may_be_in_a_directory_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with tempfile.TemporaryDirectory() as short:  # tmp_path may be too long for a socket
        os.mkdir(f"{short}/{name}")
        monkeypatch.setenv("TMPDIR", f"{short}/{name}")
        test = f"""
def test_it(unix_listener):
    assert unix_listener.host.startswith({short + "/" + name!r})
    assert os.path.exists(unix_listener.host)
"""
        assert passed(run(test, tmp_path), 1)


@posix_only
def test_a_server_is_started_awaited_and_ended(tmp_path: Path) -> None:
    test = """
def test_fd(serve):
    served = serve([PYTHON, "server.py", "fd", "{fd}"], env={"ANSWER": "mine"})
    assert ask((served.host, served.port)) == b"mine"
    assert served.output == "it starts\\n"
    open("pid", "w").write(str(served.process.pid))

def test_two(serve):
    one, other = (serve([PYTHON, "server.py", "fd", "{fd}"]) for _ in range(2))
    assert ask((one.host, one.port)) == ask((other.host, other.port)) == b"served"
    assert one.stop() == -15 and one.stop() == -15
    with pytest.raises(ConnectionRefusedError):
        ask((one.host, one.port))

def test_unix(serve):
    served = serve([PYTHON, "server.py", "fd", "{fd0}"], "unix:" + HERE + "/s")
    assert served.url == f"unix:{HERE}/s" and ask(served.host) == b"served"
    served.stop()
    assert not os.path.exists(served.host)
"""
    assert passed(run(test, tmp_path), 3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@linux_only
def test_a_server_that_takes_only_a_number(tmp_path: Path) -> None:
    test = """
def test_port(serve):
    served = serve([PYTHON, "server.py", "port", "{port}"])
    assert ask((served.host, served.port)) == b"served"

def test_held(held_port, held_port_factory):
    assert isinstance(held_port, int) and held_port != held_port_factory()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held_port))
    with socket.create_server(("127.0.0.1", held_port)):
        socket.create_connection(("127.0.0.1", held_port)).close()
    with socket.socket() as bare, pytest.raises(OSError):
        bare.bind(("127.0.0.1", held_port))
"""
    assert passed(run(test, tmp_path), 2)


@posix_only
def test_what_goes_wrong_is_said_with_the_servers_output(tmp_path: Path) -> None:
    test = """
def test_dies(serve):
    with pytest.raises(RuntimeError, match="(?s)ended with status 1; its output:\\nit starts\\nno more today"):
        serve([PYTHON, "server.py", "dies", "{fd}"])
    assert False, "the process that ended is an error at the end too"

def test_never_accepts(serve):
    with pytest.raises(TimeoutError, match="(?s)nobody accepts on http://.* after 0.5 s; its output:\\nit starts"):
        serve([PYTHON, "server.py", "sleeps", "{fd}"], timeout=0.5)

def test_no_such_program(serve):
    with pytest.raises(FileNotFoundError):
        serve(["/no/such/program", "{fd}"])

def test_arguments(serve):
    with pytest.raises(ValueError, match="where the socket goes"):
        serve([PYTHON, "server.py"])
    with pytest.raises(ValueError, match="takes no binds"):
        serve([PYTHON, "{port}"], "127.0.0.1:0")
    with pytest.raises(TypeError, match="a list"):
        serve("server.py {fd}")

def test_ends_meanwhile(serve):
    served = serve([PYTHON, "server.py", "fd", "{fd}"])
    assert ask((served.host, served.port), b"die") == b""
    served.process.wait()

def test_fails(serve):
    serve([PYTHON, "server.py", "fd", "{fd}"])
    assert False
"""
    done = run(test, tmp_path)
    # The second of each pair is the fixture's end, which reports what has ended by itself.
    assert "2 failed, 4 passed, 2 errors" in done.stdout, done.stdout + done.stderr
    assert "RuntimeError: the server had ended with status 3 before the test did" in done.stdout
    assert "output of <Served http://127.0.0.1:" in done.stdout
    left = [one for one in done.stdout.splitlines() if "leaked" in one or "ResourceWarning" in one]
    assert left == []


def test_wait_ready_ends_when_somebody_accepts_and_not_before() -> None:
    if not LINUX:
        pytest.skip("only Linux reports the accept queue here")
    with harken.listen("127.0.0.1:0") as listeners:
        fixture = ListenerFixture(listeners)
        with pytest.raises(TimeoutError, match="nobody accepts"):
            fixture.wait_ready(timeout=0.05)
        ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        with pytest.raises(RuntimeError, match="status 7"):
            fixture.wait_ready(ended)
        kept: list[harken.Socket] = []

        def accept() -> None:
            while len(kept) < 3:  # two that the attempts above left in the queue
                kept.append(listeners[0].accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        fixture.wait_ready()
        thread.join()
        for one in kept:
            one.close()


@posix_only
def test_sockets_are_the_servers() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        fixture = ListenerFixture(listeners)
        (sock,) = fixture.sockets()
        assert fixture.sockets() == [sock]
        assert fixture.fds == ()
        with sock:
            assert sock.getsockname() == (fixture.host, fixture.port)


def test_nothing_but_pytest_is_imported_before_a_fixture_is_used() -> None:
    program = "import sys, pytest, harken; before = set(sys.modules); import harken.pytest_plugin;"
    program += "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    told = json.loads(subprocess.check_output([sys.executable, "-c", program], text=True, timeout=50))
    assert [one for one in told if not one.startswith(("json", "_json"))] == ["harken.pytest_plugin"]


def test_pytest_finds_the_plugin(pytestconfig: pytest.Config) -> None:
    if not any(one.value == "harken.pytest_plugin" for one in entry_points(group="pytest11")):
        pytest.skip("harken is on the path, and not installed")
    assert pytestconfig.pluginmanager.get_plugin("harken") is pytest_plugin
