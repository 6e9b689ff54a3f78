"""From an accepted connection to a transport of uvloop.

uvloop makes a transport for a connection that is there already in ``loop.connect_accepted_socket()``, a coroutine. A
task for it would cost as much as all the rest, so it is driven here. Its first step, in which uvloop takes the
descriptor, is made at once. Its last step, which returns the transport, is made for all connections of a batch in one
callback of the loop, behind those that call ``connection_made()``. With TLS it comes when the handshake is over.

It is done in C because it is done for every connection, and because nothing may come between uvloop's step and ours,
which gives the handle up.
"""

import cython

from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cimport harken._platform as c
from harken._socket cimport Socket

from asyncio import CancelledError


cpdef object must_be_protocol(object protocol):
    """What a protocol factory has returned. It is looked at before there is a transport, which would stay."""
    if isinstance(protocol, type) or not hasattr(protocol, "connection_made"):
        raise TypeError(f"the protocol factory returned {protocol!r}, which is not a protocol")
    return protocol


@cython.final
cdef class Lent:
    """As much of a socket as uvloop asks for. libuv closes the descriptor; then uvloop closes what it had it from."""

    cdef readonly int family, type, proto
    cdef Socket connection  # whose handle is uvloop's after the first step
    cdef object server
    cdef object client  # the transport, when it is known
    cdef object coroutine, future  # until it has ended, and what it waits for
    cdef set held  # the server's connections
    cdef bint open
    cdef bint looked  # the future had no result when finish() looked

    def fileno(self):
        """The descriptor; -1 when it is uvloop's."""
        return -1 if self.connection.handle == c.NET_INVALID else self.connection.handle

    cdef int wait(self) except -1:
        """go_on() is called by the loop when what the coroutine waits for has come."""
        self.future._asyncio_future_blocking = False
        self.future.add_done_callback(self.go_on)
        return 0

    def go_on(self, future=None, /):
        """The next step of the coroutine, when it has what it waits for."""
        self.step(None)

    cdef int step(self, error) except -1:
        coroutine = self.coroutine
        cdef bint ended = False
        if coroutine is None:
            return 0
        try:
            told = step_of(coroutine, &ended) if error is None else coroutine.throw(error)
        except BaseException as failure:
            self.coroutine = self.future = None
            if not isinstance(failure, StopIteration):
                self.server._failed(failure)
            return 0
        if not ended:
            self.future = told
            return self.wait()
        self.coroutine = self.future = None
        if self.open:
            self.client = told[0]
        return 0

    def close(self):
        """uvloop has closed the descriptor, which the engine does not know, and the server has one client less."""
        if self.open:
            self.open, self.client = False, None
            self.server._release()
            self.held.discard(self)
            if self.server._listeners is None:
                self.server._wake_if_over()

    def end(self, str what, /):
        """Calls ``close()`` or ``abort()`` of the transport; one that is not there yet will not be made."""
        if self.future is not None and self.future.done():
            self.step(None)
        if self.coroutine is not None:
            self.step(CancelledError())
        elif self.client is not None:
            getattr(self.client, what)()


cdef object step_of(coroutine, bint *ended):
    """What it waits for, or what it returned when it has ended."""
    cdef PyObject *result = NULL
    ended[0] = c.PyIter_Send(coroutine, None, &result) == c.PYGEN_RETURN
    told = <object>result
    Py_DECREF(told)
    return told


@cython.final
cdef class Lender:
    """Lender(loop, factory, tls, held)\n--\n\n\
    Lends connections to uvloop, for one `harken.asyncio.Server`, to which it does not refer."""

    cdef object factory, connect, call_soon
    cdef dict tls
    cdef set held  # the server's, of those that are not closed yet
    cdef object protocol  # for the connection that is about to begin
    cdef list begun  # whose last step is to come
    cdef bint called  # finish() is going to be

    def __init__(self, loop, factory, dict tls not None, set held not None):
        self.factory, self.tls, self.held = factory, tls, held
        self.connect, self.call_soon = loop.connect_accepted_socket, loop.call_soon
        self.begun = []

    def __call__(self):
        """What uvloop takes for the protocol factory. There is a protocol already: what is wrong with the caller's is
        found out before uvloop is asked for anything."""
        protocol, self.protocol = self.protocol, None
        return protocol

    def begin(self, server, Socket connection not None, /):
        """In a context of its own, as if it were a task."""
        context = PyContext_CopyCurrent()
        PyContext_Enter(context)
        try:
            try:
                self.lend(server, connection)
            finally:
                PyContext_Exit(context)
        except BaseException as error:
            server._not_begun(connection, error)

    cdef int lend(self, server, Socket connection) except -1:
        """When it raises, the connection is still the caller's; or else uvloop has it, and goes on."""
        cdef Lent lent
        cdef bint ended = False
        protocol = must_be_protocol(self.factory())
        lent = Lent.__new__(Lent)
        lent.server, lent.held, lent.connection = server, self.held, connection
        lent.family, lent.type, lent.proto = connection.domain, connection.kind, connection.proto
        try:
            lent.coroutine = self.connect(self, lent, **self.tls) if self.tls else self.connect(self, lent)
            lent.open = True
            self.held.add(lent)
            self.protocol = protocol
            # Whatever is wrong with the connection or the arguments is found out in this step, before uvloop has the
            # descriptor.
            told = step_of(lent.coroutine, &ended)
            connection.let_go(False)
        except BaseException:
            coroutine, lent.coroutine, lent.open, self.protocol = lent.coroutine, None, False, None
            self.held.discard(lent)
            if coroutine is not None:
                coroutine.close()
            raise
        if ended:
            lent.coroutine, lent.client = None, told[0]
            return 0
        lent.future = told
        if self.tls:
            return lent.wait()
        self.begun.append(lent)
        return self.call()

    cdef int call(self) except -1:
        if not self.called:
            self.call_soon(self.finish)
            self.called = True
        return 0

    def finish(self):
        """In the loop, behind ``connection_made()``: the transports are told. The first connection of a batch asks for
        this call, so it comes before the others have begun; for these there is a second one, behind them all."""
        cdef Lent lent
        cdef list again = []
        self.called = False
        try:
            while self.begun:
                lent = self.begun.pop()
                if lent.coroutine is None:
                    pass  # it was ended
                elif lent.future.done():
                    lent.step(None)
                elif lent.looked:
                    lent.wait()
                else:
                    lent.looked = True
                    again.append(lent)
        finally:  # also when the loop stops: if it goes on, so does this
            self.begun += again
            if self.begun:
                self.call()


include "ending.pxi"
