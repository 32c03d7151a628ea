# What <sys/ipc.h>, <sys/msg.h>, <sys/sem.h> and <sys/shm.h> declare. Python.h, which every extension includes first,
# defines _GNU_SOURCE, and with it the Linux-only parts (semtimedop, MSG_EXCEPT, IPC_INFO).

from posix.time cimport timespec
from posix.types cimport gid_t, mode_t, pid_t, time_t, uid_t


cdef extern from *:
    """
    #include <errno.h>
    #include <sys/types.h>
    #include <sys/ipc.h>
    #include <sys/msg.h>
    #include <sys/sem.h>
    #include <sys/shm.h>

    #ifndef MSG_EXCEPT
    #define MSG_EXCEPT 020000
    #endif
    #ifndef MSG_COPY
    #define MSG_COPY 040000
    #endif
    #ifndef SHM_NORESERVE
    #define SHM_NORESERVE 010000
    #endif
    #ifndef SHM_HUGE_SHIFT
    #define SHM_HUGE_SHIFT 26
    #endif

    /* semctl(2): "the calling program must define this union". */
    union mpipc_semun {
        int val;
        struct semid_ds *buf;
        unsigned short *array;
        struct seminfo *info;
    };

    /* ftok(3). Returns the errno: the key alone does not tell, -1 can also be one. */
    static int mpipc_ftok(const char *path, int proj_id, key_t *key)
    {
        errno = 0;
        *key = ftok(path, proj_id);
        return *key == -1 ? errno : 0;
    }

    /* A message as msgop(2) wants it, with room for the default MSGMAX; longer ones are allocated. */
    struct mpipc_message {
        long mtype;
        char mtext[8192];
    };
    """

    ctypedef int key_t

    ctypedef struct ipc_perm "struct ipc_perm":
        key_t key "__key"
        uid_t uid
        gid_t gid
        uid_t cuid
        gid_t cgid
        mode_t mode
        unsigned short seq "__seq"

    enum:
        IPC_PRIVATE
        IPC_CREAT
        IPC_EXCL
        IPC_NOWAIT
        IPC_RMID
        IPC_SET
        IPC_STAT
        IPC_INFO

    int mpipc_ftok(const char *path, int proj_id, key_t *key)

    # Message queues

    enum:
        MSG_NOERROR
        MSG_EXCEPT
        MSG_COPY
        MSG_INFO

    ctypedef struct msqid_ds "struct msqid_ds":
        ipc_perm msg_perm
        time_t msg_stime
        time_t msg_rtime
        time_t msg_ctime
        unsigned long msg_cbytes "__msg_cbytes"
        unsigned long msg_qnum
        unsigned long msg_qbytes
        pid_t msg_lspid
        pid_t msg_lrpid

    ctypedef struct msginfo "struct msginfo":
        int msgpool
        int msgmap
        int msgmax
        int msgmnb
        int msgmni
        int msgssz
        int msgtql
        unsigned short msgseg

    ctypedef struct mpipc_message "struct mpipc_message":
        long mtype
        char mtext[8192]

    int c_msgget "msgget"(key_t key, int msgflg)
    int c_msgsnd "msgsnd"(int msqid, const void *msgp, size_t msgsz, int msgflg) nogil
    ssize_t c_msgrcv "msgrcv"(int msqid, void *msgp, size_t msgsz, long msgtyp, int msgflg) nogil
    int c_msgctl "msgctl"(int msqid, int cmd, msqid_ds *buf)

    # Semaphore sets

    enum:
        SEM_UNDO
        GETPID
        GETVAL
        GETALL
        GETNCNT
        GETZCNT
        SETVAL
        SETALL
        SEM_INFO

    ctypedef struct semid_ds "struct semid_ds":
        ipc_perm sem_perm
        time_t sem_otime
        time_t sem_ctime
        unsigned long sem_nsems

    ctypedef struct seminfo "struct seminfo":
        int semmap
        int semmni
        int semmns
        int semmnu
        int semmsl
        int semopm
        int semume
        int semusz
        int semvmx
        int semaem

    ctypedef struct sembuf "struct sembuf":
        unsigned short sem_num
        short sem_op
        short sem_flg

    ctypedef union semun "union mpipc_semun":
        int val
        semid_ds *buf
        unsigned short *array
        seminfo *info

    int c_semget "semget"(key_t key, int nsems, int semflg)
    int c_semop "semop"(int semid, sembuf *sops, size_t nsops) nogil
    int c_semtimedop "semtimedop"(int semid, sembuf *sops, size_t nsops, const timespec *timeout) nogil
    int c_semctl "semctl"(int semid, int semnum, int cmd, ...)

    # Shared memory segments

    enum:
        SHM_RDONLY
        SHM_RND
        SHM_REMAP
        SHM_EXEC
        SHM_LOCK
        SHM_UNLOCK
        SHM_INFO
        SHM_DEST
        SHM_LOCKED
        SHM_HUGETLB
        SHM_NORESERVE
        SHM_HUGE_SHIFT
        SHMLBA

    ctypedef struct shmid_ds "struct shmid_ds":
        ipc_perm shm_perm
        size_t shm_segsz
        time_t shm_atime
        time_t shm_dtime
        time_t shm_ctime
        pid_t shm_cpid
        pid_t shm_lpid
        unsigned long shm_nattch

    ctypedef struct shminfo "struct shminfo":
        unsigned long shmmax
        unsigned long shmmin
        unsigned long shmmni
        unsigned long shmseg
        unsigned long shmall

    ctypedef struct shm_info "struct shm_info":
        int used_ids
        unsigned long shm_tot
        unsigned long shm_rss
        unsigned long shm_swp
        unsigned long swap_attempts
        unsigned long swap_successes

    int c_shmget "shmget"(key_t key, size_t size, int shmflg)
    void *c_shmat "shmat"(int shmid, const void *shmaddr, int shmflg) nogil
    int c_shmdt "shmdt"(const void *shmaddr) nogil
    int c_shmctl "shmctl"(int shmid, int cmd, shmid_ds *buf)
