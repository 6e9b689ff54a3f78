"""A sample of injected.py, the same each time: every failing call raises the right error, and nothing leaks."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machine import EMULATOR, LINUX, needs_ipv6

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        not LINUX or platform.libc_ver()[0] != "glibc" or bool(EMULATOR), reason="the shim is for Linux and glibc"
    ),
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler to build the shim with"),
    needs_ipv6,
]


def injected(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("injected.py")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.timeout(180)
def test_every_failing_call_raises_and_leaks_nothing() -> None:
    told = injected(timeout=170)
    assert told.returncode == 0, told.stdout[-8000:] + told.stderr[-2000:]
    summary = re.search(r"operations: (\d+), triples \(call, error, operation\): (\d+), failures: 0", told.stdout)
    assert summary
    assert int(summary[1]) > 100
    assert int(summary[2]) > 80


@pytest.mark.timeout(180)
def test_the_negative_control_deliberate_faults_are_found() -> None:
    told = injected("--control", timeout=170)
    assert told.returncode == 0, told.stdout[-8000:] + told.stderr[-2000:]
    assert re.search(r"^faults on purpose: \d+, missed: \[\]$", told.stdout, re.MULTILINE)
