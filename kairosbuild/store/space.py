"""A full disk, said as such: the one failure of a store that is nobody's bug."""

from __future__ import annotations

import errno
import os

from kairosbuild.core.errors import HostError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def full(problem: OSError) -> HostError | None:
    """What to raise instead of this error when it means that no space is left; None for any other."""
    if problem.errno not in _FULL:
        return None
    return disk_full(os.fsdecode(problem.filename) if problem.filename else "")


def disk_full(where: str) -> HostError:
    """No space is left where the store lives."""
    place = f" ({where})" if where else ""
    return HostError(
        f"the disk that holds the store is full{place}",
        reason="disk-full",
        hint="free some space, or let `kbuild cache gc` remove what was not used lately",
    )
