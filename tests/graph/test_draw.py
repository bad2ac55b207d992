"""Drawings: everything is in them, nothing breaks their grammar, boxes keep apart."""

from __future__ import annotations

from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from test_dag import SAMPLE, graphs

from kairosbuild.graph import draw
from kairosbuild.graph.layout import HEIGHT, arrange

KINDS = {name: "overlay" if name == "site" else "base" for name in SAMPLE}
SVG = "{http://www.w3.org/2000/svg}"


def test_dot() -> None:
    text = draw.dot(SAMPLE, KINDS)
    assert text.startswith("digraph") and '"base" -> "os";' in text and text.count("->") == 7
    assert draw.dot({'a"b': ()}, {}).count('\\"') == 2


def test_mermaid() -> None:
    text = draw.mermaid(SAMPLE, KINDS)
    assert text.startswith("flowchart LR\n") and text.count("-->") == 7
    assert "&lt;" in draw.mermaid({"<b>": ()}, {})


def test_svg() -> None:
    root = ElementTree.fromstring(draw.svg(SAMPLE, KINDS))
    assert len(root.findall(f".//{SVG}rect")) == len(SAMPLE)
    assert len(root.findall(f"{SVG}path")) == 7
    assert {text.text for text in root.findall(f".//{SVG}text")} >= set(SAMPLE) | {"overlay"}
    ElementTree.fromstring(draw.svg({"<&>": ()}, {"<&>": '"'}))


@pytest.mark.parametrize("form", ["dot", "mermaid", "svg"])
def test_nothing_to_draw_is_a_drawing(form: str) -> None:
    assert getattr(draw, form)({}, {})


@settings(deadline=None)
@given(graphs())
def test_boxes_keep_apart_and_edges_lead_right(edges: dict[str, tuple[str, ...]]) -> None:
    layout = arrange(edges, {})
    for (x, y, width), (x2, y2, width2) in combinations(layout.boxes.values(), 2):
        assert x + width <= x2 or x2 + width2 <= x or abs(y - y2) >= HEIGHT
    for x, y, width in layout.boxes.values():
        assert min(x, y) >= 0 and x + width <= layout.width and y + HEIGHT <= layout.height
    assert len(layout.routes) == sum(map(len, edges.values()))
    assert all(points[0][0] < points[-1][0] for points in layout.routes)
    assert layout == arrange(dict(edges), {})
