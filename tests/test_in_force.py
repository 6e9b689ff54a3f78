"""Options that the system accepts without putting them in force: there is one warning for each."""

from __future__ import annotations

import warnings
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import harken
from children import run
from harken._diagnosis.foresee import foresee
from machine import linux_only

pytestmark = linux_only

TOLD = """
    import warnings, harken
    from harken._diagnosis.foresee import foresee

    def told(*binds, call=harken.listen, **options):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call(*binds, **options).close()
        assert all(one.category is RuntimeWarning and one.filename == "<string>" for one in found), found
        return [str(one.message) for one in found]
"""
FASTOPEN = "/proc/sys/net/ipv4/tcp_fastopen"


def in_network(program: str, setup: str = "") -> dict[str, Any]:
    return run(dedent(TOLD) + dedent(program), namespace=True, setup=setup)


@pytest.mark.parametrize(("mode", "wanted"), [(0, 3), (1, 3), (0x601, 0x603)])
def test_fastopen_without_the_servers_bit_is_warned_of(mode: int, wanted: int) -> None:
    told = in_network(
        """
        tell(one=told("127.0.0.1:0", fastopen=16), query=told("127.0.0.1:0?fastopen=16"),
             none=told("127.0.0.1:0?fastopen=0"),
             several=told(":0", fastopen=16), held=told("127.0.0.1:0", fastopen=16, call=harken.bind),
             note=foresee(["127.0.0.1:8080?fastopen=16"])[0].note)
        """,
        f"echo {mode} > {FASTOPEN}",
    )
    why = f"net.ipv4.tcp_fastopen is {mode}, and has no 2 in it, which is for servers"
    right = f"(sysctl -w net.ipv4.tcp_fastopen={wanted}, and in /etc/sysctl.d to stay)"
    assert told["one"] == told["held"] == [f"127.0.0.1:0: fastopen=16 does nothing: {why} {right}"]
    assert told["query"] == [f"127.0.0.1:0?fastopen=16: fastopen=16 does nothing: {why} {right}"]
    assert told["none"] == []
    assert len(told["several"]) == 1  # although there are two sockets
    assert f"fastopen=16 does nothing: {why}" in told["note"]


@pytest.mark.parametrize("mode", [2, 3, 0x603])
def test_fastopen_with_the_servers_bit_is_in_force(mode: int) -> None:
    told = in_network(
        """
        tell(one=told("127.0.0.1:0", fastopen=16), note=foresee(["127.0.0.1:8080?fastopen=16"])[0].note)
        """,
        f"echo {mode} > {FASTOPEN}",
    )
    assert told == {"one": [], "note": ""}


def test_fastopen_beyond_the_queue_is_warned_of() -> None:
    told = in_network(
        """
        tell(one=told("127.0.0.1:0", fastopen=100), note=foresee(["127.0.0.1:8080?fastopen=100"])[0].note)
        """,
        f"echo 3 > {FASTOPEN}; echo 50 > /proc/sys/net/core/somaxconn",
    )
    assert told["one"][0].startswith(
        "127.0.0.1:0: fastopen=100 was asked for, and net.core.somaxconn grants 50: raise it"
    )
    assert "fastopen=100 was asked for, and net.core.somaxconn grants 50" in told["note"]


@pytest.mark.parametrize(("option", "setting"), [("rcvbuf", "rmem_max"), ("sndbuf", "wmem_max")])
@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:s"])
def test_a_buffer_that_is_capped_is_warned_of(
    option: str, setting: str, bind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"/proc/sys/net/core/{setting}")
    if not path.exists():
        pytest.skip("the limit is not told in this network")
    most = int(path.read_text())
    if most >= 2**31 - 1:
        pytest.skip("there is no limit")
    words = f"{bind}: {option}={most + 1} was asked for, and net.core.{setting} grants {most}: raise it"
    with pytest.warns(RuntimeWarning, match=words.replace("[", r"\[")) as found:
        harken.listen(bind, **{option: most + 1}).close()
    assert len(found) == 1
    assert f"net.core.{setting} grants {most}" in foresee([f"{bind}?{option}={most + 1}"])[0].note
    harken.listen(bind, **{option: most}).close()  # a warning would be an error here


def test_what_configure_sets_is_not_warned_of() -> None:
    def smaller(sock: harken.Socket, _: object) -> None:
        sock.setsockopt(harken.SOL_SOCKET, harken.SO_RCVBUF, 5000)

    with harken.listen("127.0.0.1:0", rcvbuf=100_000, configure=smaller) as (listener,):
        assert listener.options["rcvbuf"] == 5000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tos": 0xBA}, "tos=186 was asked for, and TCP sends 184: the lower two bits are for ECN"),
        ({"defer_accept": 2**31 - 1}, r"defer_accept=2147483647 was asked for, and \d+ seconds are the longest"),
        ({"incoming_cpu": 100_000}, r"incoming_cpu=100000 does nothing: this machine has the CPUs 0 to \d+$"),
    ],
)
def test_other_options_that_are_not_in_force_are_warned_of(options: dict[str, int], words: str) -> None:
    with pytest.warns(RuntimeWarning, match=words) as found:
        harken.listen("127.0.0.1:0", **options).close()  # type: ignore[arg-type]
    assert len(found) == 1


def test_a_value_that_is_rounded_up_is_not_warned_of() -> None:
    harken.listen("127.0.0.1:0", defer_accept=5, rcvbuf=1, sndbuf=1, tos=0xB8, incoming_cpu=0, ttl=9).close()


def test_an_inherited_socket_is_warned_of_too() -> None:
    with harken.Socket(harken.AF_INET, harken.SOCK_STREAM, 0) as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        number = made.detach()
    with pytest.warns(RuntimeWarning, match=f"fd://{number}: tos=1 was asked for, and TCP sends 0"):
        harken.listen(f"fd://{number}", tos=1).close()


def test_a_warning_that_is_an_error_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning, match="tos=1 was asked for"):
        warnings.simplefilter("error")
        harken.listen(f"unix:{path}", "127.0.0.1:0", tos=1)
    assert not path.exists()
