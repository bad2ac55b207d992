"""The folder around one action: `in` with its inputs, `out` for what it leaves, `log` with what it prints."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.execute.executor import ActionError
from kairosbuild.graph.action import Action
from kairosbuild.store.cas import Cas

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME = "kbuild"


def environment(action: Action, epoch: int) -> dict[str, str]:
    """All of the environment a command gets: nothing of this machine's."""
    fixed = {"PATH": PATH, "HOME": "/tmp", "TZ": "UTC", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(epoch)}  # noqa: S108
    return {**fixed, **action.env}


def prepare(folder: Path) -> None:
    """Make the three members of a fresh folder."""
    for name in ("in", "out"):
        (folder / name).mkdir()
        (folder / name).chmod(0o755)  # whatever the umask is
    (folder / "log").touch()


def fill(folder: Path, action: Action, cas: Cas) -> None:
    """Put the inputs in place: hard links to the stored blobs, copies where the exec bit is wanted."""
    top = f"{folder}/in"
    executable = frozenset(action.executable)
    made = {""}
    for path, blob in action.inputs.items():
        _make_parents(top, _plain(path), made)
        _place(cas.path(blob.digest), f"{top}/{path}", copy=path in executable)


def collect(folder: Path, action: Action, cas: Cas, *, name: str, log: bytes) -> dict[str, Blob]:
    """Move the declared outputs into the store. Raises ActionError: `output-missing`, `output-type`."""
    return {path: cas.put_file(_output(folder / "out", path, name, log)) for path in action.outputs}


def empty(folder: Path) -> None:
    """Make the folder as `prepare` left it, whatever a command did in it."""
    for name in ("in", "out"):
        _empty(f"{folder}/{name}")
    os.truncate(folder / "log", 0)


def remove(folder: Path) -> None:
    """Remove the folder, folders without permissions in it included."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder, onerror=_unlock)


def _empty(top: str) -> None:
    with os.scandir(top) as found:
        items = list(found)
    for item in items:
        if item.is_dir(follow_symlinks=False):
            shutil.rmtree(item.path, onerror=_unlock)
        else:
            os.unlink(item.path)  # noqa: PTH108 - ten thousands of times in a build


def _unlock(function: object, path: str, info: object) -> None:
    """A command may leave a folder that its owner may not enter: give the permissions back and try again."""
    folder = path if Path(path).is_dir() and not Path(path).is_symlink() else str(Path(path).parent)
    for one in {folder, str(Path(path).parent)}:
        Path(one).chmod(0o700)
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def _plain(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{path!r} is not a plain relative path", reason="action-path")
    return path


def _make_parents(top: str, path: str, made: set[str]) -> None:
    for parent in reversed(list(_parents(path))):
        if parent not in made:
            os.mkdir(f"{top}/{parent}")  # noqa: PTH102 - ten thousands of times in a build
            os.chmod(f"{top}/{parent}", 0o755)  # noqa: PTH101, S103 - whatever the umask is
            made.add(parent)


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _place(source: Path, target: str, *, copy: bool) -> None:
    if not copy:
        with suppress(OSError):  # another filesystem, or the most links a file can have
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    os.chmod(target, 0o555 if copy else 0o444)  # noqa: PTH101


def _output(top: Path, path: str, name: str, log: bytes) -> Path:
    """Where an output is, with every folder above it a real one, so that nothing outside can be named."""
    at = top
    parts = _plain(path).split("/")
    for depth, part in enumerate(parts, 1):
        at = at / part
        try:
            mode = at.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise ActionError(
                f"{name}: the command left no output {path!r}",
                reason="output-missing",
                hint=f"it has to leave it as /out/{path}",
                log=log,
            ) from None
        wanted = stat.S_ISREG if depth == len(parts) else stat.S_ISDIR
        if not wanted(mode):
            raise ActionError(
                f"{name}: the output {path!r} is {_what(mode)}",
                reason="output-type",
                hint="an output is a regular file; pack a folder into an archive",
                log=log,
            )
    at.chmod(0o444)
    return at


def _what(mode: int) -> str:
    return _NAMES.get(stat.S_IFMT(mode), "a special file")


_NAMES = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file, not a folder"}
