"""Groups: several listeners on one port. Longer, with more load, and with figures: retiring.py."""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import retiring
from cable import SERVER, STAGES, Cable, at_stage, cable
from wire import Call, wait_until

import harken
from children import needs_root, run
from harken import _handshakes, _steering
from harken._group import groups
from harken._group.members import EMPTY, LEAVING
from machine import LOOPBACKS, bind_text, linux_only, needs_ipv6, posix_only

SO_DETACH_REUSEPORT_BPF = 68


@contextlib.contextmanager
def connected(port: int, count: int, host: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((host, port))) for _ in range(count)]


def queued(group: harken.Group) -> list[int]:
    return [one.queued or 0 for one in group.stats()]


def by_hash(clients: Sequence[socket.socket], members: Sequence[int]) -> Counter[int]:
    """Which member each of the clients is to be given, by its port."""
    return Counter(members[_steering.place_of(one.getsockname()[1], len(members))] for one in clients)


def empty(*listeners: harken.Listeners) -> None:
    for one in listeners:
        for listener in one:
            listener.setblocking(False)
            for connection in listener.accept_many(1000):
                connection.close()


def close(connections: Sequence[harken.Socket]) -> None:
    for connection in connections:
        connection.close()


# ---------------------------------------------------------------------------- a group


@linux_only
@pytest.mark.parametrize("host", LOOPBACKS)
def test_each_member_has_a_queue_of_its_own_on_one_port(host: str) -> None:
    with harken.group(bind_text(host), 4) as group:
        assert len(group) == 4
        assert group.slots == 8
        assert group.serving == (0, 1, 2, 3)
        assert {member.port for member in group} == {group.port}
        assert group[-1] is group[3]
        assert [len(member) for member in group[1:3]] == [1, 1]
        with connected(group.port, 60, host) as clients:
            assert queued(group) == [by_hash(clients, range(4))[n] for n in range(4)]
            assert 0 not in queued(group)


@linux_only
@needs_ipv6
def test_a_wildcard_is_a_group_for_each_family() -> None:
    with harken.group(":0", 3) as group:
        assert [len(member) for member in group] == [2, 2, 2]
        with connected(group.port, 20) as clients, connected(group.port, 20, "::1") as more:
            assert queued(group) == [by_hash(clients + more, range(3))[n] for n in range(3)]


@linux_only
@needs_ipv6
def test_a_socket_of_both_families_chooses_by_the_port_of_either() -> None:
    with harken.group(":0", 3, ipv6_only=False) as group:
        assert [len(member) for member in group] == [1, 1, 1]
        group.steer([0, 2])
        with connected(group.port, 20) as clients, connected(group.port, 20, "::1") as more:
            expected = by_hash(clients + more, [0, 2])
            assert queued(group) == [expected[n] for n in range(3)]


@linux_only
def test_options_of_ip_do_not_change_whose_a_client_is() -> None:
    with harken.group("127.0.0.1:0", 8) as group, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")
            client.connect(("127.0.0.1", group.port))
            clients.append(client)
        assert queued(group) == [by_hash(clients, range(8))[n] for n in range(8)]


@linux_only
def test_options_and_the_length_of_the_queue_are_those_of_each_listener() -> None:
    with harken.group("127.0.0.1:0?backlog=7", 2, defer_accept=3) as group:
        assert [member[0].backlog for member in group] == [7, 7]
        assert {member[0].options["defer_accept"] for member in group} == {3}
        assert group.resize(4) == ()
        assert group[3][0].backlog == 7
        for number in range(4):
            close(group.retire(number))
            close(group.replace(number))
        assert {member[0].options["defer_accept"] for member in group} == {3}, "as before, in a slot used before"


@linux_only
def test_a_handle_that_is_given_away_or_closed_takes_nothing_from_the_group() -> None:
    with harken.group("127.0.0.1:0", 2) as group:
        for sock in group[0].sockets():
            sock.close()
        group[1].close()
        with connected(group.port, 20) as clients:
            assert queued(group) == [by_hash(clients, range(2))[n] for n in range(2)]


# ---------------------------------------------------------------------------- who gets connections


@linux_only
def test_only_those_that_are_steered_to_get_connections() -> None:
    with harken.group("127.0.0.1:0", 4) as group:
        for chosen in ([2], [3, 1], [0, 1, 2, 3]):
            group.steer(chosen)
            assert group.serving == tuple(sorted(chosen))
            with connected(group.port, 30) as clients:
                expected = by_hash(clients, sorted(chosen))
                assert queued(group) == [expected[n] for n in range(4)]
            empty(*group)


@linux_only
def test_steered_to_nobody_a_client_waits_until_there_is_somebody() -> None:
    with harken.group("127.0.0.1:0", 2) as group, socket.socket() as client:
        group.steer([])
        assert group.serving == ()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", group.port))
        assert not select.select([], [client], [], 0.3)[1], "neither connected nor refused"
        group.steer([1])
        assert select.select([], [client], [], 5)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert queued(group) == [0, 1]


@linux_only
@pytest.mark.parametrize("weights", [{0: 1, 1: 3}, [1, 0, 1, 1]])
def test_weights_are_shares(weights: Any) -> None:
    with harken.group("127.0.0.1:0", 3, policy="weights") as group:
        group.steer(weights)
        assert group.serving == (0, 1)
        with connected(group.port, 80) as clients:
            expected = by_hash(clients, [0, 1, 1, 1])
            assert queued(group) == [expected[0], expected[1], 0]


@linux_only
def test_the_emptiest_get_connections_by_the_policy_least() -> None:
    # The least of three rounds: another process that has the processor holds a round's balancing up.
    assert min(retiring.widest(3, "least")) <= 1.5


@linux_only
def test_whoever_has_open_connections_gets_fewer_by_the_policy_least() -> None:
    with harken.group("127.0.0.1:0", 2, policy="least") as group, contextlib.ExitStack() as stack:
        acceptors = [stack.enter_context(member.acceptor()) for member in group]
        group.steer([0], policy="hash")
        stack.enter_context(connected(group.port, 10))
        kept = acceptors[0].accept_many()
        assert [one.open for one in group.stats()] == [len(kept), 0]
        group.steer([0, 1], policy="least")
        with connected(group.port, 5):
            assert queued(group) == [10 - len(kept), 5]
        close(kept)


@linux_only
def test_a_program_that_somebody_detaches_is_attached_again() -> None:
    with harken.group("127.0.0.1:0", 2) as group, socket.socket(fileno=os.dup(group[1][0].fileno())) as of_a_worker:
        group.steer([0])

        def steered() -> bool:
            with connected(group.port, 20):
                found = queued(group)
            empty(*group)
            return found == [20, 0]

        assert steered()
        of_a_worker.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        began = time.monotonic()
        wait_until(steered, 1.5)
        assert time.monotonic() - began < 1.5


@linux_only
def test_a_worker_cannot_attach_a_program() -> None:
    with harken.group("127.0.0.1:0", 2) as group, pytest.raises(PermissionError):
        _steering.steer(group[1][0], [2])


@linux_only
def test_a_stranger_in_the_group_gets_no_connections() -> None:
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(harken.group("127.0.0.1:0", 2))
        stranger = stack.enter_context(harken.listen(f"127.0.0.1:{group.port}", reuse_port="join"))
        for change in (
            lambda: None,
            lambda: close(group.replace(0)),
            lambda: group.resize(4),
            lambda: group.steer([1]),
        ):
            change()
            empty(stranger)  # by which the group found out that it is not one of its own
            with connected(group.port, 30) as clients:
                assert sum(queued(group)) == len(clients)
                assert stranger[0].stats().queued == 0
            empty(*group)


@linux_only
@pytest.mark.parametrize("joins", [1, 2, 5])
def test_a_stranger_that_joins_while_the_group_is_made_is_told_from_the_members(joins: int) -> None:
    """Each socket that is made gives the kernel's next number to one of somebody else's before it listens."""
    strangers: list[harken.Listeners] = []
    with contextlib.ExitStack() as stack:

        def joined(_: harken.Socket, address: Any) -> None:
            if address[1] and len(strangers) < joins:
                made = harken.listen(f"127.0.0.1:{address[1]}", reuse_port="join")
                strangers.append(stack.enter_context(made))

        with harken.group("127.0.0.1:0", 3, configure=joined) as group:
            assert len(strangers) == joins
            with connected(group.port, 40) as clients:
                assert queued(group) == [by_hash(clients, range(3))[n] for n in range(3)]


# ---------------------------------------------------------------------------- members come and go


@pytest.fixture(scope="module")
def wire() -> Iterator[Cable]:
    with cable(100) as made:
        yield made


def plain_close(group: harken.Group) -> list[harken.Socket]:
    """Steered away and closed. The control of the next test."""
    _steering.steer(group._addresses[0].first, [2])
    group._slots[0].listeners[0].close()
    return []


WAYS: dict[str, Callable[[harken.Group], Any]] = {
    "retire": lambda group: group.retire(0),
    "replace": lambda group: group.replace(0),
    "drain": lambda group: group.drain(),
    "control": plain_close,
}


@linux_only
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS)
def test_a_client_in_any_stage_of_its_handshake_is_served(wire: Cable, way: str, stage: str) -> None:
    with wire.server.inside():
        group = harken.group(f"{SERVER[4]}:0", 2)
    with group:
        group.steer([0])
        with at_stage(wire, stage, 4, group._slots[0].listeners[0]) as clients:
            with wire.server.inside():
                served = WAYS[way](group)
            for connection in served:
                connection.sendall(b"served")
            expected = "ConnectionResetError" if way == "control" else "served"
            assert Counter(outcome(client) for client in clients) == {expected: 20}
            close(served)


def outcome(client: socket.socket) -> str:
    client.settimeout(5)
    try:
        return client.recv(10).decode()
    except OSError as error:
        return type(error).__name__


@linux_only
def test_silent_clients_of_a_deferred_listener_are_handed_out() -> None:
    """The handshake of one that has sent nothing is open for as long as TCP_DEFER_ACCEPT says."""
    with harken.group("127.0.0.1:0", 2, defer_accept=60) as group, connected(group.port, 10) as clients:
        expected = by_hash(clients, range(2))[0]
        assert queued(group)[0] < expected
        retired = group.retire(0)
        assert len(retired) == expected
        assert retired.lost_at_most == 0
        close(retired)


@linux_only
def test_retired_has_what_was_in_the_queue() -> None:
    with harken.group("127.0.0.1:0", 3) as group:
        with connected(group.port, 30) as clients:
            expected = by_hash(clients, range(3))
            old = group[1]
            retired = group.retire(1)
            assert len(retired) == expected[1]
            assert retired.connections == tuple(retired)
            assert retired.lost_at_most == 0
            assert 0 <= retired.waited < 5
            assert {one.getpeername() for one in retired} <= {one.getsockname() for one in clients}
            assert {one.getblocking() for one in retired} == {False}
            assert group.serving == (0, 2)
            assert old[0].state == "closed"
            assert group[1][0].state == "closed"
            assert len(group) == 3
            assert group.stats()[1].slot is None
            assert len(group.retire(1)) == 0, "a second time there is nothing to do"
            close(retired)
        empty(group[0], group[2])
        with connected(group.port, 30) as clients:
            assert queued(group) == [by_hash(clients, [0, 2])[0], 0, by_hash(clients, [0, 2])[2]]
        with pytest.raises(ValueError, match=r"member 1 was retired: replace\(1\)"):
            group.steer([1])
        assert group.replace(1).waited == 0
        assert group.serving == (0, 1, 2)
        assert group[1][0].state == "listening"


@linux_only
def test_a_worker_of_the_member_ends_when_that_is_retired() -> None:
    with harken.group("127.0.0.1:0", 2) as group:
        acceptor = group[0].acceptor()
        kept: list[harken.Socket] = []
        worker = Call(kept.extend, acceptor)
        group.steer([0])
        with connected(group.port, 5):
            wait_until(lambda: group.stats()[0].open == 5)
            assert len(group.retire(0)) == 0, "the worker has accepted all"
            worker.outcome()
            assert acceptor.closed
            close(kept)


@linux_only
def test_replaced_members_keep_their_numbers() -> None:
    with harken.group("127.0.0.1:0", 4) as group:
        before = [member[0].fileno() for member in group]
        for number in (2, 0, 2, 3, 1, 2) * 3:
            started: list[harken.Listeners] = []
            close(group.replace(number, start=started.append))
            assert started == [group[number]]
            assert group.serving == (0, 1, 2, 3)
            with connected(group.port, 20) as clients:
                assert queued(group) == [by_hash(clients, range(4))[n] for n in range(4)]
            empty(*group)
        assert len(before) == len(group)
        assert len({one.slot for one in group.stats()}) == 4


@linux_only
def test_a_successor_that_does_not_start_changes_nothing() -> None:
    with harken.group("127.0.0.1:0", 2) as group:
        before = group[0], group.stats()[0].slot

        def start(_: harken.Listeners) -> None:
            raise LookupError("there is no such worker")

        for _ in range(5):  # more than there are slots
            with pytest.raises(LookupError, match="no such worker"):
                group.replace(0, start=start)
        assert (group[0], group.stats()[0].slot) == before
        with connected(group.port, 10):
            assert sum(queued(group)) == 10


@linux_only
def test_retiring_is_interrupted_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with harken.group("127.0.0.1:0", 2) as group, connected(group.port, 20) as clients:
        with monkeypatch.context() as patch:
            patch.setattr(groups.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    group.retire(0)
                assert group.serving == (1,)
        retired = group.retire(0)
        assert len(retired) == by_hash(clients, range(2))[0]
        close(retired)


@linux_only
def test_the_deadline_is_kept_and_tells_whom_it_may_have_cost(wire: Cable) -> None:
    """Clients that are gone after their first packet: their handshakes last three seconds."""
    with wire.server.inside():
        group = harken.group(f"{SERVER[4]}:0", 2)
    with group:
        group.steer([0])
        with wire.client.inside(), contextlib.ExitStack() as stack:
            for _ in range(5):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((SERVER[4], group.port))
            with wire.server.inside():
                wait_until(lambda: len(set(_handshakes.handshakes(group.port, [socket.AF_INET]))) == 5)
        # They have closed: the answer is under way to them, and a reset will come back.
        with wire.server.inside():
            assert group.retire(0, deadline=0).lost_at_most == 5
            assert group.retire(0).lost_at_most == 0


@linux_only
def test_a_group_becomes_larger_than_its_slots_and_smaller() -> None:
    with harken.group("127.0.0.1:0", 2, slots=3) as group:
        assert group.resize(5) == ()
        assert (len(group), group.slots) == (5, 6)
        with connected(group.port, 50) as clients:
            assert queued(group) == [by_hash(clients, range(5))[n] for n in range(5)]
            gone = group.resize(3)
            assert [len(one) for one in gone] == [by_hash(clients, range(5))[n] for n in (3, 4)]
            assert group.serving == (0, 1, 2)
            for one in gone:
                close(one)
        empty(*group)
        with connected(group.port, 20) as clients:
            assert queued(group) == [by_hash(clients, range(3))[n] for n in range(3)]
        with pytest.raises(IndexError):
            group[3]


@linux_only
def test_several_threads_replace_members() -> None:
    with harken.group("127.0.0.1:0", 4) as group:
        calls = [Call(group.replace, number) for number in range(4)]
        for call in calls:
            close(call.outcome())
        with connected(group.port, 30) as clients:
            assert queued(group) == [by_hash(clients, range(4))[n] for n in range(4)]


@linux_only
def test_without_sock_diag_it_waits_for_one_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Any:
        raise PermissionError

    monkeypatch.setattr("harken._diagnosis.netlink.dump", refused)
    monkeypatch.setattr(_handshakes, "WITHOUT_SIGHT", 0.05)
    with harken.group("127.0.0.1:0", 2) as group, connected(group.port, 10):
        retired = group.retire(0)
        assert retired.lost_at_most is None
        assert 0.05 <= retired.waited < 5
        close(retired)


@linux_only
def test_what_another_process_accepts_is_left_to_it() -> None:
    with harken.group("127.0.0.1:0", 2) as group, harken.adopt(os.dup(group[0][0].fileno())) as of_the_worker:
        group.steer([0])
        with connected(group.port, 3):
            call = Call(lambda: group.retire(0, drain=False))
            wait_until(lambda: group.serving == ())
            assert not call.ended
            for _ in range(3):
                of_the_worker.accept()[0].close()
            retired = call.outcome()
            assert (len(retired), retired.lost_at_most) == (0, 0)


# ---------------------------------------------------------------------------- its end


@linux_only
def test_a_group_that_drains_refuses_nobody_until_it_is_closed() -> None:
    with harken.group("127.0.0.1:0", 2) as group, connected(group.port, 10), socket.socket() as late:
        drained = group.drain()
        assert len(drained) == 10
        late.setblocking(False)
        late.connect_ex(("127.0.0.1", group.port))
        assert not select.select([], [late], [], 0.2)[1]
        group.close()
        assert select.select([], [late], [], 5)[1]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        close(drained)


def test_close_closes_all_and_may_be_called_again() -> None:
    with harken.group("127.0.0.1:0", 2) as group:
        members = list(group)
        port = group.port
    assert {listener.state for member in members for listener in member} == {"closed"}
    group.close()
    assert repr(group) == "<harken.Group closed>"
    with pytest.raises(OSError, match="closed"):
        group.steer([0])
    harken.listen(f"127.0.0.1:{port}").close()


@posix_only
def test_a_forked_child_closes_its_copies_only() -> None:
    with harken.group("127.0.0.1:0", 2) as group:
        child = os.fork()
        if child == 0:
            try:
                with contextlib.suppress(RuntimeError):
                    group.steer([])
                    os._exit(2)
                assert group[0][0].state == "listening"
                group.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert group.serving == (0, 1)
        with connected(group.port, 10):
            assert sum(queued(group)) >= 10


@linux_only
def test_descriptors_do_not_become_more() -> None:
    with harken.group("127.0.0.1:0", 3) as group:
        counts = set()
        for n in range(20):
            close(group.replace(n % 3))
            counts.add(len(os.listdir("/proc/self/fd")))
        assert len(counts) == 1


# ---------------------------------------------------------------------------- users


AS_NOBODY = """
    import harken, os, socket
    harken.preload()
    group = harken.group("127.0.0.1:0", 2, slots=3)
    {first}
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    clients = [socket.create_connection(("127.0.0.1", group.port)) for _ in range(20)]
    retired = group.retire(0)
    group.replace(0)
    group.steer([1])
    found = [one.queued for one in group.stats()]
    try:
        group.resize(4)
        grown = ""
    except OSError as error:
        grown = f"{{error.step}}: {{error.strerror}}"
    tell(taken=len(retired) + sum(found), lost=retired.lost_at_most, grown=grown, size=len(group))
    for one in retired: one.close()
    group.close()
"""


@linux_only
@needs_root
def test_a_group_of_roots_is_steered_by_whom_it_becomes() -> None:
    told = run(AS_NOBODY.format(first=""))
    assert told == {"taken": 20, "lost": 0, "grown": "bind: Address already in use", "size": 2}


@linux_only
@needs_root
def test_a_group_that_was_given_to_a_user_grows() -> None:
    told = run(AS_NOBODY.format(first="group.chown(65534, 65534)"))
    assert told == {"taken": 20, "lost": 0, "grown": "", "size": 4}


# ---------------------------------------------------------------------------- where nothing is steered


def shares(group: harken.Group) -> None:
    """What holds of all that share one listener."""
    with pytest.raises(io.UnsupportedOperation, match="cannot leave members out here"):
        group.steer([0])
    group.steer(range(len(group)))
    retired = group.retire(0)
    assert (len(retired), retired.waited, retired.lost_at_most) == (0, 0, 0)
    assert group.serving == tuple(range(1, len(group)))
    assert group[0][0].state == "closed"
    group.replace(0)
    assert group[0][0].state == "listening"
    assert len(group.resize(len(group) + 1)) == 0
    assert group[-1][0].state == "listening"
    assert "which share" in repr(group)


@posix_only
def test_members_share_a_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "s"
    with harken.group(f"unix:{path}", 3, mode=0o600) as group:
        assert group.shared == (f"unix:{path}",)
        shares(group)
        with contextlib.ExitStack() as stack:
            for n in range(3):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(path))
                stack.enter_context(group[n][0].accept()[0])
    assert not path.exists()


def test_members_share_a_listener_where_the_system_has_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups.Group, "_may_steer", False)
    monkeypatch.setattr(groups, "OPTIONS", {})
    with harken.group("127.0.0.1:0", 3) as group:
        shares(group)
        with connected(group.port, 4):
            for n in range(4):
                group[n][0].accept()[0].close()
            drained = group.drain()
            assert len(drained) == 0
        with connected(group.port, 2):
            close(group.drain())


@linux_only
def test_where_the_system_chooses_a_member_cannot_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FreeBSD: Linux does so, too, without a program."""
    monkeypatch.setattr(groups.Group, "_may_steer", False)
    with harken.group("127.0.0.1:0", 3) as group:
        assert f"among which {groups.SYSTEM} chooses" in repr(group)
        with connected(group.port, 60):
            assert sum(queued(group)) == 60
            assert 0 not in queued(group)
            for refused in (lambda: group.retire(0), lambda: group.steer([1]), lambda: group.resize(4)):
                with pytest.raises(io.UnsupportedOperation):
                    refused()
            before = queued(group)[1]
            assert len(group.replace(1)) == 0, "its successor has the queue"
            assert queued(group)[1] == before
            drained = group.drain()
            assert len(drained) == 60
            close(drained)


@linux_only
def test_beside_a_unix_socket_tcp_is_steered(tmp_path: Any) -> None:
    with harken.group(["127.0.0.1:0", f"unix:{tmp_path / 's'}"], 2) as group:
        assert group.shared == (f"unix:{tmp_path / 's'}",)
        with connected(group.port, 10), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            retired = group.retire(0)
            assert group[1][1].stats().queued == 1, "left to the other member"
            group[1][1].accept()[0].close()
            close(retired)


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        # Where there is no such option, that is said instead.
        pytest.param(ValueError, "reuse_port='join' is not for it", {"reuse_port": "join"}, marks=posix_only),
        (ValueError, "size is from 1 to 1999, and not 0", {"size": 0}),
        (ValueError, "size is from 1 to 1999, and not 10000", {"size": 10000}),
        (TypeError, "size is an int, and not str", {"size": "4"}),
        (TypeError, "size is an int, and not bool", {"size": True}),
        (ValueError, "slots is from 5 to 2000, and not 4", {"slots": 4}),
        (ValueError, "policy is 'hash', 'least' or 'weights', and not 'random'", {"policy": "random"}),
        (TypeError, "policy is a str, and not NoneType", {"policy": None}),
        (TypeError, "group() needs at least one bind", {"binds": []}),
        (ValueError, "not a bind|port 'x'", {"binds": "x:y:z"}),
        (TypeError, "group() got an unexpected keyword argument 'backlogs'", {"backlogs": 3}),
        (ValueError, "reuse_port=False is not for it", {"binds": "127.0.0.1:0?reuse_port=0"}),
    ],
)
def test_what_is_wrong_is_told_before_a_socket_exists(error: Any, text: str, arguments: dict[str, Any]) -> None:
    arguments = {"binds": "127.0.0.1:0", "size": 4} | arguments
    with pytest.raises(error) as caught:
        harken.group(**arguments)
    assert any(one in str(caught.value) for one in text.split("|")) or "x:y:z" in str(caught.value)


@linux_only
@pytest.mark.parametrize(
    ("indices", "policy", "error", "text"),
    [
        ([4], None, ValueError, "there is no member 4: they are 0 to 3"),
        ([-1], None, ValueError, "there is no member -1"),
        (["0"], None, TypeError, "a member is an int, and not str"),
        ([0, 0], None, ValueError, "member 0 stands there twice"),
        ({0: 1}, None, ValueError, "weights are for the policy 'weights'"),
        ({0: 2001}, "weights", ValueError, "a weight is from 0 to 2000"),
        ({0: 2000, 1: 1}, "weights", ValueError, "the sum of the weights is 2001"),
        ([0], "most", ValueError, "policy is"),
    ],
)
def test_what_cannot_be_steered_to_changes_nothing(indices: Any, policy: Any, error: Any, text: str) -> None:
    with harken.group("127.0.0.1:0", 4) as group:
        with pytest.raises(error, match=text):
            group.steer(indices, policy)
        assert (group.serving, group.policy) == ((0, 1, 2, 3), "hash")


@linux_only
def test_weights_may_be_as_many_as_a_program_has_room_for() -> None:
    with harken.group("127.0.0.1:0", 4, policy="weights") as group:
        for weights in (dict.fromkeys(range(4), 500), [0, 1, 2, 3] * 500):
            group.steer(weights)
            with connected(group.port, 8):
                assert sum(queued(group)) == 8
            empty(*group)


def test_a_port_that_somebody_has_is_refused() -> None:
    with harken.listen("127.0.0.1:0") as taken, pytest.raises(harken.AddressInUseError):
        harken.group(f"127.0.0.1:{taken.port}", 2)
    with harken.group("127.0.0.1:0", 2) as group, pytest.raises(harken.AddressInUseError):
        harken.group(f"127.0.0.1:{group.port}", 2)  # of this very process
    with pytest.raises((ValueError, harken.AddressInUseError)):
        harken.group(["127.0.0.1:0", "127.0.0.1:99999"], 2)


@linux_only
def test_when_one_bind_cannot_be_had_nothing_stays_open() -> None:
    with harken.listen("127.0.0.1:0") as taken, pytest.raises(harken.AddressInUseError):
        harken.group(["127.0.0.1:0", f"127.0.0.1:{taken.port}"], 3)


@linux_only
def test_too_few_descriptors_are_told_and_nothing_stays_open() -> None:
    told = run("""
        import harken, resource, os
        harken.preload()
        import harken._group
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        try:
            harken.group("127.0.0.1:0", 40)
        except OSError as error:
            tell(number=error.errno, open=len(os.listdir("/proc/self/fd")))
    """)
    assert told["number"] == 24
    assert told["open"] <= 5


def test_a_group_is_only_made_by_the_function() -> None:
    with pytest.raises(TypeError, match=r"harken\.group\(\) makes a Group"):
        harken.Group()


# ---------------------------------------------------------------------------- several threads


@linux_only
def test_two_replacements_of_one_member_at_once_leave_no_slot_behind() -> None:
    both = threading.Barrier(2)

    def started(_: harken.Listeners) -> None:
        both.wait(30)

    with harken.group("127.0.0.1:0", 1, slots=4) as group:
        calls = [Call(lambda: group.replace(0, start=started)) for _ in range(2)]
        for call in calls:
            call.outcome()
        assert [slot.state for slot in group._slots].count(EMPTY) == 3
        with connected(group.port, 5):
            assert queued(group) == [5]


@linux_only
def test_a_slot_that_two_retire_is_not_taken_from_who_has_it_then() -> None:
    with harken.group("127.0.0.1:0", 1) as group, connected(group.port, 3):
        patient = Call(lambda: group.retire(0, 1.0, drain=False))  # nobody accepts: it waits for the queue
        wait_until(lambda: group._slots[0].state == LEAVING)
        assert group.retire(0, 0.0, drain=False).lost_at_most == 3
        group.replace(0)
        assert group._members == [0]  # it has the slot that was just given up
        patient.outcome()
        assert group.stats()[0].serving
        assert str(group[0][0]) == group[0][0].url
        with connected(group.port, 2):
            assert queued(group) == [5]


@linux_only
def test_the_loads_are_looked_at_while_acceptors_are_made() -> None:
    """For the policy "least", by a thread that must not end."""
    over = threading.Event()
    failed: list[BaseException] = []
    with harken.group("127.0.0.1:0", 2, policy="least") as group:

        def look() -> None:
            try:
                while not over.is_set():
                    group._slots[0].load()
            except BaseException as error:
                failed.append(error)

        looking = Call(look)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(2000):
                group[0].acceptor().close()
        finally:
            sys.setswitchinterval(interval)
            over.set()
        looking.outcome()
    assert failed == []


@linux_only
def test_a_group_that_is_drained_while_a_successor_starts_stays_drained() -> None:
    """As by SIGTERM in the middle of a rolling restart."""
    with harken.group("127.0.0.1:0", 1) as group:
        with pytest.raises(RuntimeError, match="drained meanwhile"):
            group.replace(0, start=lambda _: group.drain())
        assert group.serving == ()
        assert {slot.state for slot in group._slots} == {EMPTY}


@linux_only
def test_what_a_replacement_could_not_accept_is_drained() -> None:
    told = run("""
        import harken, os, resource, socket
        harken.preload()
        with harken.group("127.0.0.1:0", 1) as group:
            clients = [socket.create_connection(("127.0.0.1", group.port)) for _ in range(5)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            held = []
            try:
                while True:
                    held.append(os.open(os.devnull, 0))
            except OSError:
                pass
            try:
                group.replace(0)
                number = 0
            except OSError as error:
                number = error.errno
            for descriptor in held:
                os.close(descriptor)
            tell(number=number, drained=len(group.drain()))
    """)
    assert told == {"number": 24, "drained": 5}


@linux_only
@pytest.mark.parametrize("deadline", [float("nan"), -1, "5"])
@pytest.mark.parametrize("name", ["retire", "replace", "resize", "drain"])
def test_a_deadline_is_checked_before_anybody_leaves(name: str, deadline: Any) -> None:
    arguments: dict[str, list[Any]] = {"retire": [0], "replace": [0], "resize": [1], "drain": []}
    with harken.group("127.0.0.1:0", 2) as group:
        with pytest.raises(ValueError, match="deadline is a number of seconds"):
            getattr(group, name)(*arguments[name], deadline)
        assert (group.serving, len(group)) == ((0, 1), 2)


# ---------------------------------------------------------------------------- under load: a sample of retiring.py


@linux_only
@needs_root
@pytest.mark.parametrize("name", ["loopback, 4 members", "loopback, as nobody"])
def test_nobody_notices_that_members_come_and_go(name: str) -> None:
    told = retiring.run(next(case for case in retiring.CASES if case.name == name), 10)
    assert told["failed"] == 0, told
    assert told["requests"] > 100
