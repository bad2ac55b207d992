"""Content-addressed storage: plain files, named by what they hold.

`blobs/sha256/ab/<hex>`, mode 0444, written under a temporary name on the same file system, hashed
while written, renamed. Each file is *sealed*: its modification time is a constant. A blob with
another time was touched by something that is not us and is hashed again before it is believed, so
noticing an edit costs the `lstat` that asking for the size costs anyway.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kairosbuild.core.digest import CHUNK, Blob
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.store.lease import Leases
from kairosbuild.store.space import full

SEAL = 1_000_000_000 * 1_000_000_000  # nanoseconds; whole seconds, for file systems that keep no more
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_ZEROS = bytes(CHUNK)


class Cas:
    """The blobs under one folder. Every method may be called from any thread and any process."""

    def __init__(self, root: Path, leases: Leases | None = None) -> None:
        self.root = root
        self.leases = leases or Leases(root)
        self._blobs = f"{root}/blobs/sha256/"
        self._tmp = os.path.join(root, "tmp", "")
        self._names = itertools.count()
        self._random = os.urandom(5).hex()
        os.makedirs(self._blobs, exist_ok=True)
        os.makedirs(self._tmp, exist_ok=True)

    # -- asking --------------------------------------------------------------------------------

    def path(self, digest: str) -> Path:
        """Where this blob is or would be. Read it, never write it."""
        return Path(self._place(digest))

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here, whole as far as its size and seal tell."""
        lease = self.leases.current
        if lease is None or blob.digest in lease.named:
            return self._present(blob)
        with self.leases.gate:
            found = self._present(blob)
            if found:
                lease.names((blob.digest,))
        return found

    def missing(self, blobs: Iterable[Blob]) -> set[Blob]:
        """Which of these are not here; the cheap way to ask for thousands."""
        wanted = set(blobs)
        lease = self.leases.current
        if lease is None:
            return {blob for blob in wanted if not self._present(blob)}
        with self.leases.gate:
            lacking = {blob for blob in wanted if not self._present(blob)}
            lease.names(blob.digest for blob in wanted - lacking)
        return lacking

    def read(self, blob: Blob) -> bytes:
        """The bytes, verified. Damaged ones are moved out of the way, so that a next run makes them anew."""
        with self._opened(blob) as handle, os.fdopen(handle, "rb", closefd=False) as stream:
            data = stream.read()
        if len(data) != blob.size or "sha256:" + hashlib.sha256(data).hexdigest() != blob.digest:
            self.discard(blob.digest)
            raise _damaged(blob)
        return data

    def verify(self, blob: Blob) -> bool:
        """Rehash: whether exactly these bytes are here."""
        try:
            with self._opened(blob) as handle:
                return os.fstat(handle).st_size == blob.size and hash_handle(handle) == blob
        except HostError:
            return False

    # -- storing -------------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes."""
        blob = Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data))
        if not self._again(blob):
            with self.writer() as out:
                out._keep(data)
                out._commit(blob)
        return blob

    def put_file(self, path: Path, *, known: Blob | None = None) -> Blob:
        """Store a file by moving it; nothing is left at `path`.

        `known` is what the caller has just found it to be, while writing it: it is not hashed again. It is
        copied instead where moving cannot be safe: from another file system, when it has
        another name (a hard link) or another owner who could still change it.
        """
        name = os.fspath(path)
        handle = _open_file(name)
        try:
            status = os.fstat(handle)
            if not self._movable(status):
                return self._copy_and_remove(name)
            blob = known if known and known.size == status.st_size else hash_handle(handle, status)
            if self._again(blob):
                os.unlink(name)
                return blob
            self._settle(handle, name, blob)
            return blob
        except OSError as problem:
            if problem.errno == errno.EXDEV:
                return self._copy_and_remove(name)
            raise full(problem) or problem from problem
        finally:
            os.close(handle)

    def add_copy(self, path: Path) -> Blob:
        """Store a copy of a file, which stays. Holes stay holes; extents are shared where they can be."""
        source = _open_file(os.fspath(path))
        try:
            with self.writer() as out:
                return out.copy(source)
        finally:
            os.close(source)

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """A new blob to be: write, then `commit()`. Without commit nothing is kept."""
        name = self._temporary()
        try:
            out = Writer(self, name)
            try:
                yield out
            finally:
                out._close()
                if out.blob is None or out._left:
                    with suppress(FileNotFoundError):
                        os.unlink(name)
        except OSError as problem:
            raise full(problem) or problem from problem

    def tmp(self) -> Path:
        """A fresh private folder on the store's file system; its user removes it, else garbage collection."""
        path = self._temporary()
        try:
            os.mkdir(path, 0o755)
        except OSError as problem:
            raise full(problem) or problem from problem
        return Path(path)

    # -- removing ------------------------------------------------------------------------------

    def discard(self, digest: str) -> None:
        """Move a damaged blob to `damaged/`, where it can be looked at and no longer found."""
        os.makedirs(f"{self.root}/damaged", exist_ok=True)
        with suppress(FileNotFoundError):
            os.rename(self._place(digest), f"{self.root}/damaged/{digest[7:]}")

    # -- inside --------------------------------------------------------------------------------

    def _place(self, digest: str) -> str:
        return f"{self._blobs}{digest[7:9]}/{digest[7:]}"

    def _temporary(self) -> str:
        return f"{self._tmp}{os.getpid()}-{self._random}-{next(self._names)}"

    def _present(self, blob: Blob) -> bool:
        try:
            status = os.lstat(self._place(blob.digest))
        except (FileNotFoundError, NotADirectoryError):
            return False
        if status.st_size != blob.size or not stat.S_ISREG(status.st_mode):
            return False
        return status.st_mtime_ns == SEAL or self._reseal(blob)

    def _reseal(self, blob: Blob) -> bool:
        """Believe a blob without its seal only after hashing it."""
        if not self.verify(blob):
            self.discard(blob.digest)
            return False
        with suppress(OSError):  # another owner's store: believe it, and hash it the next time too
            self._touch(blob)
        return True

    def _touch(self, blob: Blob) -> None:
        os.utime(self._place(blob.digest), ns=(time.time_ns(), SEAL))

    def _again(self, blob: Blob) -> bool:
        """Whether the blob is here already; it then counts as new, as garbage collection sees it."""
        if not self._present(blob):
            return False
        with self.leases.gate:
            if not self._present(blob):
                return False
            with suppress(PermissionError):
                self._touch(blob)
            if self.leases.current:
                self.leases.current.names((blob.digest,))
        return True

    def _settle(self, handle: int, name: str, blob: Blob) -> None:
        """Give an open file its mode, its seal and its final name."""
        os.fchmod(handle, 0o444)
        os.utime(handle, ns=(SEAL, SEAL))
        place = self._place(blob.digest)
        try:
            os.rename(name, place)
        except FileNotFoundError:
            os.makedirs(place[:-65], exist_ok=True)
            os.rename(name, place)

    def _movable(self, status: os.stat_result) -> bool:
        return status.st_nlink == 1 and status.st_uid == os.geteuid()

    def _copy_and_remove(self, name: str) -> Blob:
        blob = self.add_copy(Path(name))
        os.unlink(name)
        return blob

    @contextmanager
    def _opened(self, blob: Blob) -> Iterator[int]:
        try:
            handle = os.open(self._place(blob.digest), _READ)
        except OSError as problem:  # absent, not readable, or a link that is no blob
            raise HostError(
                f"{blob.digest} is not in the store", reason="blob-missing", hint="run the build again"
            ) from problem
        try:
            yield handle
        finally:
            os.close(handle)


class Writer:
    """A blob while it is written. `blob` is set by `commit`."""

    def __init__(self, cas: Cas, name: str) -> None:
        self._cas = cas
        self._name = name
        self._handle = os.open(name, _NEW, 0o600)
        self._sha = hashlib.sha256()
        self._size = 0
        self._left = False
        self._open = True
        self.blob: Blob | None = None

    def write(self, data: Any) -> int:
        """Append these bytes. Raises HostError `disk-full`."""
        view = memoryview(data).cast("B")
        self._sha.update(view)
        try:
            self._keep(view)
        except OSError as problem:
            raise full(problem) or problem from problem
        self._size += len(view)
        return len(view)

    def commit(self) -> Blob:
        """Give the bytes their name."""
        blob = Blob("sha256:" + self._sha.hexdigest(), self._size)
        if self._cas._again(blob):
            self._left, self.blob = True, blob
        else:
            self._commit(blob)
        return blob

    def copy(self, source: int) -> Blob:
        """Take the whole of another open file and commit it."""
        if _clone(source, self._handle):
            blob = hash_handle(self._handle)
            self._sha, self._size = hashlib.sha256(), 0
        else:
            blob = self._copy_extents(source)
        if self._cas._again(blob):
            self._left, self.blob = True, blob
        else:
            self._commit(blob)
        return blob

    def _copy_extents(self, source: int) -> Blob:
        sha, size = hashlib.sha256(), 0
        for chunk, hole in _extents(source):
            sha.update(chunk)
            size += len(chunk)
            if hole:
                os.lseek(self._handle, len(chunk), os.SEEK_CUR)
            else:
                self._keep(chunk)
        os.ftruncate(self._handle, size)
        return Blob("sha256:" + sha.hexdigest(), size)

    def _keep(self, data: bytes | memoryview) -> None:
        done = os.write(self._handle, data)
        while done < len(data):  # a signal, a quota, or more than 2 GiB at once
            done += os.write(self._handle, data[done:])

    def _commit(self, blob: Blob) -> None:
        self._cas._settle(self._handle, self._name, blob)
        self.blob = blob

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._handle)


def hash_handle(handle: int, status: os.stat_result | None = None) -> Blob:
    """The blob an open file is, from its first byte; a hole costs no reading."""
    status = status or os.fstat(handle)
    if status.st_size < 65536:
        data = os.pread(handle, 65536, 0)
        if len(data) < 65536:  # all of it, for a regular file
            return Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data))
    sha, size = hashlib.sha256(), 0
    for chunk, _ in _extents(handle, sparse=status.st_blocks * 512 < status.st_size):
        sha.update(chunk)
        size += len(chunk)
    return Blob("sha256:" + sha.hexdigest(), size)


def _extents(handle: int, *, sparse: bool = True) -> Iterator[tuple[bytes | memoryview, bool]]:
    """The bytes of a file in order, each piece (valid until the next) with whether it lies in a hole."""
    buffer = memoryview(bytearray(CHUNK))
    at = 0
    end = os.fstat(handle).st_size
    while at < end:
        data = _next_data(handle, at, end) if sparse else at
        for start in range(at, data, CHUNK):
            yield _ZEROS[: min(CHUNK, data - start)], True
        hole = os.lseek(handle, data, os.SEEK_HOLE) if sparse and data < end else end
        at = data
        while at < hole:
            count = os.preadv(handle, [buffer[: min(CHUNK, hole - at)]], at)
            if count == 0:
                return  # it was cut short while being read: what was read is what it is
            yield buffer[:count], False
            at += count


def _next_data(handle: int, at: int, end: int) -> int:
    try:
        return os.lseek(handle, at, os.SEEK_DATA)
    except OSError as problem:
        if problem.errno == errno.ENXIO:  # nothing but a hole until the end
            return end
        return at


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _open_file(name: str) -> int:
    try:
        handle = os.open(name, _READ | os.O_NONBLOCK)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise _not_a_file(name) from problem
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_a_file(name)
    return handle


def _not_a_file(name: str) -> InputError:
    return InputError(f"{name} is not a regular file", reason="not-a-file")


def _damaged(blob: Blob) -> HostError:
    return HostError(
        f"{blob.digest} is damaged in the store and was set aside",
        reason="blob-damaged",
        hint="run the build again; `kbuild cache verify` checks everything",
    )
