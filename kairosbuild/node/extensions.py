"""Live overlays: images that systemd puts over the running system's /usr and /etc, fetched from a registry.

An image lies on the layers filesystem as `extensions/NAME.HASH.raw` beside what is known of it, so that upgrades leave
it where it is. One that nobody lists any more goes once nothing has it open: this program itself may run out of it. What fits the running system is linked into /run and merged, at once and at each start; what does
not fit any more (modules of another kernel, another release) stays, is left out, and `list` says why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kairosbuild.node import durable, gpt, machine
from kairosbuild.node.machine import Machine
from kairosbuild.node.offer import Verify
from kairosbuild.node.problem import Problem, nearest
from kairosbuild.node.reference import Reference
from kairosbuild.node.registry import Blob, Manifest, Repository

FOLDER = "extensions"
TYPES = {f"application/vnd.kairosbuild.{kind}.v1": kind for kind in ("sysext", "confext")}
ROOT_HASH = "root-hash"
_IMAGE = "application/vnd.kairosbuild."
_LINKS = {"sysext": Path("/run/extensions"), "confext": Path("/run/confexts")}
_RELEASE = {"sysext": "usr/lib/extension-release.d", "confext": "etc/extension-release.d"}
_CERTIFICATES = tuple(Path(place, "verity.d") for place in ("/etc", "/run", "/usr/lib"))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_SPARE = 4 << 20
_PART = ".part"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Content:
    """What an image says of itself: the system it fits (fields of os-release), the kernels it has modules of."""

    release: dict[str, str]
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension that this machine has."""

    name: str
    kind: str  # sysext or confext
    reference: str
    manifest: str
    root_hash: str
    release: dict[str, str]
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class System:
    """What an extension is held against: the running kernel, and what the running system says it is."""

    kernel: str
    release: dict[str, str]

    def complaint(self, kernels: tuple[str, ...], release: dict[str, str]) -> str:
        """Why an extension does not fit, "" when it does."""
        if kernels and kernels != (self.kernel,):
            return f"it has modules of kernel {', '.join(kernels)}, and this machine runs {self.kernel}"
        if release.get("ID", "_any") == "_any":
            return ""
        level = "SYSEXT_LEVEL" if "SYSEXT_LEVEL" in release else "VERSION_ID"
        for key in ("ID", level):
            if key in release and release[key] != self.release.get(key, ""):
                return (
                    f"it is for {key}={release[key]}, and this system has {key}={self.release.get(key, '')}"
                )
        return ""


class Merger:
    """What looks into images and has them merged: this machine's mount and systemd."""

    def system(self) -> System:
        """The running system. Raises Problem `no-sysext` where nothing could merge an extension."""
        if not shutil.which("systemd-sysext", path="/usr/bin:/bin"):
            raise Problem(
                "this image has no systemd-sysext, which is what puts extensions over a running system",
                reason="no-sysext",
                hint="make what it holds a layer of the image",
            )
        return System(os.uname().release, _fields(Path("/etc/os-release").read_text()))

    def look(self, image: Path, kind: str, name: str) -> Content:
        """Read what an image says. Raises Problem `bad-extension`."""
        with _mounted(image) as root:
            release = root / _RELEASE[kind] / f"extension-release.{name}"
            if not release.is_file():
                raise Problem(
                    f"the image has no /{_RELEASE[kind]}/{release.name}",
                    reason="bad-extension",
                    hint="its file is called as the extension inside is",
                )
            kernels = (one for one in (root / "usr/lib/modules").glob("*/") if any(one.rglob("*.ko*")))
            return Content(_fields(release.read_text()), tuple(sorted(one.name for one in kernels)))

    def links(self, kind: str) -> Path:
        """The folder that systemd looks for images in."""
        return _LINKS[kind]

    def merge(self, kind: str) -> None:
        """Have merged what is linked. Nothing that dm-verity does not hold to its root hash is."""
        signed = any(place.is_dir() and any(place.glob("*.crt")) for place in _CERTIFICATES)
        policy = "root=signed" if signed else "root=verity+signed"
        machine.run(f"systemd-{kind}", f"--image-policy={policy}", "refresh")

    def uses(self, image: Path) -> bool:
        """Whether a loop device has this file open."""
        devices = Path("/sys/block").glob("loop*/loop/backing_file")
        return any(str(image) in one.read_text() for one in devices if one.exists())

    def merged(self, kind: str) -> set[str]:
        """The names of what is merged."""
        rows = json.loads(machine.run(f"systemd-{kind}", "status", "--json=short"))
        found = [one["extensions"] for one in rows if isinstance(one.get("extensions"), list)]
        return {name for names in found for name in names}


class Extensions:
    """The extensions of a machine."""

    def __init__(self, here: Machine, merger: Merger) -> None:
        self.machine, self.merger = here, merger
        self.folder = here.disk / FOLDER

    def all(self) -> list[Extension]:
        """Those that are here whole, by name."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                told = json.loads(path.read_text())
                one = Extension(**{**told, "kernels": tuple(told["kernels"])})
            except (OSError, ValueError, TypeError, KeyError):
                continue
            if one.kind in _LINKS and one.name == path.stem and self._image(one).is_file():
                found.append(one)
        return found

    def listed(self) -> list[dict[str, Any]]:
        """All of them as a document: whether each is merged, and why not."""
        system = self.merger.system()
        merged = {kind: self.merger.merged(kind) for kind in {one.kind for one in self.all()}}
        rows = []
        for one in self.all():
            why = system.complaint(one.kernels, one.release)
            rows.append({**asdict(one), "merged": one.name in merged[one.kind], "why": why})
        return rows

    def add(
        self, reference: Reference, repository: Repository, verify: Verify, platform: str, say: Say
    ) -> Extension:
        """Fetch an extension, keep it, merge it. Raises Problem; nothing has changed then."""
        system = self.merger.system()
        manifest = repository.manifest(reference.version, platform)
        kind = TYPES.get(manifest.artifact_type)
        if kind is None:
            what = f"an artifact of type {manifest.artifact_type}" if manifest.artifact_type else "an image"
            raise Problem(
                f"{reference} is {what}, not an extension",
                reason="not-an-extension",
                hint="name what a node of kind sysext or confext published",
            )
        verify(repository, manifest)
        blob, name, root_hash = _image_of(manifest, kind)
        self._refuse_others(reference, system, tuple(manifest.annotations.get("kernels", "").split()), {})
        with self.machine.changing():
            part = self._fetched(repository, blob, name, say)
            try:
                found = self.merger.look(part, kind, name)
                self._refuse_others(reference, system, found.kernels, found.release)
            except Problem:
                part.unlink()
                raise
            made = Extension(
                name, kind, str(reference), manifest.digest, root_hash, found.release, found.kernels
            )
            self._keep(made, part)
        try:
            self.merge(say)
        except Problem as problem:
            self.remove(made.name, say)
            raise Problem(
                f"{reference} cannot be merged: {problem.message}",
                reason="not-merged",
                hint="where certificates are in verity.d, one of them has to have signed it",
            ) from problem
        self.tidy()
        return made

    def remove(self, name: str, say: Say) -> Extension:
        """Take an extension away, from the running system too. Raises Problem `no-extension`."""
        known = {one.name: one for one in self.all()}
        if name not in known:
            hint = nearest(name, known) if known else "there are none"
            raise Problem(f"there is no extension {name!r}", reason="no-extension", hint=hint)
        with self.machine.changing():
            durable.remove(self.folder / f"{name}.json")
        self.merge(say, gone=known[name].kind)  # what is merged while its filesystem is writable keeps it so
        self.tidy()
        return known[name]

    def tidy(self) -> None:
        """Remove the images that nobody lists and nothing has open; one that is open would keep the filesystem writable."""
        kept = {self._image(one) for one in self.all()}
        if gone := [
            one for one in self.folder.glob("*.raw") if one not in kept and not self.merger.uses(one)
        ]:
            with self.machine.changing():
                for one in gone:
                    durable.remove(one)

    def merge(self, say: Say, gone: str = "") -> None:
        """Have what fits merged, and nothing else; `gone` is a kind that one was taken of."""
        system = self.merger.system()
        fitting: dict[str, list[Extension]] = {gone: []} if gone else {}
        for one in self.all():
            fitting.setdefault(one.kind, [])
            if why := system.complaint(one.kernels, one.release):
                say(f"the extension {one.name} is left out: {why}")
            else:
                fitting[one.kind].append(one)
        for kind, some in fitting.items():
            self._link(kind, some)
            self.merger.merge(kind)

    def _link(self, kind: str, some: list[Extension]) -> None:
        folder = self.merger.links(kind)
        folder.mkdir(parents=True, exist_ok=True)
        for one in folder.iterdir():
            if one.is_symlink() and one.readlink().parent == self.folder:
                one.unlink()
                one.with_suffix(".roothash").unlink(missing_ok=True)
        for extension in some:
            (folder / f"{extension.name}.raw").symlink_to(self._image(extension))
            (folder / f"{extension.name}.roothash").write_text(f"{extension.root_hash}\n")

    def _image(self, one: Extension) -> Path:
        return self.folder / f"{one.name}.{one.root_hash[:12]}.raw"

    def _fetched(self, repository: Repository, blob: Blob, name: str, say: Say) -> Path:
        """The image's bytes, held against their digest; what an earlier try left is used."""
        if not self.folder.is_dir():
            self.folder.mkdir()
            durable.sync_folder(self.folder.parent)
        part = self.folder / f".{name}.{blob.digest[7:19]}{_PART}"
        for other in self.folder.glob(f".*{_PART}"):
            if other != part:
                other.unlink()
        begun = part.stat().st_size if part.exists() else 0
        if blob.size - begun + _SPARE > (room := self.machine.layers.room()):
            raise Problem(
                f"the extension needs {blob.size >> 20} MiB, and {room >> 20} MiB are free",
                reason="disk-full",
                hint="remove another one; upgrades need room beside it as well",
            )
        say(f"{name}: {blob.size >> 10} KiB")
        repository.fetch(blob, part)
        return part

    def _keep(self, one: Extension, part: Path) -> None:
        """The image first, what is known of it last: without that it is not there."""
        durable.remove(self.folder / f"{one.name}.json")
        if self._image(one).exists():
            durable.remove(part)
        else:
            durable.move(part, self._image(one))
        durable.write_json(self.folder / f"{one.name}.json", asdict(one))

    def _refuse_others(
        self, reference: Reference, system: System, kernels: tuple[str, ...], release: dict[str, str]
    ) -> None:
        if why := system.complaint(kernels, release):
            raise Problem(
                f"{reference} does not fit: {why}",
                reason="other-kernel" if "modules of kernel" in why else "other-system",
                hint="build it of the image that this machine runs",
            )


def shown(rows: list[dict[str, Any]]) -> str:
    """The list as a person reads it."""
    lines = []
    for one in rows:
        state = "merged" if one["merged"] else f"left out: {one['why']}" if one["why"] else "not merged"
        lines.append(f"{one['name']:16} {one['kind']:8} {one['reference']}, {state}")
    return "\n".join(lines) or "there are no extensions"


def _image_of(manifest: Manifest, kind: str) -> tuple[Blob, str, str]:
    """The image's blob, the extension's name, its root hash. Raises Problem `bad-extension`."""
    images = [one for one in manifest.layers if one.media_type == _IMAGE + kind]
    root_hash = manifest.annotations.get(ROOT_HASH, "")
    name = images[0].title.removesuffix(".raw") if len(images) == 1 else ""
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(root_hash):
        raise Problem(
            f"{manifest.digest} has no image with a name and a root hash",
            reason="bad-extension",
            hint="publish a node of kind sysext or confext",
        )
    return images[0], name, root_hash


@contextmanager
def _mounted(image: Path) -> Iterator[Path]:
    """The image's filesystem, to look at."""
    with image.open("rb") as file:
        table = gpt.read(file)
    part = next((one for one in table.partitions if one.type == gpt.ROOT), None)
    if part is None or not any(one.type == gpt.ROOT_VERITY for one in table.partitions):
        raise Problem("the image has no root partition with dm-verity", reason="bad-extension")
    place = machine.RUN / "extension"
    place.mkdir(parents=True, exist_ok=True)
    offset, size = part.first * gpt.SECTOR, (part.last - part.first + 1) * gpt.SECTOR
    where = f"ro,nosuid,nodev,noexec,loop,offset={offset},sizelimit={size}"
    machine.run("mount", "-t", "erofs", "-o", where, str(image), str(place))
    try:
        yield place
    finally:
        machine.run("umount", str(place))


def _fields(text: str) -> dict[str, str]:
    """The assignments of an os-release file."""
    rows = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in rows}
