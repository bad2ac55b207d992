"""Kind `confext`: layers as an image that systemd puts over /etc of a running system, with verity."""

from __future__ import annotations

from typing import ClassVar

from kairosbuild.artifacts.extension import CONFEXT, Extension, ExtensionKind


class Confext(ExtensionKind):
    """See the module."""

    name: ClassVar[str] = "confext"
    version: ClassVar[int] = 2
    extension: ClassVar[Extension] = CONFEXT
