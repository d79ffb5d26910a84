"""The walk over a folder's files: links, hidden files, and folders that cannot be listed."""

import os

import pytest

from src.data.walk import walk


@pytest.fixture
def tree(tmp_path):
    for name in ("b/1", "b/c/2", "a/3", "4", ".hidden/5", "b/._6", "outside/7"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_bytes(b"")
    (tmp_path / "top" / "outside").rename(tmp_path / "outside")
    return tmp_path / "top"


def found(*arguments, **options):
    return sorted(map(os.fsdecode, walk(*arguments, **options)))


def test_hidden_files_do_not_count(tree):
    assert found(tree) == ["4", "a/3", "b/1", "b/c/2"]
    assert found(tree, deep=False) == ["4"]
    assert found(tree.rename(tree.with_name(".top"))) == ["4", "a/3", "b/1", "b/c/2"]  # the one that is named does


def test_links_are_followed_once(tree):
    (tree / "a" / "link").symlink_to(tree.parent / "outside")
    (tree / "b" / "c" / "circle").symlink_to(tree)
    (tree / "a" / "again").symlink_to(tree / "b")  # b comes by its own name
    (tree / "nowhere").symlink_to("missing")
    (tree / "itself").symlink_to("itself")
    (tree / "file").symlink_to(tree / "4")
    said = []
    assert found(tree, say=said.append) == ["4", "a/3", "a/link/7", "b/1", "b/c/2", "file", "itself", "nowhere"]
    assert [line.split(" ")[0] for line in said] == [f"{tree}/a/again", f"{tree}/b/c/circle"]


def test_a_folder_can_be_left_out(tree):
    (tree / "out").symlink_to(tree / "b")
    said = []
    assert found(tree, without=tree / "out", say=said.append) == ["4", "a/3"] and len(said) == 2
    assert found(tree, without=tree / "missing") == ["4", "a/3", "b/1", "b/c/2"]


def test_a_folder_that_cannot_be_listed(tree, monkeypatch):
    def scandir(path, real=os.scandir):
        if path.endswith(b"/a"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    errors = []
    assert found(tree, failed=errors.append) == ["4", "b/1", "b/c/2"] and len(errors) == 1
    with pytest.raises(PermissionError):
        found(tree)
