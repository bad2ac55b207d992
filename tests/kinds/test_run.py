"""Kinds run and rule: commands over stacks, in the real sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hostroot import host_root, put_layer
from small_task import SmallTask

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import NodeError, Problems
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import Input
from kairosbuild.graph.stack import dump, load
from kairosbuild.kinds.run import Rule, RuleSpec, Run, RunSpec
from kairosbuild.kinds.table import TABLE
from kairosbuild.oci.entry import Entry
from kairosbuild.recipe.load import parse
from kairosbuild.recipe.workspace import Cache, Workspace
from kairosbuild.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def base(store: Store) -> Input:
    return layer_input(store, "base", host_root(store))


def layer_input(store: Store, name: str, *stack: LayerRef) -> Input:
    top = stack[-1]
    outputs = {"layer": top.layer, "index": top.index, "stack": store.cas.put_bytes(dump(stack))}
    return Input(name, "base", outputs)


def rule(store: Store, command: str, *outputs: str, on: tuple[Input, ...], **more: Any) -> Mapping[str, Blob]:
    inputs = {"on": on, **{f"inputs.{label}": (one,) for label, one in more.pop("inputs", {}).items()}}
    sources = {f"sources.{label}": path for label, path in more.pop("sources", {}).items()}
    spec = RuleSpec(on=("base",), command=command, outputs=outputs, **more)
    return Rule().build(SmallTask(store, spec, inputs=inputs, sources=sources))


def test_one_output_is_also_the_file(store: Store, base: Input) -> None:
    found = rule(
        store, "printf %s-%s $1 $MINE > /out/x", "x", on=(base,), arguments=("a",), env={"MINE": "b"}
    )
    assert set(found) == {"x", "file"} and found["x"] == found["file"]
    assert store.cas.read(found["x"]) == b"a-b"


def test_several_outputs_have_their_names(store: Store, base: Input) -> None:
    found = rule(store, "echo 1 > /out/x; mkdir /out/d; echo 2 > /out/d/y", "x", "d/y", on=(base,))
    assert {name: store.cas.read(blob) for name, blob in found.items()} == {"x": b"1\n", "d/y": b"2\n"}


def test_inputs_by_label(store: Store, base: Input) -> None:
    one, two = (store.cas.put_bytes(text) for text in (b"one", b"two"))
    inputs = {
        "single": Input("s", "fetch", {"file": one, "named": one}),
        "many": Input("m", "rule", {"a": one, "b/c": two}),
    }
    found = rule(store, "cat single many/a many/b/c > /out/x", "x", on=(base,), inputs=inputs)
    assert store.cas.read(found["x"]) == b"oneonetwo"


def test_sources_files_and_folders(store: Store, base: Input, tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/sub/f").write_text("f")
    (tmp_path / "d/tool").write_text("#!/bin/sh\necho tool\n")
    (tmp_path / "d/tool").chmod(0o755)
    (tmp_path / "d/link").symlink_to("sub/f")
    (tmp_path / "alone").write_text("alone")
    sources = {"dir": tmp_path / "d", "alone": tmp_path / "alone"}
    found = rule(
        store, "{ dir/tool; cat dir/sub/f dir/link alone; } > /out/x", "x", on=(base,), sources=sources
    )
    assert store.cas.read(found["x"]) == b"tool\nffalone"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "loop", "sub"])
def test_links_out_of_a_source_are_refused(store: Store, base: Input, tmp_path: Path, target: str) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "d/loop").symlink_to(target)
    if target == "sub":
        (tmp_path / "d/sub/f").touch()
        (tmp_path / "d/loop").unlink()
        (tmp_path / "d/loop").symlink_to("nowhere")
    with pytest.raises(NodeError) as caught:
        rule(store, "cat dir/loop > /out/x", "x", on=(base,), sources={"dir": tmp_path / "d"})
    assert caught.value.reason == "source-link"


def test_a_shared_layer_counts_once(store: Store, base: Input) -> None:
    (below,) = load(store.cas.path(base.outputs["stack"].digest).read_bytes())
    one, two = (put_layer(store, [(Entry(name, "file"), name.encode())]) for name in ("one", "two"))
    stacks = (layer_input(store, "a", below, one), layer_input(store, "b", below, two))
    found = rule(store, "cat /one /two > /out/x", "x", on=stacks)
    assert store.cas.read(found["x"]) == b"onetwo"


def test_a_tools_tree_is_a_root_too(store: Store, base: Input) -> None:
    tools = Input("t", "tools", {name: base.outputs[name] for name in ("layer", "index")})
    assert store.cas.read(rule(store, "echo x > /out/x", "x", on=(tools,))["x"]) == b"x\n"


def test_run_yields_a_layer_on_its_stack(store: Store, base: Input) -> None:
    spec = RunSpec(on=("base",), command="mkdir /a; cat in > /a/f; touch /a/dropped", drop=("a/dropped",))
    text = Input("t", "fetch", {"file": store.cas.put_bytes(b"text")})
    task = SmallTask(store, spec, inputs={"on": (base,), "inputs.in": (text,)})
    outputs = Run().build(task)
    below = load(store.cas.path(base.outputs["stack"].digest).read_bytes())
    stack = load(store.cas.path(outputs["stack"].digest).read_bytes())
    assert stack == (*below, LayerRef(outputs["layer"], outputs["index"]))
    on_top = rule(store, "cat /a/f > /out/x; ls /a >> /out/x", "x", on=(Input("r", "run", outputs),))
    assert store.cas.read(on_top["x"]) == b"textf\n"


def test_labels_and_outputs_are_checked_in_the_recipe(tmp_path: Path) -> None:
    text = b"""
version: 1
nodes:
  o: {kind: overlay}
  r:
    kind: rule
    on: [o]
    command: "true"
    outputs: [../x]
    inputs: {/x: o}
    sources: {a/../b: r.yaml}
"""
    (tmp_path / "r.yaml").touch()
    with pytest.raises(Problems) as caught:
        parse(text, "r.yaml", TABLE, workspace=Workspace(tmp_path, Cache(tmp_path / "c")))
    assert {one.origin.line for one in caught.value.problems if one.origin} >= {9, 10, 11}
