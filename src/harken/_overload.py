"""What the log is told when descriptors run out. Imported when that happens: logging takes long to import."""

from __future__ import annotations

import logging

logger = logging.getLogger("harken")


def report(open_connections: int, error: OSError, shed: bool) -> None:
    """One line; how often is the caller's business."""
    what = "new clients are turned away" if shed else "clients wait in the queue"
    logger.warning("cannot accept: %s; %d connections are open, %s", error, open_connections, what)
