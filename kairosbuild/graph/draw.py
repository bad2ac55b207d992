"""The graph as a drawing: dot, mermaid, or an SVG that needs no other program."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from kairosbuild.graph.dag import Edges
from kairosbuild.graph.layout import HEIGHT, Layout, arrange

Kinds = Mapping[str, str]
"""Node → its kind."""

_HUES = (214, 32, 152, 276, 350, 92, 190, 52, 240, 12, 120, 312)


def dot(edges: Edges, kinds: Kinds) -> str:
    """For graphviz; what is needed stands left of what needs it."""
    lines = ["digraph kairosbuild {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    for name in edges:
        label = rf"{_quoted(name)}\n{_quoted(kinds.get(name, ''))}"
        lines.append(f'  "{_quoted(name)}" [label="{label}"];')
    for name, needs in edges.items():
        lines += [f'  "{_quoted(need)}" -> "{_quoted(name)}";' for need in needs]
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(edges: Edges, kinds: Kinds) -> str:
    """For Markdown that draws; nodes are numbered, since names may hold what its grammar does not."""
    number = {name: f"n{i}" for i, name in enumerate(edges)}
    lines = ["flowchart LR"]
    for name in edges:
        kind = _entities(kinds.get(name, ""))
        lines.append(f'  {number[name]}["{_entities(name)}<br/><small>{kind}</small>"]')
    for name, needs in edges.items():
        lines += [f"  {number[need]} --> {number[name]}" for need in needs]
    return "\n".join(lines) + "\n"


def svg(edges: Edges, kinds: Kinds) -> str:
    """A drawing of its own: columns from what is needed to what needs it, light or dark as the reader is."""
    layout = arrange(edges, kinds)
    hues = {kind: _HUES[i % len(_HUES)] for i, kind in enumerate(sorted(set(kinds.values())))}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{layout.width}" height="{layout.height}" '
        f'viewBox="0 0 {layout.width} {layout.height}">',
        f"<style>{_STYLE}</style>",
        *(_curve(points) for points in layout.routes),
        *(_box(name, kinds.get(name, ""), hues, layout) for name in edges),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


_STYLE = """
text { font: 600 13px system-ui, sans-serif; fill: #1c2430; }
text.kind { font: 11px system-ui, sans-serif; fill: #5b6675; }
path { fill: none; stroke: #9aa5b4; stroke-width: 1.4; }
rect { stroke-width: 1.4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8ecf2; } text.kind { fill: #a9b4c2; } path { stroke: #66727f; } rect { fill-opacity: .22; }
}
"""


def _box(name: str, kind: str, hues: Mapping[str, int], layout: Layout) -> str:
    x, y, width = layout.boxes[name]
    hue = hues.get(kind, 0)
    return (
        f"<g><title>{escape(name)} ({escape(kind)})</title>"
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="7" '
        f'fill="hsl({hue} 75% 94%)" stroke="hsl({hue} 45% 58%)"/>'
        f'<text x="{x + 12}" y="{y + 19}">{escape(name)}</text>'
        f'<text class="kind" x="{x + 12}" y="{y + 34}">{escape(kind)}</text></g>'
    )


def _curve(points: tuple[tuple[int, int], ...]) -> str:
    """A line through these points that leaves and arrives level."""
    (x, y), *rest = points
    path = f"M{x} {y}"
    for to_x, to_y in rest:
        bend = (to_x - x) // 2
        path += f" C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"
        x, y = to_x, to_y
    return f'<path d="{path}"/>'


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _entities(text: str) -> str:
    return escape(text).replace("#", "#35;")
