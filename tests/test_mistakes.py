"""Texts that people write instead of a bind: each is refused with the mistake named and the right form shown, or has
one clear meaning. Long texts take no longer than reading them."""

from __future__ import annotations

import decimal
import ipaddress
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harken
import harken._bind
import harken._options
from harken import Bind
from harken._diagnosis.mistakes import meant
from machine import WINDOWS

HOME = os.path.expanduser("~")
UDP = "harken accepts connections, and UDP has none"
MISSING = "was written where a value is missing: without a host a bind is written :8080"
UNFILLED = "has not been replaced by its value"

# What is written, what is told, and the form that is to be written instead, which is a bind.
TABLE = [
    (":80,:443", "separate arguments, as in listen(':80', ':443'), on the command line :80 :443", None),
    (":80,localhost", "separate arguments; 'localhost' is not a bind: at the end: the port is missing", None),
    (":80,0x50", "separate arguments; '0x50' is not a bind: a port is written in decimal digits: write 80", None),
    ("127.0.0.1:0,::1", "separate arguments; '::1' is not a bind: character 1: an IPv6 address is written in", None),
    (":80 :443", "pass several binds as separate arguments, as in listen(':80', ':443')", None),
    ("unix:/a,:80", None, None),  # a path of that name
    ("[::]:80;0.0.0.0:80", "as in listen('[::]:80', '0.0.0.0:80')", None),
    ("[::]:80 ipv6only=on", "options are written [::]:80?backlog=64&nodelay=0", None),
    ("127.0.0.1:8080:80", "two ports, as for Docker's -p", "127.0.0.1:8080"),
    ("[::1]:8080:80", "two ports, as for Docker's -p", "[::1]:8080"),
    ("8080:80", "two ports, as for Docker's -p", "8080"),
    ("8080:80/tcp", "two ports, as for Docker's -p", "8080"),
    ("80/tcp", "a bind is TCP unless it says otherwise", "80"),
    ("53/udp", UDP, None),
    (":${PORT:-80}", "${PORT:-80} " + UNFILLED, None),
    (":$PORT", "$PORT " + UNFILLED, None),
    ("$(hostname):80", "$(hostname) " + UNFILLED, None),
    ("unix:${RUN}/a.sock", "${RUN} " + UNFILLED, None),
    ("unix:$HOME/a.sock", "$HOME " + UNFILLED, None),
    (":%PORT%", "%PORT% " + UNFILLED + ": Windows' command line", None),
    (":{port}", "{port} " + UNFILLED + ": is the f missing in front of the string?", None),
    ("{{ host }}:80", "{{ host }} " + UNFILLED, None),
    ("127.0.0.1:<port>", "<port> " + UNFILLED, None),
    ("None", MISSING, None),
    (":None", MISSING, None),
    ("None:8080", MISSING, None),
    ("tcp://None:8080", MISSING, None),
    ("127.0.0.1:None", MISSING, None),
    ("undefined", MISSING, None),
    ("null:80", MISSING, None),
    ("true", MISSING, None),
    ("0x50", "decimal digits", "80"),
    (":0x50", "decimal digits", ":80"),
    ("localhost:0o120", "decimal digits", "localhost:80"),
    ("8080.0", "a port is a whole number", "8080"),
    ("8_000", "a port has digits only", "8000"),
    ("8,000", "a port has digits only", "8000"),
    ("+80", "a port has digits only", "80"),
    ("-1", "'-1' is not a port: a number from 0 to 65535", None),
    ("65536", "port 65536 is not between 0 and 65535", None),
    ("8080-8070", "a range goes up", "8070-8080"),
    ("localhost:9-8", "a range goes up", "localhost:8-9"),
    ("*:*", "0 lets the system choose", "*:0"),
    ("*", "the port is missing, as in *:8080", None),
    ("", "the port is missing, as in 127.0.0.1:8080", None),
    (" 8000", "there is white space around it", "8000"),
    ("8000 ", "there is white space around it", "8000"),
    ("8000\n", "there is white space around it", "8000"),
    ("\t:8000\r\n", "there is white space around it", ":8000"),
    (" 0x50\n", "decimal digits", "80"),
    ("１２３", "(FULLWIDTH DIGIT ONE) only looks like", "123"),  # noqa: RUF001
    ("：80", "(FULLWIDTH COLON) only looks like", ":80"),  # noqa: RUF001
    ("\ufeff8000", "an invisible character in it, U+FEFF", "8000"),
    ("8000\u200b", "an invisible character in it, U+200B", "8000"),
    ("local\u00adhost:80\u00a0", "an invisible character in it, U+00AD", "localhost:80"),
    ("'8080'", "quotation marks around it", "8080"),
    ("\u201c:80\u201d", "quotation marks around it", ":80"),
    ("localhost", "the port is missing, as in localhost:8080", None),
    ("0.0.0.0", "the port is missing, as in 0.0.0.0:8080", None),
    ("localhost:", "'' is not a port", None),
    (":http:", "an extra colon at the end", ":http"),
    ("localhost:8080:", "an extra colon at the end", "localhost:8080"),
    ("127.0.0.1 8080", "host and port have a colon between them", "127.0.0.1:8080"),
    ("localhost/8080", "host and port have a colon between them", "localhost:8080"),
    ("::1:8080", "is written in brackets, as in [::1]:8080", None),
    ("::1", "is written in brackets, as in [::1]:8080", None),
    ("::", "is written in brackets, as in [::]:8080", None),
    ("2001:db8::5", "is written in brackets, as in [2001:db8::5]:8080", None),
    ("fe80::1%eth0:80", "is written in brackets, as in [fe80::1%eth0]:80", None),
    ("[::1]", "is written [::1]:8080", None),
    ("[2001:db8::5]", "is written [2001:db8::5]:8080", None),
    ("[::1%lo]:80", "only a link-local address (fe80::/10) has a scope", "[::1]:80?interface=lo"),
    ("[fe8::1%lo]:80", "only a link-local address (fe80::/10) has a scope", "[fe8::1]:80?interface=lo"),
    ("127.0.0.1%lo:80", "only IPv6 has scopes", "127.0.0.1:80?interface=lo"),
    ("[fe80::1%0]:80", "is not the number of an interface", None),
    ("224.0.0.1:80", "a multicast address, to which no TCP client can connect", None),
    ("[ff02::1]:80", "a multicast address, to which no TCP client can connect", None),
    ("[ff02::1%eth0]:80", "a multicast address, to which no TCP client can connect", None),
    ("255.255.255.255:80", "the broadcast address, to which no TCP client can connect", None),
    ("0:8080", "'0' is an old way to write 0.0.0.0: write 0.0.0.0:8080 or :8080", None),
    ("127.1:80", "'127.1' is an old way to write 127.0.0.1", "127.0.0.1:80"),
    ("0x7f.1:80", "an old way to write 127.0.0.1", "127.0.0.1:80"),
    ("2130706433:80", "an old way to write 127.0.0.1", "127.0.0.1:80"),
    ("010.0.0.1:80", "an old way to write 8.0.0.1", "8.0.0.1:80"),
    ("127.0.0.1.:80", "an address does not end with a dot", "127.0.0.1:80"),
    ("256.1.1.1:80", "'256.1.1.1' is no IPv4 address, which is four numbers from 0 to 255", None),
    ("tcp://1.2.3.4.5:80", "is no IPv4 address", None),
    ("http://localhost:8000", "does not name the protocol above TCP", "localhost:8000"),
    ("https://example.com/", "a bind does not name the protocol above TCP, nor TLS", "example.com:443"),
    ("http://[::1]:80/x?y#z", "does not name the protocol above TCP", "[::1]:80"),
    ("http://user:secret@h:80", "does not name the protocol above TCP", "h:80"),
    ("wss://:8443", "does not name the protocol above TCP", ":8443"),
    ("http:8080", "does not name the protocol above TCP", ":8080"),
    ("TCP://:80", "a scheme is written in lower case", "tcp://:80"),
    ("UNIX:/run/a.sock", "a scheme is written in lower case", "unix:/run/a.sock"),
    ("tcp://127.0.0.1:80/", "a bind has no path", "tcp://127.0.0.1:80"),
    ("tcp:///8080", "a bind has no path", "tcp://8080"),
    ("tcp:8080", "two slashes are missing, as in tcp://8080", None),
    ("tcp:/8080", "a slash is missing", "tcp://8080"),
    ("udp://:53", UDP, None),
    ("udp:53", UDP, None),
    ("quic4@:443", UDP, None),
    ("file:///run/a.sock", "has the scheme unix", "unix:/run/a.sock"),
    ("http+unix://%2Frun%2Fa.sock/path", "has the scheme unix", "unix:/run/a.sock"),
    ("/run/a.sock", "has its scheme in front", "unix:/run/a.sock"),
    ("a.sock", "has its scheme in front", "unix:a.sock"),
    ("run/app", "has its scheme in front", "unix:run/app"),
    ("@app", "a unix socket is written unix:@app", None),
    ("unix:", "the path is missing, as in unix:/run/app.sock", None),
    ("unix://a.sock", "a path is written unix:/path or unix:a.sock", None),
    ("unix:~/a.sock", "a shell replaces ~", f"unix:{HOME}/a.sock"),
    ("unix:~/a.sock?mode=600", "a shell replaces ~", f"unix:{HOME}/a.sock"),
    ("~/a.sock", "a shell replaces ~", f"unix:{HOME}/a.sock"),
    ("unix:~nobody-of-that-name/a", "a file of that name is written unix:./~nobody-of-that-name/a", None),
    ("fd:3", "two slashes are missing, as in fd://3", None),
    ("fd@3", "that is how HAProxy writes it", "fd://3"),
    ("unix@/run/a", "that is how HAProxy writes it", "unix:/run/a"),
    ("abns@x", "pads the name with NULs to the end of the address, which is written in full then", None),
    ("abnsz@x", "that is how HAProxy writes it", "unix:@x"),
    ("ipv4@127.0.0.1:80", "that is how HAProxy writes it", "tcp4://127.0.0.1:80"),
    ("ipv6@:::80", "that is how HAProxy writes it", "tcp6://[::]:80"),
    ("ssl:443:privateKey=k.pem:certKey=c.pem", "that is how Twisted writes an endpoint, and TLS is for the", ":443"),
    ("tcp:8080:interface=127.0.0.1", "that is how Twisted writes an endpoint", "127.0.0.1:8080"),
    (r"tcp6:80:interface=\:\:1", "that is how Twisted writes an endpoint", "[::1]:80"),
    ("inet:8080", "a TCP bind has no 'inet'", "8080"),
    ("inet:8891@localhost", "a TCP bind has no 'inet'", "localhost:8891"),
    ("inet6:8891@::1", "a TCP bind has no 'inet'", "tcp6://[::1]:8891"),
    ("local:/run/a.sock", "has the scheme unix", "unix:/run/a.sock"),
    ("tcp-listen:8080,fork,reuseaddr", "that is how socat writes it", ":8080"),
    (r"\\.\pipe\x", "named pipes of Windows are not sockets", None),
    ("listen 80;", "listen is a directive of a configuration file, and a bind is its value", "80"),
    ("listen [::]:443 ssl http2;", "listen is a directive of a configuration file", "[::]:443"),
    ("listen unix:/run/a.sock;", "listen is a directive of a configuration file", "unix:/run/a.sock"),
    ("listen = 127.0.0.1:9000", "listen is a directive of a configuration file", "127.0.0.1:9000"),
    ("Listen 8080", "Listen is a directive of a configuration file", "8080"),
    ("bind *:80", "bind is a directive of a configuration file", "*:80"),
    ("bind 127.0.0.1", "bind is a directive of a configuration file", "127.0.0.1:8080"),
    ("ListenStream=8080", "ListenStream is a directive of a configuration file", "8080"),
    ("ListenStream=/run/x.sock", "ListenStream is a directive of a configuration file", "unix:/run/x.sock"),
    ("listen:80", None, None),  # a host of that name
    ("10.0.0.0/8", "a bind is one address of this machine, without a prefix length", "10.0.0.0:8080"),
    ("127.0.0.1/8:80", "a bind is one address of this machine", "127.0.0.1:80"),
    ("[::1/128]:80", "a bind is one address of this machine", "[::1]:80"),
    ("::/0", "a bind is one address of this machine", "[::]:8080"),
    ("127.0.0.1/8080", "host and port have a colon between them", "127.0.0.1:8080"),
    ("tls://:443", "a bind does not name the protocol above TCP, nor TLS", ":443"),
    ("ssl://localhost:443", "a bind does not name the protocol above TCP, nor TLS", "localhost:443"),
    ("tcp:127.0.0.1:80:interface=127.0.0.1", "how Twisted writes an endpoint", "127.0.0.1:80"),
    ("8080,8081", "separate arguments, as in listen('8080', '8081')", None),
    ("vsock:2:1024", "two slashes are missing, as in vsock://2:1024", None),
    ("8080,", "there is an extra comma", "8080"),
    ("[::1]:8080;", "there is an extra comma", "[::1]:8080"),
    (":80|:81", "pass several binds as separate arguments, as in listen(':80', ':81')", None),
    ("localhost: 8080", "there is white space in it", "localhost:8080"),
    ("localhost :8080", "there is white space in it", "localhost:8080"),
    ("--port 8080", "that is a command-line option", "8080"),
    ("--bind=:8080", "a bind is the value alone", ":8080"),
    ("port=8080", "a bind is the value alone", "8080"),
    ("localhost:8080/path", "a bind has no path", "localhost:8080"),
    ("localhost:8080#x", "a bind has no path", "localhost:8080"),
    ("[127.0.0.1]:80", "only an IPv6 address is written in brackets", "127.0.0.1:80"),
    ("[]:8080", "only an IPv6 address is written in brackets", ":8080"),
    ("[*]:80", "only an IPv6 address is written in brackets", "*:80"),
    ("[fe80::1]%eth0:80", "the scope belongs in the brackets", "[fe80::1%eth0]:80"),
    ("::ffff:127.0.0.1", "is written in brackets, as in [::ffff:127.0.0.1]:8080", None),
    ("fe80::1:80%eth0", "is written in brackets, as in [fe80::1:80%eth0]:8080", None),
    ("+:80", "every address is *", "*:80"),
    (r":8080\n", "it ends with a backslash", ":8080"),
    ("%s:%d", "%s " + UNFILLED, None),
    ("0.0.0.0:$((8000+1))", "$((8000+1)) " + UNFILLED, None),
    ("unix//run/a.sock", "a unix socket is a path, without a port", "unix:/run/a.sock"),
    ("/run/a.sock:8080", "a unix socket is a path, without a port", "unix:/run/a.sock"),
    ("127\u30020\u30020\u30021:80", "only looks like an address, which would be 127.0.0.1", None),
    ("２２４.0.0.1:80", "an old way to write 224.0.0.1", None),  # noqa: RUF001
    ("\u0967\u0968\u096d.0.0.1:80", "(DEVANAGARI DIGIT ONE) only looks like", "127.0.0.1:80"),
    # These have one clear meaning.
    ("127.0.0.1:080", None, None),
    ("unix:///x", None, None),
    ("unix:a.sock", None, None),
    ("unix:./~/a", None, None),
    ("unix:/a~b$c", None, None),
    ("unix:%7E/a%24{b}", None, None),
    ("tcp://udp:53", None, None),
    ("3com.example:80", None, None),
    ("a.0b:80", None, None),
]


FORMS = re.compile(r"(?:write|as in|of that name:) (\S+?)(?=[;,]? |[;,]?$)")


# Each of them would not be read with what is missing set in.
@pytest.mark.parametrize(
    "written",
    ["tcp:127.0.0.1:80", "vsock:2:1234", "vsock::1234", "tcp:a b", "tcp:80:interface=::1", "sockpair@3", "http", "%",
     "8080,", "tcp:///", "a b", "user@host", "x" * 300, "x" * 100],
    ids=lambda written: ascii(written[:40]),
)  # fmt: skip
def test_what_is_shown_as_the_right_form_is_read(written: str) -> None:
    with pytest.raises(ValueError, match="^bind ") as caught:
        Bind(written)
    for form in FORMS.findall(str(caught.value).removeprefix(f"bind {written!r}")):
        Bind(form)


def test_an_address_that_cannot_be_read_is_never_widened_to_every_address() -> None:
    with pytest.raises(ValueError, match="two slashes are missing$"):
        Bind("tcp:80:interface=::1")  # Twisted has backslashes before the colons


@pytest.mark.parametrize(("written", "told", "right"), TABLE, ids=[ascii(row[0]) for row in TABLE])
def test_a_mistake_is_named_and_the_right_form_shown(written: str, told: str | None, right: str | None) -> None:
    if WINDOWS and ("~" in written or "0x7f.1" in written):
        pytest.skip("folders of users and old forms of addresses are other ones there")
    if told is None:
        assert str(Bind(written)) == written
        assert Bind(Bind(written).url) == Bind(written)
        return
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        Bind(written)
    text = str(caught.value)
    assert text.startswith(f"bind {written!r}")
    assert "\n" not in text
    if right is not None:
        assert text.endswith((f" {right}", f" {right} or"), len(f"bind {written!r}")) or f"write {right}, or" in text
        Bind(right)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b":80", "not bytes: b':80'; write ':80'"),
        (b"\xff", r"not bytes: b'\xff'"),
        (bytearray(b"80"), "not bytearray: bytearray(b'80'); write '80'"),
        (Path("/run/a.sock"), "; write 'unix:/run/a.sock'"),
        (("127.0.0.1", 8080), "not tuple: ('127.0.0.1', 8080); write '127.0.0.1:8080'"),
        (("::1", 80, 0, 0), "; write '[::1]:80'"),
        (("", 80), "; write '*:80'"),
        ((":80", ":81"), "; pass several binds as separate arguments, as in listen(*binds)"),
        ([":80"], "; pass several binds as separate arguments, as in listen(*binds)"),
        ({":80"}, "; pass several binds as separate arguments, as in listen(*binds)"),
        (range(80, 82), "; pass several binds as separate arguments, as in listen(*binds)"),
        (None, "not NoneType: None; every address is written ':8080'"),
        (True, "not bool: True"),
        (8080.0, "not float: 8080.0; write 8080"),
        (8080.5, "not float: 8080.5"),
        (float("nan"), "not float: nan"),
        (float("inf"), "not float: inf"),
        (decimal.Decimal(80), "not Decimal: Decimal('80')"),
        (ipaddress.ip_address("::1"), "; write '[::1]:8080'"),
        (ipaddress.ip_address("127.0.0.1"), "; write '127.0.0.1:8080'"),
        ({"port": 80}, "not dict: {'port': 80}"),
        (socket.socket, "not type: <class 'socket.socket'>"),
    ],
    ids=repr,
)
def test_a_value_of_a_wrong_type_is_named_and_the_right_form_shown(written: Any, told: str) -> None:
    for reader in (Bind, harken.listen, harken.bind):
        with pytest.raises(TypeError, match="^a bind is a str or a port number, ") as caught:
            reader(written)
        assert str(caught.value).endswith(told)


def test_a_socket_as_a_bind_is_referred_to_adopt() -> None:
    with socket.socket() as sock, pytest.raises(TypeError, match=r"an existing socket is passed to harken.adopt\(\)"):
        harken.listen(sock)  # type: ignore[arg-type]


def test_an_object_that_cannot_even_be_shown_is_refused_all_the_same() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

        def __getattr__(self, name: str) -> object:
            raise RuntimeError

    with pytest.raises(TypeError, match="not Odd: <Odd>$"):
        harken.listen(Odd())  # type: ignore[arg-type]


def test_a_mistake_is_an_error_if_the_module_for_hints_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files may be gone, or descriptors be lacking."""
    monkeypatch.setitem(sys.modules, "harken._diagnosis.mistakes", None)
    with pytest.raises(ValueError, match="character 2: '0x50' is not a port"):
        Bind(":0x50")
    with pytest.raises(TypeError, match=r"not bytes: b':80'$"):
        Bind(b":80")  # type: ignore[arg-type]


PIECES = [
    *"@[]-,~${}%/*\u00e9\u0301\u0668\uff11\0\udc80?=&. ",
    *("tcp", "unix", "http", "fd", "inet", "sock", "interface", "://", ":", "::1", "127.1", "0x", "80", "None"),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=8).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_whatever_is_written_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        read = Bind(text)
    except ValueError as error:
        told = str(error)
        assert told.startswith("bind ")
        assert "\n" not in told.replace(text, "")
        assert len(told) < 1500
        for right in re.findall(r": write (\S+)$", told):
            Bind(right)
        return
    assert Bind(read.url) == read
    assert meant(text) is not None


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("reuse", "reuse_port"),
        ("timeout", "user_timeout"),
        ("reuseport", "reuse_port"),
        ("SO_REUSEPORT", "reuse_port"),
        ("resue_port", "reuse_port"),
        ("v6only", "ipv6_only"),
        ("ipv6only", "ipv6_only"),
        ("dualstack_ipv6", "ipv6_only"),
        ("bocklog", "backlog"),
        ("queue", "backlog"),
        ("no_delay", "nodelay"),
        ("tcp_nodelay", "nodelay"),
        ("keep_alive", "keepalive"),
        ("TCP_KEEPIDLE", "keepalive_idle"),
        ("idle", "keepalive_idle"),
        ("deferred", "defer_accept"),
        ("tfo", "fastopen"),
        ("fast_open", "fastopen"),
        ("SO_BINDTODEVICE", "interface"),
        ("dscp", "tos"),
        ("uid", "owner"),
        ("user", "owner"),
        ("permissions", "mode"),
        ("inherit", "inheritable"),
    ],
)
def test_an_unknown_name_near_an_option_gets_a_suggestion(written: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"'{written}'; did you mean '{meant}'\\?$"):
        harken.listen(":0", **{written: 1})
    with pytest.raises(ValueError, match=f"no option is called '{written}'; did you mean '{meant}'\\?$"):
        harken.listen(f":0?{written}=1")


@pytest.mark.parametrize("written", ["bogus", "x", "foo", "opt", "zzzzzz", "a" * 40, "recursion", "é"])
def test_an_unknown_name_near_no_option_gets_no_suggestion(written: str) -> None:
    with pytest.raises(TypeError, match=f"'{written}': they are backlog, reuse_port, .*, configure$"):
        harken.listen(":0", **{written: 1})  # type: ignore[arg-type]
    if written.isascii():
        with pytest.raises(ValueError, match=f"character 5: no option is called '{written}': they are backlog,"):
            harken.listen(f":80?{written}=1")


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"host": "x", "port": 7300}, r"'host': write {}\('x:7300'\)$"),
        ({"port": 7300, "host": None}, r"'port': write {}\(':7300'\)$"),
        ({"port": "7300", "host": "::1", "backlog": 5}, r"'port': write {}\('\[::1\]:7300'\)$"),
        ({"port": 80}, r"'port': write {}\(':80'\)$"),
        ({"uds": "/run/a b"}, r"'uds': write {}\('unix:/run/a%20b'\)$"),
        ({"host": "x"}, "'host': host and port are the bind, as in '127.0.0.1:8080'$"),
        ({"host": b"x", "port": 80}, "'host': host and port are the bind, as in '127.0.0.1:8080'$"),
        ({"address": ("x", 80)}, "'address': host and port are the bind"),
        ({"fd": 3}, "'fd': a descriptor is a bind, as in 'fd://3'$"),
        ({"sock": None}, r"'sock': .* is passed to harken.adopt\(\)$"),
        ({"family": 2}, "'family': the family is in the bind, as in 'tcp4://:8080' or 'tcp6://:8080'$"),
        (
            {"reuse_address": True},
            "'reuse_address': SO_REUSEADDR is set where that is safe; exclusive=1 leaves it off$",
        ),
        ({"ssl": None}, "'ssl': TLS is for the server, which gets the sockets$"),
        ({"limit": 5}, r"'limit': that is an argument of acceptor\(\) and of harken.asyncio's functions$"),
        ({"max_opn": 5}, r"'max_opn'; did you mean 'max_open', which is for acceptor\(\) and harken.asyncio\?$"),
    ],
)
def test_for_a_keyword_of_another_server_the_error_names_ours(keywords: dict[str, Any], told: str) -> None:
    for call, name in ((harken.listen, "listen"), (harken.bind, "bind")):
        for binds in ((), ("127.0.0.1:0",)):
            with pytest.raises(
                TypeError, match=rf"^{name}\(\) got an unexpected keyword argument " + told.format(name)
            ):
                call(*binds, **keywords)


def test_without_any_bind_the_form_is_shown() -> None:
    for keywords in ({}, {"backlog": 5}):
        with pytest.raises(TypeError, match="needs at least one bind, as in '127.0.0.1:8080'"):
            harken.listen(**keywords)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- long texts

LONG = {
    "accents": "a" + "\u0301\u0316" * 500_000 + ":80",
    "accents of a label each": "a\u0301\u0316." * 250_000 + "a:80",
    "name": "a" * 1_000_000 + ":80",
    "labels": "a." * 500_000 + "a:80",
    "digits": ":" + "9" * 1_000_000,
    "other digits": "٨" * 1_000_000,
    "colons": ":" * 1_000_000,
    "brackets": "[" * 1_000_000,
    "address": "[" + "0:" * 500_000 + "]:80",
    "scope": "[fe80::1%" + "é" * 1_000_000 + "]:80",
    "service": ":" + "x" * 1_000_000,
    "service with accents": ":x" + "\u0301\u0316" * 500_000,
    "path": "unix:/" + "a" * 1_000_000,
    "encoded path": "unix:/" + "%61" * 333_000,
    "interface": ":80?interface=" + "é" * 1_000_000,
    "owner": "unix:/a?owner=" + "x" * 1_000_000,
    "number": ":80?backlog=" + "9" * 1_000_000,
    "option": ":80?" + "x" * 1_000_000 + "=1",
    "options": ":80?" + "&".join(f"a{n}=1" for n in range(100_000)),
    "equals": ":80?" + "=" * 1_000_000,
    "ampersands": ":80?" + "&" * 1_000_000,
    "commas": ",".join([":80"] * 250_000),
    "spaces": " " * 1_000_000 + "80",
    "braces": "{" * 1_000_000,
    "dollars": "$" * 1_000_000,
    "percents": "%" * 1_000_000,
    "name of systemd's": "systemd:" + "x" * 1_000_000,
    "cid": "vsock://" + "9" * 1_000_000 + ":1",
    "descriptor": "fd://" + "9" * 1_000_000,
}
LENGTHS = (1_000_000, harken._bind.MOST, 1000, 299)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much text was given to what takes time with the square of its length."""
    given: list[int] = []

    def spy(module: Any, name: str) -> None:
        function = getattr(module, name)

        def spied(text: str, *more: Any) -> Any:
            given.append(len(text))
            return function(text, *more)

        monkeypatch.setattr(module, name, spied)

    spy(harken._bind, "idna")
    spy(harken._options, "get_close_matches")
    return given


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_takes_no_longer_than_reading_it(kind: str, length: int, work: list[int]) -> None:
    end = LONG[kind][-4:] if {":", "="} & set(LONG[kind][-4:]) else ""
    text = LONG[kind][: length - len(end)] + end
    lines, package = 0, os.path.dirname(harken.__file__)

    def count(frame: Any, *_: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(package):
            return None
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        try:
            harken._options.for_binds("listen()", [Bind(text)], {})
        except (ValueError, OSError) as error:
            told = str(error)
        else:
            told = ""
    finally:
        sys.settrace(before)
    assert len(told) < 3000
    assert all(size <= 512 for size in work), work
    # A few lines for each character of the longest text that may be a bind, as for options without values.
    assert lines < 8 * min(len(text), harken._bind.MOST) + 5000
    if len(text) > harken._bind.MOST:
        assert lines < 1000
        assert f"{len(text)} characters are more than the {harken._bind.MOST} of any bind" in told


def test_a_bind_has_a_bound_and_a_long_keyword_is_compared_with_none(work: list[int]) -> None:
    assert harken._bind.MOST <= 32768
    with pytest.raises(TypeError, match="'x{80}...': they are backlog"):
        harken.listen(":0", **{"x" * 1_000_000: 1})  # type: ignore[arg-type]
    assert work == []


def test_the_negative_control_quadratic_work_is_detected(work: list[int]) -> None:
    """Its negative control."""
    harken._bind.idna("bücher")
    assert work == [6]


def test_a_long_host_is_refused_before_it_is_encoded_elsewhere_too() -> None:
    host = "a" + "\u0301\u0316" * 40_000
    with pytest.raises(UnicodeError, match="a name of 80001 characters, the limit is 253"):
        harken.getaddrinfo(host, 80)
    with pytest.raises(ValueError, match="80001 characters, a name has at most 253"):
        Bind.of(host, 80)
    with pytest.raises(ValueError, match="no host name is longer than 253 characters"):
        Bind("a.bc" * 64 + ":80")
    assert Bind("a.bc" * 63 + ":80").host == "a.bc" * 63  # 252, and none of its parts is too long
