"""Kind `overlay`: files of the workspace and of the recipe itself as a layer, without running anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import ClassVar

from kairosbuild.core.errors import InputError, KbuildError, nearest, raise_problems
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.oci.entry import Entry, is_whiteout, whiteout_of
from kairosbuild.oci.layer import write_layer
from kairosbuild.recipe.fields import flag, integer, mode, recordmap, source, text, textmap, texts

_OWNER = r"\d{1,9}:\d{1,9}"
_VARIABLE = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_-]*)\}")

MERGED = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32"})
"""Links to usr/… on every current distribution; a layer with such a folder would hide the link."""

LEFT_TO_OTHERS = frozenset(
    {
        "root",
        "tmp",
        "var/tmp",
        "var/mail",
        "var/local",
        "var/lib/private",
        "var/cache/private",
        "var/log/private",
        "etc/ssl/private",
        "etc/sudoers.d",
        "etc/polkit-1/rules.d",
        "run/lock",
        "proc",
        "sys",
        "dev",
    }
)
"""Folders that are not 0755 root:root everywhere: without an entry they stay as layers below have them."""


def _inside(paths: Iterable[str]) -> str:
    """What is wrong with paths of the root, or ""."""
    for path in paths:
        if any(part in ("", ".", "..") for part in path.strip("/").split("/")):
            return f"{path!r} leads out of the root or is not plain; write it as etc/hosts"
        if is_whiteout(path):
            return f"{path!r} has a name that hides what is below; name it under remove instead"
    return ""


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file, written out in the recipe or taken from the workspace."""

    content: str = text("What is in it.", "")
    source: str = source("A file of the workspace that has the content.", "")
    mode: str = mode("Its permissions.", "0644")
    owner: int = integer("Its owner, a number.", 0)
    group: int = integer("Its group, a number.", 0)


@dataclass(frozen=True, slots=True)
class FolderSpec:
    """One folder."""

    mode: str = mode("Its permissions.", "0755")
    owner: int = integer("Its owner, a number.", 0)
    group: int = integer("Its group, a number.", 0)


@dataclass(frozen=True, slots=True)
class OverlaySpec:
    """Files to put over what layers below have."""

    source: str = source("A folder of the workspace that is laid over the root.", "")
    files: Mapping[str, FileSpec] = recordmap("Single files by their path.", FileSpec, {}, check=_inside)
    dirs: Mapping[str, FolderSpec] = recordmap("Folders by their path.", FolderSpec, {}, check=_inside)
    links: Mapping[str, str] = textmap("Symbolic links: path to target.", {}, check=_inside)
    remove: tuple[str, ...] = texts("Paths of layers below that are gone.", (), check=_inside)
    owners: Mapping[str, str] = textmap(
        "Owners by glob, as `uid:gid`; the last that matches counts.", {}, pattern=_OWNER, example="1000:1000"
    )
    modes: Mapping[str, str] = textmap(
        "Permissions by glob; the last that matches counts.", {}, pattern="0?[0-7]{3,4}", example="0640"
    )
    templates: tuple[str, ...] = texts("Globs of files in which `${name}` is replaced.", ())
    vars: Mapping[str, str] = textmap("The names that templates may use, and what they stand for.", {})
    split_usr: bool = flag("Keep a /bin, /sbin or /lib as written, for a distribution without merged /usr.")


@dataclass(frozen=True, slots=True)
class _Item:
    entry: Entry
    content: Path | bytes | None = None


class Overlay:
    """Pure Python over the layer writer: an edit costs milliseconds."""

    name: ClassVar[str] = "overlay"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = OverlaySpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: OverlaySpec) -> tuple[str, ...]:
        """None."""
        return ()

    def lock(self, spec: OverlaySpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Gather the members, write the layer."""
        members = _members(task)
        tar = task.scratch / "layer.tar"
        with tar.open("xb") as out:
            index = write_layer(
                ((one.entry, one.content) for one in members), out, task.epoch, flat_time=True
            )
        return layer_outputs(task, tar, index)


def _members(task: Task) -> list[_Item]:
    """Everything that goes into the layer, every problem raised at once."""
    spec: OverlaySpec = task.spec
    problems: list[KbuildError] = []
    moved: set[str] = set()
    found: dict[str, _Item] = {}
    for item in (*_from_source(task), *_from_spec(task)):
        try:
            path = _placed(item.entry, spec, moved)
            found[path] = replace(item, entry=replace(item.entry, path=path))
        except InputError as error:
            problems.append(error)
    for top in sorted(moved):
        task.note(f"{top}/ goes to usr/{top}/, because /{top} is a link there (split_usr: true keeps it)")
    for path in list(found):
        _add_folders(path, found)
    items = [_dressed(item, spec) for item in found.values()]
    items += [_Item(Entry(whiteout_of(path.strip("/")), "file", 0), b"") for path in spec.remove]
    items = [_filled(item, spec, problems) for item in items]
    raise_problems(problems)
    return items


def _from_source(task: Task) -> Iterator[_Item]:
    for file in task.sources.get("source", ()):
        if not file.logical:
            raise InputError(
                f"{task.name}: source is a file; a folder is expected",
                reason="overlay-source",
                hint="give a single file under files: PATH: {source: …}",
            )
        if file.type == "dir":
            if file.logical not in LEFT_TO_OTHERS:
                yield _Item(Entry(file.logical, "dir", 0o755))
        elif file.type == "link":
            yield _Item(Entry(file.logical, "symlink", 0o777, target=file.target))
        else:
            yield _Item(
                Entry(file.logical, "file", file.mode, size=file.blob.size if file.blob else 0),
                task.source_path("source", file.logical),
            )


def _from_spec(task: Task) -> Iterator[_Item]:
    spec: OverlaySpec = task.spec
    for path, folder in spec.dirs.items():
        yield _Item(Entry(path, "dir", int(folder.mode, 8), folder.owner, folder.group))
    for path, target in spec.links.items():
        yield _Item(Entry(path, "symlink", 0o777, target=target))
    for path, file in spec.files.items():
        size, content = _content(task, path, file)
        yield _Item(Entry(path, "file", int(file.mode, 8), file.owner, file.group, size), content)


def _content(task: Task, path: str, file: FileSpec) -> tuple[int, Path | bytes]:
    """The size and the bytes of a single file, out of the recipe or the workspace."""
    role = f"files.{path}.source"
    if role not in task.sources:
        written = file.content.encode()
        return len(written), written
    found = task.sources[role]
    if len(found) != 1 or found[0].blob is None:
        raise InputError(f"{task.name}: {role} is no single file", reason="overlay-source")
    return found[0].blob.size, task.source_path(role, "")


def _placed(entry: Entry, spec: OverlaySpec, moved: set[str]) -> str:
    """Where a member really goes. Raises InputError for a path that leads out of the root."""
    path = entry.path.strip("/")
    if complaint := _inside([path]):
        raise InputError(complaint, reason="overlay-path")
    top, _, rest = path.partition("/")
    if top in MERGED and not spec.split_usr and (rest or entry.type == "dir"):
        moved.add(top)
        return f"usr/{path}"
    return path


def _add_folders(path: str, found: dict[str, _Item]) -> None:
    """Folders on the way get an entry, so that nobody has to guess their permissions."""
    while path := path.rpartition("/")[0]:
        if path in found:
            if found[path].entry.type != "dir":
                raise InputError(f"{path!r} is both a folder and not", reason="overlay-path")
        elif path not in LEFT_TO_OTHERS:
            found[path] = _Item(Entry(path, "dir", 0o755))


def _dressed(item: _Item, spec: OverlaySpec) -> _Item:
    """Apply the owners and modes that match."""
    entry = item.entry
    for glob, owner in spec.owners.items():
        if _matches(glob, entry.path):
            uid, gid = map(int, owner.split(":"))
            entry = replace(entry, uid=uid, gid=gid)
    for glob, bits in spec.modes.items():
        if entry.type != "symlink" and _matches(glob, entry.path):
            entry = replace(entry, mode=int(bits, 8))
    return replace(item, entry=entry)


def _filled(item: _Item, spec: OverlaySpec, problems: list[KbuildError]) -> _Item:
    """A template with its variables replaced; names that nobody declared are problems."""
    if item.entry.type != "file" or not any(_matches(glob, item.entry.path) for glob in spec.templates):
        return item
    content = item.content.read_bytes() if isinstance(item.content, Path) else item.content or b""

    def value(match: re.Match[bytes]) -> bytes:
        name = match[1].decode()
        if name not in spec.vars:
            problems.append(
                InputError(
                    f"the template {item.entry.path!r} uses {name!r}, which is not declared",
                    reason="template-variable",
                    hint=nearest(name, spec.vars) or "declare it under the node's vars",
                )
            )
        return spec.vars.get(name, "").encode()

    filled = _VARIABLE.sub(value, content)
    return _Item(replace(item.entry, size=len(filled)), filled)


def _matches(glob: str, path: str) -> bool:
    return _pattern(glob).match(path) is not None


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob.lstrip("/")))
