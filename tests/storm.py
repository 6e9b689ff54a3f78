"""A storm of threads that close, give away, query, pause and accept on the same listeners, while files are opened and
closed beside them: no call may reach a descriptor whose number was closed and reused.

    python storm.py SECONDS

Prints how many rounds there were, how often a call met something other than a socket (ENOTSOCK), and how often a file
was closed that this program had not closed: both must be 0. On a free-threaded Python this finds calls that are made
outside a critical section; with a GIL, calls that are made by number.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import faulthandler
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable

import harken

ALLOWED = (errno.EBADF, errno.EAGAIN, errno.EINVAL, errno.EMFILE)


def main(seconds: float) -> int:
    warnings.simplefilter("ignore", ResourceWarning)
    faulthandler.dump_traceback_later(seconds + 60, exit=True)
    met: collections.Counter[str] = collections.Counter()
    gone = rounds = 0
    end = time.monotonic() + seconds
    over = threading.Event()

    def canary() -> None:
        """Takes the numbers that become free."""
        nonlocal gone
        kind = os.stat(os.devnull).st_rdev
        while not over.is_set():
            files = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
            for file in files:
                try:
                    gone += os.fstat(file).st_rdev != kind
                    os.close(file)
                except OSError:
                    gone += 1

    def at_once(calls: list[Callable[[], object]]) -> None:
        ready = threading.Barrier(len(calls))

        def one(call: Callable[[], object]) -> None:
            ready.wait()
            for _ in range(3):
                try:
                    call()
                except OSError as error:
                    met[errno.errorcode.get(error.errno or 0, str(error))] += error.errno not in ALLOWED
                except ValueError:
                    pass  # "is closed, or was given away"

        threads = [threading.Thread(target=one, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    watcher = threading.Thread(target=canary)
    watcher.start()
    while time.monotonic() < end:
        listeners = harken.listen("127.0.0.1:0", "127.0.0.1:0")
        first, second = listeners
        acceptor = harken.Acceptor(listeners)

        def another(listeners: harken.Listeners = listeners) -> None:
            harken.Acceptor(listeners).close()

        def gives_away(second: harken.Listener = second) -> None:
            second.to_socket().close()

        def asks(first: harken.Listener = first, second: harken.Listener = second) -> None:
            for listener in (first, second):
                with contextlib.suppress(OSError):
                    repr(listener)
                listener.stats()
                listener.backlog  # noqa: B018

        def pauses(acceptor: harken.Acceptor = acceptor) -> None:
            acceptor.pause()
            acceptor.stats()
            acceptor.resume()

        ends = (first.close, gives_away) if rounds % 2 else (acceptor.close, first.close)
        at_once([another, asks, asks, pauses, acceptor.accept_many, *ends])
        acceptor.close()
        listeners.close()
        rounds += 1
    over.set()
    watcher.join()
    others = sum(met.values()) - met["ENOTSOCK"]
    print(f"{rounds} rounds, ENOTSOCK: {met['ENOTSOCK']}, files gone: {gone}, other errors: {others} {+met or ''}")
    return 1 if met["ENOTSOCK"] or gone or others else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
