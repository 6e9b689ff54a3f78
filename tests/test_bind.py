"""What people write to say where a server listens: every form, every refusal, and that what is printed reads back."""

from __future__ import annotations

import enum
import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harken
from harken._bind import KNOWN, parse
from harken._listener import url_of

ANY, V4, V6 = 0, socket.AF_INET, socket.AF_INET6


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
    assert str(read) == (bind if isinstance(bind, str) else f":{bind}")
    assert parse(str(read)) == read
    assert repr(str(read)) in repr(read)


@pytest.mark.parametrize(
    ("bind", "told"),
    [
        ("", "the port is missing"),
        ("localhost", "the port is missing, as in localhost:8080"),
        ("127.0.0.1", "the port is missing, as in 127.0.0.1:8080"),
        ("*", "the port is missing"),
        ("tcp://", "the port is missing"),
        ("tcp://localhost", "the port is missing"),
        (":", "is no port"),
        ("localhost:", "is no port"),
        ("[::1]:", "is no port"),
        ("::1", "stands in brackets"),
        ("::1:8080", r"as in \[::1\]:8080"),
        ("fe80::1%eth0:8080", "stands in brackets"),
        ("tcp6://::1:80", "stands in brackets"),
        ("[::1]", r"is written \[::1\]:8080"),
        ("[::1]8080", r"is written \[::1\]:8080"),
        ("[127.0.0.1]:80", r"is written \[::1\]:8080"),
        ("[]:80", r"is written \[::1\]:8080"),
        ("[::1:80", r"is written \[::1\]:8080"),
        (":65536", "port 65536 is not between 0 and 65535"),
        ("127.0.0.1:99999", "port 99999 is not between 0 and 65535"),
        ("65536", "port 65536 is not between"),
        (":" + "9" * 5000, "is not between 0 and 65535"),
        ("9" * 5000, "is not between 0 and 65535"),
        (":-1", "'-1' is no port"),
        (":+80", "is no port"),
        (": 80", "is no port"),
        (":80 ", "is no port"),
        (":8080x", "'8080x' is no port"),
        (":0x50", "is no port"),
        (":٨٠", "is no port"),
        (":1²", "is no port"),
        (":\0", "is no port"),
        ("http://:80", "'http' is none of tcp, tcp4, tcp6"),
        ("TCP://:80", "'TCP' is none of"),
        ("://:80", "'' is none of"),
        (-1, "port -1 is not between 0 and 65535"),
        (65536, "port 65536 is not between 0 and 65535"),
        (2**70, "is not between 0 and 65535"),
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
    parse(1)
    parse(8081)
    for alike in (True, 8081.0):
        with pytest.raises(TypeError, match="a bind is a str or a port number"):
            harken.listen(alike)  # type: ignore[arg-type]


def test_an_enumeration_of_ports_will_do() -> None:
    class Port(enum.IntEnum):
        ADMIN = 8082

    assert str(parse(Port.ADMIN)) == ":8082"


def test_what_is_remembered_has_a_limit() -> None:
    before = len(KNOWN)
    for port in range(10_000, 10_600):
        assert parse(f"127.0.0.1:{port}").port == port
    assert before <= len(KNOWN) <= 256


def test_a_refusal_is_not_remembered() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="port"):
            parse("127.0.0.1:port-80!:")
    assert "127.0.0.1:port-80!:" not in KNOWN


ADDRESSES = st.ip_addresses().map(str)
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
@given(st.text() | st.text("[]:/*.%0123456789abctp-"))
def test_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        read = parse(text)
    except ValueError as error:
        told = str(error)
        assert told.startswith("bind ")
        return
    assert str(read) == text
    if isinstance(read.port, int):
        assert 0 <= read.port <= 65535
    else:
        assert read.port[0].isalpha()
    assert read.host is None or read.host
