from collections.abc import Iterable, Sequence
from typing import Final, Literal, overload

from .structs import semid_ds, seminfo

__all__ = [
    "GETALL",
    "GETNCNT",
    "GETPID",
    "GETVAL",
    "GETZCNT",
    "SEM_INFO",
    "SEM_UNDO",
    "SETALL",
    "SETVAL",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
]

SEM_UNDO: Final = 0x1000
GETPID: Final = 11
GETVAL: Final = 12
GETALL: Final = 13
GETNCNT: Final = 14
GETZCNT: Final = 15
SETVAL: Final = 16
SETALL: Final = 17
SEM_INFO: Final = 19

def semget(key: int, nsems: int, semflg: int = 0o600) -> int: ...
def semop(semid: int, sops: Iterable[Sequence[int]]) -> None: ...
def semtimedop(semid: int, sops: Iterable[Sequence[int]], timeout: float | None = None) -> None: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[11, 12, 14, 15]) -> int: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[13]) -> list[int]: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[16], arg: int) -> None: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[17], arg: Iterable[int]) -> None: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[0]) -> None: ...
@overload
def semctl(
    semid: int,
    semnum: int,
    cmd: Literal[1],
    arg: semid_ds | None = None,
    *,
    uid: int | None = None,
    gid: int | None = None,
    mode: int | None = None,
) -> None: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[2]) -> semid_ds: ...
@overload
def semctl(semid: int, semnum: int, cmd: Literal[3, 19]) -> seminfo: ...
