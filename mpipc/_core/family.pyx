# distutils: language = c
"""Families and control blocks for Python: thin over the C layer in src/, which holds the protocols.

Everything here runs with the GIL and blocks nowhere, but where a child is sent for.
"""

import atexit
import os
import sys
from multiprocessing import context as _mp_context
from multiprocessing import process as _mp_process

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport E2BIG, EADDRINUSE, EFBIG, EIDRM, EINVAL, ENOMEM, ENOSPC, ESTALE, errno
from libc.string cimport memset, strdup

from mpipc._core.errors import bell_call, core_error
from mpipc._stdlib.private import is_importing_main

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

ENVIRONMENT = "MPIPC_FAMILY"

KINDS = {
    "lock": MP_KIND_LOCK, "rlock": MP_KIND_RLOCK, "semaphore": MP_KIND_SEMAPHORE, "event": MP_KIND_EVENT,
    "condition": MP_KIND_CONDITION, "barrier": MP_KIND_BARRIER, "queue": MP_KIND_QUEUE, "segment": MP_KIND_SEGMENT,
    "piece": MP_KIND_PIECE, "data": MP_KIND_DATA, "rwlock": MP_KIND_RWLOCK, "space": MP_KIND_SPACE,
    "memory": MP_KIND_MEMORY, "broadcast": MP_KIND_BROADCAST, "subscription": MP_KIND_SUBSCRIPTION,
}
_KIND_NAMES = {number: name for name, number in KINDS.items()}

cdef mp_family *families = NULL  # of this process, for the fork handlers
cdef list _families = []
cdef Family _current = None
cdef set _transits = set()       # (family, token) whose contents this process has unpickled
_reaper_path = os.fsencode(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpipc-reaper"))


# What the child inherits is recorded inside fork(2), where the GIL is held from the moment that is copied on: between
# Python's own "before" hooks and the fork, other threads may make and drop objects, and fork. The hook only tells the
# handlers that this is a fork by Python; a library that forks on its own does not hold the GIL, and execs soon.
cdef extern from *:
    """
    static __thread int mp_fork_by_python;
    """
    int mp_fork_by_python


cdef void _prepare_fork() noexcept nogil:
    cdef mp_family *f = families
    while f != NULL and mp_fork_by_python:
        mp_fork_prepare(f)  # without a free slot the child joins by itself, when it uses the family
        f = f.next


cdef void _forked_parent() noexcept nogil:
    cdef mp_family *f = families
    while f != NULL and mp_fork_by_python:
        if f.fork_slot >= 0:
            mp_fork_parent(f)
            if not mp_reaper_present(f):  # somebody has killed it, and here is one more process to look after
                mp_launch_reaper(f)
        f = f.next


cdef void _forked_child() noexcept nogil:
    # A forked child is not the member that its parent is, whoever forked it.
    cdef mp_family *f = families
    while f != NULL:
        if mp_fork_by_python:
            mp_fork_child(f)
        else:
            f.slot = -1
            f.me = 0
        f = f.next

pthread_atfork(_prepare_fork, _forked_parent, _forked_child)


cdef object fail_in(mp_family *f, int error, str what, str call, dict arguments):
    """Raises what an error of the core means: errors.py has the words. `f` NULL: of any family of this process."""
    cdef int32_t key = 0 if f == NULL else f.squatted_key
    f = families
    while key == 0 and f != NULL:
        key = f.squatted_key
        f = f.next
    raise core_error(error, what, call, arguments, key)


cdef object fail(int error, str what):
    """Raises the OSError that tells what to do."""
    fail_in(NULL, error, what, None, None)


cdef object fail_call(int error, str call, dict arguments):
    """Raises the error of a system call, with the limit that was met."""
    fail_in(NULL, error, None, call, arguments)


cdef object fail_bell(int error):
    """Raises the error of a semaphore operation on one of the pooled sets."""
    call, arguments = bell_call(error)
    fail_call(error, call, arguments)


cdef object fail_growing(int error, str what):
    """Raises the error of what may have had to make a bank of the family's tables."""
    if error == ENOSPC or error == EFBIG:
        error = EINVAL if error == EFBIG else error
        fail_call(error, "shmget", {"key": 0, "size": sizeof(mp_bank), "shmflg": 0o13600})
    fail(error, what)


cdef object fail_joining(mp_family *f, int error, str what):
    """Raises the error of mp_family_join() and of reserving a slot."""
    if error == EINVAL:
        error = EIDRM  # of its sets
    if error == ENOMEM or error == ENOSPC and f.slot < 0:
        fail_call(error, "semget", {"key": 0, "nsems": f.set_size, "semflg": 0o1600})
    fail_in(f, error, what, None, None)


cdef class Family:
    """The processes that share mpipc objects, and the segment that says who holds what: docs/protocols/family.md."""

    def __cinit__(self):
        self.f = <mp_family *> PyMem_Malloc(sizeof(mp_family))
        if self.f == NULL:
            raise MemoryError
        memset(self.f, 0, sizeof(mp_family))

    cdef int ensure(self) except -1:
        """Joins, if this process (a child forked without our hooks, for one) has not yet."""
        if self.f.slot < 0 and mp_family_join(self.f) != MP_OK:
            fail_joining(self.f, errno, "joining the family")
        return 0

    def __dealloc__(self):
        if self.f != NULL and not self.registered:
            mp_family_detach(self.f)
            PyMem_Free(self.f)

    def _register(self):
        # Never freed: handles and fork handlers point to it for the life of the process.
        global families
        self.registered = True
        self.f.reaper_path = strdup(<bytes> _reaper_path)
        self.f.next = families
        families = self.f
        _families.append(self)
        _tell_util()
        if not mp_reaper_present(self.f):
            mp_launch_reaper(self.f)
        return self

    @property
    def shmid(self):
        """Id of the family's segment, as ipcs shows it."""
        return self.f.shmid

    @property
    def semid(self):
        """Id of the set that carries liveness."""
        return self.f.semid

    @property
    def nonce(self):
        return self.f.nonce

    @property
    def slot(self):
        """Row of this process in the process table; -1 before it joins."""
        return self.f.slot

    @property
    def generation(self):
        """How often that row has been given out: with it, the slot names this process for good."""
        return mp_slot_generation(self.f.seg.slots[self.f.slot].word) if self.f.slot >= 0 else -1

    @property
    def ticket(self):
        """What another process of the same user needs to join: "shmid:nonce"."""
        return f"{self.f.shmid}:{self.f.nonce:x}"

    @property
    def program(self):
        """Command line of the program that founded the family."""
        return (<bytes> self.f.h.program).decode(errors="replace")

    def has_reaper(self):
        return mp_reaper_present(self.f)

    def recover(self):
        """Runs recovery now, as on a death. Returns how many slots it cleared; -1: another process is at it."""
        cdef int n
        with nogil:
            n = mp_recover(self.f)
        return n

    @property
    def undo(self):
        """What SEM_UNDO does here, as the reaper has tried out: "works", "ignored", or "unknown" until it has."""
        cdef mp_undo_verdict verdict = mp_undo(self.f)
        return "works" if verdict == MP_UNDO_WORKS else "ignored" if verdict == MP_UNDO_IGNORED else "unknown"

    def tick(self):
        """What a waiter does once a second: recovers for the dead if nobody did, restarts a missing reaper."""
        with nogil:
            mp_tick(self.f)

    def processes(self):
        """[(slot, state, pid)] of every slot in use; state is one of joining, forking, forked, transit, alive, dead."""
        names = ("free", "joining", "forking", "forked", "transit", "alive", "dead")
        found = []
        for i in range(mp_slot_high(self.f)):
            word = self.f.seg.slots[i].word
            if mp_slot_state_of(word) != MP_SLOT_FREE:
                found.append((i, names[mp_slot_state_of(word)], mp_slot_pid(word)))
        return found

    def blocks(self):
        """[(index, kind, kernel id or -1, holder pids)] of every control block in use."""
        cdef mp_block *b
        cdef uint32_t i
        found = []
        for i in range(mp_block_high(self.f)):
            b = mp_block_at(self.f, i)
            if mp_block_state_of(b.word) == 0:
                continue
            found.append((i, _KIND_NAMES.get(b.kind, str(b.kind)), b.id, self.holders_of(i)))
        return found

    cdef list holders_of(self, uint32_t index):
        """Pids of the processes that hold a block."""
        cdef uint16_t[MP_HOLDER_IDS] ids
        cdef uint32_t i
        cdef uint32_t count = mp_block_holders(self.f, index, ids, MP_HOLDER_IDS)
        slots = sorted([ids[i] for i in range(count) if ids[i] < MP_SLOTS])
        return [mp_slot_pid(self.f.seg.slots[slot].word) for slot in slots]

    def deaths(self):
        """How many slots recovery has cleared since the family was founded."""
        return self.f.h.deaths_seen

    def infrastructure(self):
        """Kernel ids that live as long as the family does: {"shm": {...}, "sem": {...}, "msg": set()}."""
        cdef int[MP_LASTING_MOST] sets, segments
        cdef uint32_t i, set_count = mp_lasting_sets(self.f, sets, MP_LASTING_MOST)
        cdef uint32_t count = mp_lasting_segments(self.f, segments, MP_LASTING_MOST)
        return {"shm": {segments[i] for i in range(count)}, "sem": {sets[i] for i in range(set_count)}, "msg": set()}


def _attach(int shmid, uint64_t nonce):
    """The family with this ticket, joined. Raises OSError if it is gone or not ours to join."""
    cdef Family family
    for known in _families:
        if (<Family> known).f.shmid == shmid and (<Family> known).f.nonce == nonce:
            (<Family> known).ensure()
            return known
    family = Family()
    if mp_family_attach(family.f, shmid, nonce, MP_ATTACH_TOLD, mp_tick) != MP_OK:
        fail(errno, f"attaching to family {shmid}:{nonce:x}")
    mp_family_forget_exec(family.f)
    if mp_family_join(family.f) != MP_OK:
        fail_joining(family.f, errno, f"joining family {shmid}:{nonce:x}")
    return family._register()


def _found():
    """A new family, after the sweep of this user's dead ones."""
    cdef Family family = Family()
    program = " ".join(sys.orig_argv).encode(errors="replace")[:255]
    mp_sweep()
    if mp_family_create(family.f, program, mp_tick) != MP_OK:
        error = errno
        if error == E2BIG or error == EADDRINUSE:
            fail_in(family.f, error, "founding a family", None, None)
        if family.f.shmid >= 0:
            fail_call(error, "semget", {"key": 0, "nsems": family.f.set_size, "semflg": 0o1600})
        fail_call(error, "shmget", {"key": 0, "size": sizeof(mp_segment), "shmflg": 0o13600})
    if mp_family_join(family.f) != MP_OK:
        fail_joining(family.f, errno, "joining the new family")
    return family._register()


def current():
    """The family that new objects of this process belong to, joined or founded on first use.

    A child that multiprocessing started joins the family that its environment names, its parent's. Any other program
    that was started from here is on its own: what it leaves when it is dead need not wait for the end of this one.
    """
    global _current
    if _current is not None:
        if not mp_family_is_removed(_current.f):
            if _current.f.slot >= 0 or mp_family_join(_current.f) == MP_OK:
                return _current
            if errno != ESTALE and errno != EINVAL:
                fail_joining(_current.f, errno, "joining the family")
    _current = _join_by_environment() or _found()
    # putenv, not os.environ: this is for child processes, and no business of code that looks at os.environ.
    os.putenv(ENVIRONMENT, _current.ticket)
    return _current


def _forget_exec(int shmid, uint64_t nonce):
    # This program may have been executed by a member, which keeps its pid, and to the kernel is alive.
    cdef mp_family old
    if mp_family_attach(&old, shmid, nonce, MP_ATTACH_OWN, NULL) == MP_OK:
        mp_family_forget_exec(&old)
        mp_family_detach(&old)


def _join_by_environment():
    shmid, colon, nonce = os.environ.get(ENVIRONMENT, "").partition(":")
    if not colon:
        return None
    try:
        if not is_importing_main() and _mp_process.parent_process() is None:
            _forget_exec(int(shmid), int(nonce, 16))
            return None
        return _attach(int(shmid), int(nonce, 16))
    except (OSError, ValueError, OverflowError):
        return None  # it is gone, or another user's: nothing of ours is in it


def sweep():
    """Removes what dead families of this user left behind; returns how many. The first use of mpipc does this."""
    return mp_sweep()


def segment_size():
    """Bytes of the segment that a family has: of address space and kernel.shmmax; memory it takes as it is used. With
    more than some thousand objects it grows by smaller ones."""
    return sizeof(mp_segment)


def reserve_for_child():
    """Before a fork by Process.start(): OSError if there is no room in the family for one more process."""
    cdef mp_family *f = families
    while f != NULL:
        if mp_start_reserve(f) != MP_OK:
            error = errno
            cancel_reservations()
            fail_joining(f, error, "starting a process")
        f = f.next


def cancel_reservations():
    """After that fork, whether it was done or not."""
    cdef mp_family *f = families
    while f != NULL:
        mp_start_cancel(f)
        f = f.next


def families_of_this_process():
    """Every family this process has joined."""
    return list(_families)


# ---- fork ------------------------------------------------------------------------------------------------------------

cdef bint _told_util = False


def _leave_when_finalized(_):
    # In the child of a Process of any context: the last of the finalizers that run when its target has returned.
    sys.modules["multiprocessing.util"].Finalize(None, leaving, exitpriority=-sys.maxsize)


def _tell_util():
    global _told_util
    if not _told_util and "multiprocessing.util" in sys.modules:
        # Not imported for this: without it nobody is about to start a Process.
        sys.modules["multiprocessing.util"].register_after_fork(_leave_when_finalized, _leave_when_finalized)
        _told_util = True


def _before_fork():
    global mp_fork_by_python
    if families != NULL:
        _tell_util()
    mp_fork_by_python = 1


def _after_fork_parent():
    global mp_fork_by_python
    mp_fork_by_python = 0


def _after_fork_child():
    global mp_fork_by_python
    mp_fork_by_python = 0
    _transits.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_parent, after_in_child=_after_fork_child)


# ---- spawn and forkserver --------------------------------------------------------------------------------------------

def record_transit(popen):
    """The child `popen` was started: what was pickled for it is held until it has arrived, or is dead."""
    cdef mp_family *f
    cdef int64_t token
    for family, token in getattr(popen, "_mpipc_transit", {}).items():
        f = (<Family> family).f
        mp_transit_sent(f, token, popen.pid or 0)
        if getattr(popen, "_mpipc_arenas", None):
            with nogil:
                mp_transit_keep(f, token)


def cancel_transit(popen):
    """The start of `popen` failed."""
    for family, token in getattr(popen, "_mpipc_transit", {}).items():
        mp_transit_arrived((<Family> family).f, token)


def arrived():
    """This process has unpickled all that its parent sent it, and holds it by itself."""
    for family, token in _transits:
        mp_transit_arrived((<Family> family).f, token)
    _transits.clear()


def leaving():
    """This process ends in the normal way: semaphore units that it holds stay taken, as in multiprocessing. The last
    one removes what there is, if nobody else can."""
    cdef mp_family *f = families
    while f != NULL:
        mp_family_leave(f)
        f = f.next


atexit.register(leaving)

# ---- blocks ----------------------------------------------------------------------------------------------------------

cdef class Block:

    cdef int ensure(self) except -1:
        if self.f.slot < 0:
            self.family.ensure()
        return 0

    def __dealloc__(self):
        cdef mp_family *f = families
        if self.f != NULL:
            mp_block_drop(self.f, self.index)
        elif self.b != NULL and mp_block_state_of(self.b.word) == MP_BLOCK_MAKING and \
                mp_block_serial(self.b.word) == self.serial:
            while f != NULL:  # never sealed: something failed
                if self.b == mp_block_at(f, self.index):
                    mp_block_abandon(f, self.index)
                    return
                f = f.next

    @property
    def kind(self):
        return _KIND_NAMES[self.b.kind]

    @property
    def id(self):
        """Id of the kernel object that the block owns, -1 if none."""
        return self.b.id

    @property
    def key(self):
        return self.b.key

    def holders(self):
        """Pids of the processes that have a handle on this block."""
        return self.family.holders_of(self.index)

    def __reduce__(self):
        # Like multiprocessing's, these objects travel to a child being spawned, and nowhere else. Until the child has
        # unpickled them, a slot reserved for this journey holds them.
        cdef int64_t token
        popen = _mp_context.get_spawning_popen()
        if popen is None:
            raise RuntimeError(
                "mpipc objects are shared with other processes through inheritance only: pass them to Process(args=...)"
            )
        transit = getattr(popen, "_mpipc_transit", None)
        if transit is None:
            transit = popen._mpipc_transit = {}
        if self.family not in transit:
            self.ensure()
            token = mp_transit_reserve(self.f)
            if token < 0:
                fail_joining(self.f, errno, "starting a process")
            transit[self.family] = token
        if mp_block_hold(self.f, self.index, mp_transit_slot(transit[self.family])) != MP_OK:
            fail_growing(errno, "starting a process")
        return _unpickle, (self.f.shmid, self.f.nonce, self.index, self.serial, transit[self.family])


def _unpickle(int shmid, uint64_t nonce, uint32_t index, uint32_t serial, int64_t token):
    global _current
    cdef Family family = _attach(shmid, nonce)
    if _current is None:
        _current = family
        os.putenv(ENVIRONMENT, family.ticket)
    if (family, token) not in _transits:
        if mp_transit_claim(family.f, token) != MP_OK:
            fail(ESTALE, "taking over an object from the parent process")
        _transits.add((family, token))
    return adopted(family, index, serial, "taking over an object from the parent process")


cdef Block block_made(Family family, uint32_t index):
    """The handle on a block of which this process has counted one more."""
    cdef Block block = Block.__new__(Block)
    block.family = family
    block.f = family.f
    block.b = mp_block_at(family.f, index)
    block.index = index
    block.serial = mp_block_serial(block.b.word)
    return block


cdef Block adopted(Family family, uint32_t index, uint32_t serial, str what):
    """The handle on a block that somebody else holds at the moment."""
    cdef int error = mp_block_adopt(family.f, index, serial)
    if error != MP_OK:
        fail_growing(error, what)
    return block_made(family, index)


cdef Block new_block(uint32_t kind, Family family=None):
    """A block in the making; `seal` it when its payload is set. If it is dropped before, it is taken down."""
    family = current() if family is None else family
    cdef int64_t index = mp_block_new(family.f, kind)
    if index < 0:
        fail_growing(errno, f"taking a control block for a {_KIND_NAMES[kind]}")
    cdef Block block = Block.__new__(Block)
    block.family = family
    block.b = mp_block_at(family.f, <uint32_t> index)
    block.index = <uint32_t> index
    block.serial = mp_block_serial(block.b.word)
    return block


cdef Block seal(Block block):
    block.f = block.family.f
    mp_block_ready(block.f, block.index)
    return block


cdef int make_queue(Block block, int mode) except -1:
    """Makes the message queue that a block in the making owns. Returns its id."""
    cdef int msqid = mp_block_msgget(block.family.f, block.index, mode)
    if msqid < 0:
        error = errno
        mp_block_abandon(block.family.f, block.index)
        fail_call(error, "msgget", {"key": 0, "msgflg": mode | 0o3000})
    return msqid


cdef int make_segment(Block block, uint64_t size, int flags) except -1:
    """Makes the shared memory segment that a block in the making owns. Returns its id."""
    cdef int shmid = mp_block_shmget(block.family.f, block.index, size, flags)
    if shmid < 0:
        error = errno
        mp_block_abandon(block.family.f, block.index)
        fail_call(error, "shmget", {"key": 0, "size": size, "shmflg": flags | 0o3000})
    return shmid


def new_queue(int mode=0o600):
    """A block that owns a new message queue: its id is in `.id`; both live until the last handle is gone."""
    cdef Block block = new_block(MP_KIND_QUEUE)
    make_queue(block, mode)
    return seal(block)


def new_segment(uint64_t size, int flags=0o600):
    """A block that owns a new shared memory segment of `size` bytes."""
    cdef Block block = new_block(MP_KIND_SEGMENT)
    make_segment(block, size, flags)
    return seal(block)


def new_data():
    """A block with 64 bytes of shared payload and nothing else; see payload()."""
    return seal(new_block(MP_KIND_DATA))


def payload(Block block):
    """The 64 shared bytes of a block, writable. Keep the block alive as long as the view."""
    return <uint8_t[:64]> block.b.bytes


def extra(Block block, int i, value=None):
    """One of three 64-bit words beside the payload, for the class that owns the block; sets it if a value is given."""
    if value is not None:
        (<uint64_t *> &block.b.more)[i] = <uint64_t> value
    return (<uint64_t *> &block.b.more)[i]
