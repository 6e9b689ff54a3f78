cdef unsigned int forks() noexcept nogil
