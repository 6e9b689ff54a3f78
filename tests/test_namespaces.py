"""Machines that are not like this one: without IPv6, without IPv4, with other settings. Each is a network namespace of
Linux, with its own interfaces and sysctls, in which a program runs and tells what it found."""

from __future__ import annotations

import errno
import socket
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from children import NOBODY, REFUSE_FAMILY, needs_root, needs_seccomp, run
from machine import linux_only, needs_ipv6

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]
pytestmark = [linux_only, needs_ipv6]

SYSCTL = "/proc/sys/net"
NO_IPV6 = f"echo 1 > {SYSCTL}/ipv6/conf/all/disable_ipv6"
NO_IPV6_LOOPBACK = f"echo 1 > {SYSCTL}/ipv6/conf/lo/disable_ipv6"
NO_IPV4_LOOPBACK = "ip address del 127.0.0.1/8 dev lo"
# An interface with addresses of its own, and one behind it that it is linked to.
PAIR = f"""
    echo 0 > {SYSCTL}/ipv6/conf/default/accept_dad
    ip link add first type veth peer name second
    ip link set first up
    ip link set second up
    ip address add 198.51.100.1/24 dev first
"""

SHOW = """
import harken

def show(*binds):
    "What came up, what was left out, and whether clients reach what is told."
    with harken.listen(*binds) as listeners:
        hosts = [one.address[0] for one in listeners]
        left_out = [[address[0], error.errno, error.strerror] for address, error in listeners.left_out]
        tell(hosts=hosts, left_out=left_out, one_port=len({one.port for one in listeners}) == 1,
             reached=[host for host in ("127.0.0.1", "::1") if reaches(host, listeners.port)])

def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError:
        return False
    return True
"""


def shown(program: str, setup: str, **more: Any) -> dict[str, Any]:
    return run(SHOW + dedent(program), setup=setup, **more)


# ---------------------------------------------------------------------------- any address


@pytest.mark.parametrize(
    ("setup", "why"),
    [
        (NO_IPV6, "IPv6 is disabled here (net.ipv6.conf.all.disable_ipv6 = 1)"),
        (NO_IPV6_LOOPBACK, "no interface here has IPv6"),
    ],
)
@pytest.mark.parametrize("bind", [":0", ":8080", "*:8080-8089"])
def test_a_wildcard_is_without_ipv6_where_it_is_disabled(setup: str, why: str, bind: str) -> None:
    program = f"""
        with socket.socket(socket.AF_INET6) as premise:
            premise.bind(("::", 0))  # which is why nobody notices
        show("{bind}")
    """
    told = shown(program, setup)
    assert told == {
        "hosts": ["0.0.0.0"],
        "left_out": [["::", errno.EADDRNOTAVAIL, why]],
        "one_port": True,
        "reached": ["127.0.0.1"],
    }


def test_ipv6_that_was_asked_for_by_name_is_never_left_out() -> None:
    program = """
        show("tcp6://:0")
        attempt("[::1]:0")
    """
    told = shown(program, NO_IPV6)
    assert (told["hosts"], told["left_out"]) == (["::"], [])
    assert (told["step"], told["number"]) == ("bind", errno.EADDRNOTAVAIL)


def test_a_wildcard_is_without_ipv4_where_no_interface_has_it() -> None:
    assert shown('show(":0")', NO_IPV4_LOOPBACK) == {
        "hosts": ["::"],
        "left_out": [["0.0.0.0", errno.EADDRNOTAVAIL, "no interface here has IPv4"]],
        "one_port": True,
        "reached": ["::1"],
    }


@pytest.mark.parametrize("setup", [NO_IPV4_LOOPBACK, NO_IPV6_LOOPBACK])
def test_a_wildcard_keeps_a_family_that_only_lacks_its_loopback(setup: str) -> None:
    told = shown('show(":0")', PAIR + setup)
    assert (told["hosts"], told["left_out"]) == (["0.0.0.0", "::"], [])


@pytest.mark.parametrize(
    ("setup", "host", "left_out", "why"),
    [
        (NO_IPV6, "127.0.0.1", "::1", "IPv6 is disabled here (net.ipv6.conf.all.disable_ipv6 = 1)"),
        (NO_IPV4_LOOPBACK, "::1", "127.0.0.1", "no interface here has IPv4"),
        (PAIR + NO_IPV4_LOOPBACK, "::1", "127.0.0.1", "no interface here has 127.0.0.1"),
        (PAIR + NO_IPV6_LOOPBACK, "127.0.0.1", "::1", "no interface here has ::1"),
    ],
)
def test_a_name_is_without_the_loopback_that_is_not_there(
    poison: Poison, setup: str, host: str, left_out: str, why: str
) -> None:
    program = """
        with harken.listen("both:0") as listeners:
            ((address, error),) = listeners.left_out
            tell(hosts=[one.address[0] for one in listeners], left_out=[address[0], error.errno, error.strerror])
    """
    report = poison.run(program, setup=setup, hosts="both=127.0.0.1,::1")  # whatever localhost is on this machine
    assert report.said == {"hosts": [host], "left_out": [left_out, errno.EADDRNOTAVAIL, why]}


# What a kernel says that was started with ipv6.disable=1, said by a seccomp filter.
WITHOUT_IPV6 = f"""{REFUSE_FAMILY}
import errno
refuse_family(socket.AF_INET6, errno.EAFNOSUPPORT)
"""


@needs_seccomp
@pytest.mark.parametrize("bind", [":0", "localhost:0"])
def test_ipv6_is_left_out_where_the_kernel_was_started_without_it(bind: str) -> None:
    if bind.startswith("localhost") and len({entry[0] for entry in socket.getaddrinfo("localhost", 0)}) == 1:
        pytest.skip("localhost has one address here")
    told = shown(WITHOUT_IPV6 + f'show("{bind}")', "true")
    any_or_one = ["0.0.0.0", "::"] if bind == ":0" else ["127.0.0.1", "::1"]
    assert told["hosts"] == any_or_one[:1]
    ((host, number, why),) = told["left_out"]
    assert (host, number) == (any_or_one[1], errno.EAFNOSUPPORT)
    assert why.startswith("this system has IPv6, but a seccomp filter denies IPv6 to this process")
    assert "RestrictAddressFamilies=" in why
    assert told["reached"] == ["127.0.0.1"]


def test_a_kernel_without_ipv6_may_have_mptcp_all_the_same() -> None:
    program = """
        with harken.listen("mptcp://:0") as listeners:
            left_out = [[address[0], error.errno] for address, error in listeners.left_out]
            tell(schemes=[one.url.split(":")[0] for one in listeners], left_out=left_out)
    """
    there = shown(program, "true")
    if there["schemes"] != ["mptcp", "mptcp"]:
        pytest.skip("no MPTCP here, or no IPv6 to take away")
    told = shown(WITHOUT_IPV6 + dedent(program), "true")
    assert told == {"schemes": ["mptcp"], "left_out": [["::", errno.EAFNOSUPPORT]]}


@pytest.mark.parametrize("setup", ['exec unshare -n "$@"', "ip link set lo down"], ids=["never up", "down again"])
def test_a_network_that_is_not_up_yet_may_get_either_family(setup: str) -> None:
    program = """
        with harken.listen(":0") as listeners:
            hosts, left_out = [one.address[0] for one in listeners], len(listeners.left_out)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            reached = [reaches(host, listeners.port) for host in ("127.0.0.1", "::1")]
            tell(hosts=hosts, left_out=left_out, reached=reached)
    """
    told = shown(program, setup)
    assert told == {"hosts": ["0.0.0.0", "::"], "left_out": 0, "reached": [True, True]}


@pytest.mark.parametrize("only", [0, 1])
def test_bindv6only_changes_nothing(only: int) -> None:
    program = """
        show(":0")
        with harken.listen("[::]:0") as listeners:
            tell(six=[reaches(host, listeners.port) for host in ("127.0.0.1", "::1")])
        with harken.listen("127.0.0.1:0") as four, harken.listen(f"[::]:{four.port}") as six:
            tell(side_by_side=[one.address[0] for one in (*four, *six)])
    """
    assert shown(program, f"echo {only} > {SYSCTL}/ipv6/bindv6only") == {
        "hosts": ["0.0.0.0", "::"],
        "left_out": [],
        "one_port": True,
        "reached": ["127.0.0.1", "::1"],
        "six": [False, True],
        "side_by_side": ["127.0.0.1", "::"],
    }


FAR_CLIENT = """
import socket, subprocess, sys
print("in a network of its own", flush=True)
host, port = sys.stdin.readline().split()
for words in ("address add fe80::2/64 dev far nodad", "link set far up"):
    subprocess.run(["ip", *words.split()], check=True)
with socket.create_connection((host, int(port)), timeout=20) as sock:
    print(sock.recv(7).decode(), flush=True)
sys.stdin.read()  # its network ends with it, and with that the interfaces at both ends
"""


def test_a_link_local_address_is_reached_over_its_interface() -> None:
    program = f"""
        def ip(words):
            subprocess.run(["ip", *words.split()], check=True)
        with subprocess.Popen(["unshare", "-n", sys.executable, "-c", {FAR_CLIENT!r}],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            client.stdout.readline()
            ip(f"link add near type veth peer name far netns {{client.pid}}")
            ip("address add fe80::1/64 dev near nodad")
            ip("link set near up")
            with harken.listen("[fe80::1%near]:0") as (listener,):
                print("fe80::1%far", listener.port, file=client.stdin, flush=True)
                listener.settimeout(20)
                connection, peer = listener.accept()
                with connection:
                    connection.sendall(b"reached")
                url, index = listener.url, socket.if_nametoindex("near")
                tell(client=client.stdout.readline(), peer=peer[0],
                     scopes=[listener.address[3] == index, peer[3] == index], url=url, expected=f"tcp://[fe80::1%near]:{{listener.port}}")
            with harken.listen(url) as (again,):
                tell(again=again.url, scope=again.address[3] == index)
    """
    told = shown(program, "true")
    assert (told["client"], told["peer"], told["scopes"]) == ("reached\n", "fe80::2", [True, True])
    assert told["url"] == told["again"] == told["expected"]
    assert told["scope"]


# ---------------------------------------------------------------------------- privileged ports


@needs_root
def test_a_port_is_privileged_below_the_limit_of_this_network() -> None:
    program = f"""
        import harken
        become({NOBODY})
        def outcome(bind):
            try:
                harken.listen(bind).close()
            except PermissionError as error:
                return [error.step, error.address[0], "below 80 " in error.hint]
        tell(below=outcome(":79"), at=outcome(":80"))
    """
    told = run(program, setup=f"echo 80 > {SYSCTL}/ipv4/ip_unprivileged_port_start")
    assert told == {"below": ["bind", "0.0.0.0", True], "at": None}


# ---------------------------------------------------------------------------- the backlog

SHORT_QUEUES = f"echo 128 > {SYSCTL}/core/somaxconn"

WARNED = """
import harken, warnings

def warned(call):
    "What the call warned of, where it says that it comes from, and what is granted to each listener."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = call()
    listeners = made or call.of
    tell(warnings=[[one.category.__name__, str(one.message), one.filename] for one in caught],
         granted=[listener.backlog for listener in listeners])
    for listener in listeners:
        listener.close()

def unix():
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")
    return harken.adopt(sock)

def inherited():
    return socket.create_server(("127.0.0.1", 0), backlog=5).detach()

class later:
    "A call of something that is bound already."
    def __init__(self, bound, call):
        self.of, self.call = bound, call
    def __call__(self):
        self.call()
"""

ASKED_FOR_MORE = [
    'lambda: harken.listen("127.0.0.1:0", ":0", backlog=2048)',
    'lambda: harken.listen("127.0.0.1:0", ":0?backlog=2048", nodelay=True)',
    '(lambda bound: later(bound, lambda: bound.listen(2048)))(harken.bind("127.0.0.1:0", ":0"))',
    '(lambda bound: later(bound, bound.listen))(harken.bind(":0", backlog=2048, nodelay=True))',
    '(lambda bound: later(bound, bound.listen))(harken.bind("127.0.0.1:0", ":0", backlog=2048))',
    '(lambda bound: later(bound, lambda: bound[0].listen(2048)))(harken.bind("127.0.0.1:0"))',
    '(lambda bound: later(bound, lambda: bound[0].listen(2048)))(harken.listen("127.0.0.1:0"))',
    "(lambda one: later([one], lambda: one.listen(2048)))(unix())",
    'lambda: harken.listen(f"fd://{inherited()}", ":0", backlog=2048)',
]


@pytest.mark.parametrize("call", ASKED_FOR_MORE)
def test_a_backlog_that_is_not_granted_is_told_once_with_the_setting(call: str) -> None:
    told = run(WARNED + f"warned({call})", setup=SHORT_QUEUES)
    ((category, text, file),) = told["warnings"]
    assert (category, file) == ("RuntimeWarning", "<string>")  # the program's own line
    assert "a backlog of 2048 was asked for, and the system grants 128" in text
    assert "sysctl -w net.core.somaxconn=2048" in text
    assert "--sysctl net.core.somaxconn=2048" in text
    assert set(told["granted"]) == {128}


@pytest.mark.parametrize(
    "call",
    [
        'lambda: harken.listen("127.0.0.1:0", ":0")',
        'lambda: harken.listen("127.0.0.1:0", backlog=None)',
        'lambda: harken.listen("127.0.0.1:0", backlog=128)',
        'lambda: harken.listen(f"fd://{inherited()}", backlog=128)',
        '(lambda bound: later(bound, bound.listen))(harken.bind(":0"))',
        '(lambda bound: later(bound, lambda: bound.listen(128)))(harken.bind(":0", backlog=2048))',
    ],
)
def test_a_backlog_that_is_granted_warns_of_nothing(call: str) -> None:
    told = run(WARNED + f"warned({call})", setup=SHORT_QUEUES)
    assert told["warnings"] == []
    assert set(told["granted"]) == {128}


def test_a_warning_that_is_made_an_error_leaves_nothing_open() -> None:
    program = """
        warnings.simplefilter("error")
        before = os.listdir("/proc/self/fd")
        try:
            harken.listen(":0", backlog=2048)
        except RuntimeWarning as error:
            tell(error=str(error)[:9], open=os.listdir("/proc/self/fd") == before)
    """
    assert run(WARNED + dedent(program), setup=SHORT_QUEUES) == {"error": "a backlog", "open": True}


def test_python_shows_the_warning_once_for_a_line() -> None:
    program = """
        import contextlib, io
        shown = io.StringIO()
        with contextlib.redirect_stderr(shown):
            for _ in range(3):
                harken.listen("127.0.0.1:0", backlog=2048).close()
        tell(lines=shown.getvalue().count("a backlog of 2048"))
    """
    assert run(WARNED + dedent(program), setup=SHORT_QUEUES) == {"lines": 1}


# ---------------------------------------------------------------------------- one port for all

CROWDED = """
import resource
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
import socket
busy, family, host = [], socket.AF_INET6 if {six} else socket.AF_INET, "::" if {six} else "0.0.0.0"
for _ in range({busy}):
    sock = socket.socket(family)
    if {six}:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host, 0))
    sock.listen(1)
    busy.append(sock)
before, failed, held, odd_ones = count("bind"), 0, [], 0
for _ in range({times}):
    try:
        listeners = harken.listen(":0")
    except OSError:
        failed += 1
        continue
    odd_ones += listeners[0].port != listeners[1].port or [one.address[0] for one in listeners] != ["0.0.0.0", "::"]
    if {hold}:
        held.append(listeners)
    else:
        listeners.close()
binds = count("bind") - before
for one in (*busy, *held):
    one.close()
tell(failed=failed, odd_ones=odd_ones, redraws=(binds - 2 * {times}) / 2)
"""


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("ports", "busy", "hold"),
    [
        ("32768 60999", 3000, True),  # as Linux has it, and all 2000 stay open
        ("40000 43999", 3000, False),
        ("40000 43199", 3000, False),  # of that family, fifteen of sixteen are taken
    ],
)
def test_2000_times_one_port_for_both_families_though_3000_of_one_are_busy(
    poison: Poison, ports: str, busy: int, hold: bool, six: bool
) -> None:
    program = CROWDED.format(six=six, busy=busy, hold=hold, times=2000)
    report = poison.run(program, setup=f"echo {ports} > {SYSCTL}/ipv4/ip_local_port_range")
    print(f"2000 ports for both families, {busy} of {ports} busy in one: {report.said['redraws']:.0f} redraws")
    assert (report.said["failed"], report.said["odd_ones"]) == (0, 0)
    assert report.said["redraws"] <= 2000  # at most one each: the second number is of the family that is crowded
