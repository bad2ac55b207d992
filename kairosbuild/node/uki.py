"""What a unified kernel image says of itself: which layers are its root, and which OCI image that is."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import is_digest

_SECTION = struct.Struct("<8sIIII16x")
HEAD = 8192  # bytes of an image that have its headers
_MOST = 64 << 10  # bytes of a section that is text
IMAGE = "KBUILD_IMAGE"
StructError = struct.error


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a root: its file's name, and where in it the data ends."""

    root_hash: str
    hash_offset: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image's own words."""

    cmdline: str
    image: str  # digest of the OCI configuration: the image's id
    title: str

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The root's layers, top to base."""
        return layers_of(self.cmdline)

    @property
    def recovery(self) -> bool:
        """Whether this is the entry of last resort, with layers of its own."""
        return "kbuild.recovery" in self.cmdline.split()


def layers_of(cmdline: str) -> tuple[Layer, ...]:
    """The layers that a kernel command line lists. Raises Problem `bad-kernel`."""
    listed = argument(cmdline, "kbuild.layers")
    try:
        found = [Layer(name, int(offset)) for name, offset in (one.split(":") for one in listed.split(","))]
        if all(len(bytes.fromhex(one.root_hash)) == hashlib.sha256().digest_size for one in found):
            return tuple(found)
    except ValueError:
        pass
    raise Problem(f"a boot entry lists no proper layers: {listed[:80]!r}", reason="bad-kernel")


def argument(cmdline: str, name: str) -> str:
    """The value of a kernel argument, "" when it is not there."""
    return next((one.partition("=")[2] for one in cmdline.split() if one.startswith(f"{name}=")), "")


def read(path: Path) -> Kernel:
    """Read a kernel image. Raises Problem `bad-kernel`."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        try:
            found = sections(head)
            texts = {}
            for name in (".cmdline", ".osrel"):
                size, offset = found[name]
                file.seek(offset)
                texts[name] = file.read(min(size, _MOST)).rstrip(b"\0").decode()
        except (KeyError, ValueError, struct.error) as problem:
            raise Problem(f"{path.name} is no unified kernel image", reason="bad-kernel") from problem
    release = dict(line.partition("=")[::2] for line in texts[".osrel"].splitlines())
    image = release.get(IMAGE, "").strip("\"'")
    title = (release.get("PRETTY_NAME") or release.get("ID", "linux")).strip("\"'")
    return Kernel(texts[".cmdline"].strip(), image if is_digest(image) else "", title)


def sections(head: bytes) -> dict[str, tuple[int, int]]:
    """Size and place of each section of a PE image."""
    start = struct.unpack_from("<I", head, 0x3C)[0]
    if head[:2] != b"MZ" or head[start : start + 4] != b"PE\0\0":
        raise ValueError("not a PE image")
    count, optional = struct.unpack_from("<H12xH", head, start + 6)
    found = {}
    for number in range(count):
        name, size, _, stored, offset = _SECTION.unpack_from(head, start + 24 + optional + 40 * number)
        found[name.rstrip(b"\0").decode()] = (min(size, stored), offset)
    return found
