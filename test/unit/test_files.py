import errno
import os

import pytest

from coopnet_core.files import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "file"
    write_whole(path, lambda partial: partial.write_text("one"))
    write_whole(path, lambda partial: partial.write_text("two"))
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_when_the_new_one_cannot_be_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def full(partial):
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    path, done = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    write_whole(path, lambda partial: partial.write_text("content"))
    assert done == ["file.partial", "renamed", tmp_path.name]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_disk_that_fails_later_on_keeps_the_old_file_too(tmp_path, monkeypatch, operation):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
