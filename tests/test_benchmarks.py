"""The benchmarks run, and their table is whole. How fast anything is, no test says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from machine import LINUX

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CASES = {
    "numeric",
    "numeric_named",
    "numeric_decoded",
    "wildcard",
    "listen",
    "steps",
    "drain_many",
    "drain_many_nonblocking",
    "drain_one",
    "import",
    "import_and_listen",
}


@pytest.mark.skipif(not LINUX, reason="the program in C is measured on Linux")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
def test_every_case_with_every_contender(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--rounds", "2", "--count", "3", "--json", str(file)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True).stdout

    results = json.loads(file.read_text("utf-8"))["results"]
    assert {result["case"] for result in results} == CASES
    for result in results:
        contenders = {"stdlib", "ours"} if result["case"].startswith("import") else {"C", "stdlib", "ours"}
        assert set(result["nanoseconds"]) == contenders
        for samples in result["nanoseconds"].values():
            assert len(samples) == 2
            assert all(nanoseconds > 0 for nanoseconds in samples)

    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(CASES)
    assert len({row.count("|") for row in rows}) == 1


def rows(program: str, *arguments: str) -> list[list[str]]:
    """The lines of figures that a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / program), *arguments]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True).stdout
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:]] for line in lines[2:]]


@pytest.mark.skipif(find_spec("uvicorn") is None, reason="uvicorn is not installed")
@pytest.mark.skipif(not LINUX, reason="a descriptor is handed over")
def test_every_way_to_hand_a_socket_to_uvicorn() -> None:
    found = rows("adopted.py", "--rounds", "1", "--requests", "2")
    assert len(found) == 3
    assert all(float(stdlib) > 0 and float(ours) > 0 for stdlib, ours, _ in found)


@pytest.mark.skipif(not LINUX, reason="the program in C is measured on Linux")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
@pytest.mark.skipif(LINUX and len(os.sched_getaffinity(0)) < 2, reason="one core for the servers, one for the clients")
@pytest.mark.proof
@pytest.mark.timeout(180)
def test_every_case_of_accepting(tmp_path: Path) -> None:
    file, chart = tmp_path / "samples.json", tmp_path / "chart.svg"
    command = [sys.executable, str(BENCHMARKS / "accepting.py"), "--quick", "--json", str(file), "--svg", str(chart)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True).stdout

    results = {result["case"]: result["samples"] for result in json.loads(file.read_text("utf-8"))["results"]}
    assert set(results) == {"drain_few", "drain_many", "short", "burst", "starved", "listeners", "open"}
    for case, samples in results.items():
        always = {"C, epoll and accept4", "harken, accept4"} if case not in ("burst", "starved") else set()
        assert {"harken on asyncio", "asyncio"} | always <= set(samples)
        for one in (one for found in samples.values() for one in found):
            assert all(
                number >= 0 for what, number in one.items() if what != "bytes for each"
            )  # memory may be given back
    for name, (found,) in results["starved"].items():
        kept, shed = (100, 50) if name.endswith("shed") else (150, 0)
        if name.startswith("harken"):
            assert (found["served afterwards"], found["closed"]) == (kept, shed)

    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(2 + len(samples) for samples in results.values())
    drawn = [element.text for element in ET.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert drawn.count("harken on asyncio") == 4
    assert chart.stat().st_size < 20000
