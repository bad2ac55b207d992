"""Files that appear under their final name whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Write a file beside its final name and rename it there when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.{os.urandom(6).hex()}.tmp"
    handle = os.open(name, _NEW, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            os.fchmod(stream.fileno(), mode)
        name.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            name.unlink()
        raise


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put these bytes under this name, atomically."""
    with replacing(path, mode=mode) as stream:
        stream.write(data)
