"""Of a file that is lacking, only the blocks that no file here has: dm-verity's own hash tree is the list of blocks.

A sealed layer ends in the sha256 of each of its blocks of 4096, and its root hash vouches for that list. It is
fetched first, by range; blocks that layers here have under the same hash are copied, the rest is fetched in runs.
Nothing is asked of a registry but ranges. erofs stores unchanged files as equal blocks wherever they have moved to,
so a package that changed in a large layer costs about its own size. A kernel image is put together likewise from
the kernel and initrd of another one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kairosbuild.node import durable, uki
from kairosbuild.node.problem import Problem
from kairosbuild.node.registry import Blob, Repository
from kairosbuild.node.uki import Layer

BLOCK = 4096
_PER_BLOCK = BLOCK // 32
_NEAR = 8  # blocks between two runs that cost less than another request
_MOST = 1024  # blocks of one request

Run = tuple[int, int]
"""First block, and the one behind the last."""


def fetch_layer(
    repository: Repository, blob: Blob, layer: Layer, into: Path, here: Iterable[tuple[Path, Layer]]
) -> None:
    """Bring a layer to this file; what is there of it already is used. Raises Problem `registry-no-ranges`, `wrong-layer`."""
    leaves, tree = _leaves(repository, blob, layer)
    with into.open("r+b" if into.exists() else "w+b") as file:
        file.truncate(blob.size)
        lacking = _lacking(file.fileno(), leaves)
        _copy(file.fileno(), leaves, lacking, here)
        for first, end in _runs(sorted(lacking)):
            data = repository.part(blob, first * BLOCK, (end - first) * BLOCK)
            os.pwrite(file.fileno(), data, first * BLOCK)
        os.pwrite(file.fileno(), tree, layer.hash_offset)
        durable.sync(file.fileno())
    repository.check(blob, into)


def fetch_kernel(repository: Repository, blob: Blob, into: Path, known: Iterable[Path]) -> bool:
    """Put a kernel image together from another one's kernel and initrd; False when none of these helps."""
    head = repository.part(blob, 0, min(uki.HEAD, blob.size))
    try:
        sections = uki.sections(head)
    except (ValueError, KeyError, IndexError, uki.StructError):
        return False
    for other in known:
        with other.open("rb") as file:
            theirs = uki.sections(file.read(uki.HEAD))
        taken = {
            name: theirs[name][1]
            for name in (".linux", ".initrd")
            if name in sections and name in theirs and sections[name][0] == theirs[name][0]
        }
        if taken and _assembled(repository, blob, into, other, {sections[n]: at for n, at in taken.items()}):
            return True
    return False


def _assembled(
    repository: Repository, blob: Blob, into: Path, other: Path, taken: dict[tuple[int, int], int]
) -> bool:
    with into.open("w+b") as file, other.open("rb") as source:
        file.truncate(blob.size)
        at = 0
        for (size, offset), theirs in sorted(taken.items(), key=lambda one: one[0][1]):
            if offset > at:
                os.pwrite(file.fileno(), repository.part(blob, at, offset - at), at)
            source.seek(theirs)
            os.pwrite(file.fileno(), source.read(size), offset)
            at = offset + size
        if at < blob.size:
            os.pwrite(file.fileno(), repository.part(blob, at, blob.size - at), at)
    try:
        repository.check(blob, into)
    except Problem:
        return False
    return True


# -- the list of blocks --------------------------------------------------------------------------


def _leaves(repository: Repository, blob: Blob, layer: Layer) -> tuple[list[bytes], bytes]:
    """The hash of each block of a layer, vouched for by its root hash, and the tree's own bytes."""
    if not 0 < layer.hash_offset < blob.size or layer.hash_offset % BLOCK:
        raise Problem(f"layer {layer.root_hash} has no hash tree", reason="wrong-layer")
    tree = repository.part(blob, layer.hash_offset, blob.size - layer.hash_offset)
    count = layer.hash_offset // BLOCK
    level = _lowest(tree, count)
    leaves = [level[at : at + 32] for at in range(0, count * 32, 32)]
    while len(level) > 32:
        digests = [hashlib.sha256(level[at : at + BLOCK]).digest() for at in range(0, len(level), BLOCK)]
        level = digests[0] if len(digests) == 1 else _padded(b"".join(digests))
    if level.hex() != layer.root_hash:
        raise Problem(
            f"the list of blocks of layer {layer.root_hash} is not its own",
            reason="wrong-layer",
            hint="the boot artifact in the registry is not whole; publish the image again",
        )
    return leaves, tree


def _lowest(tree: bytes, count: int) -> bytes:
    """The lowest level, which is the last, as whole blocks; a single block's hash has no level."""
    if count == 1:
        return tree[:0] or b"\0" * 33  # such a layer is fetched whole
    length = -(-count // _PER_BLOCK) * BLOCK
    return tree[-length:]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _local(path: Path, layer: Layer) -> Iterator[tuple[int, bytes]]:
    """Number and hash of each block of a layer that is here, out of its own tree."""
    count = layer.hash_offset // BLOCK
    if count < 2 or not path.is_file():
        return
    length = -(-count // _PER_BLOCK) * BLOCK
    with path.open("rb") as file:
        file.seek(-length, os.SEEK_END)
        for start in range(0, count, _PER_BLOCK):
            hashes = file.read(BLOCK)
            for number in range(start, min(start + _PER_BLOCK, count)):
                yield number, hashes[(number - start) * 32 : (number - start) * 32 + 32]


# -- putting it together -------------------------------------------------------------------------


def _lacking(handle: int, leaves: list[bytes]) -> set[int]:
    """The blocks that the file has not yet: a fetch that was cut off left some."""
    sha256 = hashlib.sha256
    return {
        number
        for number, leaf in enumerate(leaves)
        if sha256(os.pread(handle, BLOCK, number * BLOCK)).digest() != leaf
    }


def _copy(handle: int, leaves: list[bytes], lacking: set[int], here: Iterable[tuple[Path, Layer]]) -> None:
    """Take what layers here have; each block is hashed on the way, since a disk may have changed it."""
    wanted: dict[bytes, list[int]] = {}
    for number in lacking:
        wanted.setdefault(leaves[number], []).append(number)
    for path, layer in here:
        found = [(number, leaf) for number, leaf in _local(path, layer) if leaf in wanted]
        if not found:
            continue
        with path.open("rb") as source:
            for number, leaf in found:
                data = os.pread(source.fileno(), BLOCK, number * BLOCK)
                if leaf in wanted and hashlib.sha256(data).digest() == leaf:
                    for target in wanted.pop(leaf):
                        os.pwrite(handle, data, target * BLOCK)
                        lacking.discard(target)


def _runs(numbers: list[int]) -> Iterator[Run]:
    """Blocks as runs worth a request each."""
    if not numbers:
        return
    first = last = numbers[0]
    for number in numbers[1:]:
        if number - last > _NEAR or number - first >= _MOST:
            yield first, last + 1
            first = number
        last = number
    yield first, last + 1
