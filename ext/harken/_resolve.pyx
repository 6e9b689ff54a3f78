"""Step 1: from a name and a port to addresses. How those look in Python and in C: address.pxi."""

import cython

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.number cimport PyNumber_AsSsize_t, PyNumber_Index
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.string cimport memchr, memcpy, memset

cimport harken._platform as c
from harken._platform cimport addrinfo, net_address_t, net_length_t

from _socket import gaierror  # the standard library's own class, without the cost of importing ``socket``
from _collections_abc import Sequence  # collections.abc, without what else is in collections

from harken._loading import idna
import harken._system  # no-cython-lint: starts Winsock, before any call below

include "address.pxi"


@cython.final
@cython.collection_type("sequence")
cdef class AddrInfoEntry:
    """AddrInfoEntry()\n--\n\n\
    One address that a server may bind, or a client connect to: unpacks like the standard library's 5-tuple.

    ``family``, ``type`` and ``proto`` are what `Socket` takes, ``sockaddr`` is what ``bind()`` and ``connect()`` take
    (they take the whole entry too), ``canonname`` is empty unless AI_CANONNAME asked for it.
    """

    cdef tuple five(self):
        """As the standard library has it."""
        return self.family, self.type, self.proto, self.name or "", decode(&self.address.any, self.length)

    @property
    def canonname(self):
        """The canonical name of the host, if AI_CANONNAME asked for it; else empty."""
        return self.name or ""

    @property
    def sockaddr(self):
        """The address: ``(host, port)``, or ``(host, port, flowinfo, scope_id)``."""
        return decode(&self.address.any, self.length)

    def __iter__(self):
        return iter(self.five())

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.five()[index]

    def __eq__(self, other):
        if isinstance(other, AddrInfoEntry):
            return self.five() == (<AddrInfoEntry>other).five()
        return self.five() == tuple(other) if isinstance(other, tuple) else NotImplemented

    def __hash__(self):
        return hash(self.five())

    def __repr__(self):
        return (
            f"AddrInfoEntry(family={self.family}, type={self.type}, proto={self.proto}, "
            f"canonname={self.canonname!r}, sockaddr={self.sockaddr!r})"
        )


cdef void free_found(found_t *found) noexcept nogil:
    cdef int n
    # freeaddrinfo(NULL) is promised by neither POSIX nor Winsock.
    for n in range(2):
        if found.lists[n] != NULL:
            c.freeaddrinfo(found.lists[n])
            found.lists[n] = NULL
    found.size = 0


cdef int ask_once(
    found_t *found, int n, const char *node, const char *service, const addrinfo *hints
) noexcept nogil:
    cdef int error = c.getaddrinfo(node, service, hints, &found.lists[n])
    if error:
        if error == c.NET_EAI_SYSTEM:
            found.system_error = c.net_last_error()
        found.lists[n] = NULL
    return error


cdef int ask(found_t *found, const char *node, const char *service, addrinfo *hints) noexcept nogil:
    """One call of getaddrinfo(), or two: then a family that the system has not is passed over, if the other is
    there, and any other error is the error of both."""
    cdef int error, other
    cdef addrinfo *each
    cdef int n
    if node == NULL and hints.ai_family == c.AF_UNSPEC and not hints.ai_flags & c.AI_ADDRCONFIG:
        # The wildcard (or the loopback) of both families. Asked for both at once, glibc sorts the answers by
        # connecting a socket to each, which takes three hundred times as long as asking twice. (Not so with
        # AI_ADDRCONFIG, which refuses a family that only the loopback has, when it is asked for alone.)
        hints.ai_family = c.AF_INET if hints.ai_flags & c.AI_PASSIVE else c.AF_INET6
        error = ask_once(found, 0, node, service, hints)
        if error == 0 or is_no_such_family(error):
            hints.ai_family = c.AF_INET6 if hints.ai_flags & c.AI_PASSIVE else c.AF_INET
            other = ask_once(found, 1, node, service, hints)
            if other == 0 or not is_no_such_family(other):
                error = other
    else:
        error = ask_once(found, 0, node, service, hints)
    if error:
        free_found(found)
        return error
    found.size = 0
    for n in range(2):
        each = found.lists[n]
        while each != NULL:
            found.size += 1
            each = each.ai_next
    return 0


cdef int not_found(const found_t *found, int error, object host, object port) except -1:
    if error == c.NET_EAI_SYSTEM:
        return c.net_raise(found.system_error)
    return raise_gaierror(error, host, port)


cdef addrinfo *found_at(const found_t *found, Py_ssize_t index) noexcept:
    """For an index that is there."""
    cdef addrinfo *each = found.lists[0] if found.lists[0] != NULL else found.lists[1]
    while index:
        index -= 1
        # Behind the end of the first list stands the second.
        each = each.ai_next if each.ai_next != NULL else found.lists[1]
    return each


@cython.final
@cython.collection_type("sequence")
cdef class AddrInfo:
    """AddrInfo()\n--\n\n\
    The addresses of a name: a sequence of `AddrInfoEntry` that owns the list which getaddrinfo() made in C.

    ``close()`` gives the list to freeaddrinfo(), so does leaving a ``with`` block, so does dropping the object. Entries
    are copies and stay valid.
    """

    # No __cinit__: an object is born with nothing found, which is what a closed one has.

    def __dealloc__(self):
        free_found(&self.found)

    cdef AddrInfoEntry entry(self, Py_ssize_t index):
        cdef AddrInfoEntry entry = AddrInfoEntry.__new__(AddrInfoEntry)
        self.must_be_open()  # what computed the index may have closed it
        cdef addrinfo *each = found_at(&self.found, index)
        entry.family = each.ai_family
        entry.type = each.ai_socktype
        entry.proto = each.ai_protocol
        entry.length = <net_length_t>min(each.ai_addrlen, sizeof(net_address_t))
        memcpy(&entry.address, each.ai_addr, entry.length)
        if each.ai_canonname != NULL:
            entry.name = each.ai_canonname.decode("utf-8", "surrogateescape")
        return entry

    cdef Py_ssize_t must_be_open(self) except -1:
        if self.found.size == 0:
            raise ValueError("this AddrInfo is closed")
        return self.found.size

    @cython.critical_section
    def close(self):
        """Frees the C list: freeaddrinfo(). A second call does nothing."""
        free_found(&self.found)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @cython.critical_section
    def __len__(self):
        return self.must_be_open()

    @cython.critical_section
    def __getitem__(self, index):
        cdef Py_ssize_t at
        if isinstance(index, slice):
            return [self.entry(n) for n in range(*index.indices(self.must_be_open()))]
        at = PyNumber_AsSsize_t(index, IndexError)
        self.must_be_open()
        if at < 0:
            at += self.found.size
        if not 0 <= at < self.found.size:
            raise IndexError("AddrInfo index out of range")
        return self.entry(at)

    def index(self, value, start=0, stop=None):
        """The index of the first entry that equals ``value``."""
        return list(self).index(value, start, len(self) if stop is None else stop)

    def count(self, value):
        """How many entries equal ``value``."""
        return list(self).count(value)

    def __repr__(self):
        return "<AddrInfo, closed>" if self.found.size == 0 else f"<AddrInfo {list(self)!r}>"


cdef bint is_no_such_family(int error) noexcept nogil:
    return error == c.EAI_NONAME or error == c.EAI_FAMILY


Sequence.register(AddrInfo)


cdef const char *digits_of(int port, char *text) noexcept:
    """The port in decimal, written from the end of ``text``."""
    cdef int at = 7
    cdef unsigned int left = port, tenth
    text[at] = 0
    while True:
        at -= 1
        tenth = left * 52429 >> 19  # left // 10 for what has 16 bits; a division costs as much as a third of the call
        text[at] = <char>(48 + left - 10 * tenth)
        left = tenth
        if left == 0:
            return &text[at]


cdef const char *plain_port(object port) except? NULL:
    """A port that is text in up to five digits, for C, if it is in range; NULL for all other text."""
    cdef Py_ssize_t size = 0, n
    cdef const char *text
    cdef int number = 0
    if not (isinstance(port, str) and c.PyUnicode_IS_ASCII(port)):
        return NULL
    text = c.PyUnicode_AsUTF8AndSize(port, &size)
    if not 1 <= size <= 5:
        return NULL
    for n in range(size):
        if not b"0" <= text[n] <= b"9":
            return NULL
        number = 10 * number + text[n] - 48
    return text if number <= 65535 else NULL


cdef bytes service_of(object host, object port, bint *numeric):
    """A port that is text: digits, which must be in range, or the name of a service."""
    cdef bytes text
    if isinstance(port, str):
        try:
            text = (<str>port).encode("utf-8")
        except UnicodeError as error:
            error.add_note("getaddrinfo(): port")  # the error itself holds the text
            raise
    else:
        text = c.PyBytes_FromObject(port)
    if b"\0" in text:
        raise ValueError(f"getaddrinfo(): port: embedded null character in {brief(port)}")
    numeric[0] = text.isdigit()
    if numeric[0]:
        # Resolvers let 65536 pass for 0. int() refuses thousands of digits; what is too long is out of range as it is.
        port_of(int(text.lstrip(b"0")[:20] or b"0"), "getaddrinfo()")
    elif not text or len(text) > NAME_MOST or text[:1] in b"+- \t\n\v\f\r":
        raise_gaierror(c.EAI_SERVICE, host, port)  # some resolvers would find a number in it, or take their time
    return text


cdef str short(object argument):
    return brief(argument) if isinstance(argument, (str, bytes, bytearray)) else repr(argument)


cdef int raise_gaierror(int error, object host, object port) except -1:
    """The standard library's own class, so that ``except socket.gaierror`` catches it."""
    text = (<bytes>c.NET_ERROR_TEXT(error)).decode("utf-8", "replace")
    raise gaierror(error, f"{text} (host {short(host)}, port {short(port)})")


cdef int resolve(found_t *found, object host, object port, int family, int type, int proto, int flags) except -1:
    """Fills in ``found``, which has nothing yet, and still has nothing after an exception."""
    cdef char digits[8]
    cdef addrinfo hints
    cdef bint numeric = 1
    cdef int error
    cdef Py_ssize_t size = 0
    cdef const char *node = NULL
    cdef const char *service = NULL
    cdef bytes node_text, service_text
    if isinstance(port, (str, bytes, bytearray)):
        service = plain_port(port)
        if service == NULL:
            service_text = service_of(host, port, &numeric)
            service = service_text
    elif port is not None:
        service = digits_of(port_of(port, "getaddrinfo()"), digits)
    if host is not None:
        if isinstance(host, str) and c.PyUnicode_IS_ASCII(host):
            node = c.PyUnicode_AsUTF8AndSize(host, &size)
        if node == NULL or size > 63 or memchr(node, 0, size) != NULL:
            node_text = text_of(host, "getaddrinfo(): host")
            node, size = node_text, len(node_text)
            if size > NAME_MOST + node_text.endswith(b"."):
                raise_gaierror(c.EAI_NONAME, host, port)  # some resolvers would ask the network first
        if size == 0:
            node = NULL
    memset(&hints, 0, sizeof(hints))
    hints.ai_family = family
    hints.ai_socktype = type
    hints.ai_protocol = proto
    hints.ai_flags = flags
    if numeric:
        # Nothing here can wait, so the GIL stays where it is: handing it over costs as much as the call.
        hints.ai_flags = flags | c.NET_AI_NUMERICSERV | (c.AI_NUMERICHOST if node != NULL else 0)
        error = ask(found, node, service, &hints)
        if error != c.EAI_NONAME or node == NULL or flags & c.AI_NUMERICHOST:
            if error:
                not_found(found, error, host, port)
            return 0
        hints.ai_family, hints.ai_flags = family, flags
    with nogil:
        error = ask(found, node, service, &hints)
    if error:
        not_found(found, error, host, port)
    return 0


cdef int resolve_bind(found_t *found, object bind, object port, int family) except -1:
    """The addresses of a `Bind`, of one family or of all, with this port. A scope that it has as a number
    stays one: behind ``%`` in the host, the resolver would first look for an interface of that name."""
    cdef addrinfo *each
    cdef Py_ssize_t n
    host, scope = bind.host, bind._scope
    if scope is not None:
        host = host.partition("%")[0]
    resolve(found, host, port, family, c.SOCK_STREAM, c.IPPROTO_TCP, c.AI_PASSIVE)
    if scope is not None:
        for n in range(found.size):
            each = found_at(found, n)
            if each.ai_family == c.AF_INET6:
                (<sockaddr_in6 *>each.ai_addr).sin6_scope_id = scope
    return 0


def addresses_of(object bind, int family):
    """What `harken.listen` would bind for a `Bind` of a host and a port, as `getaddrinfo` gives it."""
    cdef AddrInfo found = AddrInfo.__new__(AddrInfo)
    resolve_bind(&found.found, bind, bind.port, family)
    return found


# getaddrinfo() costs 0.1 microseconds in C; a function with six keywords that Cython makes costs as much again before
# its first line. So this one takes its arguments as CPython hands them over (vectorcall), and is bound to what it
# needs, the class of its result and the names of its arguments, which saves looking them up.

cdef int place_of(tuple names, PyObject *name) except -2:
    """Which argument a keyword names; -1 for none. A call's keywords are interned, so they are mostly the same object
    as ours."""
    cdef int at
    for at in range(6):
        if PyTuple_GET_ITEM(names, at) == name:
            return at
    for at in range(6):
        if c.PyUnicode_Compare(<object>PyTuple_GET_ITEM(names, at), <object>name) == 0:
            return at
    return -1


cdef int hint_of(object value, int at) except? -1:
    if isinstance(value, int):
        try:
            return value
        except OverflowError:
            raise OverflowError(f"getaddrinfo(): {_HINTS[at]} is too large for C: {shown(value)}") from None
    raise TypeError(f"getaddrinfo(): {_HINTS[at]} must be an int, not {type(value).__name__}")


_HINTS = ("family", "type", "proto", "flags")


@cython.final
@cython.internal
cdef class Resolver:
    """What the function is bound to, so that it need not be looked up."""

    cdef type result
    cdef tuple names

    def __cinit__(self):
        self.result = AddrInfo
        self.names = ("host", "port", "family", "type", "proto", "flags")

    @property
    def getaddrinfo(self):
        """For pickle, which asks for a function of C by what it is bound to."""
        return getaddrinfo

    def __reduce__(self):
        return "_resolver"


cdef object vectorcall(Resolver resolver, PyObject *const *args, Py_ssize_t given, PyObject *names):
    cdef PyObject *values[6]
    cdef int hints[4]
    cdef Py_ssize_t n
    cdef int at
    if given > 6:
        raise TypeError(f"getaddrinfo() takes at most 6 arguments, {given} were given")
    for at in range(6):
        values[at] = args[at] if at < given else NULL
    if names != NULL:
        for n in range(PyTuple_GET_SIZE(<object>names)):
            at = place_of(resolver.names, PyTuple_GET_ITEM(<object>names, n))
            if at < 0 or values[at] != NULL:
                raise TypeError(f"getaddrinfo() takes no argument {(<tuple><object>names)[n]!r}, or not twice")
            values[at] = args[given + n]
    if values[0] == NULL or values[1] == NULL:
        raise TypeError("getaddrinfo() needs a host and a port, either of which may be None")
    for at in range(4):
        hints[at] = 0 if values[at + 2] == NULL else hint_of(<object>values[at + 2], at)
    found = <AddrInfo>c.object_of(resolver.result)
    resolve(&found.found, <object>values[0], <object>values[1], hints[0], hints[1], hints[2], hints[3])
    return found


cdef c.PyMethodDef METHOD = c.PyMethodDef(
    "getaddrinfo",
    <void *>vectorcall,
    c.METH_FASTCALL | c.METH_KEYWORDS,
    b"""getaddrinfo(host, port, family=0, type=0, proto=0, flags=0)
--

The addresses of ``host`` and ``port``: one call of getaddrinfo(), on every platform.

``host`` is a name, a numeric address (with a scope: ``fe80::1%eth0``), or None: then the addresses are the
wildcard, to bind, with AI_PASSIVE in ``flags``, and else the loopback, to connect to. The empty string means None.
Names that are not ASCII are sent in their IDNA form. ``port`` is a number from 0 to 65535, the same in digits, the
name of a service, or None. The other arguments are hints; 0 means any.

A numeric host is answered at once, without the resolver; for a name the GIL is released. The order is the system's.

Raises socket.gaierror when there is no such name or service, OverflowError for a port out of range, ValueError (or
UnicodeError, which is one) for text that cannot be a name.
""",
)
_resolver = Resolver()
getaddrinfo = c.PyCFunction_NewEx(&METHOD, _resolver, __name__)


cdef int locate(object address, int family, net_address_t *to, net_length_t *length, const char *call) except -1:
    """A Python address, or an entry of getaddrinfo(), as a ``sockaddr``; a name is resolved to its first address."""
    cdef AddrInfoEntry entry
    cdef AddrInfo found
    cdef net_address_t partial
    if isinstance(address, AddrInfoEntry):
        entry = address
        memcpy(to, &entry.address, entry.length)
        length[0] = entry.length
        return 0
    if encode(address, family, to, length, call):
        return 0
    partial = to[0]
    found = AddrInfo.__new__(AddrInfo)
    resolve(&found.found, item_of(address, 0), c.ntohs(partial.ipv4.sin_port), family, c.SOCK_STREAM, 0, 0)
    entry = found.entry(0)
    memcpy(to, &entry.address, entry.length)
    if family == c.AF_INET6:
        # What the tuple says goes over what the name said; a scope that only the name had (``%eth0``) stays.
        to.ipv6.sin6_flowinfo = partial.ipv6.sin6_flowinfo
        if partial.ipv6.sin6_scope_id:
            to.ipv6.sin6_scope_id = partial.ipv6.sin6_scope_id
    return 0


include "ending.pxi"
