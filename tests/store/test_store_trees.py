"""Trees appear whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from kairosbuild.store.store import Store


def test_made_once_for_many(store: Store) -> None:
    made = []

    def make(root: Path) -> None:
        made.append(root)
        (root / "file").write_text("x")

    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(store.trees.get("sha256:aa", make))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(set(found)) == 1
    assert (found[0] / "file").read_text() == "x"


def test_a_failed_make_leaves_nothing(store: Store) -> None:
    def fail(root: Path) -> None:
        (root / "half").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.trees.get("t", fail)
    assert list(store.trees.root.iterdir()) == []
    assert list((store.root / "tmp").iterdir()) == []
    assert [path.name for path in store.trees.get("t", lambda root: (root / "whole").mkdir()).iterdir()] == [
        "whole"
    ]


def test_a_tree_of_another_boot_is_made_anew(store: Store) -> None:
    tree = store.trees.get("t", lambda root: (root / "old").mkdir())
    (tree.parent / "complete").write_text("another boot")
    assert [path.name for path in store.trees.get("t", lambda root: (root / "new").mkdir()).iterdir()] == [
        "new"
    ]


def test_owned_is_another_tree(store: Store) -> None:
    plain = store.trees.get("t", lambda root: (root / "plain").mkdir())
    owned = store.trees.get("t", lambda root: (root / "owned").mkdir(), owned=True)
    assert plain != owned
    assert [path.name for path in owned.iterdir()] == ["owned"]


@pytest.mark.parametrize("name", ["../../escape", "/etc", ".", "..", "a/b", "x" * 500, ""])
def test_a_name_never_leaves_the_folder(store: Store, name: str) -> None:
    tree = store.trees.get(name, lambda root: None)
    assert tree.parent.parent == store.trees.root
    assert tree.is_dir()


def test_unwritable_folders_are_removed(store: Store) -> None:
    def make(root: Path) -> None:
        (root / "a/b").mkdir(parents=True)
        (root / "a/b/file").write_text("x")
        (root / "a/b").chmod(0o500)
        (root / "a").chmod(0)

    tree = store.trees.get("t", make)
    assert store.trees.destroy(tree.parent)
    assert not tree.parent.exists()


def test_what_needs_a_remover_is_given_to_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = store.trees.get("t", lambda root: (root / "theirs").mkdir(), owned=True)

    def refuse(folder: Path) -> None:
        raise PermissionError(1, "belongs to a mapped user", str(folder))

    monkeypatch.setattr("kairosbuild.store.trees._delete", refuse)
    os.utime(tree.parent / "complete", (0, 0))
    swept = store.gc(grace=0)
    assert swept.trees == 0
    assert len(swept.stuck) == 1
    asked: list[Path] = []
    store.trees.remover = lambda folder: (asked.append(folder), folder.rename(store.home / "gone"))[0]
    assert store.gc(grace=0).leftovers == 1
    assert len(asked) == 1
