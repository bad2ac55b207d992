"""What is on an ISO, by xorriso."""

import subprocess
from pathlib import Path

from peers import peer


def xorriso(image: Path, *words: str | Path) -> str:
    """What it prints; a warning of it is an error."""
    command = [peer("xorriso"), "-no_rc", "-abort_on", "WARNING", "-indev", image, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def extracted(image: Path, into: Path) -> dict[str, bytes]:
    """Every file by its path, taken out to this folder."""
    xorriso(image, "-osirrox", "on", "-extract", "/", into)
    return {str(one.relative_to(into)): one.read_bytes() for one in into.rglob("*") if one.is_file()}
