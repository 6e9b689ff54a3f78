"""The fixture ``poison``: programs in a child process whose system calls are counted, and fail where a test says so.

The shim is ``poison.c``, preloaded. A test module asks for it by ``pytest_plugins = ["poison"]``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from children import in_namespace

PREAMBLE = """
import errno, gc, json, os, sys
import harken

def tell(**facts):
    print(json.dumps(facts))

def count(name):
    import ctypes
    return ctypes.CDLL(None).poison_count(name.encode())

def each_step(function):
    "Has function() called before and after each call by which a path is made and removed, but for its own; None: not."
    import ctypes
    def turn(name, after):
        if not each_step.busy:
            each_step.busy = True
            try:
                function()
            finally:
                each_step.busy = False
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int)
    each_step.kept, each_step.busy = kind(turn) if function else kind(), False
    ctypes.CDLL(None).poison_hook(each_step.kept)

def attempt(*binds, **options):
    "Listens, and tells what came of it; `open` is how many sockets are left while the error is still in hand."
    try:
        with harken.listen(*binds, **options) as listeners:
            left_out = [[address, error.errno] for address, error in listeners.left_out]
            tell(hosts=[one.address[0] for one in listeners], ports=[one.port for one in listeners], left_out=left_out)
    except OSError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        tell(step=error.step, address=error.address, errno=error.errno, kinds=kinds, text=str(error),
             open=count("sockets"), lists=count("lists"))
"""


class Report(NamedTuple):
    """What a program came to."""

    said: dict[str, Any]
    """What it gave to ``tell()``."""

    calls: dict[str, int]
    """How often it called each function; ``lists`` and ``sockets`` are those that were not given back by the end."""

    failures: dict[str, int]
    """How many calls the shim made fail."""


class Poison:
    """Runs programs under the shim."""

    def __init__(self, library: Path, room: Path) -> None:
        self.library = library
        self.room = room

    def run(
        self, program: str, *, poison: str = "", hosts: str = "", setup: str | None = None, timeout: float = 30
    ) -> Report:
        """Runs ``program`` behind PREAMBLE. For the language of ``poison`` and ``hosts`` see poison.c; with ``setup``,
        it runs in a network of its own, as in `children.run`."""
        command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", PREAMBLE + textwrap.dedent(program)]
        if setup is not None:
            command = in_namespace(command, setup)
        told = Path(tempfile.mkdtemp(dir=self.room)) / "report"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self.library),
            "POISON": poison,
            "POISON_HOSTS": hosts,
            "POISON_REPORT": str(told),
        }
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert child.returncode == 0, child.stderr
        assert child.stderr == ""
        said: dict[str, Any] = {}
        for line in child.stdout.splitlines():
            said |= json.loads(line)
        lines = [line.split() for line in told.read_text().splitlines()]
        calls = {name: int(number) for name, number, _ in lines}
        return Report(said, calls, {name: int(number) for name, _, number in lines})


@pytest.fixture(scope="session")
def poison_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("the shim is written for Linux and glibc")
    if os.environ.get("HARKEN_SANITIZED"):
        pytest.skip("the sanitizer has to be preloaded first")
    if made := os.environ.get("HARKEN_POISON"):
        return Path(made)  # by somebody who compiles for this machine on another
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the shim with")
    library = tmp_path_factory.mktemp("poison") / "poison.so"
    source = Path(__file__).with_name("poison.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def poison(poison_library: Path, tmp_path: Path) -> Poison:
    """Runs programs whose system calls are counted, and fail where the test says so."""
    return Poison(poison_library, tmp_path)
