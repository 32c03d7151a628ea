# For layers above that are compiled too: a call through here has no argument parsing.

cpdef object semop(int semid, object sops)
cpdef object semtimedop(int semid, object sops, object timeout=*)
