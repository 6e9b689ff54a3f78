"""asyncio's servers over the accept engine: `start_server` and `create_server`, with asyncio's own signatures.

::

    server = await harken.asyncio.start_server(greet, "127.0.0.1", 8080, max_open=1000)
    server = await harken.asyncio.create_server(Protocol, ":8080", ssl=context)
    async with server:
        await server.serve_forever()

What differs from asyncio's: connections are taken in batches by an `harken.Acceptor`, which survives running out of
descriptors; no task is made for each; the queue has the length that the system grants, and never becomes shorter; a
protocol factory that fails closes its connection, and the loop's exception handler is told.

When there is something to take is told by ``loop.add_reader()`` on the acceptor's one descriptor, or where the loop or
the engine has none, by a thread that waits.
"""

from __future__ import annotations

from .._loading import PARTS, idna, load
from ._server import Server
from ._start import create_server, start_server

__all__ = ["Server", "create_server", "start_server"]

# What is for options, errors and other names is loaded now, and not on a loop's thread.
for _part in PARTS:
    load(f"harken.{_part}")
idna("harken\u00e9")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


for _public in (Server, create_server, start_server):
    _public.__module__ = __name__  # where programs import them from
