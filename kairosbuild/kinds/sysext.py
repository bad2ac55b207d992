"""Kind `sysext`: layers as an image that systemd puts over /usr and /opt of a running system, with verity."""

from __future__ import annotations

from typing import ClassVar

from kairosbuild.artifacts import extension
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task


class Sysext:
    """See the module."""

    name: ClassVar[str] = "sysext"
    version: ClassVar[int] = 2
    Spec: ClassVar[type] = extension.ExtensionSpec
    produces: ClassVar[str] = "file"

    def tools(self, spec: extension.ExtensionSpec) -> tuple[str, ...]:
        """mkfs.erofs."""
        return ("image",)

    def lock(self, spec: extension.ExtensionSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """See `artifacts.extension`."""
        return extension.build(task, extension.SYSEXT)
