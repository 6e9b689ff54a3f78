"""bind() now, listen() later: the port is ours, connects are refused, and nobody takes it meanwhile."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys

import pytest

import harken
from children import run
from machine import LOOPBACKS, WINDOWS, bind_text, linux_only, posix_only

THIEF = """
import socket, sys
family, host, port, reuse = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "reuse"
thief = socket.socket(family)
if reuse:
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    thief.bind((host, port))
    thief.listen()
except OSError:
    print("refused")
else:
    print("stolen")
"""


def steal(listener: harken.Listener, host: str, reuse: bool) -> str:
    command = [sys.executable, "-c", THIEF, str(listener.family), host, str(listener.port), "reuse" if reuse else ""]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("host", LOOPBACKS)
def test_connects_are_refused_until_it_listens(host: str) -> None:
    with harken.bind(bind_text(host)) as listeners:
        assert not connects(host, listeners.port)
        listeners.listen()
        assert connects(host, listeners.port)
        listeners[0].accept()[0].close()


def test_every_address_is_bound_and_port_0_is_one_number() -> None:
    with harken.bind(":0", "127.0.0.1:0") as listeners:
        assert len({listener.port for listener in listeners[:-1]}) == 1
        assert not connects("127.0.0.1", listeners[0].port)
        listeners.listen()
        assert connects("127.0.0.1", listeners[0].port)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("host", LOOPBACKS)
def test_another_process_cannot_take_it_held_or_listening(host: str, reuse: bool) -> None:
    if reuse and WINDOWS:
        pytest.skip("SO_REUSEADDR means something else on Windows; SO_EXCLUSIVEADDRUSE has tests of its own")
    wildcard = "::" if ":" in host else "0.0.0.0"
    with harken.bind(bind_text(host)) as listeners:
        (listener,) = listeners
        assert steal(listener, host, reuse) == "refused"
        if not WINDOWS:  # where a wildcard may stand beside a specific address, and gets none of its connections
            assert steal(listener, wildcard, reuse) == "refused"
        listeners.listen()
        assert steal(listener, host, reuse) == "refused"


@linux_only
def test_what_is_given_away_is_not_held_until_it_listens() -> None:
    """What docs/servers.md says: the kernel has one flag for both, and a restart is the more frequent."""
    (listener,) = harken.bind("127.0.0.1:0")
    assert steal(listener, "127.0.0.1", True) == "refused"
    with listener.to_socket() as moved:
        command = [sys.executable, "-c", THIEF, str(moved.family.value), "127.0.0.1", str(listener.port), "reuse"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
        assert told == "stolen"
        moved.listen()
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
        assert told == "refused"


def test_a_second_bind_of_ours_is_refused() -> None:
    with harken.bind("127.0.0.1:0") as listeners, pytest.raises(harken.ListenError) as refused:
        harken.bind(listeners[0].url)
    assert refused.value.step == "bind"


@posix_only
def test_time_wait_blocks_neither_this_start_nor_the_next() -> None:
    port = 0
    for _ in range(3):
        with harken.bind(f"127.0.0.1:{port}") as listeners:
            listeners.listen()
            port = listeners.port
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                served, _ = listeners[0].accept()
                served.close()  # the server closes first, so the server has the TIME_WAIT
                assert client.recv(1) == b""


def test_the_backlog_of_bind_is_for_listen_and_can_be_changed_there() -> None:
    with harken.bind("127.0.0.1:0", backlog=7) as listeners:
        listeners.listen()
        assert listeners[0].backlog in (7, None)
    with harken.bind("127.0.0.1:0", backlog=7) as listeners:
        listeners.listen(9)
        assert listeners[0].backlog in (9, None)


def test_a_listener_alone_can_go_on_too() -> None:
    with harken.bind("127.0.0.1:0", "127.0.0.1:0") as (one, other):
        one.listen()
        assert connects("127.0.0.1", one.port)
        assert not connects("127.0.0.1", other.port)


@posix_only
def test_a_holder_that_is_killed_leaves_the_port_free() -> None:
    program = "import harken, sys; b = harken.bind('127.0.0.1:0'); print(b.port, flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        with pytest.raises(harken.ListenError):
            harken.listen(f"127.0.0.1:{port}")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=30)
    harken.listen(f"127.0.0.1:{port}").close()


CROWD = """
import harken, os, struct
PROCESSES, ROUNDS = 200, 20
ports_in, ports_out = os.pipe()
starts = []
for _ in range(PROCESSES):
    wait, go = os.pipe()
    if os.fork() == 0:
        os.close(go)
        for _ in range(ROUNDS):
            with harken.bind("127.0.0.1:0") as held:
                os.write(ports_out, struct.pack("H", held.port))
                os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    starts.append(go)
for _ in range(ROUNDS):
    data = b""
    while len(data) < 2 * PROCESSES:
        data += os.read(ports_in, 2 * PROCESSES - len(data))
    ports = struct.unpack(f"{PROCESSES}H", data)
    assert len(set(ports)) == PROCESSES, "two processes hold one port"
    for go in starts:
        os.write(go, b"x")
assert all(os.wait()[1] == 0 for _ in range(PROCESSES))
print("no duplicate, no failure")
"""


@linux_only
def test_200_processes_hold_a_port_each_twenty_times() -> None:
    ended = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout.strip(), ended.stderr) == ("no duplicate, no failure", "")


@pytest.mark.parametrize("call", [harken.bind, harken.listen])
def test_the_call_is_named_when_it_is_misused(call: object) -> None:
    assert callable(call)
    name = call.__name__
    with pytest.raises(TypeError, match=rf"{name}\(\)"):
        call()
    with pytest.raises(TypeError, match=rf"{name}\(\)"):
        call("127.0.0.1:0", colour="red")


@linux_only
def test_a_port_can_be_reserved_for_another_server() -> None:
    with harken.bind("127.0.0.1:0", exclusive=False) as (ours,):
        with socket.socket() as bare, pytest.raises(OSError, match="in use"):
            bare.bind(ours.address)
        assert not connects(*ours.address[:2])
        with socket.create_server(ours.address) as server:
            socket.create_connection(ours.address).close()
            server.accept()[0].close()
            with pytest.raises(harken.AddressInUseError):
                ours.listen()
        ours.listen()  # the other server has ended
        socket.create_connection(ours.address).close()
    with pytest.raises(io.UnsupportedOperation, match="exclusive is not available on Linux"):
        harken.listen("127.0.0.1:0", exclusive=False)


@linux_only
@pytest.mark.parametrize("reuse", [False, True])
def test_a_reserved_port_is_chosen_for_nobody_else(reuse: bool) -> None:
    program = f"""
    import contextlib
    import harken

    def ports(make):
        "As many as there are."
        made = []
        with contextlib.suppress(OSError):
            while len(made) < 60:
                made.append(make())
        found = [one.getsockname()[1] for one in made]
        [one.close() for one in made]
        return found

    def bound():
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, {reuse:d})
        sock.bind(("127.0.0.1", 0))
        return sock

    with harken.bind("127.0.0.1:0", exclusive=False) as (ours,), harken.listen("127.0.0.1:9"):
        tell(ours=ours.port, bound=ports(bound), connected=ports(lambda: socket.create_connection(("127.0.0.1", 9))))
    """
    told = run(program, setup="echo 40000 40039 > /proc/sys/net/ipv4/ip_local_port_range")
    assert len(told["bound"]) >= 20
    assert len(told["connected"]) >= 20
    assert told["ours"] not in told["bound"] + told["connected"]
