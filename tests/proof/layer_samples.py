"""A layer out of files by path."""

import io
from pathlib import Path

from kairosbuild.core.digest import of_bytes
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import write_layer
from kairosbuild.proof.view import Layer


def layer(
    folder: Path, node: str, files: dict[str, bytes | str | None], links: dict[str, str] | None = None
) -> Layer:
    """A layer of these files; None is a whiteout's empty content."""
    folders = {path[:at] for path in (*files, *(links or {})) for at, char in enumerate(path) if char == "/"}
    items: list[tuple[Entry, bytes | None]] = [(Entry(path, "dir", 0o755), None) for path in folders]
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content or b""
        items.append((Entry(path, "file", 0o644, size=len(data)), data))
    items += [(Entry(path, "symlink", 0o777, target=target), None) for path, target in (links or {}).items()]
    out = io.BytesIO()
    index = Index.loads(write_layer(items, out, 0))
    tar = folder / f"{node}-{len(list(folder.iterdir()))}.tar"
    tar.write_bytes(out.getvalue())
    return Layer(node, of_bytes(out.getvalue()).digest, len(out.getvalue()), tar, index)
