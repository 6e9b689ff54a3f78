"""Who takes part in run.py: C, the standard library, ours. One process each, kept for the run, asked over pipes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


class Contender:
    """A process that answers "case count" with nanoseconds an operation."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def _say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        return line

    def measure(self, case: str, count: int) -> float:
        """Nanoseconds an operation, of ``count``."""
        self._say(f"{case} {count}")
        if not case.startswith("drain"):
            return float(self._answer())
        with queued(int(self._answer()), count):
            self._say("go")
            return float(self._answer())

    def close(self) -> None:
        """No more lines: it ends."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class FreshInterpreter:
    """An interpreter a measurement, for what can be done once only: an import."""

    def __init__(self, name: str, module: str, bytecode: str) -> None:
        self.name, self.module = name, module
        # Modules are read from bytecode, as they are once installed, whatever the environment says about writing it.
        self.environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.environment["PYTHONPYCACHEPREFIX"] = bytecode

    def measure(self, case: str, count: int) -> float:
        """Nanoseconds of one import, the mean of ``count``; in the case "import_and_listen" ours with its first
        listener."""
        to_do = f"import {self.module}"
        if (self.name, case) == ("ours", "import_and_listen"):
            to_do += "; harken.listen('127.0.0.1:0')"
        code = (
            f"from time import perf_counter_ns as now; start = now(); {to_do}; took = now() - start\n"
            f"import sys; assert {self.module!r} == 'socket' or 'socket' not in sys.modules; print(took)"
        )
        command = [sys.executable, "-W", "ignore", "-c", code]
        return sum(int(subprocess.check_output(command, env=self.environment)) for _ in range(count)) / count


@contextlib.contextmanager
def queued(port: int, count: int) -> Iterator[None]:
    """``count`` connections to ``port`` while the block runs."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            # Closed with a reset: thousands of connections in TIME_WAIT would use up the ports.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield


def room_for(connections: int) -> int:
    """How many connections can be queued at once: the limit of descriptors is raised as far as it goes."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + 100
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY:
            connections = min(connections, soft - 100)
        return min(connections, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    except (ImportError, FileNotFoundError):
        return min(connections, 100)


def compiler() -> str | None:
    """The C compiler, $CC or cc, where the program in C can be built: it calls accept4()."""
    return shutil.which(os.environ.get("CC", "cc")) if sys.platform.startswith(("linux", "freebsd")) else None


@contextlib.contextmanager
def all_three(folder: str) -> Iterator[list[Contender]]:
    """C (where there is a compiler), the standard library, ours; ``folder`` is for the program in C."""
    commands = {
        "stdlib": [sys.executable, str(HERE / "with_stdlib.py")],
        "ours": [sys.executable, str(HERE / "with_harken.py")],
    }
    cc = compiler()
    if cc:
        flow = str(Path(folder) / "flow")
        subprocess.run([cc, "-O2", "-o", flow, str(HERE / "flow.c")], check=True)
        commands = {"C": [flow], **commands}
    with contextlib.ExitStack() as stack:
        contenders = []
        for name, command in commands.items():
            contenders.append(Contender(name, *command))
            stack.callback(contenders[-1].close)
        yield contenders
