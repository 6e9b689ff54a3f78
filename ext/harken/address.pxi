"""Addresses between Python and C: the tuples and paths of the standard library, and what stands in a ``sockaddr``.

===========  =====================================================  ==========================================
family       Python                                                 C
===========  =====================================================  ==========================================
AF_INET      ``(host, port)``                                       ``sockaddr_in``
AF_INET6     ``(host, port[, flowinfo[, scope_id]])``               ``sockaddr_in6``; a host may carry ``%scope``
AF_UNIX      a path as str, bytes or path-like; a leading NUL is    ``sockaddr_un``
             Linux's abstract namespace, and reads back as bytes
AF_VSOCK     ``(cid, port)``                                        ``sockaddr_vm``
===========  =====================================================  ==========================================

A part of _resolve.pyx: a module of its own would be seven kilobytes more in every wheel.
"""

from os import fsdecode, fsencode, fspath

from harken._platform cimport sockaddr, sockaddr_in, sockaddr_in6


cdef str shown(object number):
    """A number for a message; Python refuses to write out thousands of digits."""
    return str(number) if number.bit_length() < 1024 else f"a number of {number.bit_length()} bits"


cdef int port_of(object port, const char *call) except -1:
    """A port as a number from 0 to 65535."""
    cdef long long number
    if type(port) is not int:
        if not c.PyIndex_Check(port):
            raise TypeError(f"{call.decode()}: port must be an int, not {type(port).__name__}")
        port = PyNumber_Index(port)
    try:
        number = port
    except OverflowError:
        raise OverflowError(f"{call.decode()}: port must be 0-65535, not {shown(port)}") from None
    if not 0 <= number <= 65535:
        raise OverflowError(f"{call.decode()}: port must be 0-65535, not {number}")
    return <int>number


cdef enum:
    NAME_MOST = 253  # characters of a host name as DNS carries it, without a dot at its end
    LABEL_MOST = 63
    # IDNA composes characters, and then up to four become one; its time grows with the square of their number.
    UNICODE_MOST = 4 * NAME_MOST


cdef str brief(object text):
    """Text of the caller's for a message: whole if it is short."""
    return repr(text) if len(text) <= 300 else f"{text[:100]!r}... ({len(text)} characters)"


cdef bytes text_of(object host, str what):
    """A host as the bytes that the resolver reads: ASCII, or a name in the encoding of international domain names.

    Lengths are looked at before anything is encoded or split: nobody waits for text that cannot be a name."""
    cdef bytes text
    if isinstance(host, str):
        if c.PyUnicode_IS_ASCII(host):
            text = (<str>host).encode("ascii")
        elif ":" in host:
            text = fsencode(host)  # no name, but an address; in its scope, a device's name, may stand any byte
        elif c.PyUnicode_GET_LENGTH(host) > UNICODE_MOST:
            raise UnicodeError(
                f"{what}: a name of {c.PyUnicode_GET_LENGTH(host)} characters, the limit is {NAME_MOST} in ASCII: "
                f"{brief(host)}"
            )
        else:
            try:
                text = idna(host)
            except UnicodeError as error:
                # The codec's own message does not say which of the caller's arguments it is about.
                error.add_note(f"{what}: {brief(host)} is not a host name")
                raise
    elif isinstance(host, (bytes, bytearray)):
        text = c.PyBytes_FromObject(host)
    else:
        raise TypeError(f"{what} must be None, str or bytes, not {type(host).__name__}")
    if memchr(<const char *>text, 0, len(text)) != NULL:
        raise ValueError(f"{what}: embedded null character in {brief(host)}")
    if len(text) > LABEL_MOST:
        for label in text.split(b"."):
            if len(label) > LABEL_MOST:
                raise UnicodeError(
                    f"{what}: a label of {len(label)} characters in {brief(host)}, the limit is {LABEL_MOST}"
                )
    return text


cdef object item_of(object address, Py_ssize_t at):
    """An item of a tuple, as C code sees it: a subclass may answer ``[at]`` with something else each time, which nobody
    would keep alive. The standard library reads addresses in the same way."""
    return <object>PyTuple_GET_ITEM(address, at)


cdef bint encode(object address, int family, net_address_t *to, net_length_t *length, const char *call) except -1:
    """Fills in ``to`` and ``length``. Answers 0 when the host is a name, still to be resolved; the rest is there."""
    cdef const char *text = NULL
    cdef Py_ssize_t size = 0, parts = PyTuple_GET_SIZE(address) if isinstance(address, tuple) else -1
    cdef object host
    cdef void *number
    memset(to, 0, sizeof(net_address_t))
    if family == c.AF_UNIX:
        encode_path(address, to, length)
        return 1
    if family == c.NET_AF_VSOCK and parts == 2:
        c.net_vsock_put(
            to,
            number_of(item_of(address, 0), 0xFFFFFFFF, "cid", call),
            number_of(item_of(address, 1), 0xFFFFFFFF, "port", call),
            length,
        )
        return 1
    if family != c.AF_INET and family != c.AF_INET6:
        raise OSError(f"{call.decode()}: address family {family} has no address form here")
    if parts < 0:
        raise TypeError(f"{call.decode()}: the address must be a tuple, not {type(address).__name__}")
    if family == c.AF_INET:
        if parts != 2:
            raise TypeError(f"{call.decode()}: an AF_INET address is (host, port), not {parts} items")
        to.ipv4.sin_family = c.AF_INET
        to.ipv4.sin_port = c.htons(<unsigned short>port_of(item_of(address, 1), call))
        number = &to.ipv4.sin_addr
        length[0] = sizeof(sockaddr_in)
    else:
        if not 2 <= parts <= 4:
            raise TypeError(
                f"{call.decode()}: an AF_INET6 address is (host, port[, flowinfo[, scope_id]]), not {parts} items"
            )
        to.ipv6.sin6_family = c.AF_INET6
        to.ipv6.sin6_port = c.htons(<unsigned short>port_of(item_of(address, 1), call))
        if parts > 2:
            to.ipv6.sin6_flowinfo = c.htonl(number_of(item_of(address, 2), 0xFFFFF, "flowinfo", call))
        if parts > 3:
            to.ipv6.sin6_scope_id = number_of(item_of(address, 3), 0xFFFFFFFF, "scope_id", call)
        number = &to.ipv6.sin6_addr
        length[0] = sizeof(sockaddr_in6)

    host = item_of(address, 0)
    if not (isinstance(host, str) and c.PyUnicode_IS_ASCII(host)):
        host = text_of(host, f"{call.decode()}: host")
        text, size = <const char *><bytes>host, PyBytes_GET_SIZE(host)
    else:
        text = c.PyUnicode_AsUTF8AndSize(host, &size)
    if size == 0:
        return 1  # the empty host is the wildcard, which is all zeros
    if family == c.AF_INET and text[0] == b"<" and text[:size] == b"<broadcast>":
        memset(number, 0xFF, sizeof(to.ipv4.sin_addr))
        return 1
    # c.inet_pton would stop at a NUL and take what stands before it for the address.
    return memchr(text, 0, size) == NULL and c.inet_pton(family, text, number) == 1


cdef unsigned int number_of(object value, unsigned int most, str name, const char *call) except? 0xFFFFFFFF:
    cdef long long number = -1
    if not isinstance(value, int):
        if not c.PyIndex_Check(value):
            raise TypeError(f"{call.decode()}: {name} must be an int, not {type(value).__name__}")
        value = PyNumber_Index(value)
    try:
        number = value
    except OverflowError:
        pass
    if not 0 <= number <= most:
        raise OverflowError(f"{call.decode()}: {name} must be 0-{most}, not {shown(value)}")
    return <unsigned int>number


cdef int encode_path(object address, net_address_t *to, net_length_t *length) except -1:
    cdef bytes path
    if isinstance(address, (str, bytes)) or not c.PyObject_CheckBuffer(address):
        path = c.PyBytes_FromObject(fsencode(fspath(address)))
    else:
        path = memoryview(address).tobytes()
    cdef size_t size = len(path)
    to.unix.sun_family = c.AF_UNIX
    if size == 0 or path[0] == 0:
        # No NUL ends an abstract name: its length does. The empty name asks Linux to choose one.
        if size > c.NET_PATH_ROOM:
            raise OSError(f"AF_UNIX path too long: {size} bytes, where the system has room for {c.NET_PATH_ROOM}")
        length[0] = <net_length_t>(c.NET_PATH_AT + size)
    else:
        if size >= c.NET_PATH_ROOM:
            raise OSError(f"AF_UNIX path too long: {size} bytes, where the system has room for {c.NET_PATH_ROOM - 1}")
        if b"\0" in path:
            raise ValueError(f"AF_UNIX path: embedded null character in {path!r}")
        length[0] = <net_length_t>(c.NET_PATH_AT + size + 1)
    memcpy(to.unix.sun_path, <const char *>path, size)
    return 0


cdef str text_of_ipv4(const unsigned char *number):
    """As inet_ntop() writes it, which prints with printf() and takes as long as the rest of accept() outside of the
    system."""
    cdef char text[16]
    cdef Py_ssize_t at = 0, n
    cdef unsigned int part
    for n in range(4):
        part = number[n]
        if part >= 100:
            text[at] = <char>(48 + part // 100)
            at += 1
        if part >= 10:
            text[at] = <char>(48 + part // 10 % 10)
            at += 1
        text[at] = <char>(48 + part % 10)
        text[at + 1] = b"."
        at += 2
    return PyUnicode_DecodeASCII(text, at - 1, NULL)


cdef object decode(const sockaddr *address, size_t length):
    """The address as the standard library would write it."""
    cdef char text[c.INET6_ADDRSTRLEN]
    cdef const sockaddr_in *ipv4 = <const sockaddr_in *>address
    cdef const sockaddr_in6 *ipv6 = <const sockaddr_in6 *>address
    cdef const char *path
    cdef const char *end
    cdef size_t size
    cdef unsigned int cid, port
    if length == 0:
        return None
    if address.sa_family == c.AF_INET:
        return text_of_ipv4(<const unsigned char *>&ipv4.sin_addr), c.ntohs(ipv4.sin_port)
    if address.sa_family == c.AF_INET6:
        c.inet_ntop(c.AF_INET6, &ipv6.sin6_addr, text, sizeof(text))
        return text.decode("ascii"), c.ntohs(ipv6.sin6_port), c.ntohl(ipv6.sin6_flowinfo), ipv6.sin6_scope_id
    if address.sa_family == c.AF_UNIX:
        if length <= c.NET_PATH_AT:
            return ""  # no name: one of a socketpair(), or a client
        path = <const char *>address + c.NET_PATH_AT
        size = length - c.NET_PATH_AT
        if path[0] == 0:
            return path[:size] if size > 1 else ""
        end = <const char *>memchr(path, 0, size)
        return fsdecode(path[:end - path] if end != NULL else path[:size])
    if c.net_vsock_get(address, &cid, &port):
        return cid, port
    return address.sa_family, (<const char *>address)[:length]


def normal_host(str host):
    """An address in digits as the system writes it: ``::1`` for ``0:0::1``. None for whatever is no such address."""
    cdef net_address_t address
    cdef char text[c.INET6_ADDRSTRLEN]
    cdef int family = c.AF_INET6 if ":" in host else c.AF_INET
    cdef Py_ssize_t size = 0
    cdef const char *digits = c.PyUnicode_AsUTF8AndSize(host, &size) if c.PyUnicode_IS_ASCII(host) else NULL
    if digits == NULL or memchr(digits, 0, size) != NULL or c.inet_pton(family, digits, &address) != 1:
        return None
    c.inet_ntop(family, &address, text, sizeof(text))
    return text.decode("ascii")


def scope_name(unsigned int index):
    """The interface that a scope id names, as it is written behind ``%``: its name. Its number on Windows, where no
    interface has this number now, and where its name is itself a number, which would be taken for another's."""
    cdef char name[c.IF_NAMESIZE]
    cdef bytes text
    if c.net_scope_name(index, name) == 0:
        text = name
        if not text.isdigit():
            return fsdecode(text)
    return str(index)
