"""Places to write to are looked at first, and filled whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pact.common.outputs import (
    check_folder,
    check_new_file,
    check_new_folder,
    whole_file,
    whole_folder,
)


def test_places_that_are_free_pass_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").write_text("old")
    check_new_file(tmp_path / "deep" / "new")
    check_new_file(tmp_path / "old", overwrite=True, inputs={"data": "a/hub-name", "base": None})
    check_new_folder(tmp_path / "deep" / "new")
    check_new_folder(tmp_path / "empty")
    check_folder(tmp_path, "output_dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "old"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("old", {}, "output .*old must be a new file: name another, or delete it"),
        ("old", {"overwrite": False}, "name another, or set overwrite"),
        ("folder", {"overwrite": True}, "must be a new file, got a folder"),
        ("old/new", {}, "must be a place that can be written to, .*Not a directory"),
    ],
)
def test_files_that_cannot_be_are_refused(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "old").write_text("old")
    with pytest.raises(ValueError, match=message):
        check_new_file(tmp_path / name, **options)
    assert (tmp_path / "old").read_text() == "old"


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("rows")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for name in ("data", "link", "./data"):
        with pytest.raises(ValueError, match="apart from what is read, got .* which is data"):
            check_new_file(tmp_path / "data", overwrite=True, inputs={"data": str(tmp_path / name)})


@pytest.mark.parametrize("check", [check_new_folder, check_folder])
def test_folders_that_cannot_be_are_refused(check: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="output_dir must be"):
        check(tmp_path / "file", "output_dir")
    with pytest.raises(ValueError, match="can be written to, .*Not a directory"):
        check(tmp_path / "file" / "deep" / "new", "output_dir")
    if check is check_new_folder:
        with pytest.raises(ValueError, match="must be absent or an empty folder"):
            check(tmp_path, "output_dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_only_read_is_refused_by_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        check_new_file(tmp_path / "new")


def test_a_folder_that_is_only_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    for check in (check_new_file, check_new_folder):
        with pytest.raises(ValueError, match="Read-only file system.: name another"):
            check(tmp_path / "deep" / "new", "output")


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(OSError, match="full"), whole_file(path) as partial:
        partial.write_text("sec")
        raise OSError("full")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with pytest.raises(OSError, match="full"), whole_folder(path) as partial:
        (partial / "file").write_text("half")
        raise OSError("full")
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # an empty one is as good as none
    with whole_folder(path) as partial:
        (partial / "file").write_text("all")
        assert not any(path.iterdir())
    assert (path / "file").read_text() == "all"
    assert list(path.parent.iterdir()) == [path]
