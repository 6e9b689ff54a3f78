"""Steps 2 to 5: socket, bind, listen, accept; and what a connection needs to be served.

How a call is made. A system call that may last is made with the GIL released, between ``enter()`` and ``leave()``,
which count the calls in flight. ``close()`` takes the handle away first, so that no new call begins, then ends those in
flight, waits for them, and closes last: Winsock forbids closing a socket under a call, and on POSIX the number could
already belong to somebody else. A call that finds its socket closed when it comes back raises EBADF. Signal handlers
run outside that count, so a handler may close the very socket that its thread was waiting on.

Threads without a GIL. Calls that cannot wait are made in a critical section of the socket, as are enter(), leave() and
let_go(): between the look at the handle and the call nobody can close it, and give the number to a stranger. What is
read outside of one is a single number, and a hint at most.

How a wait is made. On POSIX a blocking connection waits in its own system call, as a C program would. accept() waits in
poll() on a non-blocking listener and a waker, because nothing else can be woken by close() without harm to the
processes that share the listener. On Windows every handle is non-blocking, and every wait is net_wait().

What EAGAIN means. Four parties may say how long a call waits, and the first of these that spoke decides:

1. The timeout of this object, if it is a number. 0: EAGAIN is BlockingIOError at once. More: EAGAIN is a wait, also
   with MSG_DONTWAIT, and TimeoutError in the end. The system is never left to wait, for it knows nothing of our time:
   transfers are made with MSG_DONTWAIT, accept() and connect() on a handle that was made non-blocking just before.
   (accept() of a listener whose timeout is 0 trusts the mode that it was given: it would cost a second system call.)
2. The caller's flags of this call. MSG_DONTWAIT: BlockingIOError at once. So, too, for urgent data and the error queue,
   for which no system waits.
3. The caller's SO_RCVTIMEO or SO_SNDTIMEO. The kernel waits that long, and EAGAIN is BlockingIOError; connect() says
   EINPROGRESS. Where the kernel did not wait (an accept(), or a handle that does not block) we wait as long in its
   place. On Windows the error is WSAETIMEDOUT, as Winsock's blocking calls have it.
4. Nobody: the call waits for ever, whatever mode others have given to the handle; for O_NONBLOCK belongs to all who
   share the socket, and to none of them alone. Here the standard library would raise BlockingIOError. The one exception
   is a call that poll() cannot wait for: a datagram for which the receiver or the system has no room.

More than 600 lines: two thirds are one class, `Socket`, which has the methods of the standard library's sockets, in
seven parts: the steps in C, calls in flight, waiting, then bind to accept, connect to sendfile, names and options, and
ownership. Behind it are functions: how a socket is closed, buffers and arguments, questions about a handle from
anywhere, and the options that accepted connections are given. How a handle moves to another object is in move.pxi.
"""

import cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport ceil, isnan
from libc.string cimport memcpy, memset

cimport harken._platform as c
from harken._system cimport forks
from harken._platform cimport net_address_t, net_buffer_t, net_length_t, net_socket_t, sockaddr
from harken._resolve cimport decode, locate, shown

from sys import modules

from harken._loading import load

include "move.pxi"

cdef enum:
    BATCH = 64  # how many connections one trip into C takes at the most
    FEW = 4  # buffers of sendmsg() for which nothing is allocated
    TIMED_OUT = -2  # no error number of any system


cdef enum:  # the calls of a transfer: those that receive first
    RECV
    RECVFROM
    RECVMSG
    SEND
    SENDTO
    SENDMSG


getdefaulttimeout = None  # the function, once `_socket` is there


cdef class Socket:
    """Socket(family=-1, type=-1, proto=-1, fileno=None)\n--\n\n\
    One socket handle, owned. Names, meanings, defaults and errors are those of the standard library's sockets.

    ``Socket(family, type, proto)`` calls socket(2) with SOCK_CLOEXEC, on Windows WSASocketW() with
    WSA_FLAG_NO_HANDLE_INHERIT: no child inherits it by accident. ``Socket(fileno=handle)`` takes over a handle that
    exists already, and asks the system for what is not given.

    What is different, on purpose: ``proto`` is IPPROTO_TCP for a TCP socket, also when 0 was asked for (asyncio turns
    Nagle's algorithm off only where it reads 6); ``close()`` ends the calls that other threads have in flight;
    ``accept()`` passes over connections that died in the queue; ``accept_many()`` takes all that wait.
    """

    def __cinit__(self):
        self.handle = c.NET_INVALID
        self.wished = -1
        self.seconds = -1
        self.blocks = not c.NET_WAITS_BY_POLL
        self.forks = forks()

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        cdef int error, of = int_of(family, "family"), kind = int_of(type, "type"), by = int_of(proto, "proto")
        cdef double seconds = default_timeout()
        if self.handle != c.NET_INVALID:
            raise RuntimeError("this Socket has its handle already")
        if fileno is not None:
            self.adopt(fileno, of, kind, by)
        else:
            error = self.open(
                c.AF_INET if of == -1 else of, c.SOCK_STREAM if kind == -1 else kind, 0 if by == -1 else by
            )
            if error:
                c.net_raise(error)
        if self.seconds < 0 and seconds >= 0:
            self.set_timeout(seconds)

    def __del__(self):
        if self.handle != c.NET_INVALID:
            text = addresses_of(self)
            if c.PyErr_ResourceWarning(
                self, 1, "unclosed harken.Socket, handle %lld%s", <long long>self.handle, <const char *>text
            ) < 0:
                c.PyErr_WriteUnraisable(self)
            self.end()  # whoever records the warning keeps this object, but not the handle

    def __dealloc__(self):
        # Nobody is left to hear of an error here, and no call can be in flight: each holds a reference.
        self.end()

    @property
    def family(self):
        """The address family, as `socket.AddressFamily` if it is one of these."""
        return named("AddressFamily", self.domain, <dict>FAMILIES)

    @property
    def type(self):
        """The type, as `socket.SocketKind` if it is one of these."""
        return named("SocketKind", self.kind, <dict>KINDS)

    # ------------------------------------------------------------------ the steps in C: an error number, or 0

    cdef int open(self, int family, int type, int proto) noexcept:
        cdef int error
        cdef bint nonblocking = (type & c.NET_SOCK_NONBLOCK) != 0
        type &= ~(c.NET_SOCK_NONBLOCK | c.NET_SOCK_CLOEXEC)
        if proto == 0 and type == c.SOCK_STREAM and (family == c.AF_INET or family == c.AF_INET6):
            proto = c.IPPROTO_TCP
        error = c.net_socket(family, type, proto, &self.handle)
        if error:
            return error
        self.domain, self.kind, self.proto = family, type, proto
        if nonblocking:
            self.seconds = 0
            if self.blocks:
                self.blocks = False
                error = c.net_blocking(self.handle, False)
                if error:
                    self.end()
        return error

    @cython.critical_section
    cdef int bind_to(self, const sockaddr *address, net_length_t length) noexcept:
        return c.net_last_error() if c.bind(self.handle, address, length) != 0 else 0

    @cython.critical_section
    cdef int hold(self, int backlog) noexcept:
        """After bind(2), for a listen(2) that comes later."""
        cdef int error = c.net_hold(self.handle, self.domain, True)
        self.held, self.wished = error == 0, backlog
        return error

    @cython.critical_section
    cdef int listen_for(self, int backlog) noexcept:
        cdef int error
        if self.held:
            # Back to what a restarted server must find when this one has connections in TIME_WAIT.
            error = c.net_hold(self.handle, self.domain, False)
            if error:
                return error
            self.held = False
        if c.listen(self.handle, c.net_backlog(backlog)) != 0:
            return c.net_last_error()
        self.listens = True
        return 0

    cdef int end(self) noexcept:
        return end_socket(self)

    # ------------------------------------------------------------------ calls in flight

    @cython.critical_section
    cdef int enter(self, bint transfer, net_socket_t *handle) except -1:
        if self.handle == c.NET_INVALID:
            return self.closed()
        if self.forks != forks():
            self.forget_other_process()
        self.calls += 1
        self.transfers += transfer
        handle[0] = self.handle
        return 0

    @cython.critical_section
    cdef void leave(self, bint transfer) noexcept:
        self.calls -= 1
        self.transfers -= transfer
        if self.handle == c.NET_INVALID and self.calls == 0:
            self.drop_waker()
            if self.idle != NULL:
                c.PyThread_release_lock(self.idle)

    cdef void drop_waker(self) noexcept:
        if self.has_waker:
            self.has_waker = False
            c.net_waker_close(&self.waker)

    cdef void forget_other_process(self) noexcept:
        """After a fork: the threads whose calls were counted stayed behind, and the waker is shared with them."""
        self.forks = forks()
        self.calls = self.transfers = 0
        self.drop_waker()

    @cython.critical_section
    cdef net_socket_t let_go(self, bint nudge) noexcept:
        """Takes the handle away and wakes whoever waits on it. If calls are in flight, `idle` is there to wait for."""
        return self.part_with(nudge)

    cdef net_socket_t part_with(self, bint nudge) noexcept:
        return part_with_socket(self, nudge)

    cdef void tell_watchers(self) noexcept:
        """The handle is about to be closed or given away. It does not hand over the GIL; and whoever shares the socket
        is in its critical section."""
        cdef watch_t *watcher
        while self.watchers != NULL:
            watcher = self.watchers
            self.watchers = watcher.next
            watcher.gone(watcher)

    cdef int closed(self) except -1:
        return say_closed(self)

    # ------------------------------------------------------------------ waiting

    cdef double deadline(self) noexcept:
        return c.net_monotonic() + self.seconds if self.seconds > 0 else -1

    cdef int set_blocks(self, bint on) except -1:
        cdef int error
        if c.NET_WAITS_BY_POLL or self.blocks == on or self.watchers != NULL:
            return 0  # whoever watches accepts in batches, and must not be held up where a batch ends
        error = c.net_blocking(self.handle, on)
        if error:
            return c.net_raise(error)
        self.blocks = on
        return 0

    @cython.critical_section
    cdef int must_not_block(self, bint trusts) except -1:
        """For accept(2) and connect(2), which have no MSG_DONTWAIT, and from which close() could not wake a thread.
        Duplicates and other processes share the mode and may have changed it; an ioctl() costs less than a poll()
        before each. ``trusts``: a socket whose timeout is 0 keeps the mode that it was given; one system call less,
        which accept() would feel, and a batch does not."""
        cdef int error
        if trusts and self.seconds == 0:
            return self.set_blocks(False)
        error = c.net_blocking(self.handle, False)
        if error:
            return c.net_raise(error)
        self.blocks = False
        return 0

    cdef int wait(self, short events, double deadline, bint wakeable) except -1:
        """Returns when the handle is ready. Raises TimeoutError, EBADF when closed, what a signal handler raises."""
        if not self.ready(events, deadline, wakeable):
            raise TimeoutError("timed out")
        return 0

    cdef bint ready(self, short events, double deadline, bint wakeable) except -1:
        """Like wait(), but answers 0 when the time is over; it has looked once, however short the time."""
        cdef int error, milliseconds, outcome = c.NET_TIMED_OUT
        cdef double left
        cdef net_socket_t handle
        cdef bint looked = False, with_waker = wakeable or (c.NET_WAITS_BY_POLL and self.waits_elsewhere())
        while True:
            # Where a signal does not end a wait, the thread that runs handlers looks for one ever so often; the others
            # sleep until there is something to do.
            milliseconds = -1 if with_waker and c.NET_WAITS_BY_POLL and not in_main_thread() else c.NET_WAIT_SLICE
            if deadline >= 0:
                left = max(0.0, ceil((deadline - c.net_monotonic()) * 1000))
                if looked and left == 0:
                    return 0
                looked = True
                if milliseconds < 0 or left < milliseconds:
                    milliseconds = <int>min(left, 1 << 30)
            self.enter(not wakeable, &handle)
            with nogil:
                error = c.net_wait(handle, events, &self.waker if with_waker else NULL, milliseconds, &outcome)
            self.leave(not wakeable)
            if self.handle == c.NET_INVALID:
                return self.closed()
            if error and error != c.NET_EINTR:
                return c.net_raise(error)
            if outcome == c.NET_READY:
                return 1
            c.PyErr_CheckSignals()

    cdef bint waits_elsewhere(self) except -1:
        """For a thread that need not look for signals: is there a waker, so that close() can end its wait?"""
        if in_main_thread():
            return False
        try:
            self.ensure_waker()
        except OSError:
            if self.handle == c.NET_INVALID:
                raise
            return False  # out of handles: it looks for close() as often as the main thread for signals
        return True

    @cython.critical_section
    cdef int ensure_waker(self) except -1:
        cdef int error
        if self.forks != forks():
            self.forget_other_process()  # before it is asked whether there is a waker: it has the parent's
        if self.handle == c.NET_INVALID:
            return self.closed()  # nobody would close the waker
        if not self.has_waker:
            error = c.net_waker_open(&self.waker)
            if error:
                return c.net_raise(error)
            self.has_waker = True
        return 0

    cdef int wait_for_connection(self, double *deadline, double *limit) except -1:
        """Until there is one. The deadline is that of the timeout; if there is none, the caller's SO_RCVTIMEO tells how
        long accept(2) waits, and BlockingIOError (on Windows TimeoutError) that it was too long."""
        self.ensure_waker()
        if self.seconds < 0 and limit[0] < 0:
            limit[0] = self.limit_of(True)
            if limit[0] > 0:
                deadline[0] = c.net_monotonic() + limit[0]
        if limit[0] <= 0:
            return self.wait(c.POLLIN, deadline[0], True)
        if not self.ready(c.POLLIN, deadline[0], True):
            return c.net_raise(c.NET_LIMIT_REACHED)
        return 0

    # ------------------------------------------------------------------ bind, listen, accept

    def bind(self, address):
        """bind(2): to an entry of `getaddrinfo`, or to an address as the standard library writes it.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL, PermissionError for a port that needs a privilege, EINVAL when bound
        already.
        """
        cdef net_address_t to
        cdef net_length_t length = 0
        cdef net_socket_t handle
        cdef int error
        locate(address, self.domain, &to, &length, "bind()")
        self.must_be_open()
        if self.domain == c.AF_UNIX:
            self.enter(False, &handle)
            with nogil:  # the way to a path may lead through a file system that is far away
                error = c.net_last_error() if c.bind(handle, &to.any, length) != 0 else 0
            self.leave(False)
            if self.handle == c.NET_INVALID:
                self.closed()
        else:
            error = self.bind_to(&to.any, length)
        if error:
            c.net_raise(error)

    def listen(self, backlog=None):
        """listen(2): from now on the system accepts connections, ``backlog`` of which may wait to be taken.

        None means the backlog of `harken.bind`, or else the most that the system grants: net.core.somaxconn on Linux,
        SOMAXCONN on Windows. There a number above 200 is passed as SOMAXCONN_HINT, which the standard library cannot
        do. Raises ValueError for a negative number, OverflowError for one that is too large for C.
        """
        cdef int error, wished = self.wished
        if backlog is not None:
            backlog = PyNumber_Index(backlog) if c.PyIndex_Check(backlog) else backlog
            wished = backlog_of(backlog)
            if clamped(backlog) > 0x7FFFFFFF:  # what harken.listen() takes for "the most"
                raise OverflowError(f"backlog is too large for C: {shown(backlog)}")
        self.must_be_open()
        error = self.listen_for(wished)
        if error:
            c.net_raise(error)

    def accept(self):
        """accept(2): waits for a connection and returns ``(Socket, address)``. The socket is blocking, as in the
        standard library; on Linux, FreeBSD and others it is made by accept4(SOCK_CLOEXEC).

        Connections that died in the queue are passed over. Raises TimeoutError, BlockingIOError when non-blocking and
        nothing waits, EBADF when the socket is closed meanwhile, EMFILE when descriptors have run out.
        """
        cdef net_socket_t handle, taken = c.NET_INVALID
        cdef net_address_t peer
        cdef net_length_t length
        cdef int error
        cdef Socket connection
        cdef double deadline = self.deadline(), limit = -1, seconds
        self.must_be_open()
        while True:
            self.must_not_block(True)
            length = sizeof(peer)
            self.enter(False, &handle)
            with nogil:
                error = c.net_accept(handle, False, &peer.any, &length, &taken)
            self.leave(False)
            if error == 0:
                connection = self.take(Socket, taken, not c.NET_WAITS_BY_POLL)
                if self.at_accept is not None:
                    self.apply_at_accept(connection)
                seconds = default_timeout()
                if seconds >= 0:
                    connection.set_timeout(seconds)
                return connection, decode(&peer.any, min(length, sizeof(peer)))
            if self.handle == c.NET_INVALID:
                self.closed()
            if error == c.NET_EINTR:
                c.PyErr_CheckSignals()
            elif error == c.NET_EWOULDBLOCK and self.seconds != 0:
                self.wait_for_connection(&deadline, &limit)
            elif c.net_died_waiting(error):
                c.PyErr_CheckSignals()  # in case there is no end of them
            else:
                c.net_raise(error)

    def accept_many(self, Py_ssize_t limit=64):
        """Accepts the connections that wait, up to ``limit``: a list of non-blocking sockets. Up to 64 at a time are
        accepted in C with the GIL released; for a client's address, call its `getpeername()`.

        A blocking socket waits for the first (with a timeout: no longer, then TimeoutError); a non-blocking one with
        nothing queued returns an empty list. An error after the first connection is kept for the next call.
        """
        cdef net_socket_t handle
        cdef net_socket_t taken[BATCH]
        cdef int error, wished, count = 0
        cdef list found = []
        cdef double deadline = self.deadline(), patience = -1
        if limit < 1:
            raise ValueError(f"limit must be at least 1: {limit}")
        self.must_be_open()
        while True:
            self.must_not_block(False)
            wished = <int>min(limit - len(found), BATCH)
            self.enter(False, &handle)
            with nogil:
                error = c.net_accept_many(handle, wished, taken, &count)
            self.leave(False)
            if count:
                self.take_all(taken, count, found)
                if count == wished and len(found) < limit and self.handle != c.NET_INVALID:
                    continue
            if found:
                return found
            if self.handle == c.NET_INVALID:
                self.closed()
            if error == c.NET_EINTR or c.net_died_waiting(error):
                c.PyErr_CheckSignals()
            elif error == c.NET_EWOULDBLOCK:
                if self.seconds == 0:
                    return found
                self.wait_for_connection(&deadline, &patience)
            else:
                c.net_raise(error)

    cdef Socket take(self, type kind, net_socket_t handle, bint blocks):
        """A connection becomes an object; if there is no memory for one, it is closed. ``kind`` is Socket."""
        cdef Socket connection
        try:
            connection = <Socket>c.object_of(kind)
        except BaseException:
            c.net_close(handle)
            raise
        connection.handle = handle
        connection.domain, connection.kind, connection.proto = self.domain, self.kind, self.proto
        connection.blocks = blocks
        return connection

    cdef int take_all(self, net_socket_t *taken, int count, list found) except -1:
        """The same for many: all but the first are made as copies."""
        cdef int n = 1
        cdef Socket connection, first
        try:
            connection = first = self.take(Socket, taken[0], False)
            first.seconds = 0
            while True:
                if self.at_accept is not None:
                    self.apply_at_accept(connection)
                found.append(connection)
                if n == count:
                    return 0
                connection = <Socket>c.object_like(first)
                connection.handle = taken[n]
                n += 1
        except BaseException:
            while n < count:
                c.net_close(taken[n])
                n += 1
            raise

    cdef void apply_at_accept(self, Socket connection) noexcept:
        """Sets on a connection the options that it does not inherit from this listener."""
        apply_settings(connection.handle, self.at_accept)

    # ------------------------------------------------------------------ connect, send, receive

    def connect(self, address):
        """connect(2): to an entry of `getaddrinfo`, or to an address; a host name is resolved to its first address.

        Waits as long as the timeout allows; with none, as long as SO_SNDTIMEO does, if the caller has set it. Raises
        OSError: ConnectionRefusedError and others, TimeoutError, BlockingIOError when non-blocking.
        """
        cdef int error = self.connect_to(address)
        if error == TIMED_OUT:
            raise TimeoutError("timed out")
        if error:
            if self.handle == c.NET_INVALID:
                self.closed()
            c.net_raise(error)

    def connect_ex(self, address):
        """Like connect(), but returns the error number, or 0; EAGAIN when the timeout is over. An address that cannot
        be used still raises."""
        cdef int error = self.connect_to(address)
        return c.NET_EWOULDBLOCK if error == TIMED_OUT else error

    cdef int connect_to(self, object address) except -1:
        """The error number, 0 for none, TIMED_OUT when the time is over."""
        cdef net_address_t to
        cdef net_length_t length = 0, size = sizeof(int)
        cdef int error
        cdef net_socket_t handle
        cdef double deadline = self.deadline(), limit = 0
        locate(address, self.domain, &to, &length, "connect()")
        if self.handle == c.NET_INVALID:
            return c.NET_EBADF
        if self.seconds >= 0:
            self.must_not_block(False)  # nothing would end connect(2) in time
        self.enter(True, &handle)
        with nogil:
            error = c.net_connect(handle, &to.any, length)
        self.leave(True)
        if self.handle == c.NET_INVALID:
            return self.closed()
        if error == 0 or (error != c.NET_EINPROGRESS and error != c.NET_EINTR):
            return error
        if self.seconds == 0:
            return error
        # It goes on by itself, also after a signal; a second connect() would only say EALREADY.
        if error == c.NET_EINTR:
            c.PyErr_CheckSignals()
        elif self.seconds < 0:
            limit = self.limit_of(False)
            if limit > 0:
                if self.waited_in_the_kernel():
                    return error
                deadline = c.net_monotonic() + limit
        if not self.ready(c.POLLOUT, deadline, False):
            return c.NET_EINPROGRESS if limit > 0 else TIMED_OUT
        error = 0
        with cython.critical_section(self):
            if c.getsockopt(self.handle, c.SOL_SOCKET, c.SO_ERROR, <char *>&error, &size) != 0:
                error = c.net_last_error()
        return 0 if error == c.NET_EISCONN else error

    cdef Py_ssize_t transfer(self, transfer_t *what, double deadline) except -1:
        """One call that sends or receives and succeeds, however often it is interrupted or must wait before."""
        cdef size_t done = 0, before = 0
        cdef int error, flags = what.flags
        cdef bint whole = False
        cdef double limit = -1
        cdef net_socket_t handle
        if flags & c.NET_WAITALL and self.gathers(what):
            whole = self.seconds < 0
            if c.NET_WAITS_BY_POLL:
                flags &= ~c.NET_WAITALL  # which Winsock refuses for a handle that does not block
        if self.seconds >= 0:
            flags |= c.NET_DONTWAIT
        while True:
            self.enter(True, &handle)
            with nogil:
                error = attempt(handle, what, flags, before, &done)
            self.leave(True)
            if self.handle == c.NET_INVALID and not (error == 0 and what.control_size):
                return self.closed()  # but descriptors that came with the data are not to be lost
            if error == 0:
                if not whole:
                    return <Py_ssize_t>done
                before += done
                if done == 0 or before == what.size or self.waited_in_the_kernel():
                    return <Py_ssize_t>before
            elif error == c.NET_EINTR:
                if before:
                    return <Py_ssize_t>before  # as the kernel ends MSG_WAITALL; the handler runs when we are back
                c.PyErr_CheckSignals()
            elif error != c.NET_EWOULDBLOCK or self.seconds == 0:
                if before:
                    return <Py_ssize_t>before
                return c.net_raise(error)
            elif not self.wait_again(what, &deadline, &limit):
                if before:
                    return <Py_ssize_t>before
                return c.net_raise(c.NET_LIMIT_REACHED if limit > 0 else error)

    cdef bint gathers(self, const transfer_t *what) noexcept:
        """Is it our business that MSG_WAITALL waits for all? Not where the system would refuse it, or cannot."""
        return (
            self.kind == c.SOCK_STREAM and what.call <= RECVFROM and what.flags & c.NET_NEVER_GATHERS == 0
        )

    cdef bint wait_again(self, const transfer_t *what, double *deadline, double *limit) except -1:
        """EAGAIN came, from a socket that may wait: waits, and answers 0 when it is to be told to the caller. What it
        means stands at the top of this file."""
        cdef bint receives = what.call <= RECVMSG
        cdef short events = c.POLLIN if receives else c.POLLOUT
        if receives and what.flags & c.NET_NEVER_WAITS:
            # poll() would tell of other data than these, again and again.
            if self.seconds < 0 or limit[0] == 0:
                return 0
            limit[0] = 0
        if self.seconds > 0:
            self.wait(events, deadline[0], False)
            return 1
        if what.flags & c.NET_DONTWAIT:
            return 0
        if limit[0] < 0:
            limit[0] = self.limit_of(receives)
            if (limit[0] > 0 or (not receives and self.kind != c.SOCK_STREAM)) and self.waited_in_the_kernel():
                return 0
            if limit[0] > 0:
                deadline[0] = c.net_monotonic() + limit[0]
        return self.ready(events, deadline[0], False)

    @cython.critical_section
    cdef double limit_of(self, bint receives) noexcept:
        """SO_RCVTIMEO or SO_SNDTIMEO in seconds; 0 when there is none."""
        return c.net_limit(self.handle, receives)

    @cython.critical_section
    cdef bint waited_in_the_kernel(self) noexcept:
        """Does the handle block? Then EAGAIN means that the kernel has waited as long as it was told to."""
        cdef int blocks = 0
        return not c.NET_WAITS_BY_POLL and c.net_mode(self.handle, &blocks) == 0 and blocks

    cdef bytes received(self, transfer_t *what, Py_ssize_t size):
        cdef Py_ssize_t done
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        what.data, what.size = PyBytes_AS_STRING(data), size
        done = self.transfer(what, self.deadline())
        # More than there is room for is told for a datagram with MSG_TRUNC.
        return data if done >= size else PyBytes_FromStringAndSize(PyBytes_AS_STRING(data), done)

    cdef Py_ssize_t receive_into(
        self, transfer_t *what, int call, object buffer, object size, object flags, const char *name
    ) except -1:
        """The arguments are looked at from the left to the right, as the standard library does."""
        cdef Py_buffer view
        cdef Py_ssize_t nbytes
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except BufferError as error:
            raise TypeError(f"{name.decode()}(): buffer must be writable and contiguous: {error}") from None
        try:
            nbytes = size
            prepare(what, call, int_of(flags, "flags"))
            if nbytes < 0:
                raise ValueError(f"negative buffersize in {name.decode()}")
            if nbytes > view.len:
                raise ValueError("buffer too small for requested bytes")
            what.data, what.size = <char *>view.buf, nbytes or view.len
            if what.size == 0 and call == RECV:
                return 0  # like the standard library: Linux would wait for data and then take none
            return self.transfer(what, self.deadline())
        finally:
            PyBuffer_Release(&view)

    def recv(self, Py_ssize_t bufsize, flags=0, /):
        """recv(2): up to ``bufsize`` bytes; an empty result means that the peer has shut its side down.

        Waits for the first as long as the timeout allows. Raises TimeoutError, BlockingIOError when nothing is there
        and the socket, or MSG_DONTWAIT in ``flags``, says not to wait.
        """
        cdef transfer_t what
        cdef Py_ssize_t done
        cdef bytes data
        prepare(&what, RECV, int_of(flags, "flags"))
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        if bufsize == 0:
            return b""  # like the standard library: Linux would wait for data and then take none
        # As in received(): each function more that an exception passes through costs a tenth of it.
        data = PyBytes_FromStringAndSize(NULL, bufsize)
        what.data, what.size = PyBytes_AS_STRING(data), bufsize
        done = self.transfer(&what, self.deadline())
        return data if done >= bufsize else PyBytes_FromStringAndSize(PyBytes_AS_STRING(data), done)

    def recv_into(self, buffer, nbytes=0, flags=0):
        """recv(2) into ``buffer``, at most ``nbytes``, or as much as there is room; returns how many came."""
        cdef transfer_t what
        return self.receive_into(&what, RECV, buffer, nbytes, flags, "recv_into")

    def recvfrom(self, Py_ssize_t bufsize, flags=0):
        """recvfrom(2): up to ``bufsize`` bytes, and who sent them: ``(data, address)``. On a connected TCP socket the
        address is None; `getpeername()` tells it."""
        cdef transfer_t what
        prepare(&what, RECVFROM, int_of(flags, "flags"))
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        data = self.received(&what, bufsize)
        return data, decode(&what.address.any, min(what.length, sizeof(what.address)))

    def recvfrom_into(self, buffer, nbytes=0, flags=0):
        """recvfrom(2) into ``buffer``: ``(bytes received, address)``."""
        cdef transfer_t what
        cdef Py_ssize_t done = self.receive_into(&what, RECVFROM, buffer, nbytes, flags, "recvfrom_into")
        return done, decode(&what.address.any, min(what.length, sizeof(what.address)))

    def recvmsg(self, Py_ssize_t bufsize, Py_ssize_t ancbufsize=0, flags=0):
        """recvmsg(2): ``(data, ancillary data, flags of the message, address)``.

        The ancillary data are a list of ``(level, type, data)``, for which there are ``ancbufsize`` bytes of room:
        ``socket.CMSG_SPACE()`` tells how much one needs. On Windows, WSARecv(): with ``ancbufsize`` EOPNOTSUPP.
        """
        cdef net_buffer_t vector
        cdef bytes data
        cdef int how = int_of(flags, "flags")
        if bufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        data = PyBytes_FromStringAndSize(NULL, bufsize)
        c.net_buffer(&vector, PyBytes_AS_STRING(data), bufsize)
        return self.receive_message(&vector, 1, data, ancbufsize, how, "recvmsg()")

    def recvmsg_into(self, buffers, Py_ssize_t ancbufsize=0, flags=0):
        """recvmsg(2) into several buffers, one after the other: ``(bytes received, ancillary data, flags of the
        message, address)``."""
        cdef int how = int_of(flags, "flags")
        cdef Buffers into = Buffers.__new__(Buffers)
        into.take(tuple(buffers), PyBUF_SIMPLE | PyBUF_WRITABLE)
        return self.receive_message(into.vector, into.used, None, ancbufsize, how, "recvmsg_into()")

    cdef tuple receive_message(
        self, net_buffer_t *buffers, size_t count, bytes data, Py_ssize_t room, int flags, str call
    ):
        """What recvmsg() returns, with the ``data``, or with their number if there are none here."""
        cdef transfer_t what
        cdef bytearray control
        cdef Py_ssize_t done
        cdef list items
        # More than the ancillary data of any message, and no more than C can count.
        if not 0 <= room <= 0x7FFFFFFF:
            raise ValueError(f"invalid ancillary data buffer length in {call}")
        prepare(&what, RECVMSG, flags)
        control = bytearray(room)
        what.buffers, what.count = buffers, count
        what.control, what.control_size = <char *>control if room else NULL, room
        done = self.transfer(&what, self.deadline())
        try:
            items = control_items(what.control, what.control_size)
            first = done if data is None else data[:done]
            return first, items, what.told, decode(&what.address.any, min(what.length, sizeof(what.address)))
        except BaseException:
            c.net_control_drop(what.control, what.control_size)  # descriptors that nobody would know of
            raise

    def send(self, data, flags=0, /):
        """send(2): as much of ``data`` as the system takes; returns how much that was. SIGPIPE is not raised.

        Waits for room as long as the timeout allows. Raises TimeoutError, BlockingIOError when there is no room and the
        socket, or MSG_DONTWAIT in ``flags``, says not to wait.
        """
        cdef Py_buffer view
        cdef transfer_t what
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            prepare(&what, SEND, int_of(flags, "flags"))
            what.data, what.size = <char *>view.buf, view.len
            return self.transfer(&what, self.deadline())
        finally:
            PyBuffer_Release(&view)

    def sendall(self, data, flags=0, /):
        """send(2) until all of ``data`` is sent. The timeout limits the whole call."""
        cdef Py_buffer view
        cdef transfer_t what
        cdef size_t done
        cdef double deadline = self.deadline()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            prepare(&what, SEND, int_of(flags, "flags"))
            what.data, what.size = <char *>view.buf, view.len
            while True:
                done = self.transfer(&what, deadline)
                what.data += done
                what.size -= done
                c.PyErr_CheckSignals()
                if what.size == 0:
                    return
        finally:
            PyBuffer_Release(&view)

    def sendto(self, data, /, *args):
        """``sendto(data, address)`` or ``sendto(data, flags, address)``: sendto(2), for datagrams. What a connected TCP
        socket does with the address depends on the system: Linux and Windows ignore it, macOS raises EISCONN."""
        cdef Py_buffer view
        cdef transfer_t what
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args) + 1} given)")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            prepare(&what, SENDTO, int_of(args[0], "flags") if len(args) == 2 else 0)
            what.data, what.size = <char *>view.buf, view.len
            locate(args[len(args) - 1], self.domain, &what.address, &what.length, "sendto()")
            return self.transfer(&what, self.deadline())
        finally:
            PyBuffer_Release(&view)

    def sendmsg(self, buffers, ancdata=(), flags=0, address=None, /):
        """sendmsg(2), on Windows WSASend(): the buffers one after the other, as much as the system takes.

        ``ancdata`` is a sequence of ``(level, type, data)``, for descriptors over unix sockets; Windows has no such
        thing and refuses it, and an ``address``, with EOPNOTSUPP.
        """
        cdef transfer_t what
        cdef Buffers of = Buffers.__new__(Buffers)
        cdef bytearray control
        prepare(&what, SENDMSG, int_of(flags, "flags"))
        of.take(tuple(buffers), PyBUF_SIMPLE)
        if type(ancdata) is not tuple or PyTuple_GET_SIZE(ancdata):
            control = control_of(ancdata)
            what.control_size = len(control)
            what.control = <char *>control if what.control_size else NULL
        what.buffers, what.count = of.vector, of.used
        if address is not None:
            locate(address, self.domain, &what.address, &what.length, "sendmsg()")
        return self.transfer(&what, self.deadline())

    def sendfile(self, file, offset=0, count=None):
        """Sends what ``file`` holds from ``offset`` on, or ``count`` bytes of it, by send(2); returns how many.

        A regular file is read from ``offset`` wherever it stands; of anything else with ``read()`` an ``offset`` of 0
        means from where it stands. Whatever has ``seek()`` stands at ``offset`` plus what was sent afterwards, also
        when it was interrupted. The timeout holds for each send(2).

        Raises ValueError for a text file, and for a non-blocking socket, as it would be unknown how much was sent.
        """
        cdef Py_ssize_t total = 0, left, size
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError("sendfile(): file should be opened in binary mode")
        if self.kind != c.SOCK_STREAM:
            raise ValueError("sendfile(): only SOCK_STREAM type sockets are supported")
        if count is not None:
            if not isinstance(count, int):
                raise TypeError(f"sendfile(): count must be a positive integer (got {count!r})")
            if count <= 0:
                raise ValueError(f"sendfile(): count must be a positive integer (got {count!r})")
        if self.seconds == 0:
            raise ValueError("sendfile(): non-blocking sockets are not supported")
        self.must_be_open()
        if offset or is_regular(file):
            file.seek(offset)
        try:
            while count is None or total < count:
                data = memoryview(file.read(65536 if count is None else min(65536, count - total))).cast("B")
                left = size = len(data)
                if size == 0:
                    break
                while left:
                    size = self.send(data[len(data) - left :] if left < len(data) else data)
                    total += size
                    left -= size
                    c.PyErr_CheckSignals()
        finally:
            if total and can_seek(file):
                file.seek(offset + total)  # behind what was sent, also when no more could be
        return total

    def makefile(self, mode="r", buffering=None, *, encoding=None, errors=None, newline=None):
        """A file object for this connection, as `socket.socket.makefile` makes it, of the same classes.

        close() of the socket closes the handle when the last such file is closed, too.
        """
        return makefile(self, mode, buffering, encoding, errors, newline)

    @cython.critical_section
    cdef int count_file(self, int more) except -1:
        """A file object begins, or ends, to use this socket. Answers 1 when close() waited for that."""
        if more > 0:
            if self.files == 0xFFFF:
                raise OverflowError("makefile(): this socket has 65,535 file objects already")
            self.files += 1
        elif self.files:
            self.files -= 1
        return more < 0 and self.closing and self.files == 0

    def _decref_socketios(self):
        """`socket.SocketIO` calls it when it is closed."""
        if self.count_file(-1):
            self.close()

    # ------------------------------------------------------------------ names, options, modes

    @cython.critical_section
    def shutdown(self, how):
        """shutdown(2): SHUT_RD, SHUT_WR or SHUT_RDWR."""
        cdef int sides = int_of(how, "how")
        self.must_be_open()
        if c.shutdown(self.handle, sides) != 0:
            c.net_raise(c.net_last_error())

    def getsockname(self):
        """Our own address: getsockname(2)."""
        return self.name(False)

    def getpeername(self):
        """The address at the other end: getpeername(2)."""
        return self.name(True)

    @cython.critical_section
    cdef object name(self, bint of_peer):
        cdef net_address_t address
        cdef net_length_t length = sizeof(address)
        cdef int failed
        self.must_be_open()
        memset(&address, 0, sizeof(address))
        if of_peer:
            failed = c.getpeername(self.handle, &address.any, &length)
        else:
            failed = c.getsockname(self.handle, &address.any, &length)
        if failed:
            c.net_raise(c.net_last_error())
        return decode(&address.any, min(length, sizeof(address)))

    @cython.critical_section
    def getsockopt(self, level, optname, buflen=0):
        """An option as a number, or as ``buflen`` bytes: getsockopt(2)."""
        cdef int at = int_of(level, "level"), name = int_of(optname, "optname")
        cdef int value = 0  # Winsock writes a single byte for some booleans
        cdef unsigned long long wide = 0
        cdef int room = int_of(buflen, "buflen")
        cdef net_length_t size = sizeof(value)
        cdef bytearray data
        if not 0 <= room <= 1024:
            raise OSError("getsockopt buflen out of range")
        self.must_be_open()
        if room == 0 and self.domain == c.NET_AF_VSOCK:  # whose numbers have 64 bits
            size = sizeof(wide)
            if c.getsockopt(self.handle, at, name, <char *>&wide, &size) != 0:
                c.net_raise(c.net_last_error())
            return wide
        if room == 0:
            if c.getsockopt(self.handle, at, name, <char *>&value, &size) != 0:
                c.net_raise(c.net_last_error())
            return value
        data = bytearray(room)
        size = <net_length_t>room
        if c.getsockopt(self.handle, at, name, <char *>data, &size) != 0:
            c.net_raise(c.net_last_error())
        return bytes(data[:size])

    @cython.critical_section
    cdef int set_option(self, int level, int name, const char *value, net_length_t size) noexcept:
        """Apart from setsockopt(), whose arguments may run code of the caller's that closes this socket."""
        if self.handle == c.NET_INVALID:
            return c.NET_EBADF
        return c.net_last_error() if c.setsockopt(self.handle, level, name, value, size) != 0 else 0

    def setsockopt(self, level, optname, value, optlen=None):
        """Sets an option to a number, to bytes, or to None with a length: setsockopt(2)."""
        cdef int at = int_of(level, "level"), name = int_of(optname, "optname")
        cdef int number, failed
        cdef unsigned long long wide
        cdef Py_buffer view
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt(): a value of None needs optlen")
            number = int_of(optlen, "optlen")
            failed = self.set_option(at, name, NULL, <net_length_t>number)
        elif optlen is not None:
            raise TypeError("setsockopt(): optlen goes with a value of None only")
        elif c.PyIndex_Check(value) and self.domain == c.NET_AF_VSOCK:
            wide = PyNumber_Index(value)
            failed = self.set_option(at, name, <const char *>&wide, sizeof(wide))
        elif c.PyIndex_Check(value):
            number = int_of(value, "value")
            failed = self.set_option(at, name, <const char *>&number, sizeof(number))
        else:
            PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
            if view.len > 0x7FFFFFFF:
                PyBuffer_Release(&view)
                raise OverflowError("setsockopt(): the value does not fit in an int")
            failed = self.set_option(at, name, <const char *>view.buf, <net_length_t>view.len)
            PyBuffer_Release(&view)
        if failed:
            c.net_raise(failed)

    def setblocking(self, bint flag):
        """``settimeout(None)`` for a true flag, ``settimeout(0)`` for a false one."""
        self.settimeout(None if flag else 0)

    def settimeout(self, value):
        """How long a call may wait, in seconds, a float or an int; None for ever, 0 not at all.

        The handle is made non-blocking with any number and blocking with None (POSIX; on Windows it never blocks).
        Raises ValueError for NaN and for a negative number, OverflowError when it is too large, TypeError for what is
        not a number.
        """
        cdef double seconds = -1
        if value is not None:
            if isinstance(value, float):
                seconds = value
            else:
                seconds = <double><long long>PyNumber_Index(value)
            if isnan(seconds):
                raise ValueError("timeout must be a number of seconds, not NaN")
            if seconds > 9223372036:  # what the standard library can count, in nanoseconds
                raise OverflowError(f"timeout is too large, the limit is 9223372036 seconds: {value}")
            if seconds < 0:
                raise ValueError("Timeout value out of range")
        self.set_timeout(seconds)

    @cython.critical_section
    cdef int set_timeout(self, double seconds) except -1:
        cdef int error
        self.must_be_open()
        if not c.NET_WAITS_BY_POLL and self.watchers == NULL:  # see set_blocks()
            error = c.net_blocking(self.handle, seconds < 0)  # whatever duplicates and other processes made of it
            if error:
                return c.net_raise(error)
            self.blocks = seconds < 0
        self.seconds = seconds
        return 0

    def gettimeout(self):
        """The timeout in seconds, or None."""
        return None if self.seconds < 0 else self.seconds

    @property
    def _closed(self):
        """As `socket.socket` has it, for whoever looks: close() was called, or the handle given away."""
        return self.closing or self.handle == c.NET_INVALID

    @property
    def _io_refs(self):
        """As `socket.socket` has it: how many file objects of makefile() are open."""
        return self.files

    @property
    def timeout(self):
        """The timeout in seconds, or None."""
        return self.gettimeout()

    def getblocking(self):
        """False when the timeout is 0."""
        return self.seconds != 0

    @cython.critical_section
    def get_inheritable(self):
        """True if child processes inherit this socket."""
        cdef int on = 0, error
        self.must_be_open()
        error = c.net_is_inheritable(self.handle, &on)
        if error:
            c.net_raise(error)
        return bool(on)

    @cython.critical_section
    def set_inheritable(self, inheritable):
        """Sets whether child processes inherit this socket: FD_CLOEXEC, on Windows HANDLE_FLAG_INHERIT."""
        cdef int error, on = int_of(inheritable, "inheritable")
        self.must_be_open()
        error = c.net_inheritable(self.handle, on != 0)
        if error:
            c.net_raise(error)

    # ------------------------------------------------------------------ ownership

    def fileno(self):
        """The handle: a file descriptor, on Windows a SOCKET; -1 when closed."""
        return -1 if self.handle == c.NET_INVALID else self.handle

    cdef int must_be_open(self) except -1:
        return self.closed() if self.handle == c.NET_INVALID else 0

    cdef int adopt(self, object fileno, int family, int type, int proto) except -1:
        cdef int actual_family, actual_type, actual_proto, blocks, error
        cdef net_socket_t handle
        if not isinstance(fileno, int):
            raise TypeError(f"fileno must be an int, not {fileno.__class__.__name__}")
        if clamped(fileno) < 0:
            raise ValueError("negative file descriptor")
        handle = fileno
        error = c.net_describe(handle, &actual_family, &actual_type, &actual_proto)
        if error:
            try:
                c.net_raise(error)
            except OSError as failure:
                failure.add_note(f"fileno: {fileno} is not a socket that this process can use")
                raise
        self.domain = actual_family if family == -1 else family
        self.kind = actual_type if type == -1 else type & ~(c.NET_SOCK_NONBLOCK | c.NET_SOCK_CLOEXEC)
        self.proto = actual_proto if proto == -1 else proto
        # It waits for ever now, as the standard library's does, but its mode stays: other processes may share it.
        error = c.net_mode(handle, &blocks)
        if error:
            return c.net_raise(error)
        self.blocks = blocks
        self.handle = handle
        return 0

    def dup(self):
        """A second object for the same socket: dup(2), on Windows WSADuplicateSocketW(). Not inheritable. Its timeout
        is this one's; of a listener it is a listener with the same options, whose close() removes no path.
        """
        cdef int error
        cdef Socket twin
        hook = None if type(self) is Socket else getattr(self, "_twin", None)
        twin = <Socket>c.object_of(Socket) if hook is None else <Socket?>hook()
        self.must_be_open()
        with cython.critical_section(self):
            error = c.NET_EBADF if self.handle == c.NET_INVALID else c.net_duplicate(self.handle, &twin.handle)
            twin.domain, twin.kind, twin.proto, twin.blocks = self.domain, self.kind, self.proto, self.blocks
            twin.held, twin.listens, twin.wished, twin.at_accept = self.held, self.listens, self.wished, self.at_accept
            twin.seconds = self.seconds
        if error:
            c.net_raise(error)
        return twin

    def close(self):
        """Closes the handle: close(2), on Windows closesocket(). A second call does nothing.

        Calls of other threads that are still running are ended first, accept() by waking it, a blocking send() or
        recv() by shutdown(2) of the connection; they raise EBADF. While a file object from makefile() is open the
        handle stays open, and the last of these to be closed closes it.
        """
        cdef int error
        if self.waits_for_files():
            return
        error = self.shut()
        if error:
            c.net_raise(error)

    @cython.critical_section
    cdef bint waits_for_files(self) noexcept:
        self.closing = True
        return self.files != 0

    cdef int shut(self) noexcept:
        return shut_socket(self)

    def detach(self):
        """Returns the handle, open and in the mode that the timeout says, and closes this object; -1 if it was
        closed."""
        cdef net_socket_t handle
        cdef int error = 0
        if self.handle != c.NET_INVALID:
            will_move(self, "detach()")
        with cython.critical_section(self):
            if self.handle == c.NET_INVALID:
                return -1
            if self.held:  # whoever has it now may call listen(2): see move.pxi
                error = c.net_hold(self.handle, self.domain, False)
            if error:
                c.net_raise(error)
            self.held = False
            handle = self.part_with(False)
            self.fate = BY_DETACH
        await_accepts(self)
        if self.seconds < 0 and (c.NET_WAITS_BY_POLL or not self.blocks):
            c.net_blocking(handle, True)
        elif self.seconds >= 0 and self.blocks:
            c.net_blocking(handle, False)
        self.blocks = self.seconds < 0 and not c.NET_WAITS_BY_POLL
        return handle

    def to_socket(self):
        """Moves the handle into a new ``socket.socket`` of the standard library and closes this object. If it fails,
        nothing has moved."""
        self.must_be_open()
        will_move(self, "to_socket()")
        made = empty(load("socket").socket)
        move_each((self,), [made], [self.gettimeout()], BY_TO_SOCKET, True)
        return made

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        if self.handle == c.NET_INVALID:
            by = GIVEN[self.fate]
            return f"<harken.Socket, given away by {by}>" if by else "<harken.Socket, closed>"
        text = f"<harken.Socket fd={self.handle}, family={self.domain}, type={self.kind}, proto={self.proto}"
        for label, of_peer in (("laddr", False), ("raddr", True)):
            try:
                text += f", {label}={self.name(of_peer)}"
            except OSError:
                pass  # not connected, or gone
        return text + ">"


cdef bytes addresses_of(Socket sock):
    """Where a socket is, and where it is connected to, as far as that can be told, for a warning."""
    text = ""
    try:
        text = f", {sock.name(False)!a}"
        text += f", connected to {sock.name(True)!a}"
    except Exception:  # it is new, or it listens
        pass
    return text.encode("ascii")


# What a subclass in another module calls for its base: not by the table of methods, for Cython fills that pointer in
# anew, with NULL in between, whenever another interpreter of the process imports that module.


cdef int end_socket(Socket self) noexcept:
    """Closes the handle and the waker; for sockets without a call in flight."""
    cdef int error
    cdef net_socket_t handle = self.handle
    self.tell_watchers()
    self.handle = c.NET_INVALID
    self.drop_waker()
    if handle == c.NET_INVALID:
        return 0
    with nogil:  # with SO_LINGER it waits
        error = c.net_close(handle)
    return error


cdef net_socket_t part_with_socket(Socket self, bint nudge) noexcept:
    """let_go() for whoever is in the critical section already: to enter it twice means to leave it between."""
    cdef net_socket_t handle = self.handle
    if handle == c.NET_INVALID:
        if nudge and self.fate == MOVING:
            self.fate = CLOSE_WISHED
        return handle
    if self.forks != forks():
        self.forget_other_process()
    self.tell_watchers()
    self.handle = c.NET_INVALID
    if self.calls == 0:
        self.drop_waker()
        return handle
    if self.has_waker:
        c.net_waker_pull(&self.waker)
    # When Python ends, daemon threads end in their calls: nobody would come back to say that it is idle.
    if nudge and not c.python_is_ending():
        self.idle = c.PyThread_allocate_lock()
        if self.idle != NULL:
            c.PyThread_acquire_lock(self.idle, 1)
    if nudge and self.transfers:
        c.net_nudge(handle)
    return handle


cdef int shut_socket(Socket self) noexcept:
    """close(), with its error number."""
    cdef c.PyThread_type_lock idle
    cdef long long patience
    cdef int error
    cdef net_socket_t handle = self.let_go(True)
    if handle == c.NET_INVALID:
        return 0
    idle = self.idle
    if idle != NULL:
        # Two calls are ended by nothing, and are waited for a second, no more: a connect() to a unix socket whose queue
        # is full, and an accept() on a listener that another process has made block.
        patience = -1 if self.transfers and self.domain != c.AF_UNIX else 1000000
        with nogil:
            c.PyThread_acquire_lock_timed(idle, patience, 0)
        with cython.critical_section(self):  # whoever released it may still be about to
            self.idle = NULL
            c.PyThread_free_lock(idle)
    if self.listens:
        error = c.net_close(handle)  # never waits, and takes less time than to hand the GIL over
    else:
        with nogil:  # with SO_LINGER it waits
            error = c.net_close(handle)
    # A peer that reset the connection is no failure of ours to close it.
    return 0 if error == c.NET_ECONNRESET else error


cdef inline void prepare(transfer_t *what, int call, int flags) noexcept:
    what.call, what.flags, what.told = call, flags, 0
    what.control, what.control_size = NULL, 0
    what.length = 0
    what.data, what.size = NULL, 0


cdef inline int attempt(net_socket_t handle, transfer_t *what, int flags, size_t at, size_t *done) noexcept nogil:
    if what.call == RECV:
        return c.net_recv(handle, what.data + at, what.size - at, flags, done)
    if what.call == SEND:
        return c.net_send(handle, what.data, what.size, flags, done)
    if what.call == RECVFROM:
        what.length = sizeof(what.address)
        return c.net_recvfrom(handle, what.data + at, what.size - at, flags, &what.address.any, &what.length, done)
    if what.call == SENDTO:
        return c.net_sendto(handle, what.data, what.size, flags, &what.address.any, what.length, done)
    if what.call == RECVMSG:
        what.length = sizeof(what.address)
        return c.net_recvmsg(
            handle, what.buffers, what.count, what.control, &what.control_size, flags, &what.told, &what.address.any,
            &what.length, done,
        )
    return c.net_sendmsg(
        handle, what.buffers, what.count, what.control, what.control_size, flags,
        &what.address.any if what.length else NULL, what.length, done,
    )


@cython.final
@cython.internal
cdef class Buffers:
    """Objects of the caller's as C sees them, held until this is dropped."""

    cdef Py_buffer *views
    cdef net_buffer_t *vector
    cdef size_t held, used
    cdef Py_buffer few_views[FEW]
    cdef net_buffer_t few[FEW]

    def __dealloc__(self):
        cdef size_t n
        for n in range(self.held):
            PyBuffer_Release(&self.views[n])
        if self.views != self.few_views:
            PyMem_Free(self.views)
        if self.vector != self.few:
            PyMem_Free(self.vector)

    cdef int take(self, tuple parts, int flags) except -1:
        """The objects stand in a tuple, which no ``__buffer__`` can change meanwhile."""
        cdef size_t count = PyTuple_GET_SIZE(parts), n
        if count <= FEW:
            self.views, self.vector = self.few_views, self.few
        else:
            self.views = <Py_buffer *>PyMem_Calloc(count, sizeof(Py_buffer))
            self.vector = <net_buffer_t *>PyMem_Calloc(count, sizeof(net_buffer_t))
            if self.views == NULL or self.vector == NULL:
                raise MemoryError
        for n in range(count):
            try:
                PyObject_GetBuffer(<object>PyTuple_GET_ITEM(parts, n), &self.views[n], flags)
            except BufferError as error:
                if not flags & PyBUF_WRITABLE:
                    raise
                raise TypeError(f"recvmsg_into(): each buffer must be writable and contiguous: {error}") from None
            self.held += 1
            self.used += 1
            if not c.net_buffer(&self.vector[n], self.views[n].buf, self.views[n].len):
                break  # it is cut short, so nothing may come behind it
        return 0


cdef list control_items(void *control, size_t size):
    """Ancillary data as recvmsg() returns them."""
    cdef size_t at = 0, length
    cdef int level, kind
    cdef const char *data
    cdef list items = []
    while c.net_control_get(control, size, &at, &level, &kind, &data, &length):
        items.append((level, kind, PyBytes_FromStringAndSize(data, length)))
    return items


cdef bint is_regular(file) except -1:
    """Does os.sendfile() take it? Then ``sendfile()`` of the standard library looks at the offset alone."""
    from os import fstat
    from stat import S_ISREG
    try:
        return S_ISREG(fstat(file.fileno()).st_mode)
    except (AttributeError, OSError, ValueError, TypeError):
        return False


cdef bint can_seek(file) except -1:
    asked = getattr(file, "seekable", None)
    return hasattr(file, "seek") if asked is None else asked()


cdef object makefile(Socket self, mode, buffering, encoding, errors, newline):
    from io import BufferedReader, BufferedRWPair, BufferedWriter, DEFAULT_BUFFER_SIZE, TextIOWrapper, text_encoding
    wished = set(mode)
    if not wished <= set("rwb"):
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    writes, binary = "w" in wished, "b" in wished
    reads = "r" in wished or not writes
    size = -1 if buffering is None else buffering
    if size == 0 and not binary:
        raise ValueError("unbuffered streams must be binary")
    SocketIO = load("socket").SocketIO
    raw = SocketIO.__new__(SocketIO)
    self.count_file(1)
    try:
        raw.__init__(self, "r" * reads + "w" * writes)
    except BaseException:
        if getattr(raw, "_sock", None) is None:
            self.count_file(-1)  # or else it does so itself when it is dropped
        raise
    if size == 0:
        return raw
    if size < 0:
        size = DEFAULT_BUFFER_SIZE
    if reads and writes:
        buffer = BufferedRWPair(raw, raw, size)
    else:
        buffer = BufferedReader(raw, size) if reads else BufferedWriter(raw, size)
    if binary:
        return buffer
    text = TextIOWrapper(buffer, text_encoding(encoding), errors, newline)
    text.mode = mode
    return text


cdef int int_of(object value, const char *name) except? -1:
    """An argument that C takes as an int: an int or what has ``__index__``; a float is none."""
    cdef int beyond = 0
    cdef long long number
    if type(value) is not int:
        if not c.PyIndex_Check(value):
            raise TypeError(f"{name.decode()} must be an int, not {type(value).__name__}")
        value = PyNumber_Index(value)
    number = c.PyLong_AsLongLongAndOverflow(value, &beyond)
    if beyond or number != <int>number:
        raise OverflowError(f"{name.decode()} is too large for C: {shown(value)}")
    return <int>number


cdef bint in_main_thread() except -1:
    """Where handlers of signals run; also where nobody has loaded `threading`, which knows."""
    threading = modules.get("threading")
    if threading is None:
        return True
    return <unsigned long>threading.main_thread().ident == c.PyThread_get_thread_ident()


cdef double default_timeout() except? -2:
    """`socket.getdefaulttimeout()`, -1 for None. Where nobody has loaded `_socket`, nobody has set one."""
    global getdefaulttimeout
    ask = getdefaulttimeout
    if ask is None:
        loaded = modules.get("_socket")
        if loaded is None:
            return -1
        getdefaulttimeout = ask = loaded.getdefaulttimeout
    seconds = ask()
    return -1 if seconds is None else seconds


FAMILIES, KINDS = {}, {}  # numbers with names, as those that were asked for: asyncio asks for both of each connection


cdef object named(str enum, int number, dict known):
    """A number as the standard library's enum has it. Its module is loaded for the first that is asked for: it takes
    longer than all of this package."""
    cdef PyObject *found
    plain = <object>number
    found = PyDict_GetItemWithError(known, plain)
    if found != NULL:
        return <object>found
    try:
        known[plain] = of_enum = getattr(load("socket"), enum)(plain)
    except (OSError, ValueError):
        return number  # it cannot be loaded now, or has no name for that
    return of_enum


def family_of(Socket sock not None):
    """The address family as a plain number."""
    return sock.domain


def numbers_of(Socket sock not None):
    """Family, type and protocol as plain numbers."""
    return sock.domain, sock.kind, sock.proto


cdef long long clamped(object number) except? -1:
    """An int, or the number next to it that C has. No comparison of Python's: a subclass of int may have its own."""
    cdef int beyond = 0
    cdef long long value = c.PyLong_AsLongLongAndOverflow(number, &beyond)
    return value if beyond == 0 else beyond * <long long>0x7FFFFFFFFFFFFFFF


cdef int backlog_of(object backlog) except -2:
    """The argument of listen(2); -1 for "the most"."""
    if backlog is None:
        return -1
    if not c.PyIndex_Check(backlog):
        raise TypeError(f"backlog must be an int or None, not {type(backlog).__name__}")
    cdef long long number = clamped(PyNumber_Index(backlog))
    if number < 0:
        raise ValueError(f"backlog must not be negative: {shown(backlog)}")
    return <int>min(number, 0x7FFFFFFF)


cdef bytearray control_of(object ancdata):
    """Ancillary data as sendmsg() reads it."""
    cdef bytearray control = bytearray()
    cdef bytes content
    cdef int at_level, of_type
    cdef size_t at
    try:
        items = tuple(ancdata)
    except TypeError as error:
        raise TypeError(f"sendmsg(): ancdata must be an iterable of (level, type, data): {error}") from None
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            raise TypeError(f"sendmsg(): an item of ancdata must be (level, type, data), not {item!r:.100}")
        level, kind, data = item
        at_level, of_type = int_of(level, "level"), int_of(kind, "type")
        content = bytes(memoryview(data))  # bytes(7) would be seven zeros: descriptor 0, given away
        # From here on nothing of the caller's runs.
        at = len(control)
        control.extend(bytes(c.net_control_space(len(content))))
        c.net_control_put(<char *>control + at, at_level, of_type, <const char *>content, len(content))
    return control


cdef object of_handle(object given, object (*ask)(net_socket_t handle)):
    """The answer for a number, or for a Socket: nobody closes that meanwhile, and gives its number to a stranger."""
    cdef Socket sock
    cdef net_socket_t handle = c.NET_INVALID  # so that the C compiler sees it set on every path
    if isinstance(given, Socket):
        sock = <Socket>given
        with cython.critical_section(sock):
            return ask(sock.handle)
    if not isinstance(given, int):
        raise TypeError(f"handle must be an int, not {given.__class__.__name__}")
    try:
        if given >= 0:
            handle = given
    except OverflowError:
        c.net_raise(c.NET_EBADF)
    return ask(handle)


cdef object queue_at(net_socket_t handle):
    cdef long queued = -1, limit = -1
    cdef int family, type, proto, error
    if c.net_queue(handle, &queued, &limit) != 0:
        error = c.net_describe(handle, &family, &type, &proto)
        if error:
            c.net_raise(error)
    return (None if queued < 0 else queued), (None if limit < 0 else limit)


def queue_of(handle):
    """How many connections wait, and how many may, as ``(queued, backlog)``; None where the system does not report it.
    ``handle`` is a number or a Socket.

    Raises OSError for a handle that is no socket.
    """
    return of_handle(handle, queue_at)


cdef object drops_at(net_socket_t handle):
    cdef long drops = -1
    return drops if c.net_drops(handle, &drops) == 0 else None


def drops_of(handle):
    """How many connections this socket has dropped; None where the system does not report it."""
    return of_handle(handle, drops_at)


@cython.binding(True)  # it becomes a method
def close_each(self):
    """Closes them all; an error of one is raised when all are closed."""
    cdef int error = 0
    cdef Py_ssize_t n
    cdef Socket sock
    if not isinstance(self, tuple):
        raise TypeError(f"close() is a method of Listeners, not of {type(self).__name__}")
    for n in range(PyTuple_GET_SIZE(self)):
        sock = <Socket?><object>PyTuple_GET_ITEM(self, n)
        # As the close() of UnixListener, but without a line of Python, in which a signal handler might raise: then the
        # others would stay open.
        entry = getattr(sock, "entry", None) if sock.domain == c.AF_UNIX else None
        if entry is not None and sock.handle != c.NET_INVALID:
            entry.remove()
        error = sock.shut() or error
    if error:
        c.net_raise(error)


def state_of(Socket sock not None):
    """``closed``, ``listening`` or ``bound``, as the system tells it."""
    cdef int error, listening = 0
    with cython.critical_section(sock):
        if sock.handle == c.NET_INVALID:
            return "closed"
        error = c.net_listening(sock.handle, &listening)
    if error:
        c.net_raise(error)
    return "listening" if listening else "bound"


def name_of(Socket sock not None):
    """getsockname(), on every system also before bind(): then it is the wildcard with port 0, which Winsock does not
    tell."""
    cdef net_address_t address
    cdef net_length_t length = sizeof(address)
    cdef int error = 0
    memset(&address, 0, sizeof(address))
    with cython.critical_section(sock):
        sock.must_be_open()
        if c.getsockname(sock.handle, &address.any, &length) != 0:
            error = c.net_last_error()
    if c.net_unbound(error):
        memset(&address, 0, sizeof(address))
        address.any.sa_family = sock.domain
        length = c.NET_PATH_AT
        if sock.domain == c.AF_INET or sock.domain == c.AF_INET6:
            length = sizeof(address.ipv4) if sock.domain == c.AF_INET else sizeof(address.ipv6)
    elif error:
        c.net_raise(error)
    return decode(&address.any, min(length, sizeof(address)))


def set_exclusive(Socket sock not None, bint on):
    """Before bind(): may others bind an address that overlaps?"""
    cdef int error
    with cython.critical_section(sock):
        error = c.net_exclusive(sock.handle, on)
    if error:
        c.net_raise(error)


# The options that are set on each accepted connection are one bytes object, which a socket keeps, and which is pickled
# with it. `set_at_accept` is the only writer, `apply_settings` the only reader.
cdef struct setting_t:
    int level
    int option
    int size  # of the value, which follows, up to the next multiple of four bytes


def set_at_accept(Socket sock not None, list settings):
    """Keeps options in a listener, to be set on each connection that it accepts: tuples of level, option and value, as
    setsockopt() takes them, with the value as bytes."""
    cdef setting_t setting
    cdef bytearray packed = bytearray()
    for level, option, value in settings:
        setting.level, setting.option, setting.size = level, option, len(value)
        packed += (<char *>&setting)[:sizeof(setting)] + value + bytes(-len(value) % 4)
    sock.at_accept = bytes(packed)


cdef void apply_settings(net_socket_t handle, bytes settings) noexcept:
    """setsockopt(2) for each. Errors are ignored: a connection that has ended already refuses options, and its reader
    finds out."""
    cdef setting_t setting
    cdef const char *at = PyBytes_AS_STRING(settings)
    cdef const char *end = at + len(settings)
    while end - at >= <Py_ssize_t>sizeof(setting):
        memcpy(&setting, at, sizeof(setting))
        at += sizeof(setting)
        if setting.size < 0 or setting.size > end - at:
            return  # cut off: it came with a pickle
        c.setsockopt(handle, setting.level, setting.option, at, <net_length_t>setting.size)
        at += (setting.size + 3) & ~3


def apply_at_accept(handle, bytes settings not None):
    """The same for a connection that was accepted by a socket of the standard library. ``settings`` is what `carried`
    returned for the listener."""
    apply_settings(handle, settings)


def carried(Socket sock not None):
    """What another owner of the handle has to go on with: the backlog for its listen(), -1 for the most, and what
    `set_at_accept` set, or None."""
    return sock.wished, sock.at_accept


def listen_on(handle, int family, int backlog):
    """listen(2) for a handle that `harken.bind` may hold; -1 asks for the most."""
    cdef net_socket_t s = handle
    cdef int error = c.net_hold(s, family, False)
    if error == 0 and c.listen(s, c.net_backlog(backlog)) != 0:
        error = c.net_last_error()
    if error:
        c.net_raise(error)


def has_family(int family):
    """Does a wildcard of this family stand for any address of this machine? True where the system does not tell."""
    return c.net_has_family(family) == 0


cdef object description(net_socket_t handle):
    cdef net_address_t address
    cdef net_length_t length = sizeof(address)
    cdef int family, type, proto, error, listening = 0
    error = c.net_describe(handle, &family, &type, &proto)
    if error == 0:
        error = c.net_listening(handle, &listening)
    if error:
        c.net_raise(error)
    if listening:
        return family, type, "listening"
    if c.getpeername(handle, &address.any, &length) == 0:
        return family, type, "connected"
    error = c.net_last_error()
    if not c.net_has_no_name(error):
        c.net_raise(error)
    length = sizeof(address)
    memset(&address, 0, sizeof(address))
    if c.getsockname(handle, &address.any, &length) != 0:
        error = c.net_last_error()
        if not c.net_has_no_name(error):
            c.net_raise(error)
        return family, type, "new"
    if family == c.AF_INET or family == c.AF_INET6:
        return family, type, "bound" if address.ipv4.sin_port else "new"  # in the same place for both
    return family, type, "bound" if <size_t>length > c.NET_PATH_AT else "new"


def describe(handle):
    """A handle from elsewhere: ``(family, type, state)``; it stays as it is. The state is ``listening``, ``connected``,
    ``bound`` or, for a socket that has no address yet, ``new``."""
    return of_handle(handle, description)


cdef object copied(net_socket_t handle):
    cdef Socket copy = <Socket>c.object_of(Socket)
    cdef int error = c.net_duplicate(handle, &copy.handle)
    if error == 0:
        error = c.net_describe(copy.handle, &copy.domain, &copy.kind, &copy.proto)
    if error:
        copy.end()
        c.net_raise(error)
    return copy


def copy_of(handle):
    """A Socket with a duplicate of a handle from elsewhere, to ask it; the mode stays as it is."""
    return of_handle(handle, copied)


def let_go(Socket sock not None):
    """Gives the handle away as it is, open; the object is closed."""
    return sock.let_go(False)


include "ending.pxi"
