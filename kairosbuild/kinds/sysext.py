"""Kind `sysext`: layers as an image that systemd puts over /usr and /opt of a running system, with verity."""

from __future__ import annotations

from typing import ClassVar

from kairosbuild.artifacts.extension import SYSEXT, Extension, ExtensionKind


class Sysext(ExtensionKind):
    """See the module."""

    name: ClassVar[str] = "sysext"
    version: ClassVar[int] = 2
    extension: ClassVar[Extension] = SYSEXT
