"""The driver that watches a machine, with programs of the test's own in the emulator's place."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from kairosbuild.boot import qemu

PANIC = "Kernel panic - not syncing: IO-APIC + timer doesn't work!"
EMULATOR = """\
#!/bin/sh
for word; do case $word in file:*/serial) serial=${{word#file:}};; esac; done
echo start >> {folder}/starts
echo picture > {folder}/out/screen
if [ $(wc -l < {folder}/starts) -le {bad} ]; then
    printf 'Linux version 6.12\\n{said}\\n' >> $serial
    exit 0
fi
printf 'Linux version 6.12\\nlogin: \\n' >> $serial
exec sleep 60
"""


def watched(folder: Path, *, bad: int, said: str) -> tuple[str, int]:
    """How a start goes whose first `bad` ones say something, and how many starts there were."""
    for name in ("out", "in", "tmp", "bin"):
        (folder / name).mkdir()
    text = qemu.driver().decode().replace("/usr/share/OVMF/OVMF_VARS_4M.fd", "/dev/null")
    text = re.sub(r"(?<=[ =])/(out|in|tmp)/", rf"{folder}/\1/", text)
    (folder / "in/driver").write_text(text)
    emulator = folder / "bin/qemu-system-x86_64"
    emulator.write_text(EMULATOR.format(folder=folder, bad=bad, said=said.replace("'", "'\\''")))
    emulator.chmod(0o755)
    subprocess.run(
        ["/bin/sh", "-eu", folder / "in/driver"],
        env={**qemu.environment(expect="login", seconds=30), "PATH": f"{folder}/bin:{os.environ['PATH']}"},
        check=True,
        timeout=60,
        capture_output=True,
    )
    verdict = (folder / "out/verdict").read_text().strip()
    return verdict, len((folder / "starts").read_text().split())


@pytest.mark.parametrize(
    ("bad", "said", "outcome", "starts"),
    [
        (0, "", "reached", 1),
        (1, PANIC, "reached", 2),
        (9, PANIC, "failed", 4),
        (1, "Kernel panic - not syncing: no init", "failed", 1),
    ],
)
def test_a_timer_that_came_too_late_is_the_emulators_fault(tmp_path, bad, said, outcome, starts):
    assert watched(tmp_path, bad=bad, said=said) == (outcome, starts)
