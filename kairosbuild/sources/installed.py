"""What is installed in a stack that others made: dpkg's database and the release, read out of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kairosbuild.oci.entry import hidden_by, is_opaque, is_whiteout, parent
from kairosbuild.oci.reader import read_tar
from kairosbuild.oci.transport import decompress

STATUS = "var/lib/dpkg/status"
_RELEASES = ("usr/lib/os-release", "etc/os-release")


def look(layers: Sequence[Path]) -> dict[str, bytes]:
    """The database and the release files that this stack shows, bottom to top, whatever compresses them."""
    found: dict[str, bytes] = {}
    for layer in layers:
        with layer.open("rb") as stream:
            for entry, content in read_tar(decompress(stream)):
                if is_whiteout(entry.path):
                    _hide(found, parent(entry.path) if is_opaque(entry.path) else hidden_by(entry.path))
                elif entry.path in (STATUS, *_RELEASES) and content:
                    found[entry.path] = content.read()
    return found


def codename(found: dict[str, bytes]) -> str:
    """The release that the files say this is, as `trixie`; "" when they do not."""
    text = b"\n".join(found.get(path, b"") for path in _RELEASES).decode("utf-8", "replace")
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip("\"'")
    return ""


def _hide(found: dict[str, bytes], folder: str) -> None:
    for path in [path for path in found if path == folder or path.startswith(f"{folder}/")]:
        del found[path]
