from types import TracebackType
from typing import Final, Literal, Self, overload

from .structs import shm_info, shmid_ds, shminfo

__all__ = [
    "SHMLBA",
    "SHM_DEST",
    "SHM_EXEC",
    "SHM_HUGETLB",
    "SHM_HUGE_1GB",
    "SHM_HUGE_2MB",
    "SHM_HUGE_SHIFT",
    "SHM_INFO",
    "SHM_LOCK",
    "SHM_LOCKED",
    "SHM_NORESERVE",
    "SHM_RDONLY",
    "SHM_REMAP",
    "SHM_RND",
    "SHM_UNLOCK",
    "Attachment",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
]

SHM_RDONLY: Final = 0o10000
SHM_RND: Final = 0o20000
SHM_REMAP: Final = 0o40000
SHM_EXEC: Final = 0o100000
SHM_LOCK: Final = 11
SHM_UNLOCK: Final = 12
SHM_INFO: Final = 14
SHM_DEST: Final = 0o1000
SHM_LOCKED: Final = 0o2000
SHM_HUGETLB: Final = 0o4000
SHM_NORESERVE: Final = 0o10000
SHM_HUGE_SHIFT: Final = 26
SHM_HUGE_2MB: Final = 0x54000000
SHM_HUGE_1GB: Final = 0x78000000
SHMLBA: Final[int]

class Attachment:
    @property
    def shmid(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def attached(self) -> bool: ...
    def detach(self) -> None: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

def shmget(key: int, size: int, shmflg: int = 0o600) -> int: ...
def shmat(shmid: int, shmaddr: int | None = None, shmflg: int = 0) -> Attachment: ...
def shmdt(shmaddr: Attachment) -> None: ...
@overload
def shmctl(shmid: int, cmd: Literal[0, 11, 12]) -> None: ...
@overload
def shmctl(
    shmid: int,
    cmd: Literal[1],
    buf: shmid_ds | None = None,
    *,
    uid: int | None = None,
    gid: int | None = None,
    mode: int | None = None,
) -> None: ...
@overload
def shmctl(shmid: int, cmd: Literal[2]) -> shmid_ds: ...
@overload
def shmctl(shmid: int, cmd: Literal[3]) -> shminfo: ...
@overload
def shmctl(shmid: int, cmd: Literal[14]) -> shm_info: ...
