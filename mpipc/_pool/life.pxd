cdef class Life:
    cdef readonly object lock
    cdef readonly object state
    cdef readonly tuple history
    cdef readonly int wakeup  # eventfd(2)

    cdef bint runs(self) noexcept
    cdef bint over(self) noexcept
    cdef bint refuses(self) noexcept
    cpdef bint may_enter(self, object state) except -1
    cpdef enter(self, object state)
    cpdef wake(self)
