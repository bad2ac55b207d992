"""A writer that works behind its caller: hashing and writing overlap with reading, none holds the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import BinaryIO

from kairosbuild.oci.header import padding

SIZE = 1 << 20  # bytes in a buffer
BUFFERS = 4


class Behind:
    """Collects bytes into large buffers and hands each full one to `out.write` in another thread.

    What fits in one buffer never starts the thread. Leaving the block well means that all is written.
    """

    def __init__(self, out: BinaryIO) -> None:
        self.position = 0
        self._out = out
        self._buffer = bytearray(SIZE)
        self._view = memoryview(self._buffer)
        self._used = 0
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._full: SimpleQueue[tuple[bytearray, int] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def write(self, data: bytes) -> None:
        """Add these bytes."""
        size = len(data)
        end = self._used + size
        if end < SIZE:
            self._buffer[self._used : end] = data
            self._used = end
            self.position += size
            return
        with memoryview(data) as rest:
            self._write_on(rest)

    def member(self, header: bytes, fd: int, size: int) -> bool:
        """Add a header, all of an open file and its padding, the usual case without any detour.

        False, and nothing added, when they do not fit in the buffer or the file has another size.
        """
        start = self._used
        body = start + len(header)
        end = body + size
        over = end + padding(size)
        if over >= SIZE or os.preadv(fd, (self._view[body : end + 1],), 0) != size:  # a byte more would show
            return False
        self._buffer[start:body] = header
        self._buffer[end:over] = bytes(over - end)
        self._used = over
        self.position += over - start
        return True

    def fill(self, read_into: Callable[[memoryview], int], size: int, *, ends: bool = False) -> int:
        """Add exactly `size` bytes that `read_into` puts in the view it is given; return how many came.

        Fewer means that the source ended early. With `ends`, the source is asked for one byte more, and
        `size + 1` returned when it has it.
        """
        left = size
        while left:
            view = self._view[self._used : self._used + left + 1 if ends else self._used + left]
            got = read_into(view)
            if got > left:
                return size + 1
            if not got:
                return size - left
            self._advance(got)
            left -= got
            if ends and not left and got == len(view):
                # The buffer was full to the byte, so there was no room to see whether more comes.
                return size + 1 if read_into(memoryview(bytearray(1))) else size
        return size

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            if error is None:
                self._out.write(self._view[: self._used])
            return
        if error is None:
            self._full.put((self._buffer, self._used))
        self._full.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _write_on(self, rest: memoryview) -> None:
        while rest:
            part = rest[: SIZE - self._used]
            self._view[self._used : self._used + len(part)] = part
            self._advance(len(part))
            rest = rest[len(part) :]

    def _advance(self, size: int) -> None:
        self._used += size
        self.position += size
        if self._used == SIZE:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._work, name="layer-writer", daemon=True)
            self._thread.start()
            for _ in range(BUFFERS - 1):
                self._free.put(bytearray(SIZE))
        self._full.put((self._buffer, SIZE))
        self._buffer = self._free.get()
        self._view = memoryview(self._buffer)
        self._used = 0
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (job := self._full.get()) is not None:
            buffer, used = job
            if self._error is None:
                try:
                    with memoryview(buffer) as view:
                        self._out.write(view[:used])
                except BaseException as error:
                    self._error = error
            self._free.put(buffer)
