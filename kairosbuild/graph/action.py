"""An action: a command, an input root, declared outputs, a platform. The shape REAPI gives it.

<https://github.com/bazelbuild/remote-apis>: local and remote executors take the same value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kairosbuild.core.digest import Blob


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer in the store: the uncompressed tar (its digest is the diffID) and its index."""

    layer: Blob
    index: Blob


@dataclass(frozen=True, slots=True)
class Action:
    """One hermetic command.

    `root` is the stack of layers, bottom to top, that is `/`. Inputs appear read-only as
    `/in/<path>`, outputs are what the command leaves as `/out/<path>`; `/tmp` is empty and private,
    the working folder is `/in` unless `cwd` says else. No network, cleared environment (PATH, HOME,
    TZ=UTC, LC_ALL=C.UTF-8, SOURCE_DATE_EPOCH and `env`), fixed host name, umask 022.

    With `layer=True` the root is writable, every owner exists, and what changed in it is captured as
    a layer; `drop` names paths (globs, relative to the root) that are left out of it. Otherwise the
    root is read-only and its owners are not kept.
    """

    command: tuple[str, ...]
    root: tuple[Blob, ...]
    inputs: Mapping[str, Blob] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/in"
    layer: bool = False
    drop: tuple[str, ...] = ()
    executable: tuple[str, ...] = ()  # inputs that carry the exec bit
    devices: tuple[str, ...] = ()  # e.g. "/dev/kvm", when the host has it
    platform: str = "linux/amd64"
    timeout: float | None = field(default=None, compare=False)  # seconds


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What an action left: its outputs by path, the layer it made, and its log (stdout and stderr)."""

    outputs: Mapping[str, Blob]
    layer: LayerRef | None
    log: bytes = field(compare=False)
    seconds: float = field(default=0.0, compare=False)
