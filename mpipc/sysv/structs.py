"""The structures of <sys/ipc.h>, <sys/msg.h>, <sys/sem.h> and <sys/shm.h>, with the names and fields of the man pages.

Times are seconds since the epoch, 0 for never. `mode` holds the nine permission bits; for a segment also SHM_DEST and
SHM_LOCKED. Keys are signed 32-bit numbers (`key_t`), as ftok() returns them; ipcs prints the same bits unsigned.
"""

from typing import NamedTuple

__all__ = ["ipc_perm", "msginfo", "msqid_ds", "sembuf", "semid_ds", "seminfo", "shm_info", "shmid_ds", "shminfo"]


class ipc_perm(NamedTuple):
    """Owner, creator and permissions of an object, see sysvipc(7)."""

    key: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int
    seq: int


class msqid_ds(NamedTuple):
    """A message queue, see msgctl(2). `msg_cbytes` is the number of bytes in it, `msg_qnum` the number of messages."""

    msg_perm: ipc_perm
    msg_stime: int
    msg_rtime: int
    msg_ctime: int
    msg_cbytes: int
    msg_qnum: int
    msg_qbytes: int
    msg_lspid: int
    msg_lrpid: int


class semid_ds(NamedTuple):
    """A semaphore set, see semctl(2)."""

    sem_perm: ipc_perm
    sem_otime: int
    sem_ctime: int
    sem_nsems: int


class shmid_ds(NamedTuple):
    """A shared memory segment, see shmctl(2). `shm_segsz` is the size asked for, in bytes."""

    shm_perm: ipc_perm
    shm_segsz: int
    shm_atime: int
    shm_dtime: int
    shm_ctime: int
    shm_cpid: int
    shm_lpid: int
    shm_nattch: int


class sembuf(NamedTuple):
    """One operation of semop(2). A plain tuple of two or three numbers does as well, and is faster to make."""

    sem_num: int
    sem_op: int
    sem_flg: int = 0


class msginfo(NamedTuple):
    """What msgctl(0, IPC_INFO) and, with other meanings of three fields, msgctl(0, MSG_INFO) report."""

    msgpool: int
    msgmap: int
    msgmax: int
    msgmnb: int
    msgmni: int
    msgssz: int
    msgtql: int
    msgseg: int


class seminfo(NamedTuple):
    """What semctl(0, 0, IPC_INFO) and, with other meanings of two fields, semctl(0, 0, SEM_INFO) report."""

    semmap: int
    semmni: int
    semmns: int
    semmnu: int
    semmsl: int
    semopm: int
    semume: int
    semusz: int
    semvmx: int
    semaem: int


class shminfo(NamedTuple):
    """What shmctl(0, IPC_INFO) reports. `shmall` is in pages."""

    shmmax: int
    shmmin: int
    shmmni: int
    shmseg: int
    shmall: int


class shm_info(NamedTuple):
    """What shmctl(0, SHM_INFO) reports. `shm_tot`, `shm_rss` and `shm_swp` are in pages."""

    used_ids: int
    shm_tot: int
    shm_rss: int
    shm_swp: int
    swap_attempts: int
    swap_successes: int
