# A handle moves from one object to another. Included by _socket.pyx.
#
# At every moment one object has the handle, and each move is made in C: no line of our Python runs between the release
# of the old owner and the binding of the new one, so that neither a signal handler that raises nor a trace function can
# come between. What can fail, or runs somebody's code, is done before. What must run in between (CPython raises the
# audit event "socket.__new__" where it is given a handle) finds our object without its handle: a close() there, or in
# another thread, does not reach the handle that is on its way. After an error the handle is back where it was.

cdef enum:
    # Socket.fate: why there is no handle. OPEN also for one that was closed, or has none yet.
    OPEN
    MOVING  # on its way: it comes back if the move fails
    CLOSE_WISHED  # close() was called meanwhile: if it comes back, it is closed
    BY_DETACH
    BY_TO_SOCKET
    BY_SOCKETS
    BY_ADOPT

cdef struct move_t:
    net_socket_t handle  # on its way; NET_INVALID before and after
    bint arrived  # the new owner has it


cdef int take_out(Socket self, move_t *move) except -1:
    """Begins a move. What `harken.bind` did to keep others from the address is undone: whoever gets the handle may call
    listen(2) himself, and the connections of that listener must not be in the way of a restart."""
    cdef int error = 0
    with cython.critical_section(self):
        if self.handle == c.NET_INVALID:
            return self.closed()
        if self.forks != forks():
            self.forget_other_process()
        if self.held:
            error = c.net_hold(self.handle, self.family, False)
        if error == 0:
            move.handle, move.arrived = self.handle, False
            self.handle, self.fate = c.NET_INVALID, MOVING
    if error:
        return c.net_raise(error)
    return 0


cdef void put_back(Socket self, move_t *move) noexcept:
    """The move failed."""
    cdef bint ends
    with cython.critical_section(self):
        ends = self.fate == CLOSE_WISHED
        self.handle, self.fate = move.handle, OPEN
        move.handle = c.NET_INVALID
        if self.handle == c.NET_INVALID:  # an audit hook has closed the new owner
            self.tell_watchers()
            if self.calls == 0:
                self.drop_waker()
        elif self.held:
            c.net_hold(self.handle, self.family, True)
    if ends:
        self.shut()


cdef void give(Socket self, move_t *move, int by) noexcept:
    """The new owner has it: whoever watches this object is told, and whoever waits on it is woken."""
    with cython.critical_section(self):
        self.handle = move.handle
        self.part_with(False)
        self.held, self.fate = False, by


cdef int bind_plain(Socket self, object made, move_t *move, type plain, bint exact) except -1:
    """A socket of the standard library's that has no handle yet gets ours; for now it does not wait."""
    cdef net_socket_t handle = move.handle
    cdef int inheritable = 0
    # The protocol is told, not asked for: asyncio reads it to decide about TCP_NODELAY. With SOCK_NONBLOCK the default
    # timeout is not set here, and cannot fail: CPython would close the handle.
    plain.__init__(made, self.family, self.type | c.NET_SOCK_NONBLOCK, self.proto, handle)
    move.arrived = True
    if exact or made.proto == self.proto or not hasattr(plain, "share"):
        return 0
    # On Windows CPython forgets the protocol of a handle, but not that of a shared socket.
    from os import getpid
    try:
        shared = plain.share(made, getpid())
    finally:
        plain.detach(made)
        move.arrived = False
    c.net_is_inheritable(handle, &inheritable)
    plain.__init__(made, -1, -1, -1, shared)
    move.handle, move.arrived = plain.fileno(made), True
    c.net_inheritable(move.handle, inheritable)
    c.net_close(handle)
    return 0


cdef int bind_foreign(Socket self, object made, move_t *move) except -1:
    """Where somebody has put another class in the place of socket.socket, as gevent does: nobody can tell whether one
    that failed has closed the handle, so it gets a duplicate."""
    cdef net_socket_t copy = c.NET_INVALID
    cdef int inheritable = 0, error = c.net_duplicate(move.handle, &copy)
    if error:
        return c.net_raise(error)
    c.net_is_inheritable(move.handle, &inheritable)
    c.net_inheritable(copy, inheritable)
    try:
        made.__init__(self.family, self.type, self.proto, fileno=copy)
    except BaseException:
        from os.path import sameopenfile
        try:
            made.detach()
        except Exception:
            pass
        try:
            if sameopenfile(copy, move.handle):
                c.net_close(copy)
        except OSError:
            pass
        raise
    c.net_close(move.handle)
    move.handle, move.arrived = copy, True
    return 0


cdef int move_each(tuple sockets, list made, list timeouts, int by, bint exact) except -1:
    """The handles of ``sockets`` to the objects of the standard library's in ``made``, which have none: all or none."""
    cdef Py_ssize_t n, count = len(made)
    cdef move_t *moves
    cdef Socket sock
    from _socket import socket as plain  # the interpreter's
    moves = <move_t *>PyMem_Calloc(count + 1, sizeof(move_t))
    if moves == NULL:
        raise MemoryError
    for n in range(count):
        moves[n].handle = c.NET_INVALID
    try:
        for n in range(count):
            sock = <Socket?>sockets[n]
            take_out(sock, &moves[n])
            if isinstance(made[n], plain):
                bind_plain(sock, made[n], &moves[n], plain, exact)
            else:
                bind_foreign(sock, made[n], &moves[n])
        for n in range(count):
            # First told: an acceptor must not meet a listener that blocks.
            give(<Socket>sockets[n], &moves[n], by)
            if isinstance(made[n], plain):
                plain.settimeout(made[n], timeouts[n])
            else:
                made[n].settimeout(timeouts[n])
    except BaseException:
        for n in range(count):
            if moves[n].handle == c.NET_INVALID:
                continue
            if moves[n].arrived:
                number = plain.detach(made[n]) if isinstance(made[n], plain) else made[n].detach()
                moves[n].handle = c.NET_INVALID if number < 0 else number
            put_back(<Socket>sockets[n], &moves[n])
        raise
    finally:
        PyMem_Free(moves)
    return 0


def empty(type kind not None):
    """An instance of ``socket.socket``, or of a class derived from it, without a handle: what is to stand beside the
    handle can be set before `move` brings it. ``__init__`` is not called; closing it does nothing."""
    from _socket import socket as plain
    made = kind.__new__(kind)
    if isinstance(made, plain):
        made._io_refs, made._closed = 0, False
    return made


def move(Socket sock not None, made, timeout):
    """Moves the handle of ``sock`` into ``made``, which `empty` has made, with this timeout; returns ``made``. When it
    fails, nothing has moved."""
    move_each((sock,), [made], [timeout], BY_TO_SOCKET, False)
    return made
