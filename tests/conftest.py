"""No test leaves a socket open, and what Wine lacks is counted. Where pytest-run-parallel runs each test in several
threads at once (.ci/nogil), each thread has fixtures of its own."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkserver import own_sockets
from hypothesis.configuration import set_hypothesis_home_dir

import harken
from engines import NAMES, forbidden, one_listener
from machine import WINDOWS, WINE, lacks, open_sockets

if WINDOWS and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    # hypothesis makes a temporary folder and removes it. Windows' tempfile tries 10,000 times in one that is going.
    set_hypothesis_home_dir(Path(os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis"), worker))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for reason in filter(None, map(lacks, {mark.name for mark in item.iter_markers()})):
            item.add_marker(pytest.mark.skip(reason=reason))
        if isinstance(item, pytest.Function):
            own = set(item.fixturenames) & getattr(item.module, "EACH_THREAD", {}).keys()
            if own and int(item.config.getoption("parallel_threads", 1)) > 1:
                item.obj = with_its_own(item.obj, {name: item.module.EACH_THREAD[name] for name in own})


def with_its_own(test: Callable[..., None], makers: dict[str, Any]) -> Callable[..., None]:
    """The test with fixtures that are made where it runs: the makers are what the fixtures themselves are made by."""

    @functools.wraps(test)
    def inner(*args: Any, **fixtures: Any) -> None:
        with contextlib.ExitStack() as stack:
            test(*args, **fixtures | {name: stack.enter_context(make()) for name, make in makers.items()})

    return inner


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    """The test runs on each engine that can be had here."""
    name = str(request.param)
    if forbidden(name):
        pytest.skip(f"no {name} here: {forbidden(name)}")
    return name


@pytest.fixture
def listeners() -> Iterator[harken.Listeners]:
    with one_listener() as made:
        yield made


@pytest.fixture(autouse=True)
def leaves_no_socket_open() -> Iterator[None]:
    before = open_sockets()
    yield
    if open_sockets() - before:
        gc.collect()  # an exception kept by the test may hold a frame with a socket in it
        assert open_sockets() - before - own_sockets() == set(), "left open by this test"


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
