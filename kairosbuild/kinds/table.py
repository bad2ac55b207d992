"""The table of kinds. Adding one is its file and a line here."""

from __future__ import annotations

from kairosbuild.graph.node import Kind, KindTable
from kairosbuild.kinds.boot_test import BootTest
from kairosbuild.kinds.disk import Disk
from kairosbuild.kinds.fetch import Fetch
from kairosbuild.kinds.image import Image
from kairosbuild.kinds.overlay import Overlay
from kairosbuild.kinds.run import Rule, Run
from kairosbuild.kinds.tools import Tools

_KINDS: tuple[Kind, ...] = (
    BootTest(),
    Disk(),
    Fetch(),
    Image(),
    Overlay(),
    Rule(),
    Run(),
    Tools(),
)

TABLE: KindTable = {kind.name: kind for kind in _KINDS}
