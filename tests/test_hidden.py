"""What errors and commands say where a process sees little: no netlink, little of /proc, a seccomp filter."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import harken
from children import NOBODY, REFUSE_FAMILY, needs_root, needs_seccomp, run, running
from harken._diagnosis import hints as _hints
from harken._errors import failure
from machine import linux_only, needs_ipv6

pytestmark = linux_only

# A /proc with processes, and nothing of the kernel's own; one in which other users' processes are hidden; none at all.
PROCS = {
    "subset=pid": "mount -t proc -o subset=pid proc /proc",
    "hidepid=2": "mount -t proc -o hidepid=2 proc /proc",
    "subset=pid, hidepid=2": "mount -t proc -o subset=pid,hidepid=2 proc /proc",
    "none": "mount -t tmpfs none /proc",
}
needs_mount = pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "sh", "-c", PROCS["subset=pid"]], capture_output=True, check=False).returncode != 0
    if sys.platform == "linux"
    else True,
    reason="another /proc cannot be mounted here",
)

COMMANDS = """
def commands(*lines):
    "What each command of harken prints, with its exit code."
    import contextlib, io
    from harken.__main__ import main
    told = {}
    for line in lines:
        out, trouble = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(trouble):
            code = main(line.split())
        told[line] = [code, out.getvalue(), trouble.getvalue()]
    return told
"""


OTHERS = "check --json 127.0.0.1:0 [::1]:0 192.0.2.77:0"


def behind(proc: str, program: str) -> dict[str, Any]:
    """Runs a program with such a /proc."""
    setup = f"""exec unshare -m sh -ec '{PROCS[proc]}; exec "$@"' sh "$@" """
    return run(COMMANDS + textwrap.dedent(program), setup=setup)


@needs_root
@needs_mount
@pytest.mark.parametrize("netlink", [True, False])
@pytest.mark.parametrize("proc", PROCS)
def test_every_command_answers_whatever_is_hidden(proc: str, netlink: bool) -> None:
    program = f"""
        {"pass" if netlink else "import errno; refuse_family(socket.AF_NETLINK, errno.EPERM)"}
        import harken
        with harken.listen("127.0.0.1:0") as held:
            bind = f"127.0.0.1:{{held.port}}"
            tell(**commands(f"check --json {{bind}}", f"check {{bind}}", {OTHERS!r}, f"who {{bind}}"), bind=bind)
            tell(**commands(f"who --json {{bind}}"))
            with harken.listen("127.0.0.1:0") as (listener,):
                stats = listener.stats()
                tell(stats=[stats.queued, stats.backlog])
            attempt(bind)
    """
    told = behind(proc, REFUSE_FAMILY + textwrap.dedent(program))
    bind = told["bind"]
    assert [told[f"check --json {bind}"][0], told[f"check {bind}"][0]] == [1, 1]
    row = json.loads(told[f"check --json {bind}"][1])
    assert (row["verdict"], row["error"]) == ("taken", os.strerror(errno.EADDRINUSE))
    verdicts = [json.loads(line)["verdict"] for line in told[OTHERS][1].splitlines()]
    assert verdicts == ["free", "free", "not here"]
    assert told["stats"][0] == 0
    assert told["hint"]
    assert row["hint"] == told["hint"]
    code, _, trouble = told[f"who {bind}"]
    kernel_tells = netlink or ("subset" not in proc and proc != "none")
    if kernel_tells:
        assert code == 0
    else:
        assert code == 3
        assert "the kernel's tables (netlink, /proc/net) are kept from this process" in trouble
        assert "the kernel's tables (netlink, /proc/net) are kept from this process" in told["hint"]
        assert told["cause"] == "unknown"
        assert "psutil" not in trouble + told["hint"]


@needs_root
@needs_mount
@pytest.mark.parametrize(("proc", "known"), [("hidepid=2", True), ("subset=pid", False), ("none", False)])
def test_a_setting_that_cannot_be_read_is_not_taken_for_its_default(proc: str, known: bool) -> None:
    """With ip_unprivileged_port_start at 0, as Docker and Podman set it, port 80 is everybody's."""
    program = f"""
        import harken.__main__, harken._cli.check, harken._cli.serve
        become({NOBODY})
        tell(**commands("check --json 127.0.0.1:80", "check --json 127.0.0.1:0"))
        harken.listen("127.0.0.1:80").close()
    """
    setup = f"""
        echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start
        exec unshare -m sh -ec '{PROCS[proc]}; exec "$@"' sh "$@"
    """
    told = run(COMMANDS + textwrap.dedent(program), setup=setup)
    code, out, _ = told["check --json 127.0.0.1:80"]
    assert (code, json.loads(out)["verdict"]) == (0, "free")
    assert (json.loads(out)["backlog"] is not None) == known


@needs_root
@needs_mount
@pytest.mark.parametrize("proc", ["subset=pid", "none"])
def test_a_privileged_port_is_told_with_a_limit_that_may_be_another(proc: str) -> None:
    program = f"""
        import harken
        become({NOBODY})
        attempt("127.0.0.1:80")
    """
    told = behind(proc, program)
    assert told["number"] == errno.EACCES
    assert "ports below 1024 (net.ipv4.ip_unprivileged_port_start, unless changed" in told["hint"]


@pytest.mark.parametrize(
    ("limit", "port", "privileged"), [("600", 599, True), ("600", 600, False), ("", 1023, True), ("", 1024, False)]
)
def test_only_ports_below_the_limit_are_called_privileged(
    monkeypatch: pytest.MonkeyPatch, limit: str, port: int, privileged: bool
) -> None:
    monkeypatch.setattr(_hints, "setting", lambda _: limit)
    hint = failure("bind", ("127.0.0.1", port), PermissionError(errno.EACCES, "no")).hint
    assert hint.startswith("ports below") == privileged
    assert hint.startswith("port and user are fine") == (not privileged and limit != "")


@needs_seccomp
@needs_ipv6
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT])
def test_a_filter_of_families_is_named(number: int) -> None:
    """RestrictAddressFamilies=AF_INET AF_UNIX"""
    program = f"""
        refuse_family(socket.AF_INET6, {number})
        import harken
        attempt("[::1]:0")
        with harken.listen(":0") as listeners:
            tell(left_out=[str(error) for _, error in listeners.left_out])
        tell(**commands("check --json [::1]:0"))
    """
    told = run(REFUSE_FAMILY + COMMANDS + textwrap.dedent(program))
    for text in (told["hint"], *told["left_out"], told["check --json [::1]:0"][1]):
        assert "this system has IPv6, but a seccomp filter denies IPv6 to this process" in text
        assert "RestrictAddressFamilies= in the systemd unit must name AF_INET6" in text
        assert "at all" not in text


@needs_seccomp
@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_a_filter_of_other_families_is_named_too(family: str) -> None:
    program = f"""
        refuse_family(socket.{family}, {errno.EAFNOSUPPORT})
        import harken
        attempt("127.0.0.1:0" if {family!r} == "AF_INET" else "unix:@harken-filtered")
    """
    told = run(REFUSE_FAMILY + textwrap.dedent(program))
    assert (told["step"], told["number"]) == ("socket", errno.EAFNOSUPPORT)
    assert "a seccomp filter denies it to this process" in told["hint"]


@needs_seccomp
def test_addresses_are_found_without_netlink_or_not_at_all() -> None:
    """Of all or of none: a part of them would say that this machine has not what it has."""
    program = f"""
        import harken, harken._diagnosis.hints
        before = sorted(harken._diagnosis.hints.local_addresses())
        refuse_family(socket.AF_NETLINK, {errno.EAFNOSUPPORT})
        tell(before=before, after=sorted(harken._diagnosis.hints.local_addresses()))
        attempt("192.0.2.77:0")
    """
    told = run(REFUSE_FAMILY + textwrap.dedent(program), setup="ip address add 198.51.100.7/24 dev lo")
    assert told["before"] == told["after"]
    assert "198.51.100.7" in told["hint"]


# ---------------------------------------------------------------------------- a thread that serves on

THREAD = """
import threading, ctypes
import harken
listeners = harken.listen("127.0.0.1:0")
def serve():
    tell(port=listeners.port)
    wait()
    os._exit(0)
threading.Thread(target=serve).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2), of this thread alone
"""


@needs_seccomp
def test_a_process_whose_first_thread_has_ended_is_told() -> None:
    with running(THREAD) as child:
        while Path(f"/proc/{child['pid']}/fd").exists() and os.listdir(f"/proc/{child['pid']}/fd"):
            pass
        (holder,) = harken.holders(f"127.0.0.1:{child['port']}")
        assert (holder.pid, holder.state) == (child["pid"], "listening")
        assert holder.command.startswith(shlex.quote(sys.executable))
        with pytest.raises(harken.AddressInUseError) as caught:
            harken.listen(f"127.0.0.1:{child['port']}")
        assert (caught.value.cause, [one.pid for one in caught.value.holders]) == ("listener", [child["pid"]])


@needs_root
@needs_mount
@pytest.mark.parametrize("proc", PROCS)
def test_several_listeners_of_one_call_share_a_port_whatever_is_hidden(proc: str) -> None:
    program = """
        import harken
        with harken.listen("127.0.0.1:0") as free:
            port = free.port
        with harken.listen(*[f"127.0.0.1:{port}?reuse_port=1"] * 3) as listeners:
            told = [listener.port == port for listener in listeners]
        tell(told=told)
    """
    assert behind(proc, program)["told"] == [True, True, True]


@needs_root
@needs_mount
@pytest.mark.parametrize("call", ["listen", "bind"])
@pytest.mark.parametrize("proc", PROCS)
def test_listeners_of_several_calls_share_a_port_whatever_is_hidden(proc: str, call: str) -> None:
    program = f"""
        import harken
        with harken.listen("127.0.0.1:0") as free:
            port = free.port
        calls = [harken.{call}(f"127.0.0.1:{{port}}", reuse_port=True) for _ in range(3)]
        for listeners in calls:
            listeners.listen()
        told = [listeners.port == port for listeners in calls]
        for listeners in calls:
            listeners.close()
        harken.listen(f"127.0.0.1:{{port}}").close()
        tell(told=told)
    """
    assert behind(proc, program)["told"] == [True, True, True]
