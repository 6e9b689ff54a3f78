"""What the log is told when descriptors run out. logging takes long to import, and waits until then."""

from __future__ import annotations

import sys


def report(open_connections: int, error: OSError, shed: bool) -> None:
    """One line; how often is the caller's business."""
    what = "new clients are turned away" if shed else "clients wait in the queue"
    text, facts = "cannot accept: %s; %d connections are open, %s", (error, open_connections, what)
    try:
        import logging
    except MemoryError:
        raise
    except Exception:  # its files cannot be read any more: then as it would do without a handler
        if sys.stderr is not None:
            sys.stderr.write(f"{text % facts}\n")
    else:
        logging.getLogger("harken").warning(text, *facts)
