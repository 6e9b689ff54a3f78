"""The command line: ``python -m harken``, or just ``harken``."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

from . import __version__

if TYPE_CHECKING:
    from ._cli.serve import Stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    _plug()
    _escape()
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        _out().flush()
    except KeyboardInterrupt:
        return 130  # before there was anything to end cleanly
    except _WriteError as unwritten:
        if unwritten.errno != errno.EPIPE:  # or else whoever read it has seen enough
            print(f"harken: cannot write to stdout: {unwritten.__cause__}", file=sys.stderr)
        # What is not written yet goes nowhere, or Python would try again when it ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    return code


class _WriteError(Exception):
    """stdout cannot be written to."""

    def __init__(self, errno: int | None) -> None:
        self.errno = errno


class _Stdout:
    """stdout, whose errors are told from those of what is looked into."""

    def write(self, text: str) -> int:
        try:
            return sys.stdout.write(text)
        except OSError as error:
            raise _WriteError(error.errno) from error

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except OSError as error:
            raise _WriteError(error.errno) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def _out() -> TextIO:
    return cast("TextIO", _Stdout())


def _plug() -> None:
    """Where a standard stream is closed (``>&-``), Python has none, and the next socket or file that is opened would
    get its number, and what others write there."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - as long as we live


def _escape() -> None:
    """What the encoding of a standard stream has no character for is written as ``\\xe9``: names are other people's,
    and PYTHONIOENCODING or the locale may be of another part of the world."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harken",
        description="From a name to accepted connections.",
        epilog="Exit codes: 0 done, 1 a listener could not be opened or no process holds the address, 2 the command"
        " line is invalid, 3 the holder cannot be determined. Each command's --help has its own.",
    )
    parser.add_argument("--version", action="version", version=f"harken {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="an echo server on the given binds",
        description="Listens on every BIND and sends back whatever clients send, until Ctrl-C, SIGTERM or"
        " another signal that would end it, or --for.",
        epilog="A BIND is anything that harken.listen() accepts: 8080, 127.0.0.1:8080, [::1]:8080, localhost:http,"
        " :8000-8010,"
        " unix:/run/app.sock, fd://3, also with options: :8080?reuse_port=1. Port 0 lets the system choose.",
    )
    serve.add_argument("binds", nargs="*", metavar="BIND", help="default: 127.0.0.1:27015 and [::1]:27015")
    serve.add_argument("--for", dest="seconds", type=_seconds, metavar="SECONDS", help="stop after this time")
    serve.add_argument(
        "--backlog", type=int, metavar="N", help="connections that may wait (default: as many as the system grants)"
    )
    serve.add_argument(
        "--every", type=_seconds, default=5.0, metavar="SECONDS", help="time between two lines of figures (default: 5)"
    )
    serve.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    serve.set_defaults(run=_serve)

    who = commands.add_parser(
        "who",
        help="which processes hold an address",
        description="Names the processes that hold the address of a BIND, also by listening on a wildcard.",
        epilog="A BIND is 8080, 127.0.0.1:8080, [::1]:8080, localhost:http, unix:/run/app.sock. Exit codes: 0 a"
        " process holds one of them, 1 none does, 2 a BIND is invalid, 3 it cannot be determined.",
    )
    who.add_argument("binds", nargs="+", metavar="BIND")
    who.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    who.set_defaults(run=_who)

    check = commands.add_parser(
        "check",
        help="whether binds could be opened, and if not, why",
        description="Reports what harken.listen(BIND...) would open, what would prevent it and what to do about that."
        " Names are looked up, and each address is bound and closed again at once: for that instant it is in use, and"
        " nobody can connect to it. Unix paths and inherited sockets are only inspected.",
        epilog="A BIND is anything that harken.listen() accepts: 8080, :8000-8010, localhost:http, unix:/run/app.sock, fd://3,"
        " systemd:web, also with options: :8080?backlog=8192. Other programs get tabs between verdict, address,"
        " bind, backlog, cause, held by, error, hint, note. Exit codes: 0 all could be opened, 1 at least one could"
        " not, 2 a BIND is invalid (nothing is reported of the others, as nothing would be opened), 3 at least one is"
        " undetermined (the others could be opened).",
    )
    check.add_argument("binds", nargs="+", metavar="BIND")
    check.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    check.set_defaults(run=_check)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from ._cli import serve

    with serve.Stop() as stop:
        return _serve_until(stop, options)


def _serve_until(stop: Stop, options: argparse.Namespace) -> int:
    from ._cli import serve

    try:
        with warnings.catch_warnings(record=True, action="always") as told:
            listeners = serve.open_listeners(options.binds, options.backlog, stop)
    except serve.Stopped as stopped:
        return 128 + stopped.number
    except ValueError as error:
        print(f"harken: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"harken: {error}", file=sys.stderr)
        return 1
    with listeners:
        for warning in told:
            print(f"harken: {warning.message}", file=sys.stderr)
        report = serve.Report(sys.stdout, as_json=options.json, every=options.every)
        serve.run(listeners, report, stop, options.seconds)
    return 0


def _who(options: argparse.Namespace) -> int:
    from ._cli import who

    return who.run(options.binds, options.json, _out())


def _check(options: argparse.Namespace) -> int:
    from ._cli import check

    return check.run(options.binds, options.json, _out())


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
