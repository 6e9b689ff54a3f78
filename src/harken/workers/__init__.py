"""A server in several processes: `serve` starts them, watches them and replaces them, without losing a client.

::

    def work(listeners):                      # in each worker
        with listeners.acceptor() as acceptor:
            for connection in acceptor:
                ...

    sys.exit(harken.workers.serve(work, ":8080", workers=4))

`_supervisor` is the process that starts the others, `_worker` what runs in those, `_board` the memory that they share,
`_busy` what can be seen of a worker's connections from outside.
"""

from ._supervisor import serve
from ._worker import asgi, draining, listeners, ready

__all__ = ["asgi", "draining", "listeners", "ready", "serve"]
