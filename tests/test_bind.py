"""What people write to say where a server listens: every form, every refusal, and that what is printed reads back."""

from __future__ import annotations

import copy
import enum
import ipaddress
import pickle
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harken
from harken import Bind
from harken._bind import KNOWN, to_open
from harken._listener import url_of

ANY, V4, V6 = 0, socket.AF_INET, socket.AF_INET6
parse = Bind.parse


@pytest.mark.parametrize(
    ("bind", "host", "port", "family"),
    [
        (8080, None, 8080, ANY),
        (0, None, 0, ANY),
        (65535, None, 65535, ANY),
        ("8080", None, 8080, ANY),
        ("0", None, 0, ANY),
        (":8080", None, 8080, ANY),
        ("*:8080", None, 8080, ANY),
        (":http", None, "http", ANY),
        ("*:http", None, "http", ANY),
        ("127.0.0.1:8080", "127.0.0.1", 8080, ANY),
        ("127.0.0.1:0", "127.0.0.1", 0, ANY),
        ("0.0.0.0:8080", "0.0.0.0", 8080, ANY),
        ("[::1]:8080", "::1", 8080, ANY),
        ("[::]:0", "::", 0, ANY),
        ("[::ffff:127.0.0.1]:80", "::ffff:127.0.0.1", 80, ANY),
        ("[fe80::1%eth0]:8080", "fe80::1%eth0", 8080, ANY),
        ("localhost:http", "localhost", "http", ANY),
        ("localhost:8080", "localhost", 8080, ANY),
        ("bücher.example:80", "bücher.example", 80, ANY),
        ("x-1.example:ms-sql-s", "x-1.example", "ms-sql-s", ANY),
        ("tcp://:8080", None, 8080, ANY),
        ("tcp://8080", None, 8080, ANY),
        ("tcp://*:8080", None, 8080, ANY),
        ("tcp://localhost:80", "localhost", 80, ANY),
        ("tcp://[::1]:80", "::1", 80, ANY),
        ("tcp4://:8080", None, 8080, V4),
        ("tcp4://127.0.0.1:80", "127.0.0.1", 80, V4),
        ("tcp6://:8080", None, 8080, V6),
        ("tcp6://[::1]:80", "::1", 80, V6),
        ("tcp6://localhost:https", "localhost", "https", V6),
        ("127.0.0.1:0080", "127.0.0.1", 80, ANY),
    ],
)
def test_every_form_is_read(bind: str | int, host: str | None, port: int | str, family: int) -> None:
    read = parse(bind)
    assert (read.host, read.port, read.family) == (host, port, family)
    assert (read.path, read.cid, read.fd, read.name, dict(read.options)) == (None, None, None, None, {})
    assert read.ports == (range(port, port + 1) if isinstance(port, int) else range(0))
    assert read.scheme == {ANY: "tcp", V4: "tcp4", V6: "tcp6"}[family]
    assert str(read) == (bind if isinstance(bind, str) else f":{bind}")
    assert parse(str(read)) == read
    assert repr(str(read)) in repr(read)


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("8080", "tcp://*:8080"),
        (":8080", "tcp://*:8080"),
        ("*:08080", "tcp://*:8080"),
        ("tcp://8080", "tcp://*:8080"),
        (":http", "tcp://*:http"),
        ("LocalHost:80", "tcp://localhost:80"),
        ("[0:0::1]:80", "tcp://[::1]:80"),
        ("[FE80::1%eth0]:80", "tcp://[fe80::1%eth0]:80"),
        ("tcp4://:0", "tcp4://*:0"),
        ("mptcp://example:443", "mptcp://example:443"),
        (":8000-8010", "tcp://*:8000-8010"),
        ("8000-8010", "tcp://*:8000-8010"),
        ("localhost:08000-08010", "tcp://localhost:8000-8010"),
        ("[::1]:8000-8000", "tcp://[::1]:8000"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("unix:///run/app.sock", "unix:/run/app.sock"),
        ("unix:app.sock", "unix:app.sock"),
        ("unix:////two", "unix:////two"),
        ("unix:@app", "unix:@app"),
        ("unix:%40app", "unix:%40app"),
        ("unix:./@app", "unix:./@app"),
        ("unix:@%40", "unix:@@"),
        ("unix:@a%00b", "unix:@a%00b"),
        ("unix:/run/my app.sock", "unix:/run/my%20app.sock"),
        ("unix:/a%3fb%25c#d&e", "unix:/a%3Fb%25c%23d%26e"),
        ("unix:/é", "unix:/%C3%A9"),
        ("unix:/a://b", "unix:/a://b"),
        ("vsock://*:1024", "vsock://*:1024"),
        ("vsock://any:1024", "vsock://*:1024"),
        ("vsock://:1024", "vsock://*:1024"),
        ("vsock://4294967295:1024", "vsock://*:1024"),
        ("vsock://host:1024", "vsock://2:1024"),
        ("vsock://local:1024", "vsock://1:1024"),
        ("vsock://42:100000", "vsock://42:100000"),
        ("fd://3", "fd://3"),
        ("fd://003", "fd://3"),
        ("systemd:web", "systemd:web"),
        ("systemd:", "systemd:"),
        ("systemd:my%20app.socket", "systemd:my%20app.socket"),
        (":80?backlog=8192&reuse_port=1", "tcp://*:80?backlog=8192&reuse_port=1"),
        (":80?reuse_port=1&backlog=8192", "tcp://*:80?backlog=8192&reuse_port=1"),
        ("unix:/a?mode=0660&owner=a b", "unix:/a?mode=0660&owner=a%20b"),
    ],
)
def test_each_form_has_a_url_that_means_the_same(bind: str, url: str) -> None:
    read = parse(bind)
    assert str(read) == bind
    assert read.url == url
    assert parse(url) == read
    assert parse(url).url == url


@pytest.mark.parametrize(
    ("bind", "scheme", "facts"),
    [
        ("mptcp://:80", "mptcp", {"host": None, "port": 80, "family": ANY}),
        ("unix:/run/a.sock", "unix", {"path": "/run/a.sock", "family": harken.AF_UNIX, "port": None}),
        ("unix:///run/a.sock", "unix", {"path": "/run/a.sock"}),
        ("unix:a.sock", "unix", {"path": "a.sock"}),
        ("unix:8080", "unix", {"path": "8080", "port": None}),
        ("unix:@a.sock", "unix", {"path": "\0a.sock"}),
        ("unix:%40a.sock", "unix", {"path": "@a.sock"}),
        ("unix:/a%3Fb", "unix", {"path": "/a?b"}),
        ("unix:/a?mode=0660", "unix", {"path": "/a", "options": {"mode": "0660"}}),
        ("vsock://3:1024", "vsock", {"cid": 3, "port": 1024, "host": None}),
        ("vsock://*:1024", "vsock", {"cid": 0xFFFFFFFF}),
        ("fd://17", "fd", {"fd": 17, "port": None, "host": None, "family": ANY}),
        ("fd://17?backlog=5", "fd", {"fd": 17, "options": {"backlog": "5"}}),
        ("systemd:web", "systemd", {"name": "web", "port": None}),
        ("systemd:", "systemd", {"name": "", "port": None}),
        ("systemd:?backlog=5", "systemd", {"name": "", "options": {"backlog": "5"}}),
        (":8000-8010", "tcp", {"port": 8000, "ports": range(8000, 8011)}),
        ("8000-8010", "tcp", {"port": 8000, "ports": range(8000, 8011)}),
        ("tcp6://[::1]:1-65535", "tcp6", {"host": "::1", "ports": range(1, 65536)}),
        (":80?a=%26%3D&b=x=y", "tcp", {"options": {"a": "&=", "b": "x=y"}}),
        (":80?a=", "tcp", {"options": {"a": ""}}),
    ],
)
def test_every_scheme_is_read(bind: str, scheme: str, facts: dict[str, Any]) -> None:
    read = parse(bind)
    assert read.scheme == scheme
    assert {name: getattr(read, name) for name in facts} == facts
    assert str(read) == bind
    assert parse(read.url) == read


@pytest.mark.parametrize(
    ("bind", "told"),
    [
        ("", "the port is missing"),
        ("localhost", "the port is missing, as in localhost:8080"),
        ("127.0.0.1", "the port is missing, as in 127.0.0.1:8080"),
        ("*", "the port is missing"),
        ("tcp://", "the port is missing"),
        ("tcp://localhost", "the port is missing"),
        (":", "is not a port"),
        ("localhost:", "is not a port"),
        ("[::1]:", "is not a port"),
        ("::1", "is written in brackets"),
        ("::1:8080", r"as in \[::1\]:8080"),
        ("fe80::1%eth0:8080", "is written in brackets"),
        ("tcp6://::1:80", "is written in brackets"),
        ("[::1]", r"is written \[::1\]:8080"),
        ("[::1]8080", r"is written \[::1\]:8080"),
        ("[127.0.0.1]:80", "only an IPv6 address is written in brackets: write 127.0.0.1:80$"),
        ("[]:80", "only an IPv6 address is written in brackets: write :80$"),
        ("[::1:80", r"is written \[::1\]:8080"),
        (":65536", "port 65536 is not between 0 and 65535"),
        ("127.0.0.1:99999", "port 99999 is not between 0 and 65535"),
        ("65536", "port 65536 is not between"),
        (":" + "9" * 5000, "is not between 0 and 65535"),
        ("9" * 5000, "is not between 0 and 65535"),
        (":-1", "'-1' is not a port"),
        (":+80", "a port has digits only: write :80$"),
        (": 80", "there is white space in it: write :80$"),
        (":80 ", "there is white space around it: write :80$"),
        (":8080x", "'8080x' is not a port"),
        (":0x50", "a port is written in decimal digits: write :80$"),
        (":٨٠", "ARABIC-INDIC DIGIT EIGHT.* only looks like .*: write :80$"),
        (":1²", "SUPERSCRIPT TWO.*: write :12$"),
        (":\0", "is not a port"),
        ("http://:80", "does not name the protocol above TCP: write :80$"),
        ("TCP://:80", "a scheme is written in lower case: write tcp://:80$"),
        ("://:80", "'' is not one of"),
        (-1, "port -1 is not between 0 and 65535"),
        (65536, "port 65536 is not between 0 and 65535"),
        (2**70, "is not between 0 and 65535"),
        ("a b:80", "character 2: a host has no ' ' in it"),
        ("user@host:80", "character 5: a host has no '@' in it"),
        ("tcp://host/x:80", "character 11: a host has no '/' in it"),
        ("a\0b:80", r"character 2: a host has no '\\x00' in it"),
        ("*.example:80", "a host has no '\\*' in it"),
        (f"a.{'x' * 64}.example:80", "character 1: no part of a host name is longer than 63 characters"),
        (f"{'é' * 70}:80", "character 1: 'é+' is not a host name"),
        ("\udc80:80", "is not a host name|has no"),
        ("[hello:x]:80", "'hello:x' is not an IPv6 address"),
        ("[1:2]:80", "'1:2' is not an IPv6 address"),
        ("[::1\0]:80", "is not an IPv6 address"),
        ("[fe80::1%]:80", "the scope is missing"),
        ("[fe80::1%a b]:80", "character 11: a scope has no ' ' in it"),
        (":8010-8000", "a range goes up; this is 8010-8000: write :8000-8010$"),
        (":0-10", "begins above 0"),
        (":8000-", "'8000-' is not a port"),
        (":-8000", "'-8000' is not a port"),
        (":8000-9000-9001", "is not a port"),
        (":8000-70000", "port 70000 is not between"),
        (":http-8000x ", "there is white space around it: write :http-8000x$"),
        (":ht tp", ":ht is followed by 'tp': options are written"),
        (":htté", "is not a port"),
        ("fd:3", "two slashes are missing, as in fd://3; a host of that name: tcp://fd:3"),
        ("tcp:8080", "two slashes are missing, as in tcp://8080"),
        ("vsock:2:1024", "two slashes are missing, as in vsock://2:1024$"),
        ("/run/app.sock", "a unix socket has its scheme in front: write unix:/run/app.sock$"),
        ("@app", "a unix socket is written unix:@app"),
        ("unix:", "at the end: the path is missing"),
        ("unix:?mode=0660", "the path is missing"),
        ("unix:@", "the abstract name is missing"),
        ("unix://app.sock", "a path is written unix:/path or unix:app.sock"),
        ("unix:/a%", "character 8: a percent sign"),
        ("unix:/a%2", "a percent sign must be followed by two hexadecimal digits"),
        ("unix:/a%+1", "a percent sign"),
        ("unix:/a%00b", "a path has no NUL in it"),
        ("unix:/a\0b", "a path has no NUL in it"),
        ("vsock://1024", "the port is missing, as in vsock"),
        ("vsock://x:1024", "'x' is not a context id"),
        ("vsock://4294967296:1024", "is not a context id"),
        ("vsock://-1:1024", "is not a context id"),
        ("vsock://2:http", "'http' is not a port: a number from 0 to 4294967294"),
        ("vsock://2:4294967295", "is not between 0 and 4294967294"),
        ("fd://", "'' is not a file descriptor, as in fd://3"),
        ("fd://-1", "is not a file descriptor"),
        ("fd://x", "is not a file descriptor"),
        ("fd://3/", "is not a file descriptor"),
        ("fd://2147483648", "is not a file descriptor"),
        ("systemd://web", "is written systemd:name"),
        ("systemd:a:b", "has no colon in it"),
        (":80?", "character|at the end: '' is not an option"),
        (":80?backlog", "the value of backlog is missing, as in backlog=1"),
        (":80?=5", "'' is not an option"),
        (":80?a=1&", "'' is not an option"),
        (":80?a=1&&b=2", "character 9: '' is not an option"),
        (":80?a=1&a=2", "character 9: a is given twice"),
        (":80?a-b=1", "'a-b' is not an option"),
        (":80?a=%zz", "character 7: a percent sign"),
        ("x" * 300, r"'x{200}\.\.\.', at the end: the port is missing, as in 127\.0\.0\.1:8080"),
    ],
)
def test_what_cannot_be_read_is_shown(bind: str | int, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        parse(bind)
    assert f"bind {str(bind)!r}"[:40] in str(caught.value)


@pytest.mark.parametrize("bind", [None, b":8080", 80.0, [":8080"], (":8080",), {"port": 80}, {80}, True, False])
@pytest.mark.parametrize("reader", [parse, harken.listen])
def test_a_bind_of_a_wrong_type_is_named(reader: Any, bind: Any) -> None:
    with pytest.raises(TypeError, match=f"a bind is a str or a port number, not {type(bind).__name__}"):
        reader(bind)


def test_a_number_that_was_read_before_does_not_let_its_likes_in() -> None:
    to_open(1)
    to_open(8081)
    for alike in (True, 8081.0):
        with pytest.raises(TypeError, match="a bind is a str or a port number"):
            harken.listen(alike)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "alike",
    [
        (8080, "8080", ":8080", "*:8080", "tcp://:8080", ":08080", ":8080-8080"),
        ("[::1]:80", "[0:0:0::1]:80", "tcp://[::1]:80"),
        ("LOCALHOST:80", "localhost:80"),
        ("unix:/a", "unix:///a", "unix:%2fa", "unix:/%61"),
        (":80?a=1&b=2", ":80?b=%32&a=1"),
        ("vsock://*:5", "vsock://any:5", "vsock://:5"),
    ],
)
def test_binds_that_mean_the_same_are_equal(alike: tuple[Any, ...]) -> None:
    binds = [parse(bind) for bind in alike]
    assert len(set(binds)) == 1
    for one in binds:
        for other in binds:
            assert one == other
            assert not one != other  # noqa: SIM202
            assert one <= other
            assert one >= other
            assert not one < other
            assert not one > other


def test_binds_that_mean_something_else_are_not_equal() -> None:
    texts = [":80", ":81", ":80-81", "tcp4://:80", "tcp6://:80", "mptcp://:80", "0.0.0.0:80", "[::]:80", ":http"]
    texts += [
        "unix:a",
        "unix:/a",
        "unix:@a",
        "unix:%40a",
        "vsock://1:80",
        "fd://80",
        "systemd:80",
        ":80?a=1",
        ":80?a=2",
    ]
    binds = [parse(text) for text in texts]
    assert len(set(binds)) == len(texts)
    assert len({bind.url for bind in binds}) == len(texts)
    assert sorted(sorted(binds), reverse=True) == sorted(binds)[::-1]
    assert parse(":80") != ":80"
    assert parse(":80") != tuple(parse(":80"))


def test_a_bind_is_a_value() -> None:
    bind = parse("localhost:80?backlog=5")
    assert Bind("localhost:80?backlog=5") == parse(bind) == bind
    for twin in (copy.copy(bind), copy.deepcopy(bind), pickle.loads(pickle.dumps(bind)), eval(repr(bind))):
        assert type(twin) is Bind
        assert (twin, str(twin)) == (bind, str(bind))
    with pytest.raises(AttributeError):
        bind.host = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        bind.options["backlog"] = "6"  # type: ignore[index]


def test_a_bind_that_was_read_can_be_listened_on() -> None:
    with harken.listen(parse("127.0.0.1:0")) as listeners:
        assert listeners[0].address[0] == "127.0.0.1"


def test_a_text_with_another_str_is_read_as_what_it_is() -> None:
    class Place(str, enum.Enum):  # noqa: UP042
        WEB = ":8083"

    assert str(parse(Place.WEB)) == ":8083"
    assert type(str(parse(Place.WEB))) is str


def test_an_enumeration_of_ports_will_do() -> None:
    class Port(enum.IntEnum):
        ADMIN = 8082

    assert str(parse(Port.ADMIN)) == ":8082"


def test_what_is_remembered_has_a_limit() -> None:
    before = len(KNOWN)
    for port in range(10_000, 10_600):
        assert to_open(f"127.0.0.1:{port}").port == port
    assert before <= len(KNOWN) <= 256


def test_a_refusal_is_not_remembered() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="port"):
            to_open("127.0.0.1:port-80!:")
    assert "127.0.0.1:port-80!:" not in KNOWN


ADDRESSES = st.ip_addresses().filter(lambda one: not one.is_multicast and int(one) != 0xFFFFFFFF).map(str)
PORTS = st.integers(0, 65535)


@settings(deadline=None)
@given(ADDRESSES, PORTS)
def test_the_url_of_an_address_reads_back(host: str, port: int) -> None:
    ipv6 = ":" in host
    read = parse(url_of((host, port, 0, 0) if ipv6 else (host, port)))
    assert read.host is not None
    assert ipaddress.ip_address(read.host) == ipaddress.ip_address(host)
    assert (read.port, read.family) == (port, ANY)


@settings(deadline=None)
@given(
    st.sampled_from(["", "tcp://", "tcp4://", "tcp6://"]),
    st.sampled_from(["", "*", "localhost", "127.0.0.1", "[::1]", "[fe80::1%eth0]", "a.b-c.example"]),
    PORTS | st.sampled_from(["http", "https", "x11-1"]),
)
def test_what_is_printed_reads_back(scheme: str, host: str, port: int | str) -> None:
    text = f"{scheme}{host}:{port}"
    read = parse(text)
    assert str(read) == text
    assert read.port == port
    assert read.host == (host.strip("[]") if host.strip("*") else None)


@settings(deadline=None)
@given(
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["", "tcp://", "tcp6://", "mptcp://", "unix:", "unix:@", "vsock://", "fd://", "systemd:"]),
            st.text(st.characters()) | st.text("[]:/*.%0123456789abctp-?=&@\0\udce9\ud800é "),
        ),
    )
)
def test_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        read = parse(text)
    except ValueError as error:
        told = str(error)
        assert told.startswith("bind ")
        return
    assert str(read) == text
    if isinstance(read.port, int):
        assert 0 <= read.port <= (2**32 if read.scheme == "vsock" else 65535)
    elif read.port is not None:
        assert read.port[0].isalpha()
    assert read.host is None or read.host
    again = parse(read.url)
    assert again == read
    assert hash(again) == hash(read)
    assert again.url == read.url
    assert again[4:] == (*read[4:7], tuple(sorted(read[7])), read[8])


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None)
@given(NAMES, st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), NAMES, max_size=3))
def test_any_path_name_and_value_has_a_url(name: str, options: dict[str, str]) -> None:
    query = "&".join(f"{key}={''.join(f'%{byte:02x}' for byte in value.encode())}" for key, value in options.items())
    for scheme, prefix in (("unix", "unix:"), ("unix", "unix:@"), ("systemd", "systemd:")):
        if scheme == "systemd" and (":" in name or name.startswith("//")):
            continue
        if prefix == "unix:" and "\0" in name:
            continue
        encoded = "".join(f"%{byte:02X}" for byte in name.encode())
        read = parse(f"{prefix}{encoded}{'?' if query else ''}{query}")
        assert read.scheme == scheme
        assert (read.name if scheme == "systemd" else read.path) == ("\0" if "@" in prefix else "") + name
        assert dict(read.options) == options
        assert read.url.isascii()
        assert " " not in read.url
        assert parse(read.url) == read
        if scheme == "unix":
            assert parse(url_of(read.path or "")) == parse(f"{prefix}{encoded}")
