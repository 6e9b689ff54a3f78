"""Runs programs in children of a server that has Python's own modules loaded and forks, which costs a tenth of what an
interpreter costs to start.

The server has loaded nothing of harken: each program loads that, and whatever it loads later, as in an interpreter of
its own. It also has its own globals, files and folder, and ends as any other does. Only Linux has pidfds, by which the
server learns that a child has ended; where there are none, `start` returns None.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import IO

_SERVER = r"""
import argparse, array, ast, asyncio, atexit, contextlib, copy, ctypes, dataclasses, difflib, encodings.idna
import errno, fcntl, gc, grp, importlib.util, inspect, io, itertools, json, os, pwd, random, re, resource, select, shlex
import shutil, signal, socket, stat, struct, subprocess, sys, tempfile, textwrap, threading, traceback, typing, warnings

def unshare(setup):
    "From now on the process has a network of its own, with only a loopback, which shell commands may change."
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
    if libc.unshare(0x40000000 | (0x10000000 if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    subprocess.run(["sh", "-ec", f"ip link set lo up\n{setup}"], check=True)

def prepare(control, files):
    "In the child: returns the program."
    for number, (file, name) in enumerate(zip(files, ("stdin", "stdout", "stderr"))):
        os.dup2(file, number)
        errors = "backslashreplace" if name == "stderr" else None
        stream = open(number, "w" if number else "r", closefd=False, errors=errors)
        if number:
            stream.reconfigure(line_buffering=number == 2 or stream.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    with control.makefile("rb") as stream:
        asked = json.loads(stream.readline())
    control.detach()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(asked["folder"])
    if asked["session"]:
        os.setsid()
    if asked["setup"] is not None:
        unshare(asked["setup"])
    return asked["program"]

def serve(door):
    poll, children = select.poll(), {}
    poll.register(door, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            if number in children:
                control, pid = children.pop(number)
                poll.unregister(number)
                os.close(number)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with control, contextlib.suppress(OSError):
                    control.sendall(b"%d\n" % code)
                continue
            data, files, _, _ = socket.recv_fds(door, 1, 4)
            if not data:
                os._exit(0)
            control = socket.socket(fileno=files[3])
            pid = os.fork()
            if pid == 0:
                return prepare(control, files[:3])
            for file in files[:3]:
                os.close(file)
            control.sendall(b"%d\n" % pid)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = control, pid
            poll.register(pidfd, select.POLLIN)

door = socket.socket(fileno=int(sys.argv.pop()))
gc.collect()
gc.freeze()
program = compile(serve(door), "<string>", "exec")
main = sys.modules["__main__"] = type(sys)("__main__")
code = 0
try:
    try:
        exec(program, vars(main))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__.tb_next)
        code = 1
    # What the interpreter does at its end, but for what it does to its own modules, which takes most of the time.
    threading._shutdown()
    atexit._run_exitfuncs()
    vars(main).clear()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
finally:
    os._exit(code)
"""


class Program:
    """One that runs: what `subprocess.Popen` calls the same is the same."""

    returncode: int | None = None

    def __init__(self, control: socket.socket, stdin: IO[str] | None, stdout: IO[str], stderr: IO[str] | None) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._control = control
        self._lines = control.makefile("rb")
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            self._control.settimeout(timeout)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._control.close()
        return self.returncode


@functools.cache
def _door() -> tuple[socket.socket, dict[str, str]] | None:
    """The connection to this process's server, and the environment that it has."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return None
    environment = _environment()
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", _SERVER, str(theirs.fileno())]
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
        )

    def end(of: int = os.getpid()) -> None:
        if os.getpid() == of:
            ours.close()
            server.wait(10)

    atexit.register(end)
    return ours, environment


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def own_sockets() -> set[str]:
    """The names of this process's end of the connection to the server, as `machine.open_sockets` has them."""
    door = _door() if _door.cache_info().currsize else None
    return {f"{door[0].fileno()} {os.readlink(f'/proc/self/fd/{door[0].fileno()}')}"} if door else set()


def start(program: str, *, session: bool = False, setup: str | None = None, waits: bool = False) -> Program | None:
    """Starts a program. ``session``: it leads one. ``setup``: it has a network of its own, which these shell commands
    may change. ``waits``: it has an input, and its errors go where ours go; else it has none, and they are kept."""
    door = _door()
    if door is None or door[1] != _environment():
        return None
    ours: list[IO[str] | None] = []
    theirs = []
    with contextlib.ExitStack() as stack:
        for mode in ("w" if waits else "", "r", "" if waits else "r"):
            if mode:
                pair = os.pipe()
                ours.append(os.fdopen(pair[mode == "w"], mode))
                theirs.append(pair[mode == "r"])
            else:
                ours.append(None)
                theirs.append(os.dup(2) if ours[:-1] else os.open(os.devnull, os.O_RDONLY))
            stack.callback(os.close, theirs[-1])
        control, its = socket.socketpair()
        stack.callback(its.close)
        asked = {"program": program, "folder": os.getcwd(), "session": session, "setup": setup}
        socket.send_fds(door[0], [b"x"], [*theirs, its.fileno()])
    control.sendall(json.dumps(asked).encode() + b"\n")
    return Program(control, *ours)


def ended(program: Program, seconds: float) -> tuple[int, str, str]:
    """The exit code, and what the program has written to its output and as errors."""
    deadline = time.monotonic() + seconds
    said = {file: bytearray() for file in (program.stdout, program.stderr) if file}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for file in said:
            selector.register(stack.enter_context(file), selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                os.kill(program.pid, signal.SIGKILL)
                raise TimeoutError(f"a program has not ended after {seconds} s")
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                said[key.fileobj] += data
                if not data:
                    selector.unregister(key.fileobj)
    code = program.wait(max(deadline - time.monotonic(), 1))
    out, err = (bytes(text).decode() for text in said.values())
    return code, out, err
