"""The watchdog that the initrd set off: somebody feeds it (systemd, our service of OpenRC), or it is stopped."""

from __future__ import annotations

import os

DEVICE = "/dev/watchdog0"


def stop_unfed(device: str = DEVICE) -> bool:
    """Stop a watchdog that nobody feeds, where an administrator switched that off: it would restart a healthy machine.

    Who feeds it holds it open, and nobody else can.
    """
    try:
        handle = os.open(device, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(handle, b"V")
    finally:
        os.close(handle)
    return True
