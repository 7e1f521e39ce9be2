"""A process that was killed while it compiled does not hold up the next run."""

from __future__ import annotations

import os

from baton.extensions import FOLDER, remove_stale_locks, use_own_folder


def test_a_lock_that_nobody_holds_is_removed(tmp_path):
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    lock = folder / "lock"
    fd = os.open(lock, os.O_CREAT | os.O_EXCL)  # as torch.utils.file_baton does
    assert remove_stale_locks(tmp_path) == []
    assert lock.exists()
    os.close(fd)
    assert remove_stale_locks(tmp_path) == [lock]
    assert not lock.exists()
    assert remove_stale_locks(tmp_path) == []


def test_each_environment_has_a_folder_of_its_own_unless_the_user_names_one(tmp_path, monkeypatch):
    monkeypatch.setenv("BATON_CACHE", str(tmp_path))
    monkeypatch.delenv(FOLDER, raising=False)
    assert use_own_folder().parent == tmp_path / "torch_extensions"
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    assert use_own_folder() == tmp_path / "mine"
