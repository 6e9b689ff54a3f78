"""Runs the interpreter's own tests with `harken.Socket` in the place of `socket.socket`.

    python tests/stdlib_on_harken.py [MODULE[:PATTERN] ...] [--control]

Without arguments all of MODULES run, some five minutes; PATTERN is what unittest's -k takes. A test that fails is run
once more, alone, and then with the standard library's own sockets: if it fails there too, the machine is the reason.
Any other test that fails must be listed in stdlib_differences.txt, with a reason. A listed test that passes is an error
too, unless its reason begins with `sometimes`. With --control, a Socket that cannot send is used, to show that the
tests use it.

Prints, for each module, how many tests ran, failed unexpectedly, are excused, and are listed but pass. Exits with 1 if
there is anything to look at, with 77 if the interpreter has no package `test`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).absolute().parent
MODULES = (
    "test_socket", "test_ssl", "test_socketserver", "test_httpservers", "test_ftplib", "test_smtplib",
    "test_asyncio.test_events", "test_asyncio.test_server", "test_asyncio.test_streams",
    "test_asyncio.test_sock_lowlevel", "test_asyncio.test_sendfile", "test_asyncio.test_selector_events",
    "test_asyncio.test_unix_events", "test_asyncio.test_buffered_proto",
)  # fmt: skip
SECONDS = 300
PATIENCE = 20  # seconds for one test


def differences() -> dict[str, tuple[bool, str]]:
    """Name of a test: does it fail sometimes only, and why."""
    listed = {}
    for line in (HERE / "stdlib_differences.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition(" ")
            sometimes, _, why = reason.strip().rpartition("sometimes: ")
            listed[name] = (reason.strip().startswith("sometimes: "), why if not sometimes else reason.strip())
            assert listed[name][1], f"no reason for {name}"
    return listed


# ---------------------------------------------------------------------- in the child


def put(kind: str) -> None:
    # These derive from socket.socket, or hand it to C that takes nothing else: they keep the standard library's.
    import asyncio  # noqa: F401
    import socket
    import ssl  # noqa: F401

    import harken

    if kind == "harken":
        socket.socket = harken.Socket  # type: ignore[assignment,misc]
    elif kind == "control":

        class Mute(harken.Socket):
            def send(self, *_: object) -> int:
                raise OSError("the control sends nothing")

            sendall = sendto = sendmsg = send  # type: ignore[assignment]

        socket.socket = Mute  # type: ignore[assignment,misc]


class Result(unittest.TextTestResult):
    ran: list[str]

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, hangs)
            signal.alarm(PATIENCE)
        self.__dict__.setdefault("ran", []).append(test.id())

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
        super().stopTest(test)


def hangs(*_: object) -> None:
    raise RuntimeError(f"hangs: no end after {PATIENCE} s")


def child(kind: str, module: str, pattern: str, names: list[str], report: str) -> None:
    put(kind)
    from test import support

    support.use_resources = ["network"] if module == "test_socketserver" else []
    loaded = importlib.import_module(f"test.{module}")
    if hasattr(loaded, "SendfileUsingSendTest"):  # by two private methods, of which we have one, and public
        loaded.SendfileUsingSendTest.meth_from_sock = lambda _, sock: sock.sendfile
        loaded.SendfileUsingSendfileTest.meth_from_sock = lambda _, sock: sock.sendfile
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [f"*{pattern}*"]
    prefix = f"test.{module}."
    if names:
        suite = loader.loadTestsFromNames([name.removeprefix(prefix) for name in names], loaded)
    else:
        suite = loader.loadTestsFromModule(loaded)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        result = unittest.TextTestRunner(nowhere, resultclass=Result, warnings="ignore").run(suite)
    bad = {name_of(test): text for test, text in result.errors + result.failures}
    Path(report).write_text(json.dumps({"ran": getattr(result, "ran", []), "bad": bad}), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # threads of tests that failed may never end


def name_of(test: object) -> str:
    name = str(test.id()) if hasattr(test, "id") else str(test)  # a module's or a class's setUp has no id
    return name.partition(" ")[0] if name.startswith("test.") else name


# ---------------------------------------------------------------------- in the parent


def run(kind: str, module: str, pattern: str = "", names: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """What ran, and what failed with its traceback."""
    import tempfile

    with tempfile.TemporaryDirectory() as room:
        report = Path(room) / "report"
        command = [sys.executable, "-W", "ignore", __file__, "--child", kind, module, pattern, str(report), *names]
        try:
            ended = subprocess.run(
                command, cwd=room, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
                check=False, errors="replace",
            )  # fmt: skip
            told = ended.stderr[-2000:]
        except subprocess.TimeoutExpired:
            told = f"still ran after {SECONDS} s"
        if not report.exists():
            return [], {f"test.{module}": told}
        found = json.loads(report.read_text(encoding="utf-8"))
        return found["ran"], found["bad"]


def look(module: str, pattern: str, kind: str = "harken") -> tuple[int, dict[str, str], list[str], list[str]]:
    """How many ran; what failed unexpectedly, with its traceback; what is excused; what is listed, and passes."""
    listed = differences()
    ran, bad = run(kind, module, pattern)
    unexpected = {name: text for name, text in bad.items() if name not in listed}
    for name in list(unexpected) if kind == "harken" else ():
        alone = {"module": module, "names": (name,)}
        if name in ran and (not run("harken", **alone)[1] or run("stdlib", **alone)[1]):  # type: ignore[arg-type]
            del unexpected[name]
    excused = [name for name in bad if name in listed]
    passing = [name for name in ran if name in listed and name not in bad and not listed[name][0]]
    return len(ran), unexpected, excused, passing


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--control", action="store_true")
    arguments = parser.parse_args()
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None:
        print("this interpreter has no `test`")
        return 77
    wrong = 0
    for given in arguments.modules:
        module, _, pattern = given.partition(":")
        ran, unexpected, excused, passing = look(module, pattern, "control" if arguments.control else "harken")
        print(
            f"{module}: {ran} ran, {len(unexpected)} failed unexpectedly, {len(excused)} are excused, "
            f"{len(passing)} are listed and pass",
            flush=True,
        )
        for name, text in unexpected.items():
            print(f"  {name}: {text.strip().splitlines()[-1] if text.strip() else 'no report'}")
        for name in passing:
            print(f"  {name} passes: take it off the list")
        wrong += len(unexpected) + len(passing) + (ran == 0)
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[6:], sys.argv[5])
    sys.exit(main())
