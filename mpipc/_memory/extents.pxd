# Extents: which units of an arena are free.
#
# An arena is tiled by extents, each free or in use. `length` has, at the first and at the last unit of an extent, its
# number of units, with the flag FREE if it is free; no two free ones are neighbours. The free ones are chained in bins:
# up to 31 units one bin a length, from there on four bins for each power of 2; all extents of a higher bin than the one
# wanted are long enough. All operations take constant time, but for the search in the bin of the wanted length
# itself, which is done only before the heap would have to grow.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int descriptor, long offset)
    int munmap(void *address, size_t length)

cdef enum:
    BINS = 140

cdef extern from *:
    """
    #define MP_EXTENT_FREE (1u << 31)
    static inline int highest_bit(uint32_t n) { return 31 - __builtin_clz(n); }
    static inline int lowest_bit(uint64_t n) { return __builtin_ctzll(n); }
    """
    const uint32_t FREE "MP_EXTENT_FREE"
    int highest_bit(uint32_t n) nogil
    int lowest_bit(uint64_t n) nogil

cdef struct extents:
    uint32_t units
    uint32_t used
    uint32_t fresh          # units from here on were never handed out: they are zero, and cost no memory yet
    uint64_t filled[3]      # a bit for each bin that is not empty
    uint32_t bins[BINS]     # first unit + 1 of an extent, 0 if there is none; so are the two links
    uint32_t *length
    uint32_t *after
    uint32_t *before


cdef inline int bin_of(uint32_t units) noexcept nogil:
    if units < 32:
        return <int> units
    cdef int power = highest_bit(units)
    return 32 + 4 * (power - 5) + <int> (units >> (power - 2) & 3)


cdef inline int bin_for(uint32_t units) noexcept nogil:
    """The first bin in which every extent has at least so many units."""
    if units < 32:
        return <int> units
    return bin_of(units + (1u << (highest_bit(units) - 2)) - 1)


cdef inline void insert(extents *x, uint32_t start, uint32_t units) noexcept nogil:
    cdef int bin = bin_of(units)
    x.length[start] = x.length[start + units - 1] = units | FREE
    x.before[start] = 0
    x.after[start] = x.bins[bin]
    if x.bins[bin]:
        x.before[x.bins[bin] - 1] = start + 1
    x.bins[bin] = start + 1
    x.filled[bin // 64] |= 1ull << bin % 64


cdef inline void remove(extents *x, uint32_t start) noexcept nogil:
    cdef int bin = bin_of(x.length[start] & ~FREE)
    if x.after[start]:
        x.before[x.after[start] - 1] = x.before[start]
    if x.before[start]:
        x.after[x.before[start] - 1] = x.after[start]
    else:
        x.bins[bin] = x.after[start]
        if x.bins[bin] == 0:
            x.filled[bin // 64] &= ~(1ull << bin % 64)


cdef inline extents *extents_new(uint32_t units) noexcept nogil:
    cdef extents *x = <extents *> calloc(1, sizeof(extents))
    cdef void *tables
    if x == NULL:
        return NULL
    tables = mmap(NULL, <size_t> 12 * units, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if tables == MAP_FAILED:
        free(x)
        return NULL
    x.units = units
    x.length = <uint32_t *> tables
    x.after = x.length + units
    x.before = x.after + units
    insert(x, 0, units)
    return x


cdef inline void extents_delete(extents *x) noexcept nogil:
    munmap(x.length, <size_t> 12 * x.units)
    free(x)


cdef inline int find(extents *x, uint32_t units, uint32_t *start, bint thorough) noexcept nogil:
    cdef int bin = bin_for(units)
    cdef int word = bin // 64
    cdef uint64_t filled = x.filled[word] >> bin % 64 << bin % 64
    cdef uint32_t link
    while filled == 0 and word < 2:
        word += 1
        filled = x.filled[word]
    if filled != 0:
        start[0] = x.bins[64 * word + lowest_bit(filled)] - 1
        return True
    if thorough:
        link = x.bins[bin_of(units)]
        while link:
            if x.length[link - 1] & ~FREE >= units:
                start[0] = link - 1
                return True
            link = x.after[link - 1]
    return False


cdef inline int take(extents *x, uint32_t units, uint32_t *start, bint thorough) noexcept nogil:
    """Finds and takes so many units; False if there is no extent of this length."""
    cdef uint32_t whole
    if x.units - x.used < units or not find(x, units, start, thorough):
        return False
    whole = x.length[start[0]] & ~FREE
    remove(x, start[0])
    if whole > units:
        insert(x, start[0] + units, whole - units)
    x.length[start[0]] = x.length[start[0] + units - 1] = units
    x.used += units
    return True


cdef inline uint32_t give(extents *x, uint32_t start) noexcept nogil:
    """Frees what `take` took; returns the number of units."""
    cdef uint32_t units = x.length[start]
    cdef uint32_t whole = units
    cdef uint32_t end = start + units
    x.used -= units
    if start > 0 and x.length[start - 1] & FREE:
        start -= x.length[start - 1] & ~FREE
        whole += x.length[start] & ~FREE
        remove(x, start)
    if end < x.units and x.length[end] & FREE:
        whole += x.length[end] & ~FREE
        remove(x, end)
    insert(x, start, whole)
    return units
