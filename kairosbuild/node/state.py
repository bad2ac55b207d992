"""What a machine remembers of its images: one JSON document beside the layers, replaced as a whole.

It explains and never decides what boots: that is the entries' files alone. A document that is lost or
damaged costs names and reasons, not the machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kairosbuild.node import durable

FOLDER = "state"
_FILE = "state.json"
FAILURE = "failure"
"""Where the initrd leaves why it gave up: a line with the layers, a line with the reason."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry came from."""

    image: str  # the OCI configuration's digest
    manifest: str = ""  # the image's manifest
    boot: str = ""  # the manifest of its boot forms
    reference: str = ""
    blessed: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that did not work, and why."""

    image: str
    entry: str
    why: str
    reference: str = ""
    manifest: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Origins by entry label, images that failed, and what is being tried: label and what went wrong so far."""

    origins: dict[str, Origin] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    trying: str = ""
    complaints: tuple[str, ...] = ()

    def failure_of(self, image: str) -> Failure | None:
        """Why this image is not to be tried again."""
        return next((one for one in self.failures if one.image == image), None)

    def with_origin(self, label: str, origin: Origin) -> State:
        """The state with one more origin."""
        return replace(self, origins={**self.origins, label: origin})

    def with_failure(self, failure: Failure) -> State:
        """The state with one more failure; an image has one."""
        others = tuple(one for one in self.failures if one.image != failure.image)
        return replace(self, failures=(*others, failure))

    def forgiven(self, image: str) -> State:
        """The state in which this image may be tried again."""
        return replace(self, failures=tuple(one for one in self.failures if one.image != image))


def load(disk: Path) -> State:
    """The state on a layers filesystem; an empty one when there is none that can be read."""
    try:
        found = json.loads((disk / FOLDER / _FILE).read_text())
        return State(
            {label: Origin(**one) for label, one in found["origins"].items()},
            tuple(Failure(**one) for one in found["failures"]),
            str(found["trying"]),
            tuple(map(str, found["complaints"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return State()


def save(disk: Path, state: State) -> None:
    """Replace the state."""
    folder = disk / FOLDER
    if not folder.is_dir():
        folder.mkdir()
        durable.sync_folder(disk)
    document: dict[str, Any] = asdict(state)
    durable.write_json(folder / _FILE, document)


def initrd_failure(disk: Path) -> tuple[str, str]:
    """The layers and the reason of the last start that the initrd gave up, ("", "") when there was none."""
    try:
        layers, _, why = (disk / FAILURE).read_text(errors="replace").partition("\n")
        return layers.strip(), why.strip()
    except OSError:
        return "", ""
