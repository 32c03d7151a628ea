# For layers above that are compiled too: a call through here has no argument parsing.

cpdef object msgsnd(int msqid, long mtype, object mtext, int msgflg=*)
cpdef tuple msgrcv(int msqid, object msgsz=*, long msgtyp=*, int msgflg=*)
cpdef tuple msgrcv_into(int msqid, object buffer, long msgtyp=*, int msgflg=*)
