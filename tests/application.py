"""What the servers of test_servers.py serve."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

ANSWER = b"answer"
FIRST, REST = b"first part", b"the rest"


async def asgi(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    """Answers, and leaves the connection open."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    await receive()
    headers = [(b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterator[bytes]:
    """Answers in part, and waits for a byte before the rest, after which gunicorn may close the connection."""
    start_response("200 OK", [("Content-Length", str(len(FIRST + REST)))])
    yield FIRST
    environ["wsgi.input"].read(1)
    yield REST
