# A handle moves from one object to another. Included by _socket.pyx.
#
# At every moment one object has the handle, and each move is made in C: no line of our Python runs between the release
# of the old owner and the binding of the new one, so that neither a signal handler that raises nor a trace function can
# come between. What can fail, or runs a caller's code, is done before. What must run in between (CPython raises the
# audit event "socket.__new__" when it is given a handle) finds our object without its handle: a close() there, or in
# another thread, does not reach the handle that is being moved. After an error the handle is back where it was.

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
    net_socket_t old  # where the new owner has a duplicate: closed when the watchers have been told; else NET_INVALID


GIVEN = ("", "", "", "detach()", "to_socket()", "sockets()", "adopt()")


def given_by(Socket sock not None):
    """The call that gave the handle away, such as ``detach()``; empty if it is still here, or was closed."""
    return GIVEN[sock.fate]


cdef int say_closed(Socket self) except -1:
    """EBADF, and where the handle went."""
    cdef str why = f"the socket was given away by {GIVEN[self.fate]}" if GIVEN[self.fate] else "the socket is closed"
    try:
        return c.net_raise(c.NET_EBADF)
    except OSError as error:
        number, text, winerror = error.errno, f"{error.strerror}: {why}", getattr(error, "winerror", None)
    raise OSError(number, text) if winerror is None else OSError(number, text, None, winerror)


cdef int will_move(Socket self, str by) except -1:
    """Lets a listener record what it has to keep before its handle goes; it may raise to refuse."""
    hook = None if type(self) is Socket else getattr(self, "_about_to_move", None)
    if hook is not None:
        hook(by)
    return 0


cdef int take_out(Socket self, move_t *move) except -1:
    """Begins a move. SO_REUSEADDR, which `harken.bind` took off to hold the address, is set again: the new owner may
    call listen(2) itself, and connections of that listener must not prevent a restart."""
    cdef int error = 0
    with cython.critical_section(self):
        if self.handle == c.NET_INVALID:
            return self.closed()
        if self.forks != forks():
            self.forget_other_process()
        if self.held:
            error = c.net_hold(self.handle, self.domain, False)
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
        if move.old != c.NET_INVALID:  # the duplicate is not needed, then
            c.net_close(move.handle)
            move.handle, move.old = move.old, c.NET_INVALID
        self.handle, self.fate = move.handle, OPEN
        move.handle = c.NET_INVALID
        if self.handle == c.NET_INVALID:  # an audit hook has closed the new owner
            self.tell_watchers()
            if self.calls == 0:
                self.drop_waker()
        elif self.held:
            c.net_hold(self.handle, self.domain, True)
    if ends:
        self.shut()


cdef void give(Socket self, move_t *move, int by) noexcept:
    """The new owner has it: acceptors of this object are told, and threads that wait on it are woken."""
    with cython.critical_section(self):
        self.handle = move.handle if move.old == c.NET_INVALID else move.old
        self.part_with(False)
        self.held, self.fate = False, by
    if move.old != c.NET_INVALID:  # not before: what is pending on it, AcceptEx for one, is ended by it
        c.net_close(move.old)
        move.old = c.NET_INVALID


cdef void await_accepts(Socket self) noexcept:
    """After a move, before the handle may block: a thread that was about to call accept(2) would wait there, and take
    a connection of the new owner's. It was woken, and no other can begin. For a quarter of a second at the most."""
    cdef int turn
    for turn in range(250):
        if self.calls <= self.transfers:
            return
        with nogil:
            c.net_pause(turn > 50)


cdef int bind_plain(Socket self, object made, move_t *move, type plain, bint exact) except -1:
    """A socket of the standard library's that has no handle yet gets ours; for now it does not wait."""
    cdef net_socket_t handle = move.handle
    cdef int inheritable = 0
    # The protocol is told, not asked for: asyncio reads it to decide about TCP_NODELAY. With SOCK_NONBLOCK the default
    # timeout is not set here, and cannot fail: CPython would close the handle.
    plain.__init__(made, self.domain, self.kind | c.NET_SOCK_NONBLOCK, self.proto, handle)
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
    move.old = handle
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
        made.__init__(self.domain, self.kind, self.proto, fileno=copy)
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
    move.old = move.handle
    move.handle, move.arrived = copy, True
    return 0


cdef int move_each(tuple sockets, list made, list timeouts, int by, bint exact) except -1:
    """The handles of ``sockets`` to the objects of the standard library's in ``made``, which have none: all or none."""
    cdef Py_ssize_t n, count = len(made)
    cdef move_t *moves
    cdef Socket sock
    plain = load("_socket").socket  # the interpreter's
    moves = <move_t *>PyMem_Calloc(count + 1, sizeof(move_t))
    if moves == NULL:
        raise MemoryError
    for n in range(count):
        moves[n].handle = moves[n].old = c.NET_INVALID
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
            await_accepts(<Socket>sockets[n])
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
    plain = load("_socket").socket
    made = kind.__new__(kind)
    if isinstance(made, plain):
        made._io_refs, made._closed = 0, False
    return made


def move(Socket sock not None, made, timeout):
    """Moves the handle of ``sock`` into ``made``, which `empty` has made, with this timeout; returns ``made``. When it
    fails, nothing has moved."""
    will_move(sock, "to_socket()")
    move_each((sock,), [made], [timeout], BY_TO_SOCKET, False)
    return made


def to_send(send, tuple what, tuple more):
    """What a ListeningSocket is pickled as. multiprocessing keeps what it sends until somebody has received it: nothing
    may come between."""
    return received, (send(*what), *more)


def received(sent, int family, int kind, int proto, wished, at_accept):
    """In the worker: what a ListeningSocket sent to it."""
    cdef Socket holder = <Socket>c.object_of(Socket)
    handle = sent.detach()
    if not isinstance(handle, int):
        handle = handle.detach()  # on Windows it is a socket
    holder.handle = handle
    holder.domain, holder.kind, holder.proto = family, kind, proto
    holder.wished, holder.at_accept = wished, at_accept
    try:
        made = load("harken._handover").room_for(holder)
        move_each((holder,), [made], [None], BY_TO_SOCKET, False)
    except BaseException:
        holder.end()  # nobody else has it
        raise
    return made


def duplicate(handle, tuple kind, timeout, made):
    """A second handle of the same socket, in ``made``: dup(2), on Windows WSADuplicateSocketW()."""
    cdef Socket holder = <Socket>c.object_of(Socket)
    cdef net_socket_t number = c.NET_INVALID if handle < 0 else handle
    cdef int error
    holder.domain, holder.kind, holder.proto = kind
    error = c.net_duplicate(number, &holder.handle)
    if error:
        c.net_raise(error)
    try:
        move_each((holder,), [made], [timeout], BY_TO_SOCKET, False)
    except BaseException:
        holder.end()
        raise
    return made


@cython.binding(True)  # it becomes a method
def sockets(self):
    """Moves all sockets, or none, into ``socket.socket`` objects, for a server that takes those.

    A second ``listen()`` does not shorten their queues, as asyncio's and so uvicorn's would; they can be sent to a
    spawned worker. (trio accepts only exact ``socket.socket`` objects: `Listener.to_socket`.)
    """
    room_for = load("harken._handover").room_for
    cdef list made = [], timeouts = []
    if not isinstance(self, tuple):
        raise TypeError(f"sockets() is a method of Listeners, not of {type(self).__name__}")
    for listener in self:
        (<Socket?>listener).must_be_open()
        will_move(listener, "sockets()")
        made.append(room_for(listener))
        timeouts.append((<Socket>listener).gettimeout())
    move_each(<tuple>self, made, timeouts, BY_SOCKETS, False)
    return made


# ---------------------------------------------------------------------------- into a Socket


cdef void hand_to(Socket self, Socket made) noexcept:
    """From one of ours to another, which has none: with it goes what stands beside it."""
    cdef net_socket_t handle
    with cython.critical_section(self, made):
        made.domain, made.kind, made.proto, made.blocks = self.domain, self.kind, self.proto, self.blocks
        made.held, made.listens, made.wished, made.at_accept = self.held, self.listens, self.wished, self.at_accept
        handle = self.part_with(False)
        if handle != c.NET_INVALID:
            self.fate = BY_ADOPT
        made.handle = handle


cdef int look_at(Socket made, net_socket_t handle, int *inheritable) except -1:
    """What `adopt` sets on a handle, and has to know of it. It belongs to whoever has it still."""
    cdef int family, type, proto, blocks = 1, one = 1
    cdef int error = c.net_describe(handle, &family, &type, &proto)
    if error == 0:
        error = c.net_mode(handle, &blocks)
    if error == 0:
        error = c.net_is_inheritable(handle, inheritable)
    if error == 0 and inheritable[0]:
        error = c.net_inheritable(handle, False)
    if error:
        return c.net_raise(error)
    if family == c.AF_INET or family == c.AF_INET6:
        c.setsockopt(handle, c.IPPROTO_TCP, c.TCP_NODELAY, <const char *>&one, sizeof(one))  # or of another protocol
    # It waits for ever now, as the standard library's does, but its mode stays: other processes may share it.
    made.domain, made.kind, made.proto, made.blocks = family, type, proto, blocks
    return 0


cdef int take_from(object given, Socket made, net_socket_t handle) except -1:
    """From an object of others' that can detach()."""
    cdef int inheritable = 0
    plain, whole = load("_socket").socket, load("socket").socket
    look_at(made, handle, &inheritable)
    try:
        if not isinstance(given, plain) or type(given).detach not in (whole.detach, plain.detach):
            detach_foreign(given, made, handle, plain)
            return 0
        if plain.fileno(given) != handle:
            c.net_raise(c.NET_EBADF)  # closed by another thread, since we looked
        if isinstance(given, whole):
            object.__setattr__(given, "_closed", True)
        made.handle = plain.detach(given)
    except BaseException:
        if inheritable and made.handle == c.NET_INVALID:
            c.net_inheritable(handle, True)
        raise
    return 0


cdef int detach_foreign(object given, Socket made, net_socket_t handle, type plain) except -1:
    """By a detach() in Python, which may be interrupted before or after it lets the handle go."""
    cdef net_socket_t number
    cdef int inheritable
    from os import fstat
    from harken._inherit import _must_fit
    try:
        before = fstat(handle)
    except OSError:
        before = None  # on Windows
    try:
        what = given.detach()
        if what < 0:  # asked of the Python number: a SOCKET has no sign
            c.net_raise(c.NET_EBADF)
        number = what
        if number != handle:  # not what we have looked at: it is checked as well, and stays open if it is refused
            _must_fit(number)
            look_at(made, number, &inheritable)
        made.handle = number
    except BaseException:
        try:
            if given.fileno() != handle and before is not None:
                after = fstat(handle)
                if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):  # it is open, and nobody's
                    if isinstance(given, plain):
                        plain.__init__(given, made.domain, made.kind, made.proto, handle)
                        object.__setattr__(given, "_closed", False)
                    else:
                        c.net_close(handle)
        except Exception:
            pass  # the first error is raised
        raise
    return 0


def adopt(fd_or_socket):
    """Takes over a socket that listens, or one that is bound and can listen later.

    A number is a file descriptor, on Windows a SOCKET. Of an object, such as a ``socket.socket`` or a `harken.Socket`,
    ``detach()`` is called; a harken listener also hands over its options, its backlog for listen(), and the path that
    close() removes. From now on child processes do not inherit the socket. TCP sockets get TCP_NODELAY, which their
    connections inherit.

    Returns a `Listener`. Raises ListenError for what cannot listen: something else than a socket, a datagram socket, a
    connection, a socket without an address.
    """
    from harken._inherit import _owned, failed, fitting
    cdef Socket made
    handle, listener = fitting(fd_or_socket)
    made = <Socket?>listener
    try:
        own(fd_or_socket, made, handle, _owned)
    except OSError as error:
        failed("adopt", f"fd://{handle}", error)
    return made


cdef int own(object given, Socket made, net_socket_t handle, set owned) except -1:
    cdef int inheritable = 0
    if made.handle != c.NET_INVALID:
        raise RuntimeError("this Socket has its handle already")
    if isinstance(given, Socket):
        if (<Socket>given).handle == c.NET_INVALID:
            (<Socket>given).closed()
        will_move(<Socket>given, "adopt()")
        with cython.critical_section(<Socket>given):
            look_at(made, (<Socket>given).handle, &inheritable)
        hand_to(<Socket>given, made)
        if made.handle == c.NET_INVALID:
            (<Socket>given).closed()
    elif isinstance(given, int):
        look_at(made, handle, &inheritable)
        owned.add(given)
        made.handle = handle
    else:
        take_from(given, made, handle)
    return 0


def replace(Socket sock not None, Socket made not None):
    """Moves the handle to another of ours, which has none."""
    sock.must_be_open()
    if made.handle != c.NET_INVALID:
        raise RuntimeError("this Socket has its handle already")
    hand_to(sock, made)
    if made.handle == c.NET_INVALID:
        sock.closed()


def adopt_numbers(list numbers, list made, set owned, list into):
    """What was passed to this process becomes ours, all or none: ``made`` are listeners without a handle, and are added
    to ``into``; ``owned`` is what the process has already."""
    from harken._inherit import failed
    cdef Py_ssize_t n = 0, count = len(into)
    number = -1
    try:
        into += made
        for n in range(len(numbers)):
            number = numbers[n]
            if number in owned:
                raise OSError(c.NET_EBADF, "another thread of this process has taken it meanwhile")
            own(number, <Socket?>made[n], number, owned)
    except BaseException as error:
        del into[count:]
        for listener in made:
            give_up(<Socket?>listener, owned)
        if isinstance(error, OSError):
            failed("adopt", f"fd://{number}", error)
        raise


def release_each(list listeners, set owned):
    """Closes the listeners; their sockets stay open and may be asked for again."""
    for sock in listeners:
        give_up(<Socket?>sock, owned)


cdef int give_up(Socket self, set owned) except -1:
    cdef net_socket_t handle = self.let_go(False)
    if handle != c.NET_INVALID:
        owned.discard(handle)
    return 0


def set_carried(Socket sock not None, int wished, bytes at_accept):
    """What `carried` tells of another."""
    sock.wished, sock.at_accept = wished, at_accept


def alone(lock, call, *arguments):
    """Calls a function while nobody else has the lock, which is free again whatever comes between."""
    lock.acquire()
    try:
        return call(*arguments)
    finally:
        lock.release()
