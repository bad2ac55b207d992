"""An artifact's files back in a folder: under their titles, all of them or none."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.core.events import Events
from kairosbuild.registry.manifests import Image, resolve
from kairosbuild.registry.target import TITLE, Descriptor, Progress, Target
from kairosbuild.registry.transfers import JOBS, move


def pull(
    target: Target,
    version: str,
    into: Path,
    events: Events,
    *,
    platform: str = "linux/amd64",
    jobs: int = JOBS,
) -> tuple[Path, ...]:
    """Write the titled files of an artifact below `into` and return their paths, in the manifest's order.

    Every byte is verified before the first file appears. Raises InputError `no-titled-files`, HostError
    `unsafe-title` for a title that would leave the folder.
    """
    image = resolve(target, version, platform)
    files = titled(image, f"{target.name}@{image.digest}")
    into.mkdir(parents=True, exist_ok=True)
    waiting = Path(tempfile.mkdtemp(dir=into, prefix=".pull-"))
    try:

        def one(blob: Blob, progress: Progress) -> int:
            target.get_blob(blob, waiting / blob.hex, progress=progress)
            return blob.size

        move([layer.blob for layer in files.values()], one, events, verb="pull", jobs=jobs)
        return _place(files, waiting, into)
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


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
