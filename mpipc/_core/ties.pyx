# distutils: language = c
"""Processes that end with the one that started them: src/ties.c says how."""

import os
import signal

from libc.stdint cimport uint32_t, uint64_t

from mpipc._core.family cimport Family, MP_OK, mp_tie
from mpipc._core.family import _attach, current


def place():
    """Where this process stands, for a child that is to end with it: the family's segment and nonce, slot, generation.

    OSError if there is no family, and none can be founded.
    """
    family = current()
    return family.shmid, family.nonce, family.slot, family.generation


def end_with(int shmid, uint64_t nonce, int slot, uint32_t generation):
    """From now on this process is ended by SIGKILL when the process that stands there is no longer a member: at once,
    if that is so already.

    OSError if this process can be no member of that family.
    """
    cdef Family family = _attach(shmid, nonce)
    if mp_tie(family.f, slot, generation) != MP_OK:
        os.kill(os.getpid(), signal.SIGKILL)
