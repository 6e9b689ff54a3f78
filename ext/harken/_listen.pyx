"""THE STORY: from names to listening sockets, told once.

    name → addresses → socket → bind → listen

Every address of every name is bound before the first one listens, so that nobody connects to a server that does not
come to be. When a step fails, all that was opened is closed, and the error says which step it was, on which address.
"""

import cython

from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.string cimport memcmp, memset

cimport harken._platform as c
from harken._platform cimport addrinfo, net_address_t, net_length_t, sockaddr, sockaddr_in, sockaddr_in6
from harken._resolve cimport decode, found_at, found_t, free_found, locate, resolve_bind
from harken._socket cimport Socket, backlog_of

from harken._bind import KNOWN, to_open
from harken._collision import is_given_twice, of_call
from harken._errors import ListenError, failure
from harken._inherit import inherit, returned
from harken._listener import IncompleteListeners, Listener, Listeners
from harken._loading import for_hand_over, load
from harken._socket import replace, state_of
from harken._stats import warn_if_less
from harken._unix import bind_planned, new_listener, shown as shown_path

cdef enum:
    # How often a new number is drawn when the one that port 0 gave is taken on another address. It is drawn where the
    # last one was taken, so that one crowded address costs two draws at the most, and only several can use up all.
    TRIES = 128


@cython.final
@cython.internal
cdef class Tools:
    """What listen() takes from Python. It is bound to them: a module that several interpreters may share has no globals
    in C, and to look each up costs as much as to make a socket object."""

    cdef bint held  # for bind(), which stops before listen
    cdef bint hands_over  # what sockets() needs is loaded
    cdef dict known
    cdef type listener, listeners

    def __cinit__(self, bint held):
        self.held, self.known, self.listener, self.listeners = held, KNOWN, Listener, Listeners

    @property
    def listen(self):
        """For pickle, which asks for a function of C by what it is bound to."""
        return listen

    @property
    def bind(self):
        """The same for the other one."""
        return bind

    def __reduce__(self):
        return "_holding" if self.held else "_listening"

    cdef tuple read(self, object bind, bint *plain):
        """Known are plain binds that were read before; not what only equals one (True, 8080.0), not what cannot be a
        key."""
        found = self.known.get(bind) if type(bind) is str or type(bind) is int else None
        if found is None:
            try:
                found = to_open(bind)
            except OSError as reason:  # the codec of a name that is not ASCII cannot be loaded
                fail("getaddrinfo", str(bind), exhausted() or reason)
            if not found.is_plain:
                plain[0] = False
        return <tuple>found

    cdef list plan(self, list binds, dict options):
        """How each bind is to be opened; None where nothing is asked for but the backlog."""
        cdef int error
        if (options is None or (len(options) == 1 and "backlog" in options)) and not any([bind[7] for bind in binds]):
            return [None] * len(binds)
        for_binds = part("_options", str(binds[0])).for_binds
        Plan = part("_plan", str(binds[0])).Plan
        all_chosen = for_binds(self.called(), binds, options or {})
        try:
            return [Plan(chosen) for chosen in all_chosen]
        except (ValueError, OSError) as reason:
            error = exhausted()
            if error:  # a table of users or groups that cannot be opened has no names
                fail("socket", str(binds[0]), error)
            if isinstance(reason, OSError):
                fail("import", str(binds[0]), reason)
            raise

    cdef str called(self):
        return "bind()" if self.held else "listen()"


cdef object vectorcall(Tools tools, PyObject *const *binds, Py_ssize_t count, PyObject *names):
    """listen() or bind(), with its arguments as CPython hands them over: the options stand behind the binds."""
    cdef list sockets = [], left_out = None, special = None, plans = None
    cdef dict options = None
    cdef tuple asked
    cdef Socket sock
    cdef int error, backlog = -1
    cdef bint plain, all_bound = False
    cdef Py_ssize_t n
    cdef list ends = []  # how many sockets there are behind each bind
    if names != NULL:
        options = {}
        for n in range(PyTuple_GET_SIZE(<object>names)):
            options[<object>PyTuple_GET_ITEM(<object>names, n)] = <object>binds[count + n]
        backlog = backlog_of(options.get("backlog"))
    if count == 0:
        if options:
            load("harken._options").refuse_unknown(tools.called(), options)
        raise TypeError(f"{tools.called()} needs at least one bind, as in '127.0.0.1:8080'")
    # All are read, and their options, before the first socket exists.
    plain = options is None or (len(options) == 1 and "backlog" in options)
    asked = tools.read(<object>binds[0], &plain)
    for n in range(1, count):
        tools.read(<object>binds[n], &plain)
    if not plain:
        special, plans = [], tools.plan([tools.read(<object>binds[n], &plain) for n in range(count)], options)
    try:
        for n in range(count):
            if n > 0:
                asked = tools.read(<object>binds[n], &plain)
            if plain:
                left_out = bind_one(tools, asked, None, False, sockets, left_out, 0)
            else:
                try:
                    left_out = bind_special(tools, asked, plans[n], sockets, left_out, special, backlog)
                except OSError as problem:
                    must_be_ours(problem, asked[3], plans[n])
                    raise
            ends.append(len(sockets))
        all_bound = True
        if special is not None:
            listen_special(tools, special, sockets, backlog)
        else:
            for opened in sockets:
                sock = <Socket>opened  # unchecked, which saves a look at the class
                error = sock.hold(backlog) if tools.held else sock.listen_for(backlog)
                sock.wished = backlog
                if error:
                    fail("setsockopt" if tools.held else "listen", address_of(sock, asked[3]), error)
        if not tools.held and (backlog >= 0 or special is not None):
            warn_if_less(asked_for(sockets, special, backlog))
        if special is not None:
            for opened in special:
                if opened[2] is not None:
                    opened[2].warn(opened[0][3], opened[1])
        made = c.tuple_of(tools.listeners, sockets) if left_out is None else IncompleteListeners(sockets, left_out)
        if not tools.hands_over:
            tools.hands_over = for_hand_over()
        if special is not None:
            publish_paths(sockets, not tools.held)
        return made
    except BaseException as reason:
        try:
            if isinstance(reason, OSError):
                read = [tools.read(<object>binds[n], &plain) for n in range(count)]
                tell_of_others(reason, read, plans, sockets, ends, special, all_bound)
        except Exception:
            pass  # what explains an error must not become the error
        finally:
            if special is not None:
                give_back(special)
            close_all(sockets)
        raise


cdef int tell_of_others(
    object error, list binds, list plans, list sockets, list ends, list special, bint all_bound
) except -1:
    """While the call's own sockets are still open: one of them may be what is in the way."""
    cdef list others = []
    cdef Py_ssize_t n, index, failed = len(ends)  # which bind; until all are bound, the one behind those that are
    cdef object failing = None  # its socket, where that is open
    for index in range(len(sockets)):
        sock = sockets[index]
        n = 0
        while n < len(ends) and not (sock in special[n][1] if special is not None else index < ends[n]):
            n += 1
        if all_bound and failing is None and state_of(sock) != "listening":
            failed, failing = n, sock  # they listen one after another
        else:
            others.append((binds[n], sock))
    if failed < len(binds):
        of_call(error, binds[failed], None if plans is None else plans[failed], failing, others)
    return 0


cdef c.PyMethodDef LISTEN = c.PyMethodDef(
    "listen",
    <void *>vectorcall,
    c.METH_FASTCALL | c.METH_KEYWORDS,
    b"listen(*binds, "
    # <options c_signature>: written by .ci/options
    b"backlog=None, reuse_port=None, ipv6_only=None, exclusive=None, nodelay=None, keepalive=None, "
    b"keepalive_idle=None, keepalive_interval=None, keepalive_count=None, user_timeout=None, defer_accept=None, "
    b"fastopen=None, rcvbuf=None, sndbuf=None, freebind=None, transparent=None, interface=None, mark=None, tos=None, "
    b"ttl=None, mss=None, congestion=None, priority=None, incoming_cpu=None, busy_poll=None, inheritable=None, "
    b"mode=None, owner=None, group=None, configure=None)\n"
    # </options>
    b"""--

Opens listening sockets for all binds, or for none: getaddrinfo(), socket(2), bind(2), listen(2).

Each bind stands for one or several addresses: ``"127.0.0.1:27015"``, ``"[::1]:0"``, ``"localhost:http"``; without a
host (``":8080"``, or just ``8080``) for every address of both families, on two sockets that share one port. With port 0
the system chooses one port for all addresses of a bind; of a range, ``":8000-8010"``, the first port that is free on
all of them is taken. ``"unix:/run/app.sock"`` is a unix socket: see `harken._unix`. ``"fd://3"`` and ``"systemd:name"``
are inherited sockets: see `adopt` and `from_systemd`. One that listens already keeps its queue, unless a longer one is
asked for; after an error inherited sockets stay open.

`harken.Options` documents the options; a bind may have its own: ``":8080?backlog=64"``. They are checked before the
first socket exists. ``backlog`` is how many connections may wait in the queue; by default as many as the system grants.
If the system grants fewer than were asked for, a RuntimeWarning says what to change.

The sockets have TCP_NODELAY, which accepted connections inherit, and SO_REUSEADDR on POSIX, SO_EXCLUSIVEADDRUSE on
Windows. Child processes do not inherit them. IPv6 sockets accept IPv6 only.

Returns `Listeners`. Raises TypeError or ValueError for an invalid bind or option, and ListenError, which is an OSError,
when a step fails.
""",
)
cdef c.PyMethodDef BIND = c.PyMethodDef(
    "bind",
    <void *>vectorcall,
    c.METH_FASTCALL | c.METH_KEYWORDS,
    b"bind(*binds, "
    # <options c_signature>: written by .ci/options
    b"backlog=None, reuse_port=None, ipv6_only=None, exclusive=None, nodelay=None, keepalive=None, "
    b"keepalive_idle=None, keepalive_interval=None, keepalive_count=None, user_timeout=None, defer_accept=None, "
    b"fastopen=None, rcvbuf=None, sndbuf=None, freebind=None, transparent=None, interface=None, mark=None, tos=None, "
    b"ttl=None, mss=None, congestion=None, priority=None, incoming_cpu=None, busy_poll=None, inheritable=None, "
    b"mode=None, owner=None, group=None, configure=None)\n"
    # </options>
    b"""--

Like `listen`, but stops after bind(2): the addresses are reserved, and clients are refused until ``listen()`` of the
result is called. So a server that takes minutes to be ready knows at once whether it can have its port.

No other process can bind the addresses and listen on them meanwhile, and connections of an earlier server in TIME_WAIT
do not prevent bind(2). For that, on Linux SO_REUSEADDR is on during bind(2), then off until listen(2): two sockets that
both have it may be bound to one address, and the first that calls listen(2) gets it. On Windows SO_EXCLUSIVEADDRUSE has
this effect; macOS and the BSDs always refuse the second bind(2).
""",
)
_listening, _holding = Tools(False), Tools(True)
listen = c.PyCFunction_NewEx(&LISTEN, _listening, __name__)
bind = c.PyCFunction_NewEx(&BIND, _holding, __name__)


cdef list bind_one(
    Tools tools, tuple bind, object plan, bint multipath, list sockets, list left_out, int start
):
    """One name: a bound socket for each of its addresses, with one port for all, is added to ``sockets``.

    What is left out is added to ``left_out``, which is returned, and None as long as nothing is. ``start`` is the port
    from which a range goes on, or 0. ``plan`` is None where no options were asked for; ``multipath``: by MPTCP.
    """
    cdef found_t addresses
    cdef const addrinfo *address
    cdef Socket sock
    cdef bytearray looked_up = None
    cdef list given_up = None, absent, told = [] if multipath else None
    cdef Py_ssize_t first = len(sockets)
    cdef const char *step = b"bind"
    cdef int error, number, n, turn, lacking, left = TRIES, end = 0
    cdef int drawer = 0  # the address whose turn it is to let the system choose a number
    cdef Py_ssize_t around
    host, port, family, text = bind[0], bind[1], bind[2], bind[3]
    if bind[5] is not None:
        port, end = start or port, bind[5]
    memset(&addresses, 0, sizeof(addresses))
    if isinstance(bind[4], tuple):
        looked_up = take_over(&addresses, <tuple>bind[4])
        if end:
            set_ports(&addresses, port)
    else:
        try:
            resolve_bind(&addresses, bind, port, family)
        except OSError as reason:
            # A resolver that can open no file says that it has not found the name.
            fail_to_resolve(bind, exhausted() or reason)
    try:
        lacking = family_to_leave_out(host, &addresses)
        while True:
            number, absent, around = 0, None, first
            for turn in range(<int>addresses.size):
                n = (drawer + turn) % <int>addresses.size
                if n == 0:
                    around = len(sockets)
                address = found_at(&addresses, n)
                if stands_before(&addresses, address, n):
                    continue
                if address.ai_family == lacking:
                    absent = (absent or []) + [left_out_of(address, c.NET_EADDRNOTAVAIL)]
                    continue
                if plan is None and not multipath:
                    sock = <Socket>c.object_of(tools.listener)
                    error = open_bound(sock, address, address.ai_protocol, None, False, tools.held, &step)
                else:
                    sock = new_socket(tools, plan)
                    error = open_tuned(sock, address, plan, bind[3] if multipath else None, told, tools.held, &step)
                    multipath = multipath and not told
                if error == 0:
                    sockets.append(sock)
                    if addresses.size > 1 and number == 0 and port_in(address.ai_addr) == 0:
                        number = named(sock, text)[1]  # the system chose, for all
                        set_ports(&addresses, number)
                elif may_be_absent(&addresses, address, error):
                    absent = (absent or []) + [left_out_of(address, error)]
                elif c.net_taken(error) and (end or (number != 0 and left > 0)):
                    break  # the number is free on one address and taken on another
                else:
                    fail(step.decode("ascii"), decode(address.ai_addr, address.ai_addrlen), error, plan)
            else:
                break
            if end:
                close_all(sockets[first:])
                del sockets[first:]
                if port == end:
                    fail("bind", text, error)
                port += 1
                set_ports(&addresses, port)
                continue
            # What was bound stays so until the end, or the system might give the same number again.
            given_up = (given_up or []) + sockets[first:]
            del sockets[first:]
            left -= 1
            set_ports(&addresses, 0)
            # Next the number is one of those that are free here. The other's could all be taken here: Linux gives odd
            # numbers first, and these run out first.
            drawer = n
        if drawer:
            sockets[first:] = sockets[around:] + sockets[first:around]
        if len(sockets) == first:
            last = absent[len(absent) - 1]
            fail(step.decode("ascii"), last[0], last[1])
    finally:
        if looked_up is not None:
            addresses.lists[0] = NULL  # which freeaddrinfo() has not made
        free_found(&addresses)
        if given_up is not None:
            close_all(given_up)
    if absent is not None or told:
        return (left_out or []) + (told or []) + (absent or [])
    return left_out


cdef struct entry_t:
    addrinfo info
    net_address_t address


cdef bytearray take_over(found_t *found, tuple addresses):
    """What a resolver of somebody else's has found, tuples as the standard library writes them, in the place of
    resolve(). The list in C is inside the result, and lives as long as that."""
    cdef Py_ssize_t n, count = len(addresses)
    cdef bytearray room = bytearray(count * sizeof(entry_t))
    cdef entry_t *entries = <entry_t *><char *>room
    cdef net_length_t length = 0
    cdef int family
    for n in range(count):
        family = c.AF_INET if len(addresses[n]) == 2 else c.AF_INET6
        locate(addresses[n], family, &entries[n].address, &length, b"bind()")
        entries[n].info.ai_family, entries[n].info.ai_socktype = family, c.SOCK_STREAM
        entries[n].info.ai_protocol = c.IPPROTO_TCP
        entries[n].info.ai_addr, entries[n].info.ai_addrlen = &entries[n].address.any, length
        entries[n].info.ai_next = &entries[n + 1].info if n + 1 < count else NULL
    found.lists[0], found.size = &entries[0].info, count
    return room


cdef Socket new_socket(Tools tools, object plan):
    if plan is None:
        return <Socket>c.object_of(tools.listener)  # called, it would open a socket of its own
    return plan.listener()


cdef list bind_special(
    Tools tools, tuple bind, object plan, list sockets, list left_out, list special, int backlog
):
    """Whatever is more than one name and one port by TCP. ``special`` gets ``[bind, its sockets, plan]``."""
    cdef Socket sock
    cdef Py_ssize_t n, first = len(sockets)
    cdef list of_bind
    scheme = bind[6]
    if scheme == "fd" or scheme == "systemd":
        of_bind = []
        special.append([bind, of_bind, plan])  # first: whatever comes between, they are given back
        inherit(bind, [sock.fileno() for sock in sockets], of_bind)
        if plan is not None:
            for n in range(len(of_bind)):  # one by one: after an error the others are given back
                tuned = plan.adopted(of_bind[n])
                replace(of_bind[n], tuned)
                of_bind[n] = tuned
        sockets += of_bind
        return left_out
    if scheme == "unix":
        if len(sockets) > 0 and is_given_twice(bind[4], sockets):
            fail("bind", shown_path(bind[4]), c.NET_EADDRINUSE)
        sockets.append(new_listener(bind[4]))  # before it has a path, which is removed whatever comes
        try:
            bind_planned(sockets[first], plan)
        except BaseException:
            close_all(sockets[first:])
            del sockets[first:]
            raise
    elif scheme == "vsock":
        sockets.append(bind_vsock(tools, bind, plan))
    else:
        left_out = bind_named(tools, bind, plan, sockets, left_out, 0)
    if tools.held:
        for sock in sockets[first:]:  # at once: whoever tries the same ports must not join
            sock.hold(backlog if plan is None else plan.backlog)
    special.append([bind, sockets[first:], plan])
    return left_out


cdef list bind_named(Tools tools, tuple bind, object plan, list sockets, list left_out, int start):
    """bind_one(); of a wildcard that takes both families one IPv6 socket, or where there is no IPv6, one of IPv4."""
    cdef bint multipath = bind[6] == "mptcp"
    if plan is None or not plan.takes_both or bind[0] is not None or bind[2] != c.AF_UNSPEC:
        return bind_one(tools, bind, plan, multipath, sockets, left_out, start)
    try:
        return bind_one(tools, bind[:2] + (c.AF_INET6,) + bind[3:], plan, multipath, sockets, left_out, start)
    except OSError as reason:
        if reason.errno != c.NET_EAFNOSUPPORT and reason.errno != c.NET_EADDRNOTAVAIL:
            raise
        left_out = (left_out or []) + [(("::", bind[1], 0, 0), reason)]
    return bind_one(tools, bind[:2] + (c.AF_INET,) + bind[3:], plan, multipath, sockets, left_out, start)


cdef Socket bind_vsock(Tools tools, tuple bind, object plan):
    """A port of a virtual machine. 0 lets the system choose here too, although Linux has another number for that."""
    cdef net_address_t name
    cdef net_length_t length = 0
    cdef addrinfo address
    cdef Socket sock = new_socket(tools, plan)
    cdef const char *step = b"socket"
    cdef int error = c.NET_EAFNOSUPPORT
    first, last = bind[1], bind[1] if bind[5] is None else bind[5]
    for port in range(first, last + 1):
        if not c.net_vsock_put(&name, bind[4], port if port else 0xFFFFFFFF, &length):
            break
        memset(&address, 0, sizeof(address))
        address.ai_family, address.ai_socktype = c.NET_AF_VSOCK, c.SOCK_STREAM
        address.ai_addr, address.ai_addrlen = &name.any, length
        error = open_bound(sock, &address, 0, plan, False, tools.held, &step)
        if error == 0:
            return sock
        if not c.net_taken(error):
            break
    fail(step.decode("ascii"), bind[3], error)


cdef int listen_special(Tools tools, list special, list sockets, int backlog) except -1:
    cdef Py_ssize_t n = 0
    while n < len(sockets):
        for entry in special:
            if sockets[n] in entry[1]:
                break
        try:
            n = listen_one(tools, entry, sockets, n, backlog)
        except OSError as reason:
            must_be_ours(reason, entry[0][3], entry[2])
            raise
    return 0


cdef Py_ssize_t listen_one(Tools tools, list entry, list sockets, Py_ssize_t n, int backlog) except -1:
    """The socket that stands at ``n`` in ``sockets`` and is one of ``entry``. Answers which is the next."""
    cdef Socket sock = sockets[n]
    cdef int error, length
    bind, plan = entry[0], entry[2]
    length = backlog if plan is None else plan.backlog
    there = bind[6] == "fd" or bind[6] == "systemd"
    sock.wished = length
    if there and tools.held:
        pass
    elif there and state_of(sock) == "listening":
        if length >= 0:
            sock._begin(length)  # of a Listener: it lengthens the queue, or leaves it alone
    else:
        error = sock.hold(length) if tools.held else sock.listen_for(length)
        if error and c.net_taken(error) and plan is not None and plan.may_join(sock, sockets[:n]):
            error = sock.listen_for(length)
        if error:
            if tools.held or bind[5] is None or not c.net_taken(error):
                fail("setsockopt" if tools.held else "listen", address_of(sock, bind[3]), error, plan)
            return go_on(tools, entry, sockets, error)
    if plan is not None:
        plan.made(sock)
        if not tools.held:
            plan.listening(sock)
    return n + 1


cdef int publish_paths(list sockets, bint takes) except -1:
    """The last step: what fails after it would cut a live server off. With bind() nothing is taken over yet."""
    cdef list entries = [entry for entry in [getattr(sock, "entry", None) for sock in sockets] if entry is not None]
    if not entries:
        return 0
    settle_soon = load("harken._paths").settle_soon
    if takes:
        for entry in entries:
            entry.publish()
    settle_soon(entries)  # and nothing after it that could run Python code
    return 0


cdef list asked_for(list sockets, list special, int backlog):
    """How long a queue each was to have."""
    cdef list found = []
    if special is None:
        return [(sock, backlog) for sock in sockets]
    for _, of_bind, plan in special:
        found += [(sock, backlog if plan is None else plan.backlog) for sock in of_bind]
    return found


cdef Py_ssize_t go_on(Tools tools, list entry, list sockets, int error) except -1:
    """Linux lets several bind one port until one of them listens; the others go on to the next of their range. Answers
    where in ``sockets`` the new ones stand."""
    cdef tuple bind = <tuple>entry[0]
    cdef list old = entry[1], new = []
    cdef Py_ssize_t first = sockets.index(old[0])
    port = named(old[0], bind[3])[1]
    close_all(old)
    if port == bind[5]:
        fail("bind", bind[3], error)
    try:
        bind_named(tools, bind, entry[2], new, None, port + 1)
    except BaseException:
        close_all(new)
        raise
    sockets[first:first + len(old)] = new
    entry[1] = new
    return first


cdef int give_back(list special) except -1:
    for bind, of_bind, _ in special:
        if bind[6] == "fd" or bind[6] == "systemd":
            returned(of_bind)
    return 0


cdef int open_bound(
    Socket sock, const addrinfo *address, int proto, object plan, bint joining, bint held, const char **step
) except? -1:
    """socket, options, bind. After an error the socket is closed, and ``step`` names the call that failed."""
    cdef int error, only = plan is None or not plan.takes_both
    step[0] = b"socket"
    error = sock.open(address.ai_family, address.ai_socktype, proto)
    if error:
        return error
    step[0] = b"setsockopt"
    error = c.net_listener_defaults(sock.handle, address.ai_family)
    # Always said, never left to the system, whose default differs: with it, IPv4 and IPv6 can share a port number.
    if error == 0 and address.ai_family == c.AF_INET6:
        if c.setsockopt(sock.handle, c.IPPROTO_IPV6, c.IPV6_V6ONLY, <const char *>&only, sizeof(only)) != 0:
            error = c.net_last_error()
    if error == 0 and plan is not None:
        error = prepare(sock, address, plan, joining)
        if error:
            step[0] = b"bind"
    if error == 0:
        step[0] = b"bind"
        error = bind_held(sock, address) if held else sock.bind_to(address.ai_addr, <net_length_t>address.ai_addrlen)
    if error:
        sock.end()
    return error


cdef int bind_held(Socket sock, const addrinfo *address) noexcept:
    """Alone first, so that of two that hold a port at the same moment one is refused. Only then beside what may be
    connections in TIME_WAIT."""
    cdef net_length_t length = <net_length_t>address.ai_addrlen
    cdef int error = c.net_hold(sock.handle, address.ai_family, True) or sock.bind_to(address.ai_addr, length)
    if error and c.net_taken(error):
        error = c.net_hold(sock.handle, address.ai_family, False) or sock.bind_to(address.ai_addr, length)
    return error


cdef int prepare(Socket sock, const addrinfo *address, object plan, bint joining) except? -1:
    try:
        return plan.prepare(sock, decode(address.ai_addr, address.ai_addrlen), joining)
    except BaseException:
        sock.end()
        raise


cdef int open_tuned(
    Socket sock, const addrinfo *address, object plan, object multipath, list told, bint held, const char **step
) except? -1:
    """open_bound() with options. ``multipath`` is a bind that asks for MPTCP: where the system has it not, TCP it is,
    and ``told`` says so."""
    cdef int error = 0, proto = address.ai_protocol
    if multipath is not None:
        step[0], error = b"socket", c.NET_EPROTONOSUPPORT
        if c.NET_IPPROTO_MPTCP >= 0:
            error = open_bound(sock, address, c.NET_IPPROTO_MPTCP, plan, False, held, step)
        # At bind() MPTCP is there already, and of a family that the system lacks it says nothing.
        if error == 0 or step[0][0] == b"b" or error == c.NET_EAFNOSUPPORT:
            proto = c.NET_IPPROTO_MPTCP
        else:
            told.append((multipath, error_of(error)))
    if multipath is None or told:
        error = open_bound(sock, address, proto, plan, False, held, step)
    if error and c.net_taken(error) and plan is not None and plan.guards:
        if plan.is_ours(decode(address.ai_addr, address.ai_addrlen)):
            error = open_bound(sock, address, proto, plan, True, held, step)
    if error == 0 and held and plan is not None:
        try:
            plan.bound(sock, decode(address.ai_addr, address.ai_addrlen))
        except BaseException:
            sock.end()
            raise
    return error


def try_out(bind, plan, int family, port):
    """For ``harken check``: opens each address of a bind as listen() would, but for listen(2), whatever becomes of the
    others. A list of ``(address, socket, step, error, absent)``: a socket, or the error of a step; ``absent`` when
    listen() would do without the address. And the error of MPTCP, where plain TCP would take its place.

    Raises the ListenError of getaddrinfo().
    """
    cdef found_t addresses
    cdef const addrinfo *address
    cdef Tools tools = Tools(False)
    cdef Socket sock
    cdef list found = [], told = []
    cdef const char *step = b"bind"
    cdef int error, n, lacking
    if bind[6] == "vsock":
        try:
            return [(bind[3], bind_vsock(tools, <tuple>bind, plan), None, None, False)], None
        except OSError as reason:
            return [(bind[3], None, None, reason, False)], None
    memset(&addresses, 0, sizeof(addresses))
    try:
        resolve_bind(&addresses, <tuple>bind, port, family)
    except OSError as reason:
        fail_to_resolve(<tuple>bind, exhausted() or reason)
    try:
        lacking = family_to_leave_out(bind[0], &addresses)
        for n in range(<int>addresses.size):
            address = found_at(&addresses, n)
            if stands_before(&addresses, address, n):
                continue
            where = decode(address.ai_addr, address.ai_addrlen)
            if address.ai_family == lacking:
                found.append((where, None, "bind", error_of(c.NET_EADDRNOTAVAIL), True))
                continue
            sock = new_socket(tools, plan)
            multipath = bind[3] if bind[6] == "mptcp" and not told else None
            try:
                error = open_tuned(sock, address, plan, multipath, told, False, &step)
            except OSError as reason:
                found.append((where, None, None, reason, False))
                continue
            if error == 0:
                found.append((where, sock, None, None, False))
            else:
                absent = may_be_absent(&addresses, address, error)
                found.append((where, None, step.decode("ascii"), error_of(error), absent))
    finally:
        free_found(&addresses)
    return found, (told[0][1] if told else None)


cdef bint stands_before(const found_t *addresses, const addrinfo *address, int index) noexcept:
    """Hosts files and some resolvers name an address twice; it can be bound once."""
    cdef const addrinfo *earlier
    cdef int n
    for n in range(index):
        earlier = found_at(addresses, n)
        if earlier.ai_addrlen != address.ai_addrlen:
            continue
        if memcmp(earlier.ai_addr, address.ai_addr, address.ai_addrlen) == 0:
            return True
    return False


cdef bint may_be_absent(const found_t *addresses, const addrinfo *address, int error) noexcept:
    """Does this machine lack the family, so that the name's addresses of the other will do? Then socket() fails for all
    its addresses, or bind() for the loopback and the wildcard; any other address that cannot be bound is a mistake."""
    cdef const unsigned char *digits
    cdef unsigned int number
    cdef int n
    if not has_both_families(addresses):
        return False
    if error == c.NET_EAFNOSUPPORT:
        return True
    if error != c.NET_EADDRNOTAVAIL:
        return False
    if address.ai_family == c.AF_INET:
        number = c.ntohl((<const sockaddr_in *>address.ai_addr).sin_addr.s_addr)
        return number == 0 or number == 0x7F000001
    digits = <const unsigned char *>&(<const sockaddr_in6 *>address.ai_addr).sin6_addr
    for n in range(15):
        if digits[n]:
            return False
    return digits[15] <= 1


cdef bint has_both_families(const found_t *addresses) noexcept:
    cdef int n
    for n in range(1, <int>addresses.size):
        if found_at(addresses, n).ai_family != found_at(addresses, 0).ai_family:
            return True
    return False


cdef int family_to_leave_out(object host, const found_t *addresses) noexcept:
    """Of a wildcard that stands for both families, the one that no interface has; or 0."""
    cdef int n, family
    if host is None and has_both_families(addresses):
        for n in range(<int>addresses.size):
            family = found_at(addresses, n).ai_family
            if c.net_has_family(family) != 0:
                return family
    return 0


cdef tuple left_out_of(const addrinfo *address, int error):
    return decode(address.ai_addr, address.ai_addrlen), error_of(error)


# The port stands in the same place in both families.
cdef int port_in(const sockaddr *address) noexcept:
    return (<const sockaddr_in *>address).sin_port


cdef void set_ports(const found_t *addresses, int port) noexcept:
    """All at once: an address that stands twice must look the same twice."""
    cdef int n
    for n in range(<int>addresses.size):
        (<sockaddr_in *>found_at(addresses, n).ai_addr).sin_port = c.htons(<unsigned short>port)


cdef int close_all(list sockets) except -1:
    cdef Socket sock
    for sock in sockets:
        if sock.domain != c.AF_UNIX:
            sock.end()
            continue
        entry = getattr(sock, "entry", None)
        if entry is not None:
            entry.remove()  # before the handle, as in its close(); here no signal handler comes in between
        sock.end()
    return 0


cdef object part(str name, str text):
    """A module that only some binds need. Where it cannot be loaded because descriptors or memory have run out, a
    socket cannot be had either, and that is the error: it is the same as of a bind that needs no more modules."""
    cdef int error
    try:
        return load(f"harken.{name}")
    except OSError as reason:
        error = exhausted()
        if error:
            fail("socket", text, error)
        fail("import", text, reason)


cdef int exhausted() except -1:
    """The error of socket(2), where no descriptors or no memory are left; else 0."""
    cdef Socket sock = Socket.__new__(Socket)
    cdef int error = sock.open(c.AF_INET, c.SOCK_STREAM, 0)
    sock.end()
    return error if c.net_overloaded(error) else 0


cdef object named(Socket sock, object text):
    """The name of a socket; ``text`` is what it was asked for by."""
    try:
        return sock.getsockname()
    except OSError as reason:
        fail("getsockname", text, reason)


cdef object address_of(Socket sock, object text):
    """For an error: where a socket is, or if that cannot be told what it was asked for by."""
    try:
        return (<object>sock).address
    except OSError:
        return text


cdef int must_be_ours(object reason, object text, object plan) except -1:
    """An error of a call beside the steps, a look at the socket for one, is told like theirs; what the caller's own
    function raised is passed on."""
    if isinstance(reason, ListenError) or (plan is not None and plan.configuring):
        return 0
    fail("setsockopt", text, reason)


cdef object error_of(int number):
    """The exception that the platform's sockets would raise."""
    try:
        c.net_raise(number)
    except OSError as error:
        return error


cdef int fail_to_resolve(tuple bind, object reason) except -1:
    error = failure("getaddrinfo", bind[3], reason if isinstance(reason, OSError) else error_of(reason))
    error._named = bind[0], bind[1]  # for its hint, which then need not read the text again
    raise error from None


cdef int fail(str step, object address, object reason, object plan=None) except -1:
    """``reason`` is an error number, or an exception that was raised already."""
    reason = reason if isinstance(reason, OSError) else error_of(reason)
    raise failure(step, address, reason, None if plan is None else plan.concerned(step)) from None


include "ending.pxi"
