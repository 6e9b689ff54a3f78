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
"""

import cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_Index
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport ceil, isnan
from libc.string cimport memcpy, memset

cimport harken._platform as c
from harken._system cimport forks
from harken._platform cimport net_address_t, net_buffer_t, net_length_t, net_socket_t, sockaddr
from harken._resolve cimport decode, locate, shown

from harken._loading import load

include "move.pxi"

cdef enum:
    BATCH = 64  # how many connections one trip into C takes at the most
    TIMED_OUT = -2  # no error number of any system


cdef class Socket:
    """Socket(family=-1, type=-1, proto=-1, fileno=None)\n--\n\nOne socket handle, owned. Names, meanings, defaults and errors are those of the standard library's sockets.

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
        if self.handle != c.NET_INVALID:
            raise RuntimeError("this Socket has its handle already")
        if fileno is not None:
            self.adopt(fileno, of, kind, by)
            return
        error = self.open(c.AF_INET if of == -1 else of, c.SOCK_STREAM if kind == -1 else kind, 0 if by == -1 else by)
        if error:
            c.net_raise(error)

    def __del__(self):
        if self.handle != c.NET_INVALID:
            if c.PyErr_ResourceWarning(self, 1, "unclosed harken.Socket, handle %lld", <long long>self.handle) < 0:
                c.PyErr_WriteUnraisable(self)
            self.end()  # whoever records the warning keeps this object, but not the handle

    def __dealloc__(self):
        # Nobody is left to hear of an error here, and no call can be in flight: each holds a reference.
        self.end()

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
        self.family, self.type, self.proto = family, type, proto
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
        cdef int error = c.net_hold(self.handle, self.family, True)
        self.held, self.wished = error == 0, backlog
        return error

    @cython.critical_section
    cdef int listen_for(self, int backlog) noexcept:
        cdef int error
        if self.held:
            # Back to what a restarted server must find when this one has connections in TIME_WAIT.
            error = c.net_hold(self.handle, self.family, False)
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
    cdef int must_not_block(self) except -1:
        """For accept(2), which has no MSG_DONTWAIT, and from which close() could not wake a thread. Duplicates and
        other processes share the mode and may have changed it; an ioctl() costs less than a poll() before each."""
        cdef int error
        if self.seconds == 0:
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
        cdef bint looked = False
        while True:
            milliseconds = c.NET_WAIT_SLICE
            if deadline >= 0:
                left = max(0.0, ceil((deadline - c.net_monotonic()) * 1000))
                if looked and left == 0:
                    return 0
                looked = True
                if milliseconds < 0 or left < milliseconds:
                    milliseconds = <int>min(left, 1 << 30)
            self.enter(not wakeable, &handle)
            with nogil:
                error = c.net_wait(handle, events, &self.waker if wakeable else NULL, milliseconds, &outcome)
            self.leave(not wakeable)
            if self.handle == c.NET_INVALID:
                return self.closed()
            if error and error != c.NET_EINTR:
                return c.net_raise(error)
            if outcome == c.NET_READY:
                return 1
            c.PyErr_CheckSignals()

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

    cdef int wait_for_connection(self, double deadline) except -1:
        self.ensure_waker()
        return self.wait(c.POLLIN, deadline, True)

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
        self.must_be_open()
        locate(address, self.family, &to, &length, "bind()")
        if self.family == c.AF_UNIX:
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

        None asks for what `harken.bind` was given, or else for the most that the system grants: on Linux
        net.core.somaxconn, on Windows SOMAXCONN. On Windows a number above 200 is passed as SOMAXCONN_HINT, which the
        standard library cannot do. Raises ValueError for a negative number.
        """
        cdef int error, wished = self.wished if backlog is None else backlog_of(backlog)
        self.must_be_open()
        error = self.listen_for(wished)
        if error:
            c.net_raise(error)

    def accept(self):
        """accept(2): waits for a connection and returns ``(Socket, address)``. The socket blocks, like the standard
        library's; on Linux, FreeBSD and others it is made by accept4(SOCK_CLOEXEC).

        Connections that died in the queue are passed over. Raises TimeoutError, BlockingIOError when non-blocking and
        nothing waits, EBADF when the socket is closed meanwhile, EMFILE when descriptors have run out.
        """
        cdef net_socket_t handle, taken = c.NET_INVALID
        cdef net_address_t peer
        cdef net_length_t length
        cdef int error
        cdef Socket connection
        cdef double deadline = self.deadline()
        self.must_be_open()
        while True:
            self.must_not_block()
            length = sizeof(peer)
            self.enter(False, &handle)
            with nogil:
                error = c.net_accept(handle, False, &peer.any, &length, &taken)
            self.leave(False)
            if error == 0:
                connection = self.take(Socket, taken, not c.NET_WAITS_BY_POLL)
                if self.at_accept is not None:
                    self.furnish(connection)
                return connection, decode(&peer.any, min(length, sizeof(peer)))
            if self.handle == c.NET_INVALID:
                self.closed()
            if error == c.NET_EINTR:
                c.PyErr_CheckSignals()
            elif error == c.NET_EWOULDBLOCK and self.seconds != 0:
                self.wait_for_connection(deadline)
            elif c.net_died_waiting(error):
                c.PyErr_CheckSignals()  # in case there is no end of them
            else:
                c.net_raise(error)

    def accept_many(self, Py_ssize_t limit=64):
        """All connections that wait, up to ``limit``, as a list of non-blocking sockets. One trip into C takes up to 64
        of them with the GIL released; nobody's address is asked for, `getpeername()` tells it when it matters.

        A blocking socket waits for the first (with a timeout: no longer, then TimeoutError); a non-blocking one with
        nothing queued returns an empty list. An error after the first connection is kept for the next call.
        """
        cdef net_socket_t handle
        cdef net_socket_t taken[BATCH]
        cdef int error, wished, count = 0
        cdef list found = []
        cdef double deadline = self.deadline()
        if limit < 1:
            raise ValueError(f"limit must be at least 1: {limit}")
        self.must_be_open()
        while True:
            self.must_not_block()
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
                self.wait_for_connection(deadline)
            else:
                c.net_raise(error)

    cdef Socket take(self, type kind, net_socket_t handle, bint blocks):
        """A connection becomes an object; if there is no memory for one, it is closed. ``kind`` is Socket: whoever
        takes many looks it up once."""
        cdef Socket connection
        try:
            connection = <Socket>c.object_of(kind)
        except BaseException:
            c.net_close(handle)
            raise
        connection.handle = handle
        connection.family, connection.type, connection.proto = self.family, self.type, self.proto
        connection.blocks = blocks
        return connection

    cdef int take_all(self, net_socket_t *taken, int count, list found) except -1:
        cdef int n = 0
        cdef Socket connection
        cdef type kind = Socket
        try:
            while n < count:
                n += 1
                connection = self.take(kind, taken[n - 1], False)
                connection.seconds = 0
                if self.at_accept is not None:
                    self.furnish(connection)
                found.append(connection)
        except BaseException:
            while n < count:
                c.net_close(taken[n])
                n += 1
            raise
        return 0

    cdef void furnish(self, Socket connection) noexcept:
        """Options that connections do not have from their listener. One that is dead already refuses them, which is
        found out when it is read."""
        cdef const char *at = PyBytes_AS_STRING(self.at_accept)
        cdef const char *end = at + len(self.at_accept)
        cdef int setting[3]  # level, option, size of the value
        while at < end:
            memcpy(setting, at, sizeof(setting))
            at += sizeof(setting)
            c.setsockopt(connection.handle, setting[0], setting[1], at, <net_length_t>setting[2])
            at += (setting[2] + 3) & ~3

    # ------------------------------------------------------------------ connect, send, receive

    def connect(self, address):
        """connect(2): to an entry of `getaddrinfo`, or to an address; a host name is resolved to its first address."""
        cdef int error
        self.must_be_open()
        error = self.connect_to(address)
        if error == TIMED_OUT:
            raise TimeoutError("timed out")
        if error:
            c.net_raise(error)

    def connect_ex(self, address):
        """Like connect(), but returns the error number, 0 for none; when the time is over EAGAIN, as for a socket that
        does not wait. An address that cannot be used still raises."""
        cdef int error
        if self.handle == c.NET_INVALID:
            return c.NET_EBADF
        error = self.connect_to(address)
        return c.NET_EWOULDBLOCK if error == TIMED_OUT else error

    cdef int connect_to(self, object address) except -1:
        """The error number, 0 for none, TIMED_OUT when the time is over."""
        cdef net_address_t to
        cdef net_length_t length = 0, size = sizeof(int)
        cdef int error
        cdef net_socket_t handle
        cdef double deadline = self.deadline()
        locate(address, self.family, &to, &length, "connect()")
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
        if not self.ready(c.POLLOUT, deadline, False):
            return TIMED_OUT
        error = 0
        with cython.critical_section(self):
            if c.getsockopt(self.handle, c.SOL_SOCKET, c.SO_ERROR, <char *>&error, &size) != 0:
                error = c.net_last_error()
        return 0 if error == c.NET_EISCONN else error

    cdef Py_ssize_t transfer(self, bint receive, char *data, size_t size, int flags, double deadline) except -1:
        """One recv() or send() that succeeds, however often it is interrupted or must wait before."""
        cdef size_t done = 0
        cdef int error
        cdef net_socket_t handle
        if self.seconds >= 0:
            flags |= c.NET_DONTWAIT
        if receive and size == 0:
            return self.must_be_open()  # like the standard library: Linux would wait for data and then take none
        while True:
            self.enter(True, &handle)
            with nogil:
                if receive:
                    error = c.net_recv(handle, data, size, flags, &done)
                else:
                    error = c.net_send(handle, data, size, flags, &done)
            self.leave(True)
            if self.handle == c.NET_INVALID:
                return self.closed()
            if error == 0:
                return <Py_ssize_t>done
            if error == c.NET_EINTR:
                c.PyErr_CheckSignals()
            elif error == c.NET_EWOULDBLOCK and self.seconds != 0:
                self.wait(c.POLLIN if receive else c.POLLOUT, deadline, False)
            else:
                return c.net_raise(error)

    def recv(self, Py_ssize_t bufsize, flags=0):
        """recv(2): up to ``bufsize`` bytes; an empty result means that the peer has shut its side down."""
        cdef Py_ssize_t done
        cdef bytes data
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        data = PyBytes_FromStringAndSize(NULL, bufsize)
        done = self.transfer(True, PyBytes_AS_STRING(data), bufsize, int_of(flags, "flags"), self.deadline())
        return data if done == bufsize else data[:done]

    def recv_into(self, buffer, Py_ssize_t nbytes=0, flags=0):
        """recv(2) into ``buffer``, at most ``nbytes``, or as much as there is room; returns how many came."""
        cdef Py_buffer view
        cdef int how = int_of(flags, "flags")
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except BufferError as error:
            raise TypeError(f"recv_into(): buffer must be writable and contiguous: {error}") from None
        try:
            if nbytes > view.len:
                raise ValueError("buffer too small for requested bytes")
            return self.transfer(True, <char *>view.buf, nbytes or view.len, how, self.deadline())
        finally:
            PyBuffer_Release(&view)

    def send(self, data, flags=0):
        """send(2): as much of ``data`` as the system takes; returns how much that was. SIGPIPE is not raised."""
        cdef Py_buffer view
        cdef int how = int_of(flags, "flags")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.transfer(False, <char *>view.buf, view.len, how, self.deadline())
        finally:
            PyBuffer_Release(&view)

    def sendall(self, data, flags=0):
        """send(2) until all of ``data`` is sent. The timeout holds for the whole."""
        cdef Py_buffer view
        cdef Py_ssize_t done = 0
        cdef int how = int_of(flags, "flags")
        cdef double deadline = self.deadline()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while True:
                done += self.transfer(False, <char *>view.buf + done, view.len - done, how, deadline)
                if done >= view.len:
                    return
                c.PyErr_CheckSignals()
        finally:
            PyBuffer_Release(&view)

    def sendmsg(self, buffers, ancdata=(), flags=0):
        """sendmsg(2), on Windows WSASend(): the buffers one after the other, as much as the system takes.

        ``ancdata`` is a sequence of ``(level, type, data)``, for descriptors over unix sockets; Windows has no such
        thing and refuses it with EOPNOTSUPP.
        """
        cdef int how = int_of(flags, "flags")
        cdef tuple parts = tuple(buffers)  # which no __buffer__ can change while the buffers are taken
        cdef size_t count = len(parts), n, held = 0, used = 0, done = 0
        cdef Py_buffer *views = <Py_buffer *>PyMem_Calloc(count + 1, sizeof(Py_buffer))
        cdef net_buffer_t *vector = <net_buffer_t *>PyMem_Calloc(count + 1, sizeof(net_buffer_t))
        cdef bytearray control
        cdef char *control_at = NULL
        cdef size_t control_size
        cdef int error
        cdef net_socket_t handle
        cdef double deadline = self.deadline()
        try:
            if views == NULL or vector == NULL:
                raise MemoryError
            control = control_of(ancdata)
            control_size = len(control)
            if control_size:
                control_at = control
            for n in range(count):
                PyObject_GetBuffer(parts[n], &views[n], PyBUF_SIMPLE)
                held += 1
                used += 1
                if not c.net_buffer(&vector[n], views[n].buf, views[n].len):
                    break  # it is cut short, so nothing may come behind it
            if self.seconds >= 0:
                how |= c.NET_DONTWAIT
            while True:
                self.enter(True, &handle)
                with nogil:
                    error = c.net_sendmsg(handle, vector, used, control_at, control_size, how, &done)
                self.leave(True)
                if self.handle == c.NET_INVALID:
                    self.closed()
                if error == 0:
                    return done
                if error == c.NET_EINTR:
                    c.PyErr_CheckSignals()
                elif error == c.NET_EWOULDBLOCK and self.seconds != 0:
                    self.wait(c.POLLOUT, deadline, False)
                else:
                    c.net_raise(error)
        finally:
            for n in range(held):
                PyBuffer_Release(&views[n])
            PyMem_Free(views)
            PyMem_Free(vector)

    def sendfile(self, file, offset=0, count=None):
        """Sends what ``file`` holds from ``offset`` on, or ``count`` bytes of it; returns how many were sent.

        Raises ValueError when the socket does not wait, for nobody would know how much was sent.
        """
        total = 0
        self.must_be_open()
        if self.seconds == 0:
            raise ValueError("sendfile(): non-blocking sockets are not supported")
        if count is not None and count <= 0:
            raise ValueError(f"sendfile(): count must be positive: {count}")
        if offset or file.seekable():
            file.seek(offset)
        try:
            while count is None or total < count:
                data = file.read(65536 if count is None else min(65536, count - total))
                if not data:
                    break
                self.sendall(data)
                total += len(data)
        finally:
            if total and file.seekable():
                file.seek(offset + total)  # behind what was sent, also when no more could be
        return total

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
    def getsockopt(self, level, optname, Py_ssize_t buflen=0):
        """An option as a number, or as ``buflen`` bytes: getsockopt(2)."""
        cdef int at = int_of(level, "level"), name = int_of(optname, "optname")
        cdef int value = 0  # Winsock writes a single byte for some booleans
        cdef net_length_t size = sizeof(value)
        cdef bytearray data
        self.must_be_open()
        if buflen == 0:
            if c.getsockopt(self.handle, at, name, <char *>&value, &size) != 0:
                c.net_raise(c.net_last_error())
            return value
        if not 0 < buflen <= 1024:
            raise OSError("getsockopt buflen out of range")
        data = bytearray(buflen)
        size = <net_length_t>buflen
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
        cdef Py_buffer view
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt(): a value of None needs optlen")
            number = int_of(optlen, "optlen")
            failed = self.set_option(at, name, NULL, <net_length_t>number)
        elif optlen is not None:
            raise TypeError("setsockopt(): optlen goes with a value of None only")
        elif isinstance(value, int):
            number = int_of(value, "value")
            failed = self.set_option(at, name, <const char *>&number, sizeof(number))
        else:
            PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
            if view.len > 0x7FFFFFFF:
                PyBuffer_Release(&view)
                raise OverflowError("setsockopt(): the value is larger than an int can tell")
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
        no number.
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
        self.must_be_open()
        self.set_blocks(seconds < 0)
        self.seconds = seconds
        return 0

    def gettimeout(self):
        """The timeout in seconds, or None."""
        return None if self.seconds < 0 else self.seconds

    @property
    def timeout(self):
        """The timeout in seconds, or None."""
        return self.gettimeout()

    def getblocking(self):
        """False when the timeout is 0."""
        return self.seconds != 0

    @cython.critical_section
    def get_inheritable(self):
        """Would a child process have this socket too?"""
        cdef int on = 0, error
        self.must_be_open()
        error = c.net_is_inheritable(self.handle, &on)
        if error:
            c.net_raise(error)
        return bool(on)

    @cython.critical_section
    def set_inheritable(self, bint inheritable):
        """Whether child processes have this socket too."""
        cdef int error
        self.must_be_open()
        error = c.net_inheritable(self.handle, inheritable)
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
                failure.add_note(f"fileno: {fileno} is no socket that this process can use")
                raise
        self.family = actual_family if family == -1 else family
        self.type = actual_type if type == -1 else type & ~(c.NET_SOCK_NONBLOCK | c.NET_SOCK_CLOEXEC)
        self.proto = actual_proto if proto == -1 else proto
        # It waits for ever now, as the standard library's does, but its mode stays: other processes may share it.
        error = c.net_mode(handle, &blocks)
        if error:
            return c.net_raise(error)
        self.blocks = blocks
        self.handle = handle
        return 0

    def dup(self):
        """A second socket on the same connection: dup(2), on Windows WSADuplicateSocketW(). Not inheritable. What
        stands beside the handle is copied, a timeout for one; a listener's twin is a listener, which removes no path.
        """
        cdef int error
        cdef Socket twin
        hook = None if type(self) is Socket else getattr(self, "_twin", None)
        twin = <Socket>c.object_of(Socket) if hook is None else <Socket?>hook()
        self.must_be_open()
        with cython.critical_section(self):
            error = c.NET_EBADF if self.handle == c.NET_INVALID else c.net_duplicate(self.handle, &twin.handle)
            twin.family, twin.type, twin.proto, twin.blocks = self.family, self.type, self.proto, self.blocks
            twin.held, twin.listens, twin.wished, twin.at_accept = self.held, self.listens, self.wished, self.at_accept
            twin.seconds = self.seconds
        if error:
            c.net_raise(error)
        return twin

    def close(self):
        """Closes the handle: close(2), on Windows closesocket(). A second time does nothing.

        Calls that other threads have in flight end first: a wait in accept() through its waker, a blocking send() or
        recv() through shutdown(2) of the connection. They raise EBADF there.
        """
        cdef int error = self.shut()
        if error:
            c.net_raise(error)

    cdef int shut(self) noexcept:
        return shut_socket(self)

    def detach(self):
        """Gives the handle away, open, in the mode that the timeout says; this object is closed. -1 when it was."""
        cdef net_socket_t handle
        cdef int error = 0
        if self.handle != c.NET_INVALID:
            will_move(self, "detach()")
        with cython.critical_section(self):
            if self.handle == c.NET_INVALID:
                return -1
            if self.held:  # whoever has it now may call listen(2): see move.pxi
                error = c.net_hold(self.handle, self.family, False)
            if error:
                c.net_raise(error)
            self.held = False
            self.tell_watchers()
            if c.NET_WAITS_BY_POLL and self.seconds < 0:
                c.net_blocking(self.handle, True)
            else:
                self.set_blocks(self.seconds < 0)
            handle = self.part_with(False)
            self.fate = BY_DETACH
        return handle

    def to_socket(self):
        """Moves the handle into a new ``socket.socket`` of the standard library; this object is closed. When it fails,
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
        text = f"<harken.Socket fd={self.handle}, family={self.family}, type={self.type}, proto={self.proto}"
        for label, of_peer in (("laddr", False), ("raddr", True)):
            try:
                text += f", {label}={self.name(of_peer)}"
            except OSError:
                pass  # not connected, or gone
        return text + ">"


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
        # A connect() to a unix socket whose queue is full is ended by nothing: it is waited for a second, no more.
        patience = 1000000 if self.family == c.AF_UNIX else -1
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


cdef int int_of(object value, str name) except? -1:
    """An argument that C takes as an int: an int or what has ``__index__``; a float is none."""
    if type(value) is not int:
        if not c.PyIndex_Check(value):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        value = PyNumber_Index(value)
    try:
        return value
    except OverflowError:
        raise OverflowError(f"{name} is too large for C: {shown(value)}") from None


cdef long long clamped(object number) except? -1:
    """An int, or the number next to it that C has. No comparison of Python's: a subclass of int may have its own."""
    cdef int beyond = 0
    cdef long long value = c.PyLong_AsLongLongAndOverflow(number, &beyond)
    return value if beyond == 0 else beyond * <long long>0x7FFFFFFFFFFFFFFF


cdef int backlog_of(object backlog) except -2:
    """The argument of listen(2); -1 for "the most"."""
    if backlog is None:
        return -1
    if not isinstance(backlog, int):
        raise TypeError(f"backlog must be an int or None, not {type(backlog).__name__}")
    cdef long long number = clamped(backlog)
    if number < 0:
        raise ValueError(f"backlog must not be negative: {shown(backlog)}")
    return <int>min(number, 0x7FFFFFFF)


cdef bytearray control_of(object ancdata):
    """Ancillary data as sendmsg() reads it."""
    cdef bytearray control = bytearray()
    cdef bytes content
    cdef int at_level, of_type
    cdef size_t at
    for level, kind, data in ancdata:
        at_level, of_type = level, kind
        content = bytes(memoryview(data))  # bytes(7) would be seven zeros: descriptor 0, given away
        # From here on nothing of the caller's runs.
        at = len(control)
        control.extend(bytes(c.net_control_space(len(content))))
        c.net_control_put(<char *>control + at, at_level, of_type, <const char *>content, len(content))
    return control


def queue_of(handle):
    """How many connections wait, and how many may, as ``(queued, backlog)``; None where the system does not tell.

    Raises OSError for a handle that is no socket.
    """
    cdef long queued = -1, limit = -1
    cdef int family, type, proto, error
    cdef net_socket_t sock
    if not isinstance(handle, int):
        raise TypeError(f"handle must be an int, not {handle.__class__.__name__}")
    sock = c.NET_INVALID if handle < 0 else handle
    if c.net_queue(sock, &queued, &limit) != 0:
        error = c.net_describe(sock, &family, &type, &proto)
        if error:
            c.net_raise(error)
    return (None if queued < 0 else queued), (None if limit < 0 else limit)


def drops_of(handle):
    """How many connections this socket has dropped; None where the system does not tell."""
    cdef long drops = -1
    cdef net_socket_t sock = c.NET_INVALID if handle < 0 else handle
    return drops if c.net_drops(sock, &drops) == 0 else None


cdef object closed_each(tuple sockets, void *nothing):
    cdef int error = 0
    cdef Py_ssize_t n
    cdef Socket sock
    for n in range(PyTuple_GET_SIZE(sockets)):
        sock = <Socket?><object>PyTuple_GET_ITEM(sockets, n)
        if sock.family != c.AF_UNIX:
            error = sock.shut() or error
            continue
        try:
            (<object>sock).close()  # its class may have a path to remove
        except OSError as reason:
            error = reason.errno or error
    if error:
        c.net_raise(error)


cdef c.PyMethodDef CLOSE_EACH = c.PyMethodDef(
    "close",
    <void *>closed_each,
    c.METH_NOARGS,
    b"""close($self, /)
--

Closes them all; an error of one is raised when all are closed.""",
)
# A method for a class that is a tuple of sockets: a plain function of a compiled module would not become one.
close_each = c.PyDescr_NewMethod(tuple, &CLOSE_EACH)


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


def set_exclusive(Socket sock not None, bint on):
    """Before bind(): may others bind an address that overlaps?"""
    cdef int error = c.net_exclusive(sock.handle, on)
    if error:
        c.net_raise(error)


def set_at_accept(Socket sock not None, bytes settings):
    """What each accepted connection is given: level, option, size and value, one after another."""
    sock.at_accept = settings


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


def describe(handle):
    """A handle from elsewhere: ``(family, type, state)``; it stays as it is. The state is ``listening``, ``connected``,
    ``bound`` or, for a socket that has no address yet, ``new``."""
    cdef net_address_t address
    cdef net_length_t length = sizeof(address)
    cdef int family, type, proto, error, listening = 0
    cdef net_socket_t s = c.NET_INVALID  # so that the C compiler sees it set on every path
    try:
        s = handle
    except OverflowError:
        c.net_raise(c.NET_EBADF)
    error = c.net_describe(s, &family, &type, &proto)
    if error == 0:
        error = c.net_listening(s, &listening)
    if error:
        c.net_raise(error)
    if listening:
        return family, type, "listening"
    if c.getpeername(s, &address.any, &length) == 0:
        return family, type, "connected"
    length = sizeof(address)
    memset(&address, 0, sizeof(address))
    if c.getsockname(s, &address.any, &length) != 0:
        return family, type, "new"  # Winsock has no name for it
    if family == c.AF_INET or family == c.AF_INET6:
        return family, type, "bound" if address.ipv4.sin_port else "new"  # in the same place for both
    return family, type, "bound" if <size_t>length > c.NET_PATH_AT else "new"


def let_go(Socket sock not None):
    """Gives the handle away as it is, open; the object is closed."""
    return sock.let_go(False)
