from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mpipc import sysv

from .conftest import Make


def test_ftok_is_made_of_inode_device_and_project(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    status = os.stat(file)
    for proj_id in (1, 0x7F, 0x80, 0xFF, 0x1234):
        expected = (proj_id & 0xFF) << 24 | (status.st_dev & 0xFF) << 16 | status.st_ino & 0xFFFF
        key = sysv.ftok(file, proj_id)
        assert key & 0xFFFFFFFF == expected
        assert -(1 << 31) <= key < 1 << 31
        assert sysv.ftok(str(file), proj_id) == sysv.ftok(os.fsencode(file), proj_id) == key


def test_ftok_of_a_missing_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        sysv.ftok(missing, 1)
    assert isinstance(caught.value, sysv.SysVError)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == missing
    assert "missing" in str(caught.value)


def test_ftok_of_something_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(sysv.SysVError) as caught:
        sysv.ftok(tmp_path / "file" / "below", 1)
    assert caught.value.errno == errno.ENOTDIR


@pytest.mark.parametrize("proj_id", [0, 0x100, -0x100])
def test_ftok_refuses_a_project_of_zero(proj_id: int) -> None:
    with pytest.raises(ValueError, match="lowest eight bits"):
        sysv.ftok("/", proj_id)


def test_ftok_refuses_a_null_character() -> None:
    with pytest.raises(ValueError, match="null character"):
        sysv.ftok("/tmp\0/x", 1)


@pytest.mark.parametrize("key", [1 << 32, -(1 << 31) - 1, 1 << 80])
def test_a_key_has_32_bits(key: int) -> None:
    with pytest.raises(ValueError, match="32-bit"):
        sysv.msgget(key)
    with pytest.raises(ValueError, match="32-bit"):
        sysv.semget(key, 1)
    with pytest.raises(ValueError, match="32-bit"):
        sysv.shmget(key, 1)


def test_a_key_is_the_same_signed_and_unsigned(new_queue: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 0xE1)
    assert key < 0
    msqid = new_queue(key, sysv.IPC_CREAT | sysv.IPC_EXCL | 0o600)
    assert sysv.msgget(key & 0xFFFFFFFF) == sysv.msgget(key) == msqid
    assert sysv.msgctl(msqid, sysv.IPC_STAT).msg_perm.key == key
