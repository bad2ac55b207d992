"""The table of kinds. Adding one is its file and a line here."""

from __future__ import annotations

from kairosbuild.graph.node import Kind, KindTable
from kairosbuild.kinds.base import Base
from kairosbuild.kinds.boot_test import BootTest
from kairosbuild.kinds.disk import Disk
from kairosbuild.kinds.fetch import Fetch
from kairosbuild.kinds.image import Image
from kairosbuild.kinds.kernel import Kernel
from kairosbuild.kinds.overlay import Overlay
from kairosbuild.kinds.packages import Packages
from kairosbuild.kinds.run import Rule, Run
from kairosbuild.kinds.tools import Tools

_KINDS: tuple[Kind, ...] = (
    Base(),
    BootTest(),
    Disk(),
    Fetch(),
    Image(),
    Kernel(),
    Overlay(),
    Packages(),
    Rule(),
    Run(),
    Tools(),
)

TABLE: KindTable = {kind.name: kind for kind in _KINDS}
