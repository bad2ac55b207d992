"""Worker threads: calls go in from the dispatcher, what came of them comes back to it in one queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Done = tuple[int, Any, BaseException | None]
"""Number of the call, its value, or what it raised."""


class Workers:
    """At most `most` threads, started as they are needed; they end with the process or with `close`.

    Two crews may share one queue of what is `done`.
    """

    def __init__(self, most: int, done: SimpleQueue[Done] | None = None) -> None:
        self._most = most
        self.done: SimpleQueue[Done] = SimpleQueue() if done is None else done
        self._calls: SimpleQueue[tuple[int, Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0  # calls that were submitted and have not ended
        self._counting = threading.Lock()

    def submit(self, number: int, call: Callable[[], Any]) -> None:
        """Have a thread call this."""
        with self._counting:
            self._open += 1
        if self._open > len(self._threads) and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._calls.put((number, call))

    def wait(self, timeout: float | None = None) -> Done:
        """The next call that has ended; raises queue.Empty when none does in time."""
        return self.done.get(timeout=timeout)

    def close(self) -> None:
        """Let the threads end after what was submitted."""
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            number, call = item
            done: Done
            try:
                done = number, call(), None
            except BaseException as error:  # the dispatcher decides what it means
                done = number, None, error
            with self._counting:
                self._open -= 1
            self.done.put(done)
