from typing import Final, Literal, overload

from typing_extensions import Buffer

from .structs import msginfo, msqid_ds

__all__ = ["MSG_COPY", "MSG_EXCEPT", "MSG_INFO", "MSG_NOERROR", "msgctl", "msgget", "msgrcv", "msgrcv_into", "msgsnd"]

MSG_NOERROR: Final = 0o10000
MSG_EXCEPT: Final = 0o20000
MSG_COPY: Final = 0o40000
MSG_INFO: Final = 12

def msgget(key: int, msgflg: int = 0o600) -> int: ...
def msgsnd(msqid: int, mtype: int, mtext: Buffer, msgflg: int = 0) -> None: ...
def msgrcv(msqid: int, msgsz: int | None = None, msgtyp: int = 0, msgflg: int = 0) -> tuple[int, bytes]: ...
def msgrcv_into(msqid: int, buffer: Buffer, msgtyp: int = 0, msgflg: int = 0) -> tuple[int, int]: ...
@overload
def msgctl(msqid: int, cmd: Literal[0]) -> None: ...
@overload
def msgctl(
    msqid: int,
    cmd: Literal[1],
    buf: msqid_ds | None = None,
    *,
    uid: int | None = None,
    gid: int | None = None,
    mode: int | None = None,
    msg_qbytes: int | None = None,
) -> None: ...
@overload
def msgctl(msqid: int, cmd: Literal[2]) -> msqid_ds: ...
@overload
def msgctl(msqid: int, cmd: Literal[3, 12]) -> msginfo: ...
