"""An artifact's files back in a folder: under their titles, all of them or none."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.core.events import Events
from kairosbuild.registry import delta
from kairosbuild.registry.manifests import Image, resolve
from kairosbuild.registry.target import JOBS, TITLE, Descriptor, Progress, Target
from kairosbuild.registry.transfers import move


def pull(
    target: Target,
    version: str,
    into: Path,
    events: Events,
    *,
    platform: str = "linux/amd64",
    seeds: Sequence[Path] = (),
    jobs: int = JOBS,
) -> tuple[Path, ...]:
    """Write the titled files of an artifact below `into` and return their paths, in the manifest's order.

    Of a file that is there in an older version, or of which `seeds` are, only what changed is fetched, where the
    artifact's chunks are listed (see `delta`).

    Every byte is verified before the first file appears. Raises InputError `no-titled-files`, HostError
    `unsafe-title` for a title that would leave the folder.
    """
    image = resolve(target, version, platform)
    files = titled(image, f"{target.name}@{image.digest}")
    into.mkdir(parents=True, exist_ok=True)
    waiting = Path(tempfile.mkdtemp(dir=into, prefix=".pull-"))
    try:
        lists = _Lists(target, image.digest)
        older = _older(files, into, seeds)

        def one(blob: Blob, progress: Progress) -> int:
            file = waiting / blob.hex
            came = _changed(target, blob, lists, older.get(blob, ()), file, progress)
            if came is None:
                target.get_blob(blob, file, progress=progress)
            return blob.size if came is None else came

        move([layer.blob for layer in files.values()], one, events, verb="pull", jobs=jobs)
        return _place(files, waiting, into)
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


class _Lists:
    """The lists of an artifact's chunks, asked for when the first one is needed."""

    def __init__(self, target: Target, digest: str) -> None:
        self._target, self._digest = target, digest
        self._lock = threading.Lock()
        self._found: Mapping[str, bytes] | None = None

    def of(self, blob: Blob) -> bytes | None:
        """The list of one blob, None where none was published."""
        with self._lock:
            if self._found is None:
                self._found = delta.lists_of(self._target, self._digest)
            return self._found.get(blob.digest)


def _older(files: Mapping[str, Descriptor], into: Path, seeds: Sequence[Path]) -> Mapping[Blob, list[Path]]:
    """For each large blob the files that may hold parts of it."""
    found: dict[Blob, list[Path]] = {}
    for title, layer in files.items():
        if layer.blob.size >= delta.LARGE:
            there = [into / title, *seeds]
            found.setdefault(layer.blob, []).extend(one for one in there if one.is_file())
    return found


def _changed(
    target: Target, blob: Blob, lists: _Lists, older: Sequence[Path], file: Path, progress: Progress
) -> int | None:
    """Fetch what changed; the bytes that came, None when the whole has to come after all."""
    if not older:
        return None
    try:
        listing = lists.of(blob)
        return delta.fetch(target, blob, listing, older, file, progress) if listing else None
    except (HostError, OSError):
        return None  # a short cut that leads nowhere costs the way back, and nothing else


def titled(image: Image, where: str) -> Mapping[str, Descriptor]:
    """Title to layer. Raises when there is none, one is unsafe, or two are the same file."""
    files: dict[str, Descriptor] = {}
    for layer in image.layers:
        title = layer.annotations.get(TITLE)
        if title is None:
            continue
        if not _is_safe(title) or title in files:
            raise HostError(f"{where}: the title {title!r} is refused", reason="unsafe-title")
        files[title] = layer
    if not files:
        hint = "for an image, podman pull or skopeo copy"
        raise InputError(f"{where} has no titled files", reason="no-titled-files", hint=hint)
    return files


def _is_safe(title: str) -> bool:
    path = PurePosixPath(title)
    plain = str(path) == title and title.isprintable() and "\\" not in title and title != "."
    return plain and not path.is_absolute() and ".." not in path.parts


def _place(files: Mapping[str, Descriptor], waiting: Path, into: Path) -> tuple[Path, ...]:
    """Give every file its name. Two titles may have the same bytes, so it is a copy that is renamed."""
    for title in files:
        _make_parents(into, title)
    uses = Counter(layer.blob for layer in files.values())
    for title, layer in files.items():
        file = waiting / layer.blob.hex
        if uses[layer.blob] > 1:
            uses[layer.blob] -= 1
            file = Path(shutil.copyfile(file, f"{file}-{uses[layer.blob]}"))
        file.replace(into / title)
    return tuple(into / title for title in files)


def _make_parents(into: Path, title: str) -> None:
    folder = into
    for part in PurePosixPath(title).parts[:-1]:
        folder = folder / part
        if folder.is_symlink():
            raise HostError(f"{folder} is a link that {title!r} would go through", reason="unsafe-title")
        folder.mkdir(exist_ok=True)
