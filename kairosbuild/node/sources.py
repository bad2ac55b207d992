"""Where a machine's configuration comes from: the image, a drive, the kernel's command line, its own files."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairosbuild.node import config, machine, uki
from kairosbuild.node.problem import Problem

EMBEDDED = Path("/usr/lib/kbuild/config.yaml")
OWN = (machine.RUN / "persistent", Path("/etc/kbuild/config.d"))
"""The machine's own: what it was installed with, which a reset keeps, and what somebody put there since."""
DRIVES = machine.RUN / "config-drives"
"""The devices labelled `cidata` or `kbuild-config`, a line each, as the initrd found them."""
_NAMES = ("user-data", "config.yaml", "cloud-config.yaml")


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration's text, and what it is called in a message."""

    name: str
    text: str


def gather() -> dict[str, Any]:
    """All configurations as one, later ones over earlier ones. Raises Problem `bad-config` for any bad one."""
    found, problems = [], []
    for source in sources():
        try:
            found.append(config.read(source.text, source.name))
        except Problem as problem:
            problems.append(str(problem))
    if problems:
        raise Problem("\n".join(problems), reason="bad-config")
    return config.merged(found)


def sources() -> Iterator[Source]:
    """Every configuration there is: the image's, a drive's, the command line's, the machine's own."""
    if EMBEDDED.exists():
        yield _file(EMBEDDED)
    yield from _drives()
    if given := uki.argument(Path("/proc/cmdline").read_text(), "kbuild.config"):
        yield from_argument(given)
    for folder in OWN:
        if folder.is_dir():
            yield from map(_file, sorted(folder.glob("*.yaml")))


def kept(told: Sequence[Source]) -> str:
    """What a machine installed by these keeps: all but the image's own, which its images bring, each its own."""
    others = [one for one in told if one.name != str(EMBEDDED)]
    if len(others) < 2:
        return "".join(one.text for one in others)
    one = config.merged([config.read(one.text, one.name) for one in others])
    return f"#cloud-config\n{json.dumps(one, indent=1, ensure_ascii=False)}\n"


def from_argument(given: str) -> Source:
    """The configuration in a kernel argument, base64. Raises Problem `bad-config`."""
    try:
        return Source("kbuild.config", base64.b64decode(given, validate=True).decode())
    except ValueError as problem:
        raise Problem(f"kbuild.config is no base64: {problem}", reason="bad-config") from problem


def _drives() -> Iterator[Source]:
    """Each is mounted where nobody else mounts it: at a start two ask at once."""
    for device in DRIVES.read_text().split() if DRIVES.exists() else ():
        with tempfile.TemporaryDirectory(dir=machine.RUN) as place:
            machine.run("mount", "-o", "ro,nosuid,nodev,noexec", device, place)
            try:
                names = [Path(place, name) for name in _NAMES]
                yield from [
                    Source(f"{device}:{one.name}", one.read_text(errors="replace"))
                    for one in names
                    if one.is_file()
                ]
            finally:
                machine.run("umount", place)


def _file(path: Path) -> Source:
    return Source(str(path), path.read_text(errors="replace"))
