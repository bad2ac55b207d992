"""The table of kinds. Adding one is its file and a line here."""

from __future__ import annotations

from kairosbuild.graph.node import Kind, KindTable

_KINDS: tuple[Kind, ...] = ()

TABLE: KindTable = {kind.name: kind for kind in _KINDS}
