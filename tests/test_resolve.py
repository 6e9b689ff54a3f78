"""Names and ports to addresses: what the standard library answers, on a list that C owns and Python frees once."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

import harken
from harken import AI_CANONNAME, AI_NUMERICHOST, AI_PASSIVE, IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM
from machine import HAS_IPV6, LINUX, linux_only, posix_only

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]

AI_ADDRCONFIG = int(socket.AI_ADDRCONFIG)


def answers(function: Any, *arguments: Any, **keywords: Any) -> list[tuple[Any, ...]]:
    """The answers of either getaddrinfo as plain tuples; where families are asked one by one, in no given order."""
    found = [(int(family), int(type_), *rest) for family, type_, *rest in function(*arguments, **keywords)]
    return found if LINUX and HAS_IPV6 else sorted(found)


def outcome(function: Any, *arguments: Any) -> Any:
    """The answers, or the number of the error."""
    try:
        return answers(function, *arguments)
    except socket.gaierror as error:
        return error.errno


# ---------------------------------------------------------------------------- what it answers


@pytest.mark.parametrize("flags", [0, AI_PASSIVE, AI_NUMERICHOST, AI_CANONNAME, AI_PASSIVE | AI_ADDRCONFIG])
@pytest.mark.parametrize("family", [0, socket.AF_INET, socket.AF_INET6], ids=["any", "IPv4", "IPv6"])
@pytest.mark.parametrize(
    "host",
    [None, "127.0.0.1", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1", "2001:db8::7", "localhost", b"127.0.0.1", "1.2.3"],
)
def test_answers_are_those_of_the_standard_library(host: Any, family: int, flags: int) -> None:
    hints = (family, SOCK_STREAM, IPPROTO_TCP, flags)
    assert outcome(harken.getaddrinfo, host, 27015, *hints) == outcome(socket.getaddrinfo, host, 27015, *hints)


@pytest.mark.parametrize("port", [None, 0, 80, 65535, "0", "80", "0080", "http", "https", b"80", b"http"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
def test_ports_are_numbers_digits_or_services(host: str | None, port: Any) -> None:
    hints = (0, SOCK_STREAM, 0, 0)
    assert outcome(harken.getaddrinfo, host, port, *hints) == outcome(socket.getaddrinfo, host, port, *hints)


@pytest.mark.parametrize("type_", [0, SOCK_STREAM, SOCK_DGRAM])
@pytest.mark.parametrize("proto", [0, IPPROTO_TCP, IPPROTO_UDP])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None, "localhost"])
def test_hints_narrow_the_answers(host: str | None, type_: int, proto: int) -> None:
    hints = (0, type_, proto, 0)
    assert outcome(harken.getaddrinfo, host, 80, *hints) == outcome(socket.getaddrinfo, host, 80, *hints)


def test_no_host_is_the_wildcard_to_bind_and_the_loopback_to_connect() -> None:
    wildcard = harken.getaddrinfo(None, 27015, type=SOCK_STREAM, flags=AI_PASSIVE)
    assert {entry.sockaddr[:2] for entry in wildcard} == {("0.0.0.0", 27015), ("::", 27015)}
    loopback = harken.getaddrinfo(None, 27015, type=SOCK_STREAM)
    assert {entry.sockaddr[:2] for entry in loopback} == {("127.0.0.1", 27015), ("::1", 27015)}


@linux_only
@pytest.mark.skipif(LINUX and not HAS_IPV6, reason="this machine has no ::1")
def test_a_scope_is_a_name_or_a_number() -> None:
    index = socket.if_nametoindex("lo")
    for host in ("fe80::1%lo", f"fe80::1%{index}"):
        (entry,) = harken.getaddrinfo(host, 80, type=SOCK_STREAM)
        assert entry.sockaddr == ("fe80::1", 80, 0, index)
        assert answers(harken.getaddrinfo, host, 80) == answers(socket.getaddrinfo, host, 80)
    with pytest.raises(socket.gaierror, match=r"fe80::1%nothere"):
        harken.getaddrinfo("fe80::1%nothere", 80)


def test_a_scope_number_is_taken_on_every_platform() -> None:
    (entry,) = harken.getaddrinfo("fe80::1%7", 80, type=SOCK_STREAM)
    assert entry.sockaddr == ("fe80::1", 80, 0, 7)


def test_the_canonical_name_is_there_when_asked_for() -> None:
    unasked = [entry[3] for entry in socket.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM)]  # musl gives it anyway
    assert [entry.canonname for entry in harken.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM)] == unasked
    asked = harken.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM, flags=AI_CANONNAME)
    assert [entry.canonname for entry in asked] == ["127.0.0.1"]


def test_the_empty_host_is_no_host() -> None:
    assert list(harken.getaddrinfo("", 80)) == list(harken.getaddrinfo(b"", 80)) == list(harken.getaddrinfo(None, 80))


def test_arguments_go_by_place_or_by_name() -> None:
    place = harken.getaddrinfo("127.0.0.1", 80, socket.AF_INET, SOCK_STREAM, IPPROTO_TCP, AI_NUMERICHOST)
    name = harken.getaddrinfo(
        flags=AI_NUMERICHOST, proto=IPPROTO_TCP, type=SOCK_STREAM, family=socket.AF_INET, port=80, host="127.0.0.1"
    )
    mixed = harken.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM, proto=IPPROTO_TCP)
    assert list(place) == list(name) == list(mixed)


def test_a_keyword_may_be_another_object_than_the_name_in_the_source() -> None:
    names = {"fam_ily": socket.AF_INET, "ty_pe": SOCK_STREAM, "pro_to": IPPROTO_TCP, "fl_ags": AI_NUMERICHOST}
    made = {name.replace("_", ""): value for name, value in names.items()}
    assert not any(name is sys.intern(name) for name in made)  # the control: no literal's object
    (entry,) = harken.getaddrinfo("127.0.0.1", "27015", **made)
    assert entry == (socket.AF_INET, SOCK_STREAM, IPPROTO_TCP, "", ("127.0.0.1", 27015))


@pytest.mark.parametrize("port", ["0", "1", "9", "00009", "27015", "65535"])
def test_digits_are_read_without_a_copy_and_mean_what_they_say(port: str) -> None:
    class Text(str):
        __slots__ = ()

        def encode(self, *_: object) -> bytes:  # type: ignore[override]
            raise AssertionError

        def isdigit(self) -> bool:
            raise AssertionError

    for text in (port, port.encode(), bytearray(port.encode()), Text(port)):
        assert harken.getaddrinfo("127.0.0.1", text)[0].sockaddr == ("127.0.0.1", int(port))  # type: ignore[arg-type]


def test_an_ipv4_address_is_written_as_the_system_writes_it() -> None:
    numbers = [0, 1, 9, 10, 11, 99, 100, 101, 109, 110, 199, 200, 249, 250, 255]
    for first, second in itertools.product(numbers, numbers):
        for address in (bytes([first, second, second, first]), bytes([second, first, 7, second])):
            text = socket.inet_ntop(socket.AF_INET, address)
            assert harken.getaddrinfo(text, 80)[0].sockaddr == (text, 80)


def test_a_port_may_be_whatever_is_an_index() -> None:
    class Port:
        def __index__(self) -> int:
            return 80

    assert harken.getaddrinfo("127.0.0.1", Port())[0].sockaddr == ("127.0.0.1", 80)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- the sequence, and its entries


def test_entries_are_five_tuples() -> None:
    entry = harken.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM, proto=IPPROTO_TCP)[0]
    family, type_, proto, canonname, sockaddr = entry
    name = socket.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM, proto=IPPROTO_TCP)[0][3]  # "", but with musl
    plain = (socket.AF_INET, SOCK_STREAM, IPPROTO_TCP, name, ("127.0.0.1", 80))
    assert (family, type_, proto, canonname, sockaddr) == plain
    assert (entry.family, entry.type, entry.proto, entry.canonname, entry.sockaddr) == plain
    assert entry == plain
    assert plain == entry
    assert len(entry) == 5
    assert entry[4] == entry[-1] == ("127.0.0.1", 80)
    assert entry[:2] == plain[:2]
    assert hash(entry) == hash(plain)
    assert entry != plain[:4]
    assert entry != "127.0.0.1"
    assert "('127.0.0.1', 80)" in repr(entry)
    with pytest.raises(IndexError):
        entry[5]
    with pytest.raises(AttributeError):
        entry.family = 1  # type: ignore[misc]


def test_the_result_is_a_sequence() -> None:
    found = harken.getaddrinfo(None, 80)
    plain = [tuple(entry) for entry in found]
    size = len(plain)
    assert size == len(found) >= 2
    assert [tuple(found[n]) for n in range(size)] == plain
    assert [tuple(found[n]) for n in range(-size, 0)] == plain
    for start, stop, step in ((None, None, None), (1, None, 1), (None, None, -1), (-1, None, 1), (5, 9, 1), (0, 9, 2)):
        assert found[start:stop:step] == plain[start:stop:step]
    assert list(reversed(found)) == plain[::-1]
    assert plain[1] in found
    assert found[1] in found
    assert ("no", "such", "entry") not in found
    assert found.index(plain[1]) == 1
    assert found.count(plain[1]) == 1
    assert found.count(None) == 0
    first, *rest = found
    assert [first, *rest] == plain
    assert repr(plain[0][4]) in repr(found)
    for wrong in (size, -size - 1, 2**70):
        with pytest.raises(IndexError):
            found[wrong]
    with pytest.raises(TypeError):
        found["0"]  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="not in list"):
        found.index(plain[1], 2)


def test_the_result_matches_a_sequence_pattern() -> None:
    found: object = harken.getaddrinfo("127.0.0.1", 80, type=SOCK_STREAM)
    match found:
        case [(_, _, _, _, sockaddr)]:
            assert sockaddr == ("127.0.0.1", 80)
        case _:
            pytest.fail(f"{found!r} is no sequence of 5-tuples")


def test_both_families_of_no_host_are_one_sequence() -> None:
    found = harken.getaddrinfo(None, 80, type=SOCK_STREAM, flags=AI_PASSIVE)
    assert found[0] == found[-2]
    assert found[1] == found[-1]
    assert {entry.family for entry in found} == {socket.AF_INET, socket.AF_INET6}


def test_entries_outlive_the_list() -> None:
    with harken.getaddrinfo("::1", 80, 0, SOCK_STREAM, IPPROTO_TCP, AI_CANONNAME) as found:
        entry = found[0]
    assert entry == (socket.AF_INET6, SOCK_STREAM, IPPROTO_TCP, "::1", ("::1", 80, 0, 0))


def test_a_closed_list_says_so() -> None:
    with harken.getaddrinfo("127.0.0.1", 80) as found:
        assert len(found) >= 1
    found.close()
    assert repr(found) == "<AddrInfo, closed>"
    for use in (len, list, lambda it: it[0], lambda it: it[:], lambda it: it.index(1), lambda it: 1 in it):
        with pytest.raises(ValueError, match="closed"):
            use(found)


def test_closing_in_the_middle_of_a_use_is_no_crash() -> None:
    found = harken.getaddrinfo(None, 80, flags=AI_PASSIVE)

    class Closing:
        def __index__(self) -> int:
            found.close()
            return 0

    with pytest.raises(ValueError, match="closed"):
        found[Closing() :]
    found = harken.getaddrinfo(None, 80)
    with pytest.raises(ValueError, match="closed"):
        found[Closing()]
    found = harken.getaddrinfo(None, 80)
    walk = iter(found)
    next(walk)
    found.close()
    with pytest.raises(ValueError, match="closed"):
        next(walk)


def test_an_error_in_the_with_block_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), harken.getaddrinfo("127.0.0.1", 80) as found:
        1 / 0  # noqa: B018
    assert repr(found) == "<AddrInfo, closed>"


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_owns_c_memory_cannot_be_copied(duplicate: Any) -> None:
    with pytest.raises(TypeError):
        duplicate(harken.getaddrinfo("127.0.0.1", 80))


@pytest.mark.parametrize("kind", [harken.AddrInfo, harken.AddrInfoEntry])
def test_nobody_derives_from_what_owns_c_memory(kind: type) -> None:
    with pytest.raises(TypeError):
        type("Derived", (kind,), {})


def test_it_is_a_sequence_to_whoever_asks() -> None:
    assert isinstance(harken.getaddrinfo(None, 80), Sequence)


def test_a_list_that_getaddrinfo_did_not_make_is_closed() -> None:
    with pytest.raises(ValueError, match="closed"):
        len(harken.AddrInfo())
    assert repr(harken.AddrInfo()) == "<AddrInfo, closed>"


@pytest.mark.parametrize(
    ("program", "gotten", "freed"),
    [
        ("found = get('127.0.0.1', 80); found.close(); found.close()", 1, 1),
        ("with get('127.0.0.1', 80) as found: found.close()", 1, 1),
        ("get('127.0.0.1', 80)", 1, 1),
        ("found = get('127.0.0.1', 80); loop = [found]; loop.append(loop); del loop, found; gc.collect()", 1, 1),
        ("entry = get('127.0.0.1', 80)[0]; print(end=str(entry)[:0])", 1, 1),
        ("get(None, 80)", 2, 2),
        ("get(None, 80, flags=harken.AI_PASSIVE).close()", 2, 2),
        ("for n in range(100): get('127.0.0.1', n)", 100, 100),
        ("harken.Socket(2, 1, 6).connect_ex(('pair', 1))", 1, 1),
    ],
)
@linux_only
def test_the_list_is_freed_once(poison: Poison, program: str, gotten: int, freed: int) -> None:
    report = poison.run(
        f"""
        get = harken.getaddrinfo
        before = count("freeaddrinfo")
        {program}
        tell(lists=count("lists"), freed=count("freeaddrinfo") - before)
        """,
        hosts="pair=127.0.0.1,127.0.0.2",
    )
    assert report.said == {"lists": 0, "freed": freed}
    assert report.calls["freeaddrinfo"] == freed
    assert report.calls["getaddrinfo"] >= gotten


# ---------------------------------------------------------------------------- the resolver, and who waits for it


@linux_only
def test_a_numeric_host_never_reaches_the_resolver(poison: Poison) -> None:
    report = poison.run(
        """
        for host in (None, "", "127.0.0.1", b"127.0.0.1", "::1", "fe80::1%1", "127.1", "0x7f.1"):
            for port in (None, 80, "80", b"80"):
                if host or port:
                    harken.getaddrinfo(host, port, flags=harken.AI_PASSIVE)
        try:
            harken.getaddrinfo("::1", 80, harken.AF_INET)  # a number, if of the other family
        except OSError:
            pass
        harken.listen("127.0.0.1:0", ":0").close()
        """
    )
    assert report.calls["resolver"] == 0
    assert report.calls["getaddrinfo"] > 30


@linux_only
def test_configured_families_are_asked_for_at_once(poison: Poison) -> None:
    """Asked for alone, glibc denies a family that only the loopback has: a container without a network gets nothing."""
    report = poison.run("harken.getaddrinfo(None, 80, flags=harken.AI_PASSIVE | harken.AI_ADDRCONFIG)")
    assert report.calls["getaddrinfo"] == 1


@linux_only
def test_a_name_reaches_the_resolver_once(poison: Poison) -> None:
    report = poison.run("harken.getaddrinfo('pair', 80)", hosts="pair=127.0.0.1,::1")
    assert report.calls["resolver"] == 1


@linux_only
@pytest.mark.parametrize("call", ["harken.getaddrinfo('pair', 80)", "harken.listen('pair:0').close()"])
def test_other_threads_run_while_a_name_is_resolved(poison: Poison, call: str) -> None:
    # The resolver waits for a byte that only another thread can write: with the GIL held, it waits for ever.
    report = poison.run(
        f"""
        import threading
        inner, outer = os.pipe()
        resolving = threading.Thread(target=lambda: {call})
        os.environ["POISON_GATE"] = str(inner)
        resolving.start()
        while count("resolver") == 0:
            pass
        still = resolving.is_alive()
        os.write(outer, b"x")
        resolving.join()
        tell(still=still)
        """,
        hosts="pair=127.0.0.1,127.0.0.2",
        timeout=10,
    )
    assert report.said == {"still": True}


# ---------------------------------------------------------------------------- IDNA


@linux_only
@pytest.mark.parametrize("host", ["bücher.example", "BÜCHER.example"])
def test_a_name_that_is_not_ascii_is_sent_in_its_idna_form(poison: Poison, host: str) -> None:
    report = poison.run(
        f"tell(found=[list(entry) for entry in harken.getaddrinfo({host!r}, 80, type=harken.SOCK_STREAM)])",
        hosts="xn--bcher-kva.example=127.0.0.7",
    )
    assert report.said["found"] == [[2, 1, 6, "", ["127.0.0.7", 80]]]


def test_digits_of_other_widths_are_read_as_idna_reads_them() -> None:
    (entry,) = harken.getaddrinfo("１２７.0.0.1", 80, type=SOCK_STREAM)  # noqa: RUF001
    assert entry.sockaddr == ("127.0.0.1", 80)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("host", [5, 1.5, ["127.0.0.1"], ("127.0.0.1",), object(), memoryview(b"127.0.0.1")])
def test_a_host_of_a_wrong_type_is_named(host: Any) -> None:
    with pytest.raises(TypeError, match="host must be None, str or bytes, not"):
        harken.getaddrinfo(host, 80)


@pytest.mark.parametrize("port", [1.5, [80], (80,), object(), memoryview(b"80")])
def test_a_port_of_a_wrong_type_is_named(port: Any) -> None:
    with pytest.raises(TypeError, match="port must be an int, not"):
        harken.getaddrinfo("127.0.0.1", port)


@pytest.mark.parametrize("name", ["family", "type", "proto", "flags"])
@pytest.mark.parametrize("value", ["x", None, 1.5, b"1", [1]])
def test_a_hint_of_a_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"getaddrinfo\(\): {name} must be an int, not {type(value).__name__}"):
        harken.getaddrinfo("127.0.0.1", 80, **{name: value})


@pytest.mark.parametrize("name", ["family", "type", "proto", "flags"])
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40, 2**70])
def test_a_hint_too_large_for_c_is_named(name: str, value: int) -> None:
    with pytest.raises(OverflowError, match=rf"getaddrinfo\(\): {name} .*{value}"):
        harken.getaddrinfo("127.0.0.1", 80, **{name: value})


@pytest.mark.parametrize(
    "port", [-1, 65536, 2**31, 2**63, 2**64 + 80, -(2**70), "65536", "99999", b"65536", "9" * 40, "9" * 5000]
)
def test_a_port_out_of_range_is_named(port: Any) -> None:
    with pytest.raises(OverflowError, match=r"getaddrinfo\(\): port must be 0-65535, not"):
        harken.getaddrinfo("127.0.0.1", port)


@pytest.mark.parametrize("host", ["a\0b", "127.0.0.1\0", b"\0", "\0", "é\0", b"127.0.0.1\0.example"])
def test_a_host_with_a_nul_is_named(host: Any) -> None:
    with pytest.raises(ValueError, match="host: embedded null character"):
        harken.getaddrinfo(host, 80)


@pytest.mark.parametrize("port", ["80\0", "\0", b"http\0", bytearray(b"8\x000")])
def test_a_port_with_a_nul_is_named(port: Any) -> None:
    with pytest.raises(ValueError, match="port: embedded null character"):
        harken.getaddrinfo("127.0.0.1", port)


@pytest.mark.parametrize("host", ["x" * 64, "a." + "x" * 64, b"x" * 64 + b".example", "x" * 100_000, "é" * 70])
def test_a_label_too_long_for_dns_is_named(host: Any) -> None:
    with pytest.raises(UnicodeError) as caught:
        harken.getaddrinfo(host, 80)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "getaddrinfo(): host" in told


@pytest.mark.parametrize("host", ["\udc80", "a\udcff.example", "é..example"])
def test_a_host_that_has_no_idna_form_is_named(host: str) -> None:
    with pytest.raises(UnicodeError) as caught:
        harken.getaddrinfo(host, 80)
    assert "getaddrinfo(): host" in "".join(caught.value.__notes__)


def test_a_port_that_no_encoding_has_is_named() -> None:
    with pytest.raises(UnicodeError) as caught:
        harken.getaddrinfo("127.0.0.1", "\udc80")
    assert "getaddrinfo(): port" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("port", ["no-such", "", " 80", "+80", "-1", "80 ", "8080x", "0x50", "٨٠", b"", b"\xff"])
def test_an_unknown_service_is_a_gaierror_that_names_it(port: Any) -> None:
    with pytest.raises(socket.gaierror) as caught:
        harken.getaddrinfo("127.0.0.1", port, type=SOCK_STREAM)
    assert f"host '127.0.0.1', port {port!r}" in str(caught.value)
    assert caught.value.errno in (socket.EAI_SERVICE, socket.EAI_NONAME)


@pytest.mark.parametrize(
    ("keywords", "codes"),
    [
        ({"family": 99}, {socket.EAI_FAMILY}),
        ({"family": -1}, {socket.EAI_FAMILY}),
        ({"type": 99}, {socket.EAI_SOCKTYPE, socket.EAI_FAMILY, socket.EAI_SERVICE}),  # the last is musl's
    ],
)
@posix_only
def test_an_unknown_hint_is_a_gaierror(keywords: dict[str, int], codes: set[int]) -> None:
    with pytest.raises(socket.gaierror, match=r"host '127\.0\.0\.1', port 80") as caught:
        harken.getaddrinfo("127.0.0.1", 80, **keywords)
    assert caught.value.errno in codes


@pytest.mark.parametrize("host", ["256.256.256.256", "::1::", "1:2:3", "not-an-address"])
def test_what_is_no_number_is_refused_where_a_number_is_asked_for(host: str) -> None:
    with pytest.raises(socket.gaierror) as caught:
        harken.getaddrinfo(host, 80, flags=AI_NUMERICHOST)
    assert caught.value.errno == socket.EAI_NONAME
    assert f"host {host!r}, port 80" in str(caught.value)


def test_neither_host_nor_port_is_a_gaierror() -> None:
    with pytest.raises(socket.gaierror, match="host None, port None"):
        harken.getaddrinfo(None, None)


@linux_only
def test_a_name_that_is_too_long_in_all_is_a_gaierror(poison: Poison) -> None:
    # Without the shim the resolver might ask the network first.
    report = poison.run(
        """
        try:
            harken.getaddrinfo("a." * 200, 80)
        except OSError as error:
            tell(kind=type(error).__name__, text=str(error))
        """,
        poison="getaddrinfo:2:-2",
    )
    assert report.said["kind"] == "gaierror"
    assert "a.a.a." in report.said["text"]


@pytest.mark.parametrize(
    ("arguments", "keywords", "told"),
    [
        ((), {}, "needs a host and a port"),
        (("127.0.0.1",), {}, "needs a host and a port"),
        ((), {"port": 80}, "needs a host and a port"),
        (("127.0.0.1", 80, 0, 0, 0, 0, 0), {}, "at most 6 arguments, 7"),
        (("127.0.0.1", 80), {"host": "::1"}, "'host'"),
        (("127.0.0.1", 80, 0), {"family": 0}, "'family'"),
        (("127.0.0.1", 80), {"hosts": 1}, "'hosts'"),
        (("127.0.0.1", 80), {"": 1}, "''"),
        (("127.0.0.1", 80), {"é": 1}, "'é'"),
    ],
)
def test_wrong_missing_and_double_arguments_are_named(
    arguments: tuple[Any, ...], keywords: dict[str, Any], told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        harken.getaddrinfo(*arguments, **keywords)


# ---------------------------------------------------------------------------- failures of the system


@linux_only
@pytest.mark.parametrize(
    ("host", "poisoned"),
    [
        ("'pair'", "getaddrinfo:2:-11:5"),
        ("'127.0.0.1'", "getaddrinfo:1:-11:5"),
        ("None", "getaddrinfo:1:-11:5"),
        ("None", "getaddrinfo:2:-11:5"),
        ("None", "getaddrinfo:1+:-11:5"),
    ],
)
def test_a_system_error_of_the_resolver_is_raised_as_such(poison: Poison, host: str, poisoned: str) -> None:
    report = poison.run(
        f"""
        try:
            harken.getaddrinfo({host}, 80)
        except OSError as error:
            tell(kind=type(error).__name__, errno=error.errno, lists=count("lists"))
        """,
        poison=poisoned,
        hosts="pair=127.0.0.1,::1",
    )
    assert report.said == {"kind": "OSError", "errno": 5, "lists": 0}


@linux_only
@pytest.mark.parametrize("code", ["EAI_AGAIN", "EAI_FAIL", "EAI_MEMORY", "EAI_NONAME"])
def test_each_failure_of_the_resolver_keeps_its_number(poison: Poison, code: str) -> None:
    number = getattr(socket, code)
    report = poison.run(
        """
        import socket
        try:
            harken.getaddrinfo("pair", 80)
        except socket.gaierror as error:
            tell(errno=error.errno, text=error.strerror, lists=count("lists"))
        """,
        poison=f"getaddrinfo:2:{number}",
        hosts="pair=127.0.0.1,::1",
    )
    assert report.said["errno"] == number
    assert "(host 'pair', port 80)" in report.said["text"]
    assert report.said["lists"] == 0


@linux_only
@pytest.mark.parametrize("which", [1, 2])
def test_no_host_is_not_answered_by_half(poison: Poison, which: int) -> None:
    """Out of memory for one family must not look like a machine without that family."""
    report = poison.run(
        """
        try:
            harken.getaddrinfo(None, 80, flags=harken.AI_PASSIVE)
        except OSError as error:
            tell(errno=error.errno, lists=count("lists"))
        """,
        poison=f"getaddrinfo:{which}:{socket.EAI_MEMORY}",
    )
    assert report.said == {"errno": socket.EAI_MEMORY, "lists": 0}


@linux_only
@pytest.mark.parametrize(("which", "left"), [(1, "::"), (2, "0.0.0.0")])
def test_a_family_that_the_resolver_does_not_know_is_passed_over(poison: Poison, which: int, left: str) -> None:
    report = poison.run(
        "tell(hosts=[e.sockaddr[0] for e in harken.getaddrinfo(None, 80, type=1, flags=harken.AI_PASSIVE)])",
        poison=f"getaddrinfo:{which}:{socket.EAI_FAMILY}",
    )
    assert report.said == {"hosts": [left]}


# ---------------------------------------------------------------------------- nothing is left behind


def test_references_are_balanced() -> None:
    class Host(str):
        __slots__ = ()

    host = Host("127.0.0.1")
    port = "8" + "0" * 3
    before = sys.getrefcount(host), sys.getrefcount(port)
    for _ in range(50):
        list(harken.getaddrinfo(host, port=port))
    gc.collect()
    assert (sys.getrefcount(host), sys.getrefcount(port)) == before
