from harken._platform cimport addrinfo, net_address_t, net_length_t, sockaddr


cdef class AddrInfoEntry:
    cdef readonly int family, type, proto
    cdef str name
    cdef net_address_t address  # a copy: an entry outlives the list it came from
    cdef net_length_t length

    cdef tuple five(self)


cdef struct found_t:
    # What getaddrinfo() found; all zeros is nothing.
    addrinfo *lists[2]  # owned: freed by freeaddrinfo, once; two when each family was asked on its own
    Py_ssize_t size  # entries in both; 0 when freed, for no name has none
    int system_error  # errno behind EAI_SYSTEM


cdef class AddrInfo:
    cdef found_t found

    cdef Py_ssize_t must_be_open(self) except -1
    cdef AddrInfoEntry entry(self, Py_ssize_t index)


cdef void free_found(found_t *found) noexcept nogil
cdef addrinfo *found_at(const found_t *found, Py_ssize_t index) noexcept
cdef int resolve(found_t *found, object host, object port, int family, int type, int proto, int flags) except -1
cdef int resolve_bind(found_t *found, object bind, object port, int family) except -1
cdef object decode(const sockaddr *address, size_t length)
cdef str shown(object number)
cdef int locate(object address, int family, net_address_t *to, net_length_t *length, const char *call) except -1
