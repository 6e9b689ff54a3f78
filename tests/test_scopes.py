"""Link-local addresses: a scope is kept as a number, whatever the interface is called, and what is printed opens the
same address again."""

from __future__ import annotations

import copy
import enum
import errno
import pickle
import socket
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harken
from children import run
from harken import Bind
from harken._bind import scoped
from harken._errors import failure, shown
from harken._listener import url_of
from machine import LINUX, linux_only, needs_ipv6

# Names that a URL, an encoding or a shell would change; one is a number, which is the first one's index. The link-local
# address of each is its own.
NAMES = [b"b\xc3\xbcro0", b"3", b"a]b", b"25x?#&", b"\xff\xc3x", b"[@]", b"eth0.100", b"a+b=c"]
SETUP = """
i=0
while read -r name; do
    i=$((i+1))
    ip link add "$(printf "$name")" type veth peer name "peer$i"
    ip link set "$(printf "$name")" up
    ip link set "peer$i" up
    ip -6 address add fe80::c:$i/64 dev "$(printf "$name")" nodad
done <<'END'
{}
END
"""
SETUP = SETUP.format("\n".join("".join(f"\\{byte:03o}" for byte in name) for name in NAMES))
PROGRAM = dedent("""
    import os, pickle, harken
    from harken import Bind
    from harken._diagnosis.foresee import foresee
    names = {names!r}
    found = []
    for n, name in enumerate(names, 1):
        host, index = f"fe80::c:{{n}}", socket.if_nametoindex(name)
""")


def in_odd_network(program: str) -> dict[str, Any]:
    head = PROGRAM.format(names=NAMES)
    return run(head + dedent(program).replace("\n", "\n    ") + "\ntell(found=found)", setup=SETUP)


@linux_only
@needs_ipv6
def test_a_listener_opens_again_by_its_url_whatever_its_interface_is_called() -> None:
    found = in_odd_network("""
        for bind in (f"[{host}%{index}]:0", Bind.of(host, 0, scope_id=index), Bind.of(f"{host}%{index}", 0)):
            with harken.listen(bind) as (first,):
                url, address = first.url, first.address
                assert url.isascii() and Bind(url).url == str(Bind(url)) == url
                assert pickle.loads(pickle.dumps(Bind(url))) == Bind(url)
            with harken.listen(url) as (again,):
                assert again.address == address == (host, address[1], 0, index), (again.address, address)
                mine = [holder.pid for holder in harken.holders(url)]
                assert mine == [os.getpid()], (url, mine)
                assert [holder.address for holder in harken.holders(address)] == [address]
            found.append(url)
    """)["found"]
    hosts = [url.rpartition(":")[0] for url in found]
    assert len(set(hosts)) == len(NAMES)
    assert hosts[0] == hosts[1] == hosts[2] == "tcp://[fe80::c:1%b%C3%BCro0]"
    assert "tcp://[fe80::c:4%2525x%3F%23%26]" in hosts  # its name begins as the % of URLs does
    assert any(host.startswith("tcp://[fe80::c:2%") and host[17:-1].isdigit() for host in hosts)  # not the name 3


@linux_only
@needs_ipv6
def test_an_interface_is_found_by_its_name_in_each_of_its_forms() -> None:
    assert in_odd_network("""
        if not name.isdigit():
            text = os.fsdecode(name)
            encoded = "".join(f"%{byte:02x}" for byte in name)
            for zone in (text, f"25{encoded}", encoded):
                if not set("]/#") & set(zone) and not zone.startswith("25x"):
                    with harken.listen(f"tcp://[{host}%{zone.replace('?', '%3F').replace('&', '%26')}]:0") as (it,):
                        assert it.address[3] == index
                        found.append(zone)
            with harken.listen(Bind.of(f"{host}%{text}", 0)) as (it,):
                assert it.address[3] == index
    """)["found"]


@linux_only
@needs_ipv6
def test_the_option_takes_the_interface_whatever_it_is_called() -> None:
    found = in_odd_network("""
        text = os.fsdecode(name)
        for bind, options in ((f"[{host}%{index}]:0", {"interface": text}),
                              (f"[{host}%{index}]:0?interface=" + "".join(f"%{byte:02x}" for byte in name), {})):
            with harken.listen(bind, **options) as (it,):
                assert it.options["interface"] == text, it.options
                assert it.getsockopt(harken.SOL_SOCKET, 25, 16).rstrip(b"\\0") == name  # SO_BINDTODEVICE
                assert [holder.pid for holder in harken.holders(it.url)] == [os.getpid()]
        for call in (harken.getaddrinfo(f"{host}%{text}", 0, type=1), ):
            if text != "3":
                assert call[0].sockaddr[3] == index
                with harken.Socket(harken.AF_INET6, 1) as sock:
                    sock.bind((f"{host}%{text}", 0))
                    assert sock.getsockname()[3] == index
        found.append(index)
    """)["found"]
    assert len(set(found)) == len(NAMES)


@linux_only
@needs_ipv6
def test_check_and_listen_use_the_same_interface() -> None:
    found = in_odd_network("""
        for scope in (index, 1):
            row, = foresee([f"[{host}%{scope}]:0"])
            try:
                harken.listen(f"[{host}%{scope}]:0").close()
                opened = "free"
            except harken.ListenError as error:
                opened = "not here"
            found.append([row.verdict, opened])
    """)["found"]
    assert found == [["free", "free"], ["not here", "not here"]] * len(NAMES)


# ---------------------------------------------------------------------------- errors and hints

PAIR = """
    ip link add v0 type veth peer name v1
    ip link set v0 up
    ip link set v1 up
    ip -6 address add fe80::c/64 dev v0 nodad
    ip -6 address add fe80::d/64 dev v1 nodad
    ip -6 address flush dev lo
    ip -6 address add ::1/128 dev lo
"""
ATTEMPT = """
    import harken
    for bind in {binds!r}:
        try:
            harken.listen(bind).close()
            tell(**{{bind: None}})
        except OSError as error:
            row, = __import__("harken._diagnosis.foresee")._diagnosis.foresee.foresee([bind])
            assert str(row.error) == str(error), (str(row.error), str(error))
            tell(**{{bind: str(error)}})
"""


@linux_only
@needs_ipv6
def test_an_error_shows_the_scope_and_the_interface_that_has_the_address() -> None:
    binds = [
        "[fe80::c%v1]:8080",
        "[fe80::c]:8080",
        "[febf::c]:8080",
        "[fe80::5%v0]:80",
        "[fe80::1%lo]:80",
    ]
    told = run(dedent(ATTEMPT.format(binds=[*binds, "[fe80::c%v0]:0", "[fe80::c%77]:80"])), setup=PAIR)
    has_not = "fe80::c is an address of v0, not of v1: write [fe80::c%v0]:8080"
    assert (
        told["[fe80::c%v1]:8080"]
        == f"bind([fe80::c%v1]:8080): [Errno 99] Cannot assign requested address\nhint: {has_not}"
    )
    assert told["[fe80::c%v0]:0"] is None
    assert told["[fe80::c]:8080"].endswith("hint: a link-local address needs its interface, as in [fe80::c%v0]:8080")
    assert "as in [febf::c%eth0]:8080, and none of lo, v" in told["[febf::c]:8080"]
    assert told["[fe80::5%v0]:80"].startswith("bind([fe80::5%v0]:80): ")
    assert "neither v0 nor any other interface has fe80::5: it has " in told["[fe80::5%v0]:80"]
    assert "[fe80::c%v0]" not in told["[fe80::5%v0]:80"]
    assert "fe80::c%v0" in told["[fe80::5%v0]:80"]
    assert told["[fe80::1%lo]:80"].endswith("has fe80::1: it has no link-local address: is it up?")
    assert told["[fe80::c%77]:80"].startswith("bind([fe80::c%77]:80): ")
    assert "no interface here has the number 77: the interfaces are lo, v" in told["[fe80::c%77]:80"]


@linux_only
@needs_ipv6
def test_an_interface_that_is_missing_is_told_with_those_that_are_there() -> None:
    binds = ["[fe80::1%eth9]:80", "tcp://[fe80::1%25eth9]:80", "[fe80::1%b\u00fcro]:80"]
    told = run(dedent(ATTEMPT.format(binds=binds)), setup=PAIR)
    for bind, name in zip(binds, ("eth9", "eth9", "b\u00fcro"), strict=True):
        assert told[bind].startswith(f"getaddrinfo({bind}): ")
        assert f"hint: no interface here is called {name}: the interfaces are lo, v" in told[bind]


@needs_ipv6
@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:ffff:127.0.0.1", "::FFFF:127.0.0.1"])
def test_an_ipv4_address_in_ipv6_form_is_told(host: str) -> None:
    if not LINUX:
        pytest.skip("each system has its own error for it")
    with pytest.raises(harken.ListenError) as caught:
        harken.listen(f"[{host}]:8080")
    assert caught.value.hint == (
        "an IPv4 address in IPv6 form, which an IPv6-only socket cannot be bound to: write 127.0.0.1:8080"
    )
    with harken.listen(f"[{host}]:0", ipv6_only=False) as listeners:  # which can
        assert listeners[0].address[0] == "::ffff:127.0.0.1"


@needs_ipv6
def test_an_ipv4_address_in_the_older_ipv6_form_is_told() -> None:
    with pytest.raises(harken.ListenError) as caught:
        harken.listen("[::127.0.0.1]:8080")
    assert "an IPv4 address in IPv6 form, which no machine has: write 127.0.0.1:8080" in caught.value.hint


def test_every_place_that_shows_an_address_shows_its_scope() -> None:
    address = ("fe80::c", 80, 0, 2**31 - 1)
    assert shown(address) == "[fe80::c%2147483647]:80"
    assert shown(("fe80::c%eth0", 80, 0, 5)) == "[fe80::c%eth0]:80"
    assert url_of(address) == "tcp://[fe80::c%2147483647]:80"
    error = failure("bind", address, OSError(errno.EADDRNOTAVAIL, "no"))
    assert str(error).startswith("bind([fe80::c%2147483647]:80): ")


# ---------------------------------------------------------------------------- binds from values


class Host(str, enum.Enum):  # noqa: UP042
    LOCAL = "127.0.0.1"


class Port(enum.IntEnum):
    WEB = 8080


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"host": None, "port": 80}, ("tcp", None, 80, 0, "tcp://*:80")),
        ({"host": "", "port": 80}, ("tcp", None, 80, 0, "tcp://*:80")),
        ({"host": None, "port": ""}, ("tcp", None, 0, 0, "tcp://*:0")),
        ({"host": Host.LOCAL, "port": Port.WEB}, ("tcp", "127.0.0.1", 8080, 0, "tcp://127.0.0.1:8080")),
        ({"host": "::1", "port": "0080"}, ("tcp", "::1", 80, 0, "tcp://[::1]:80")),
        ({"host": "::1", "port": 80, "family": socket.AF_INET6}, ("tcp6", "::1", 80, 0, "tcp6://[::1]:80")),
        ({"host": "x", "port": "http", "family": socket.AF_INET}, ("tcp4", "x", "http", 0, "tcp4://x:http")),
        ({"host": None, "port": 1, "scheme": "mptcp"}, ("mptcp", None, 1, 0, "mptcp://*:1")),
        ({"host": "fe80::c", "port": 1, "scope_id": 7}, ("tcp", "fe80::c%7", 1, 7, "tcp://[fe80::c%7]:1")),
        ({"host": "FEBF::C%no", "port": 1, "scope_id": 7}, ("tcp", "FEBF::C%7", 1, 7, "tcp://[febf::c%7]:1")),
        ({"host": "fe80::c%7", "port": 1}, ("tcp", "fe80::c%7", 1, 7, "tcp://[fe80::c%7]:1")),
        ({"host": "fe80::c%a b", "port": 1}, ("tcp", "fe80::c%a b", 1, 0, "tcp://[fe80::c%a%20b]:1")),
        ({"host": "fe80::c%25x", "port": 1}, ("tcp", "fe80::c%25x", 1, 0, "tcp://[fe80::c%2525x]:1")),
        ({"host": "::1", "port": 1, "scope_id": 1}, ("tcp", "::1", 1, 0, "tcp://[::1]:1")),  # which the system ignores
        ({"host": "a b", "port": 1}, ("tcp", "a b", 1, 0, "tcp://a%20b:1")),
        ({"host": "*", "port": 1}, ("tcp", "*", 1, 0, "tcp://%2A:1")),
        ({"host": "1:2", "port": 1}, ("tcp", "1:2", 1, 0, "tcp://1%3A2:1")),
    ],
)
def test_a_bind_can_be_made_from_values(values: dict[str, Any], facts: tuple[Any, ...]) -> None:
    bind = Bind.of(**values)
    assert (bind.scheme, bind.host, bind.port, bind.scope_id, bind.url) == facts
    assert (str(bind), type(bind.host), type(bind.port)) == (bind.url, type(facts[1]), type(facts[2]))
    for twin in (copy.copy(bind), copy.deepcopy(bind), pickle.loads(pickle.dumps(bind)), Bind(bind)):
        assert tuple(twin) == tuple(bind)
        assert twin == bind


@pytest.mark.parametrize(
    ("error", "told", "values"),
    [
        (TypeError, "a host is a str or None, not tuple", {"host": ("127.0.0.1", 80), "port": 80}),
        (TypeError, "a host is a str or None, not bytes", {"host": b"127.0.0.1", "port": 80}),
        (TypeError, "a port is a number or a str, not NoneType", {"host": "x", "port": None}),
        (TypeError, "a port is a number or a str, not float", {"host": "x", "port": 80.0}),
        (TypeError, "a scope id is an int, not str", {"host": "x", "port": 80, "scope_id": "eth0"}),
        (ValueError, "port 65536 is not between 0 and 65535", {"host": "x", "port": 65536}),
        (ValueError, "port -1 is not between", {"host": "x", "port": -1}),
        (ValueError, "port a number of 5001 bits is not", {"host": "x", "port": 2**5000}),
        (ValueError, "port 99999 is not between", {"host": "x", "port": "9" * 5}),
        (ValueError, "scope id -1 is not between 0", {"host": "fe80::1", "port": 80, "scope_id": -1}),
        (ValueError, "scope id 4294967296 is not", {"host": "fe80::1", "port": 80, "scope_id": 2**32}),
        (ValueError, r"host 'a\\x00b' has a NUL in it", {"host": "a\0b", "port": 80}),
        (ValueError, r"port 'a\\x00' has a NUL in it", {"host": "x", "port": "a\0"}),
        (
            ValueError,
            "has one of the schemes tcp, tcp4, tcp6, mptcp, not 'unix'",
            {"host": "x", "port": 1, "scheme": "unix"},
        ),
        (ValueError, "does not go with tcp6", {"host": "x", "port": 1, "scheme": "tcp6", "family": socket.AF_INET}),
        (ValueError, "does not go with tcp", {"host": "x", "port": 1, "family": 77}),
    ],
)
def test_values_that_make_no_bind_are_refused(error: type[Exception], told: str, values: dict[str, Any]) -> None:
    with pytest.raises(error, match=told):
        Bind.of(**values)


@settings(deadline=None)
@given(st.text(min_size=1), st.integers(0, 65535))
def test_the_url_of_any_host_reads_back_as_that_host(host: str, port: int) -> None:
    """No host is shown as another bind: what stands there is read as the same host, or not at all."""
    if "\0" in host:
        return
    bind = Bind.of(host, port)
    try:
        read = Bind(bind.url)
    except ValueError:
        assert tuple(pickle.loads(pickle.dumps(bind))) == tuple(bind)
        return
    assert (read.host, read.port, read.url) == ((bind.host or "").lower() if host.isascii() else host, port, bind.url)


def test_a_bind_of_values_can_be_listened_on() -> None:
    with harken.listen(Bind.of("127.0.0.1", 0), Bind.of("localhost", 0, family=socket.AF_INET)) as listeners:
        assert [one.address[0] for one in listeners] == ["127.0.0.1", "127.0.0.1"]


def test_a_scope_is_shown_by_a_name_or_its_number() -> None:
    assert scoped("fe80::1", 2**31 - 1) == "fe80::1%2147483647"  # no interface has it
    assert Bind(f"[{scoped('fe80::1', 1)}]:80").url == f"tcp://[{scoped('fe80::1', 1)}]:80"
