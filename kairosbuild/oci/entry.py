"""One member of a layer: a path, what stands there, and its metadata.

Whiteouts are what the OCI image specification makes of them (layer.md, "Whiteouts"): a file named
`.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` hides all that lower layers have in its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kairosbuild.core.errors import InputError

EntryType = Literal["file", "dir", "symlink", "hardlink", "char", "block", "fifo"]

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
NAME_MAX = 255  # bytes in one name, Linux
PATH_MAX = 4096  # bytes in one path, Linux


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of a layer.

    `path` has no leading or trailing slash and is never empty ("etc/passwd"); bytes that are not
    UTF-8 are surrogate escapes, as in `os.fsdecode`. `mode` holds the twelve permission bits,
    `size` the bytes of a file's content, `target` where a symlink points (as is) or the path of a hard
    link's file, `xattrs` sorted pairs, `mtime` whole seconds, `major` and `minor` a device's numbers.
    """

    path: str
    type: EntryType
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    target: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime: int = 0
    major: int = 0
    minor: int = 0


def order(path: str) -> str:
    """Sort key that puts a folder directly before all that is in it, as a sorted walk meets them."""
    return path.replace("/", "\0")


def parent(path: str) -> str:
    """The folder this path is in; "" at the top."""
    return path.rpartition("/")[0]


def beside(path: str, name: str) -> str:
    """The path of `name` in the folder of `path`."""
    folder = parent(path)
    return f"{folder}/{name}" if folder else name


def whiteout_of(path: str) -> str:
    """The path of the whiteout that hides this path."""
    return beside(path, WHITEOUT + path.rpartition("/")[2])


def is_whiteout(path: str) -> bool:
    """Whether the last name of this path makes it a whiteout, an opaque one included."""
    return path.rpartition("/")[2].startswith(WHITEOUT)


def is_opaque(path: str) -> bool:
    """Whether this path says that its folder hides what lower layers have in it."""
    return path.rpartition("/")[2] == OPAQUE


def hidden_by(whiteout: str) -> str:
    """The path that a whiteout (not an opaque one) hides."""
    return beside(whiteout, whiteout.rpartition("/")[2][len(WHITEOUT) :])


def keeps_xattr(name: str) -> bool:
    """Whether an extended attribute belongs in a layer.

    File capabilities and the user's own do; labels and the bookkeeping of overlayfs are the host's.
    """
    own = name.startswith("user.") and not name.startswith("user.overlay.")
    return own or name == "security.capability"


def check_path(path: str, *, reason: str = "tar-path") -> None:
    """Refuse a path that is not in the form an `Entry` has, or that no Linux filesystem could hold."""
    if (
        path.isascii()
        and len(path) <= NAME_MAX
        and path[:1] not in ("", "/", ".")
        and path[-1] != "/"
        and "/." not in path
        and "//" not in path
        and "\0" not in path
    ):
        return  # nearly all of them
    encoded = path.encode("utf-8", "surrogateescape")
    names = encoded.split(b"/")
    if not encoded or b"\0" in encoded or len(encoded) >= PATH_MAX or len(max(names, key=len)) > NAME_MAX:
        raise InputError(f"{path[:200]!r} is not a path a filesystem can hold", reason=reason)
    if any(name in (b"", b".", b"..") for name in names):
        raise InputError(f"{path[:200]!r} is not a plain relative path", reason=reason)
    if any(name.startswith(b".wh.") for name in names[:-1]) or names[-1] in (b".wh.", b".wh..", b".wh..."):
        raise InputError(f"{path[:200]!r} holds a whiteout of nothing", reason=reason)
