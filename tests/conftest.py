"""No test leaves a socket open, and what Wine lacks is counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from machine import EMULATOR, EMULATOR_LACKS, WINE, open_sockets


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if EMULATOR:
        lacks = {test: what for what, tests in EMULATOR_LACKS.items() for test in tests}
        for item in items:
            what = lacks.get(item.name) or lacks.get(item.name.partition("[")[0])
            if what:
                item.add_marker(pytest.mark.skip(reason=f"{EMULATOR} lacks: {what}"))


@pytest.fixture(autouse=True)
def leaves_no_socket_open() -> Iterator[None]:
    before = open_sockets()
    yield
    if open_sockets() - before:
        gc.collect()  # an exception kept by the test may hold a frame with a socket in it
        assert open_sockets() - before == set(), "left open by this test"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"skipped, each with its reason above: {skipped}")
    if WINE:
        lacking = [
            report
            for report in terminalreporter.stats.get("xfailed", []) + terminalreporter.stats.get("skipped", [])
            if "Wine lacks" in (getattr(report, "wasxfail", "") or str(report.longrepr))
        ]
        terminalreporter.write_line(f"held back because Wine {WINE} lacks something: {len(lacking)}")
