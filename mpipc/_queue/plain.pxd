cdef Py_ssize_t write_plain(object obj, unsigned char *target, Py_ssize_t room) noexcept
cdef object read_plain(const unsigned char *source, Py_ssize_t size)
