"""Files of packages on their way into a layer: their contents go to one open file, which the items refer to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from kairosbuild.core.digest import CHUNK
from kairosbuild.oci.entry import Entry, parent
from kairosbuild.oci.layer import Item, Slice

Keep = Callable[[str], bool]
"""Whether a path of a package is wanted."""
Member = tuple[Entry, BinaryIO | None]
"""What a package's reader yields; a file's content must be read before going on."""


def spooled(members: Iterable[Member], spool: BinaryIO, keep: Keep = lambda path: True) -> Iterator[Item]:
    """The wanted members with their contents in `spool`, a real file, which has to be flushed before they are read."""
    offset = spool.tell()
    for entry, content in members:
        if not keep(entry.path):
            continue
        if content is None:
            yield entry, None
            continue
        while chunk := content.read(CHUNK):
            spool.write(chunk)
        yield entry, Slice(spool.fileno(), offset)
        offset += entry.size


def as_tree(items: Iterable[Item], spool: BinaryIO, *, folders_stay: bool = False) -> list[Item]:
    """These items as one tree: of equal paths the last counts, and with `folders_stay` an earlier folder before links."""
    found: dict[str, Item] = {}
    for entry, content in items:
        before = found.get(entry.path)
        if folders_stay and before and before[0].type == "dir" and entry.type in ("dir", "symlink"):
            continue
        found[entry.path] = entry, content
    spool.flush()
    return with_parents(found)


def with_parents(found: dict[str, Item]) -> list[Item]:
    """These items, and a plain folder wherever one is only implied."""
    for path in list(found):
        above = parent(path)
        while above and above not in found:
            found[above] = Entry(above, "dir", 0o755), None
            above = parent(above)
    return list(found.values())
