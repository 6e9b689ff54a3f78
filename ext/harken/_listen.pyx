"""THE STORY: from names to listening sockets, told once, for every kind of bind.

====  =================================  ===========================================================
step  in the founding documents          here
====  =================================  ===========================================================
1     getaddrinfo()                      `Opening.bind_host`; the call is in _resolve.pyx
2     socket()                           `Opening.open_once`; the call is in _socket.pyx
2b    both families                      `Opening.bind_on_one_port`: a socket each, with one port
3     bind(), then freeaddrinfo()        `Opening.bind_to`; the calls are in _socket.pyx, _resolve.pyx
4     listen()                           `Opening.listen`; the call is in _socket.pyx
5     accept()                           `Socket.accept`, `Acceptor`
====  =================================  ===========================================================

All or nothing: each address of each bind is bound before the first socket listens, so that no client reaches a server
that does not start. When a step fails, everything that was opened is closed, inherited sockets are given back, and the
error names the step and the address. This module is compiled for that: no signal handler runs between a system call
and the line that records its result.

Read it from top to bottom: `open_all` is the whole in 20 lines, `Opening` has the steps of one bind in their order. It
is one file of more than 600 lines so that nothing of it is elsewhere but what addresses.pxi asks about a list of
addresses, and what functions.pxi tells Python about the two functions.
"""

import cython

from libc.string cimport memset

cimport harken._platform as c
from harken._resolve cimport resolve_bind
from harken._socket cimport Socket, backlog_of

from harken._bind import to_open
from harken._collision import interface_of, is_given_twice, record_conflicts
from harken._errors import ListenError, failure
from harken._inherit import inherit, release
from harken._listener import Listener, Listeners
from harken._loading import for_hand_over, load
from harken._plan import DEFAULT, Plan
from harken._socket import name_of as name_or_wildcard
from harken._socket import state_of
from harken._stats import warn_if_less
from harken._unix import UnixListener, bind_path
from harken._unix import shown as shown_path

include "addresses.pxi"

cdef enum:
    # How many more port numbers the system is asked for when the one that it chose for one address is in use on
    # another. Each is drawn on the address where the last one was in use, so that one crowded address costs two draws
    # at the most; only several crowded ones can use up all.
    DRAWS = 128


cdef object open_all(str call, tuple binds, dict keywords, bint reserves):
    """harken.listen(), and harken.bind(), which ``reserves`` the addresses and stops before listen(2)."""
    cdef list openings = read(call, binds, keywords, reserves)
    cdef list listeners = [], left_out = []
    cdef Opening opening = None  # the one whose turn it is, which an error is of
    cdef Opening opened
    try:
        for opening in openings:
            opening.bind_all(openings)
        if not reserves:
            for opening in openings:
                opening.listen_all(openings)
        opening = None
        for opened in openings:
            listeners += opened.listeners
            left_out += opened.left_out
        warn(openings, reserves)
        made = c.tuple_of(<type>Listeners, listeners)
        if left_out:
            made._left_out = left_out
        prepare_hand_over()
        take_over_paths(listeners, not reserves)
        return made
    except BaseException as error:
        try:
            if opening is not None and isinstance(error, OSError):
                opening.record(error, openings)
        except Exception:
            pass  # what explains an error must not become the error
        finally:
            undo(openings)
        raise


cdef list read(str call, tuple binds, dict keywords, bint reserves):
    """Every bind and every option is read and checked before the first socket exists."""
    cdef list found = []
    cdef int backlog = backlog_of(keywords.get("backlog"))
    cdef bint has_options = len(keywords) > ("backlog" in keywords)
    if not binds:
        if keywords:
            load("harken._options").refuse_unknown(call, keywords)
        raise TypeError(f"{call} needs at least one bind, as in '127.0.0.1:8080'")
    for bind in binds:
        try:
            bind = to_open(bind)
        except OSError as reason:  # the codec of a name that is not ASCII cannot be loaded
            fail("getaddrinfo", str(bind), exhausted() or reason)
        has_options = has_options or len(bind._pairs) > 0
        found.append(bind)
    if has_options:
        return [opening_of(bind, plan, reserves) for bind, plan in zip(found, plan_each(call, found, keywords))]
    plan = DEFAULT if backlog < 0 else Plan(None, backlog)
    return [opening_of(bind, plan, reserves) for bind in found]


cdef list plan_each(str call, list binds, dict keywords):
    """A plan for each bind. What a system lacks is a ListenError of its own."""
    cdef int error
    try:
        chosen = load("harken._options").for_binds(call, binds, keywords)
        load("harken._sockopt")
        try:
            return [Plan(options) for options in chosen]
        except ValueError:
            error = exhausted()
            if error:  # where the tables of users and groups cannot be opened, they have no names
                raise error_of(error) from None
            raise
    except OSError as reason:
        if isinstance(reason, ListenError):
            raise
        error = exhausted()  # or else a module cannot be loaded
        fail("socket" if error else "import", str(binds[0]), error or reason)


cdef Opening opening_of(object bind, object plan, bint reserves):
    cdef Opening opening = Opening.__new__(Opening)
    opening.bind, opening.plan, opening.reserves = bind, plan, reserves
    opening.holds = reserves and plan.asked("exclusive") is not False
    opening.scheme, opening.is_range = bind.scheme, bind.last_port is not None
    opening.is_inherited = opening.scheme == "fd" or opening.scheme == "systemd"
    opening.has_options, opening.backlog, opening.interface = plan.options is not None, plan.backlog, plan.interface
    opening.listeners, opening.discarded, opening.left_out = [], [], []
    opening.step, opening.multipath = "bind", opening.scheme == "mptcp"
    return opening


cdef bint is_bound(Socket sock):
    """bind(2) or listen(2) was called."""
    name = name_or_wildcard(sock)
    if sock.domain == c.NET_AF_VSOCK:
        return name[1] != 0xFFFFFFFF  # VMADDR_PORT_ANY
    return bool(name[1] if isinstance(name, tuple) else name)


@cython.final
@cython.internal
cdef class Opening:
    """One bind of a call, on its way to listening sockets."""

    cdef object bind  # a Bind: what is asked for
    cdef object plan  # a Plan: how its sockets are opened
    cdef str scheme  # of the bind
    cdef bint is_inherited, is_range
    cdef bint has_options  # beside a backlog
    cdef int backlog
    cdef bint reserves  # harken.bind()
    cdef bint holds  # and no other process may bind the address meanwhile
    cdef list listeners  # owned: bound by now
    cdef list discarded  # owned: bound, to a port that is in use on another address; see bind_addresses()
    cdef list left_out  # (address, error) of what this machine lacks
    cdef str step  # the last step, and its error number or 0
    cdef int error
    cdef bint multipath  # by MPTCP
    cdef int absent_family  # of a wildcard: the family that no interface has, or 0
    cdef Socket current  # of the listeners, the one that an error would be of
    cdef str interface  # which the last socket was bound to, for an error
    cdef bint configuring  # the caller's own function is running, or has failed

    # ------------------------------------------------------------------ name → addresses → socket → options → bind

    cdef int bind_all(self, list openings) except -1:
        """A bound socket for each address of the bind."""
        try:
            if self.is_inherited:
                self.take_inherited(openings)
            elif self.scheme == "unix":
                self.bind_unix(openings)
            elif self.scheme == "vsock":
                self.bind_vsock()
            else:
                self.bind_host(0)
        except OSError as reason:
            self.explain(reason)
            raise
        return 0

    cdef int bind_host(self, int first) except -1:
        """TCP. ``first`` is where a range of ports goes on, or 0."""
        cdef Py_ssize_t n
        cdef list families = self.families()
        for n in range(len(families)):
            try:
                self.bind_family(families[n], first)
                return 0
            except OSError as reason:
                if n + 1 == len(families) or reason.errno not in (c.NET_EAFNOSUPPORT, c.NET_EADDRNOTAVAIL):
                    raise
                self.left_out.append((("::", self.bind.port, 0, 0), reason))
        return 0

    cdef list families(self):
        """The families to ask for. A wildcard on one socket for both is IPv6, or where there is no IPv6, IPv4."""
        cdef int family = self.bind.family
        if family == c.AF_UNSPEC and self.plan.takes_both and self.bind.host is None:
            return [c.AF_INET6, c.AF_INET]
        return [family]

    cdef int bind_family(self, int family, int first) except -1:
        cdef found_t addresses
        cdef bytearray room = None
        memset(&addresses, 0, sizeof(addresses))
        try:
            room = self.resolve(&addresses, family, first or self.bind.port)
            self.bind_addresses(&addresses)
        finally:
            if room is not None:
                addresses.lists[0] = NULL  # which is not freeaddrinfo()'s
            free_found(&addresses)
            close_all(self.discarded)
        return 0

    cdef bytearray resolve(self, found_t *addresses, int family, object port):
        """getaddrinfo(), or what the caller's own resolver has found, which is in the bytearray that is returned."""
        cdef bytearray room = None
        if isinstance(self.bind._target, tuple):
            room = list_of(addresses, self.bind._target)
            if self.is_range:
                set_ports(addresses, port)
        else:
            try:
                resolve_bind(addresses, self.bind, port, family)
            except OSError as reason:
                # A resolver that can open no file says that it has not found the name.
                error = failure("getaddrinfo", str(self.bind), as_error(exhausted() or reason))
                error._named = self.bind.host, self.bind.port  # for its hint
                raise error from None
        self.absent_family = family_without_interface(addresses) if self.bind.host is None else 0
        return room

    cdef int bind_addresses(self, const found_t *addresses) except -1:
        """All on one port: the one that was asked for, the first of a range that is free on all of them, or one that
        the system chooses."""
        cdef int conflict, leader = 0, draws = DRAWS
        while True:
            conflict = self.bind_on_one_port(addresses, leader, self.is_range or draws > 0)
            if conflict < 0:
                return 0
            if self.is_range:
                close_all(self.listeners)
                if port_in(found_at(addresses, 0).ai_addr) == self.bind.last_port:
                    fail("bind", str(self.bind), self.error)
                set_ports(addresses, port_in(found_at(addresses, 0).ai_addr) + 1)
            else:
                # These stay bound until the bind has a port, or the system might choose the same number again.
                self.discarded += self.listeners
                self.listeners.clear()
                set_ports(addresses, 0)
                draws -= 1
                # The next number is drawn where this one was in use. Were it drawn on the same address again, all could
                # be in use on the other: Linux gives odd numbers first, and these run out first.
                leader = conflict

    cdef int bind_on_one_port(self, const found_t *addresses, int leader, bint may_go_on) except -2:
        """-1 when all addresses are bound, in their order. Else which one has the port in use, if another port will do
        and ``may_go_on``. Port 0 lets the system choose on the first address, ``leader``, for all."""
        cdef const addrinfo *address
        cdef Socket sock
        cdef list absent = []
        cdef Py_ssize_t from_the_first = 0
        cdef int turn, n, size = <int>addresses.size
        cdef bint drawn = False
        for turn in range(size):
            n = (leader + turn) % size
            if n == 0:
                from_the_first = len(self.listeners)
            address = found_at(addresses, n)
            if is_listed_before(addresses, n):
                continue
            if address.ai_family == self.absent_family:
                absent.append((decode(address.ai_addr, address.ai_addrlen), error_of(c.NET_EADDRNOTAVAIL)))
                continue
            sock = self.open_at(address)
            if sock is not None:
                self.listeners.append(sock)
                if size > 1 and port_in(address.ai_addr) == 0:
                    set_ports(addresses, self.name_of(sock)[1])
                    drawn = True
            elif lacks_family(addresses, address, self.error):
                absent.append((decode(address.ai_addr, address.ai_addrlen), error_of(self.error)))
            elif c.net_taken(self.error) and may_go_on and (drawn or self.is_range):
                return n
            else:
                self.fail(decode(address.ai_addr, address.ai_addrlen), self.error)
        if not self.listeners:
            where, why = absent.pop()
            self.fail(where, why)
        self.listeners = self.listeners[from_the_first:] + self.listeners[:from_the_first]
        self.left_out += absent
        return -1

    cdef Socket open_at(self, const addrinfo *address):
        """A bound socket. None when a step failed: `step` says which, `error` why."""
        cdef int proto = address.ai_protocol
        cdef Socket sock = None
        if self.multipath:
            sock = self.open_once(address, c.NET_IPPROTO_MPTCP, False)
            if sock is not None or self.step != "socket" or self.error == c.NET_EAFNOSUPPORT:
                proto = c.NET_IPPROTO_MPTCP
            else:  # without MPTCP it is TCP
                self.multipath = False
                self.left_out.append((str(self.bind), error_of(self.error)))
        if proto == address.ai_protocol:
            sock = self.open_once(address, proto, False)
        if sock is None and c.net_taken(self.error) and self.has_options and self.plan.shares:
            if self.plan.is_ours(decode(address.ai_addr, address.ai_addrlen)):
                sock = self.open_once(address, proto, True)
        return sock

    cdef Socket open_once(self, const addrinfo *address, int proto, bint joins):
        """socket, options, bind. ``joins``: a group of sockets that share the port already."""
        cdef Socket sock = <Socket>c.object_of(<type>Listener)
        (<object>sock).plan = self.plan
        self.step = "socket"
        # A protocol that the system has no number for.
        self.error = sock.open(address.ai_family, address.ai_socktype, proto) if proto >= 0 else c.NET_EPROTONOSUPPORT
        if self.error == 0:
            try:
                self.error = self.set_options(sock, address, joins) or self.bind_to(sock, address)
            except BaseException:
                sock.end()
                raise
            if self.error == 0:
                return sock
            sock.end()
        return None

    cdef int set_options(self, Socket sock, const addrinfo *address, bint joins) except? -1:
        cdef int error, only = not self.plan.takes_both
        self.step = "setsockopt"
        error = c.net_listener_defaults(sock.handle, address.ai_family)
        # Always set: its default differs between systems. With it, IPv4 and IPv6 can have the same port.
        if error == 0 and address.ai_family == c.AF_INET6:
            error = sock.set_option(c.IPPROTO_IPV6, c.IPV6_V6ONLY, <const char *>&only, sizeof(only))
        if error or not self.has_options:
            return error
        return self.prepare(sock, decode(address.ai_addr, address.ai_addrlen), joins)

    cdef int prepare(self, Socket sock, object address, bint joins) except? -1:
        """The options that were asked for. The result is an error of the step bind, where the port is in use and
        bind(2) would not say so."""
        cdef int error = self.plan.before_bind(sock, address, joins)
        if error:
            self.step = "bind"
        elif self.plan.configure is not None:
            self.configuring = True
            self.plan.configure(sock, address)
            self.configuring = False
            if sock.handle == c.NET_INVALID:
                raise ValueError("configure() has closed the socket, which is to be bound next")
            if is_bound(sock):
                raise ValueError("configure() has bound the socket, which is to be bound next: it is for options alone")
            self.interface = interface_of(sock)
        return error

    cdef int bind_to(self, Socket sock, const addrinfo *address) except? -1:
        cdef net_length_t length = <net_length_t>address.ai_addrlen
        cdef int error
        self.step = "bind"
        if not self.holds:
            error = sock.bind_to(address.ai_addr, length)
        else:
            # Exclusively first, so that of two processes that reserve a port at one moment one is refused. Only then
            # beside what may be connections in TIME_WAIT.
            error = c.net_hold(sock.handle, address.ai_family, True) or sock.bind_to(address.ai_addr, length)
            if error and c.net_taken(error):
                error = c.net_hold(sock.handle, address.ai_family, False) or sock.bind_to(address.ai_addr, length)
        if error == 0:
            error = self.after_bind(sock)
        return error

    cdef int after_bind(self, Socket sock) except? -1:
        self.step = "setsockopt"
        if self.has_options:
            self.plan.after_bind(sock, self.reserves)
        sock.wished = self.backlog
        # At once: another process that tries the same port must not get it too.
        return sock.hold(self.backlog) if self.holds else 0

    cdef int bind_vsock(self) except -1:
        """A port of a virtual machine. 0 lets the system choose here too, although Linux has another number for
        that."""
        cdef net_address_t name
        cdef net_length_t length = 0
        cdef addrinfo address
        cdef Socket sock
        self.step, self.error = "socket", c.NET_EAFNOSUPPORT
        for port in self.bind.ports:
            if not c.net_vsock_put(&name, self.bind.cid, port if port else 0xFFFFFFFF, &length):
                break
            memset(&address, 0, sizeof(address))
            address.ai_family, address.ai_socktype = c.NET_AF_VSOCK, c.SOCK_STREAM
            address.ai_addr, address.ai_addrlen = &name.any, length
            sock = self.open_at(&address)
            if sock is not None:
                self.listeners.append(sock)
                return 0
            if not c.net_taken(self.error):
                break
        self.fail(str(self.bind), self.error)
        return 0

    cdef int bind_unix(self, list openings) except -1:
        """A path in a directory, or an abstract name: see _unix.py."""
        cdef Socket sock
        path = self.bind.path
        if is_given_twice(path, listeners_of(openings)):
            self.step = "bind"
            self.fail(shown_path(path), c.NET_EADDRINUSE)
        listener = UnixListener.without_handle(path, self.plan)
        sock = <Socket>listener
        self.step, self.error = "socket", sock.open(c.AF_UNIX, c.SOCK_STREAM, 0)
        if self.error:
            self.fail(shown_path(path), self.error)
        self.listeners.append(sock)  # before it has a path, which is then removed whatever comes
        self.current = sock
        if self.has_options:
            self.prepare(sock, path, False)
        bind_path(listener)
        self.error = self.after_bind(sock)
        if self.error:
            self.fail(path, self.error)
        self.current = None
        return 0

    cdef int take_inherited(self, list openings) except -1:
        """Sockets that are open already: see _inherit.py. When a later step fails they are given back as they were,
        but for the options that are set on them here."""
        inherit(self.bind, [listener.fileno() for listener in listeners_of(openings)], self.listeners)
        for listener in self.listeners:
            listener.plan = self.plan
            (<Socket>listener).wished = self.backlog
            if self.has_options:
                self.plan.when_inherited(listener)
        return 0

    # ------------------------------------------------------------------ listen

    cdef int listen_all(self, list openings) except -1:
        """listen(2) on each. Linux lets several sockets bind one port until one of them listens: with a range of ports,
        the others go on to the next one then."""
        cdef Py_ssize_t n = 0
        cdef int error
        try:
            while n < len(self.listeners):
                self.current = self.listeners[n]
                error = self.listen(self.current, openings)
                if error == 0:
                    if self.has_options:
                        self.plan.after_listen(self.current)
                    n += 1
                elif c.net_taken(error) and self.is_range:
                    self.bind_further_on(error)
                    n = 0
                else:
                    self.step = "listen"
                    self.fail(address_of(self.current, self.bind), error)
        except OSError as reason:
            self.explain(reason)
            raise
        self.current = None
        return 0

    cdef int listen(self, Socket sock, list openings) except? -1:
        cdef int error
        if self.is_inherited and state_of(sock) == "listening":
            if self.backlog >= 0:
                (<object>sock)._listen_at_least(self.backlog)
            return 0
        error = sock.listen_for(self.backlog)
        if error and c.net_taken(error) and self.plan.may_join(sock, listeners_of(openings, sock)):
            error = sock.listen_for(self.backlog)
        return error

    cdef int bind_further_on(self, int error) except -1:
        """The next port of the range that is free."""
        cdef int port = self.name_of(self.listeners[0])[1]
        self.current = None
        close_all(self.listeners)
        if port == self.bind.last_port:
            fail("bind", str(self.bind), error)
        return self.bind_host(port + 1)

    # ------------------------------------------------------------------ errors

    cdef object name_of(self, Socket sock):
        try:
            return sock.getsockname()
        except OSError as reason:
            fail("getsockname", str(self.bind), reason)

    cdef int fail(self, object address, object reason) except -1:
        """Raises what a step came to. ``reason`` is an error number, or an exception."""
        raise failure(self.step, address, as_error(reason), self.plan.concerned(self.step)) from None

    cdef int explain(self, object reason) except -1:
        """An error of a call beside the steps, a look at the socket for one, is told like theirs; what the caller's own
        function has raised is passed on."""
        if not isinstance(reason, ListenError) and not self.configuring:
            fail("setsockopt", str(self.bind), reason)
        return 0

    cdef int record(self, object error, list openings) except -1:
        """While the sockets of this call are still open: one of them may be the cause of the error."""
        cdef Opening other
        cdef list others = []
        for other in openings:
            others += [(other.bind, listener) for listener in other.listeners if listener is not self.current]
        record_conflicts(error, self.bind, self.plan.takes_both, self.interface, self.current, others)
        return 0


# ---------------------------------------------------------------------------- when all are open, or a step has failed

cdef int warn(list openings, bint reserves) except -1:
    """Of what the system did not put in force: of queues once for the call, of options once for a bind."""
    cdef Opening opening
    cdef list asked = []
    for opening in openings:
        if opening.backlog >= 0 and not reserves:
            asked += [(listener, opening.backlog) for listener in opening.listeners]
    if asked:
        warn_if_less(asked)
    for opening in openings:
        if opening.has_options:
            opening.plan.warn(str(opening.bind), opening.listeners)
    return 0


_hand_over_prepared = False


cdef int prepare_hand_over() except -1:
    global _hand_over_prepared
    if not _hand_over_prepared:
        _hand_over_prepared = for_hand_over()
    return 0


cdef int take_over_paths(list listeners, bint now) except -1:
    """The last step, as a failure after it would leave the clients of a live server without any. After harken.bind()
    the path is taken over in ``listen()``."""
    cdef list entries = [one.entry for one in listeners if (<Socket>one).domain == c.AF_UNIX and has_path(one)]
    if not entries:
        return 0
    settle_soon = load("harken._paths").settle_soon
    if now:
        for entry in entries:
            entry.publish()
    settle_soon(entries)  # and nothing after it that could run Python code
    return 0


cdef bint has_path(object listener) except -1:
    return getattr(listener, "entry", None) is not None


cdef int undo(list openings) except -1:
    """Inherited sockets stay open, and can be asked for again; all others are closed."""
    cdef Opening opening
    for opening in openings:
        if opening.is_inherited:
            release(opening.listeners)
        close_all(opening.listeners)
        close_all(opening.discarded)
    return 0


cdef list listeners_of(list openings, Socket before=None):
    """Those of a call that are open, in order; those ``before`` one of them."""
    cdef Opening opening
    cdef list found = []
    for opening in openings:
        for listener in opening.listeners:
            if listener is before:
                return found
            found.append(listener)
    return found


cdef int close_all(list listeners) except -1:
    """Empties the list."""
    cdef Socket sock
    for sock in listeners:
        if sock.domain == c.AF_UNIX:
            entry = getattr(sock, "entry", None)
            if entry is not None:
                entry.remove()  # before the handle, as in its close(); here no signal handler comes in between
        sock.end()
    listeners.clear()
    return 0


# ---------------------------------------------------------------------------- errors

cdef int exhausted() except -1:
    """The error of socket(2), where no descriptors or no memory are left; else 0."""
    cdef Socket sock = Socket.__new__(Socket)
    cdef int error = sock.open(c.AF_INET, c.SOCK_STREAM, 0)
    sock.end()
    return error if c.net_overloaded(error) else 0


cdef object address_of(Socket sock, object bind):
    """For an error: where a socket is, or if the system does not tell, what it was asked for by."""
    try:
        return (<object>sock).address
    except OSError:
        return str(bind)


cdef object error_of(int number):
    """The exception that the platform's sockets would raise."""
    try:
        c.net_raise(number)
    except OSError as error:
        return error


cdef object as_error(object reason):
    return reason if isinstance(reason, OSError) else error_of(reason)


cdef int fail(str step, object address, object reason) except -1:
    raise failure(step, address, as_error(reason)) from None


# ---------------------------------------------------------------------------- the same steps, for harken check

def try_out(bind, plan, int family, port):
    """For ``harken check``: each address of a bind of TCP, of this family or of all, on one port, or a bind of vsock.
    Takes them through all steps but listen(2), whatever becomes of the others.

    Returns a list of ``(address, socket, step, error, absent)``, with a socket, or with the error of a step; ``absent``
    when listen() would do without the address. And the error of MPTCP, if plain TCP would take its place, else None.
    Raises the ListenError of getaddrinfo().
    """
    cdef Opening opening = opening_of(bind, plan, False)
    cdef found_t addresses
    cdef const addrinfo *address
    cdef bytearray room = None
    cdef Socket sock
    cdef list found = []
    cdef int n
    if opening.scheme == "vsock":
        try:
            opening.bind_vsock()
            return [(str(bind), opening.listeners[0], None, None, False)], None
        except OSError as reason:
            return [(str(bind), None, None, reason, False)], None
    memset(&addresses, 0, sizeof(addresses))
    try:
        room = opening.resolve(&addresses, family, port)
        for n in range(<int>addresses.size):
            if is_listed_before(&addresses, n):
                continue
            address = found_at(&addresses, n)
            where = decode(address.ai_addr, address.ai_addrlen)
            if address.ai_family == opening.absent_family:
                found.append((where, None, "bind", error_of(c.NET_EADDRNOTAVAIL), True))
                continue
            try:
                sock = opening.open_at(address)
            except OSError as reason:
                found.append((where, None, None, reason, False))
                continue
            if sock is not None:
                found.append((where, sock, None, None, False))
            else:
                absent = lacks_family(&addresses, address, opening.error)
                found.append((where, None, opening.step, error_of(opening.error), absent))
    finally:
        if room is not None:
            addresses.lists[0] = NULL
        free_found(&addresses)
    return found, (opening.left_out[0][1] if opening.left_out else None)


include "functions.pxi"

include "ending.pxi"
