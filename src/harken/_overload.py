"""What the log is told when descriptors run out. logging takes long to import, and waits until then."""

from __future__ import annotations


def report(open_connections: int, error: OSError, shed: bool) -> None:
    """One line; how often is the caller's business."""
    import logging

    what = "new clients are turned away" if shed else "clients wait in the queue"
    logging.getLogger("harken").warning("cannot accept: %s; %d connections are open, %s", error, open_connections, what)
