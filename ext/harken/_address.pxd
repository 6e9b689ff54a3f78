from harken._platform cimport net_address_t, net_length_t, sockaddr

cdef bint encode(object address, int family, net_address_t *to, net_length_t *length, const char *call) except -1
cdef object decode(const sockaddr *address, size_t length)
cdef str shown(object number)
cdef int port_of(object port, const char *call) except -1
cdef bytes text_of(object host, str what)
