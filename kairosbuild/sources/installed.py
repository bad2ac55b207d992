"""What a stack that others made says of itself: its release, its package database, read out of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kairosbuild.oci.entry import hidden_by, is_opaque, is_whiteout, parent
from kairosbuild.oci.reader import read_tar
from kairosbuild.oci.transport import decompress


def look(layers: Sequence[Path], wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files that this stack shows, bottom to top, whatever compresses them."""
    found: dict[str, bytes] = {}
    for layer in layers:
        with layer.open("rb") as stream:
            for entry, content in read_tar(decompress(stream)):
                if is_whiteout(entry.path):
                    _hide(found, parent(entry.path) if is_opaque(entry.path) else hidden_by(entry.path))
                elif content and wanted(entry.path):
                    found[entry.path] = content.read()
    return found


def os_release(text: bytes) -> dict[str, str]:
    """The fields of os-release(5)."""
    pairs = (line.partition("=") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip("\"'") for name, _, value in pairs if value and not name.startswith("#")}


def _hide(found: dict[str, bytes], folder: str) -> None:
    for path in [path for path in found if path == folder or path.startswith(f"{folder}/")]:
        del found[path]
