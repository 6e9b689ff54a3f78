"""The steps, ours beside C and the standard library, in one run: ``python benchmarks/run.py``.

Every round measures each case with every contender, in rotating order, so that whatever else the machine does hits all
of them. All processes are pinned to one core; all traffic is on loopback. Times depend on the machine, the ratios of
medians much less.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import report
from contenders import FreshInterpreter, all_three, compiler, room_for


class Case(NamedTuple):
    """A row of the table."""

    name: str
    title: str
    operations: int
    """How many one measurement has."""


CASES = [
    Case("numeric", "getaddrinfo, numeric", 5000),
    Case("numeric_named", "getaddrinfo, numeric, hints by name, the port as text", 5000),
    Case("numeric_decoded", "getaddrinfo, numeric, entries decoded", 5000),
    Case("wildcard", "getaddrinfo(None), both families", 500),
    Case("listen", "a listener opened and closed: listen()", 200),
    Case("steps", "a listener opened and closed: step by step", 200),
    Case("drain_many", "{} queued: accept_many(64); stdlib: accept()", 2000),
    Case("drain_many_nonblocking", "{} queued: accept_many(64); stdlib: accept(), setblocking(False)", 2000),
    Case("drain_one", "{} queued, addresses asked for: accept()", 2000),
    Case("import", "import; stdlib: import socket", 1),
    Case("import_and_listen", "import and the first listen(); stdlib: import socket", 1),
]


def pin() -> int | None:
    """This process, and those that it will start, on one core; None where that cannot be asked for."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def measure(cases: list[Case], rounds: int) -> list[tuple[Case, report.Samples]]:
    """The samples of each case. The first round warms up, and is not kept."""
    samples: list[report.Samples] = [{} for _ in cases]
    with tempfile.TemporaryDirectory() as folder, all_three(folder) as contenders:
        bytecode = f"{folder}/bytecode"
        imports = [FreshInterpreter("stdlib", "socket", bytecode), FreshInterpreter("ours", "harken", bytecode)]
        for number in range(rounds + 1):
            for case, kept in zip(cases, samples, strict=True):
                taking_part = imports if case.name.startswith("import") else contenders
                first = number % len(taking_part)
                for contender in taking_part[first:] + taking_part[:first]:
                    took = contender.measure(case.name, case.operations)
                    if number:
                        kept.setdefault(contender.name, []).append(took)
            if sys.stderr.isatty():
                print(f"\rround {number} of {rounds} ", end="", file=sys.stderr, flush=True)
    return list(zip(cases, samples, strict=True))


def main() -> None:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description="harken beside C and the standard library, interleaved")
    parser.add_argument("--rounds", type=int, default=41, help="measurements of each, besides one to warm up")
    parser.add_argument("--case", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--count", type=int, help="operations a measurement, instead of each case's own number")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample, in nanoseconds, to this file")
    options = parser.parse_args()
    if options.rounds < 1 or (options.count is not None and options.count < 1):
        parser.error("--rounds and --count must be at least 1")

    core = pin()
    cases = []
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        operations = case.operations if options.count is None else options.count
        if case.name.startswith("drain"):
            operations = room_for(operations)
        cases.append(case._replace(operations=operations, title=case.title.format(operations)))
    results = measure(cases, options.rounds)

    about = [
        *report.machine("not pinned" if core is None else f"all on core {core}"),
        f"{options.rounds} rounds; medians, with the middle half of the rounds in brackets",
    ]
    if compiler() is None:
        about.append("C is left out: there is no compiler, or no accept4()")
    print("\n" + "\n".join(about) + "\n")
    print(report.table([(case.title, samples) for case, samples in results]))
    if options.json:
        found = [
            {"case": case.name, "operations": case.operations, "nanoseconds": samples} for case, samples in results
        ]
        options.json.write_text(json.dumps({"about": about, "results": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
