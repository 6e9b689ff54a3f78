"""A sample of `interrupted.py`, which takes minutes: every operation at some of its lines, and by some signals."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from machine import linux_only

PROGRAM = Path(__file__).parent / "interrupted.py"


@linux_only
@pytest.mark.proof
@pytest.mark.timeout(300)
def test_nothing_is_lost_and_the_controls_are_found() -> None:
    command = [sys.executable, str(PROGRAM), "--every", "40", "--rounds", "10"]
    # These run hundreds of lines of check.py and holders.py each, and take more time than all the others together.
    for word in ("of a path", "check"):
        command += ["--without", word]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"operations (\d+), lines (\d+), interrupted (\d+) .*, lost: 0", done.stdout)
    assert counted is not None, done.stdout
    assert int(counted[1]) > 90
    assert int(counted[3]) > 500
    assert re.findall(r"negative control: (\w+): [1-9]\d* found", done.stdout) == ["adopt", "listen"]
