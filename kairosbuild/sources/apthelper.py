"""The distribution's own downloader, where the host has it: `apt-helper download-file`.

It knows what the machine's administrator told apt: proxies, credentials, certificates. One process takes
many files over one connection. The digest is checked by it, and again by whoever stores the file.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

PROGRAM = Path("/usr/lib/apt/apt-helper")
_BATCH = 200  # files for one process, far below the longest argument list
STALLED = "hardly a byte"
"""The complaint about what had not come when it was given up."""
_FAILED = re.compile(r"^(?:E|Error): Failed to fetch (\S+)  (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Job:
    """A file to get: from where, into which file, and what it must be."""

    address: str
    into: Path
    digest: str = ""
    size: int | None = None

    def arguments(self) -> list[str]:
        """How the program wants to be told."""
        found = [self.address, str(self.into)]
        if self.digest:
            found.append("SHA256:" + self.digest.removeprefix("sha256:"))
            found += [f"Checksum-FileSize:{self.size}"] if self.size is not None else []
        return found


def find() -> Path | None:
    """The program, None where the host has none."""
    return PROGRAM if os.access(PROGRAM, os.X_OK) else None


def run(
    program: Path,
    jobs: Sequence[Job],
    timeout: float,
    retries: int,
    cancelled: threading.Event,
    stalls: Callable[[int], bool] = lambda size: False,
) -> dict[str, str]:
    """Get the files that can be got; what was complained of the others, by address.

    `stalls` is told how many bytes there are, and says whether to give up: the program itself waits for ever
    for who sends a byte now and then.
    """
    there = 0
    complaints: dict[str, str] = {}
    for start in range(0, len(jobs), _BATCH):
        batch = jobs[start : start + _BATCH]
        before = there

        def give_up(batch: Sequence[Job] = batch, before: int = before) -> bool:
            return cancelled.is_set() or stalls(before + sum(map(_size, batch)))

        text = _output(_command(program, batch, timeout, retries), give_up)
        if text is None:
            complaints |= {
                job.address: STALLED for job in batch if job.size is None or _size(job) != job.size
            }
        else:
            said = {unquote(address): why.strip() for address, why in _FAILED.findall(text)}
            complaints |= {
                job.address: said[plain] for job in batch if (plain := unquote(job.address)) in said
            }
        there += sum(map(_size, batch))
        for job in batch:
            with suppress(FileNotFoundError):
                job.into.with_name(job.into.name + ".FAILED").unlink()
    return complaints


def _command(program: Path, batch: Sequence[Job], timeout: float, retries: int) -> list[str]:
    options = {
        "APT::Sandbox::User": "root",  # its own user could not write where we want the files
        "Acquire::Retries": retries,
        "Acquire::http::Timeout": int(timeout),
        "Acquire::https::Timeout": int(timeout),
        "Dir::State::status": "/dev/null",
    }
    command = [str(program)]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    return [*command, "download-file", *(word for job in batch for word in job.arguments())]


def _size(job: Job) -> int:
    with suppress(FileNotFoundError):
        return job.into.stat().st_size
    return 0


def _output(command: list[str], give_up: Callable[[], bool]) -> str | None:
    """What it complained of; None when it was given up."""
    with subprocess.Popen(
        command,
        env=os.environ | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        while True:
            try:
                return process.communicate(timeout=0.2)[1]
            except subprocess.TimeoutExpired:
                if give_up():
                    _end(process)
                    return None
            except BaseException:
                _end(process)
                raise


def _end(process: subprocess.Popen[str]) -> None:
    """End it and the methods (http, …) that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
