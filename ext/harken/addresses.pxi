# Questions about the addresses of one bind, and their one port. Included by _listen.pyx.

from libc.string cimport memcmp

from harken._platform cimport addrinfo, net_address_t, net_length_t, sockaddr, sockaddr_in, sockaddr_in6
from harken._resolve cimport decode, found_at, found_t, free_found, locate


cdef struct entry_t:
    addrinfo info
    net_address_t address


cdef bytearray list_of(found_t *found, tuple addresses):
    """Fills in ``found`` with addresses that the caller's own resolver has found, written as the standard library
    writes them. The list in C is inside the bytearray that is returned: freeaddrinfo() must not get it."""
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


# The port is in the same place in both families.
cdef int port_in(const sockaddr *address) noexcept:
    return c.ntohs((<const sockaddr_in *>address).sin_port)


cdef void set_ports(const found_t *addresses, int port) noexcept:
    """Of all at once: an address that is listed twice has to look the same twice."""
    cdef int n
    for n in range(<int>addresses.size):
        (<sockaddr_in *>found_at(addresses, n).ai_addr).sin_port = c.htons(<unsigned short>port)


cdef bint is_listed_before(const found_t *addresses, int index) noexcept:
    """Hosts files and some resolvers list an address twice; it can be bound once."""
    cdef const addrinfo *address = found_at(addresses, index)
    cdef const addrinfo *earlier
    cdef int n
    for n in range(index):
        earlier = found_at(addresses, n)
        if earlier.ai_addrlen == address.ai_addrlen:
            if memcmp(earlier.ai_addr, address.ai_addr, address.ai_addrlen) == 0:
                return True
    return False


cdef bint has_both_families(const found_t *addresses) noexcept:
    cdef int n
    for n in range(1, <int>addresses.size):
        if found_at(addresses, n).ai_family != found_at(addresses, 0).ai_family:
            return True
    return False


cdef int family_without_interface(const found_t *addresses) noexcept:
    """Of a wildcard of both families: the one that no interface has an address of, or 0."""
    cdef int n, family
    if has_both_families(addresses):
        for n in range(<int>addresses.size):
            family = found_at(addresses, n).ai_family
            if c.net_has_family(family) != 0:
                return family
    return 0


cdef bint lacks_family(const found_t *addresses, const addrinfo *address, int error) noexcept:
    """Whether an address failed because this machine lacks its family, and the name has addresses of the other, which
    will do. Without a family socket() fails for all its addresses, or bind() for the loopback and the wildcard; that
    any other address cannot be bound is a mistake of the caller's."""
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
