"""Keys: golden vectors, and the two properties that everything rests on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.graph.keys import derived_key, key, names_matter, preimage
from kairosbuild.graph.node import Input, Locked, Material, SourceFile
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import record, records, ref, refs, text

GOLDEN = Path(__file__).parent.parent / "golden" / "keys.json"


@dataclass(frozen=True, slots=True)
class PartSpec:
    from_: str = ref("an input", names=True)
    plain: str = ref("another", "")


@dataclass(frozen=True, slots=True)
class SampleSpec:
    layers: tuple[str, ...] = refs("layers", names=True)
    on: str = ref("a base", "")
    kernel: str = ref("a kernel", "", by=("symbols",))
    word: str = text("a word", "")
    part: PartSpec | None = record("one", PartSpec, None)
    parts: tuple[PartSpec, ...] = records("some", PartSpec, ())


class Sample:
    name = "sample"
    version = 3
    Spec = SampleSpec
    produces = "layer"

    def tools(self, spec: Any) -> tuple[str, ...]:
        return ()

    def lock(self, spec: Any, locker: Any) -> Locked:
        return Locked()

    def build(self, task: Any) -> dict[str, Blob]:
        return {}


def blob(text: str) -> Blob:
    return of_bytes(text.encode())


def sample(**changes: Any) -> dict[str, Any]:
    """The preimage of a node that has a little of everything."""
    given: dict[str, Any] = {
        "declaration": Declaration(
            "n", "sample", {"word": "naïve ✓", "list": ["b", "a"], "number": 7, "yes": True}
        ),
        "platform": "linux/amd64",
        "epoch": 1735689600,
        "inputs": {
            "layers": [Input("base", "base", {"layer": blob("l"), "index": blob("i")})],
            "on": [Input("base", "base", {"layer": blob("l")})],
        },
        "sources": {
            "source": [
                SourceFile("", "dir", 0o755),
                SourceFile("run.sh", "file", 0o755, blob("#!")),
                SourceFile("link", "link", 0o777, None, "run.sh"),
            ]
        },
        "locked": Locked(
            {"packages": [["bash", "5.2-1"]]}, (Material("debian:pool/bash.deb", blob("deb").digest, 3),)
        ),
        "tools": {"image": blob("tools")},
        **changes,
    }
    return preimage(Sample(), given.pop("declaration"), **given)


def test_golden_vectors() -> None:
    """A key that changes makes every cache worthless: these only change together with `keys.FORMAT`."""
    for vector in json.loads(GOLDEN.read_text()):
        found = (
            derived_key(*vector["derive"], vector["preimage"])
            if "derive" in vector
            else key(vector["preimage"])
        )
        assert found == vector["key"], vector["name"]


def test_the_sample_is_the_golden_one() -> None:
    first = json.loads(GOLDEN.read_text())[0]
    assert json.loads(json.dumps(sample())) == first["preimage"] and key(sample()) == first["key"]


def shuffled(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        return {name: shuffled(value[name], draw) for name in draw(st.permutations(list(value)))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


@given(st.data())
def test_the_order_of_mappings_never_matters(data: Any) -> None:
    assert key(shuffled(json.loads(json.dumps(sample())), data.draw)) == key(sample())


def changed(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every document that differs from this one in a single place."""
    if isinstance(value, dict):
        yield path, {**value, "another": 1}
        for name, item in value.items():
            yield (*path, name), {other: it for other, it in value.items() if other != name}
            for where, other in changed(item, (*path, name)):
                yield where, {**value, name: other}
    elif isinstance(value, list):
        yield path, [*value, "another"]
        if len(value) > 1 and value != value[::-1]:
            yield path, value[::-1]
        for n, item in enumerate(value):
            yield (*path, n), value[:n] + value[n + 1 :]
            for where, other in changed(item, (*path, n)):
                yield where, [*value[:n], other, *value[n + 1 :]]
    else:
        yield path, f"{value}!"
        yield path, None
        yield path, [value]


def test_every_single_change_gives_another_key() -> None:
    before = json.loads(json.dumps(sample()))
    keys = {key(before): "nothing"}
    count = 0
    for where, after in changed(before):
        assert after != before
        found = key(after)
        assert keys.setdefault(found, json.dumps(after, sort_keys=True)) != "nothing", where
        count += 1
    assert count > 100


SPEC = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def exact(value: Any) -> Any:
    """A value in which 1 and True differ, as they do in JSON."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    return [exact(item) for item in value] if isinstance(value, list) else (type(value).__name__, value)


@given(SPEC, SPEC)
def test_equal_specs_and_only_they_give_equal_keys(one: Any, other: Any) -> None:
    keys = [key(sample(declaration=Declaration("n", "sample", {"x": value}))) for value in (one, other)]
    assert (keys[0] == keys[1]) == (exact(one) == exact(other))


@pytest.mark.parametrize(
    "change",
    [
        {"platform": "linux/arm64"},
        {"epoch": 0},
        {"tools": {}},
        {"locked": Locked()},
        {"tools": {"image": blob("other tools")}},
        {"sources": {"source": [SourceFile("run.sh", "file", 0o644, blob("#!"))]}},
        {"inputs": {"on": [Input("base", "base", {"layer": blob("l")})]}},
    ],
)
def test_every_argument_counts(change: dict[str, Any]) -> None:
    assert key(sample(**change)) != key(sample())


def test_what_never_counts() -> None:
    """Names, places, hints, and where a material comes from."""
    from kairosbuild.core.errors import Origin

    plain = sample()["spec"]
    named = Declaration(
        "m", "sample", plain, {"on": ("z",)}, {"source": "other"}, {"timeout": 9}, Origin("f", 1, 1)
    )
    elsewhere = Locked(
        {"packages": [["bash", "5.2-1"]]}, (Material("https://mirror/x", blob("deb").digest, 3),)
    )
    assert key(sample(declaration=named, locked=elsewhere)) == key(sample())
    inputs = copy.deepcopy(dict.fromkeys(("layers", "on")))
    inputs["layers"] = [Input("base", "base", {"layer": blob("l"), "index": blob("i")})]
    inputs["on"] = [Input("renamed", "base", {"layer": blob("l")})]
    assert key(sample(inputs=inputs)) == key(sample()), (
        "the name of an input counts only where the field says so"
    )
    inputs["layers"] = [Input("renamed", "base", {"layer": blob("l"), "index": blob("i")})]
    assert key(sample(inputs=inputs)) != key(sample())


def test_an_input_may_be_keyed_by_some_of_its_outputs() -> None:
    def keyed(**outputs: str) -> str:
        found = {name: blob(text) for name, text in outputs.items()}
        return key(sample(inputs={"kernel": [Input("k", "kernel", found)]}))

    assert keyed(symbols="s", layer="a") == keyed(symbols="s", layer="b", more="c")
    assert keyed(symbols="s", layer="a") != keyed(symbols="t", layer="a")


def test_names_matter_is_found_in_nested_fields() -> None:
    roles = {
        "layers": True,
        "layers.label": True,
        "on": False,
        "part.from_": True,
        "part.plain": False,
        "parts.0.from_": True,
        "parts.12.plain": False,
        "unknown": False,
    }
    assert {role: names_matter(SampleSpec, role) for role in roles} == roles


@pytest.mark.parametrize("value", [1.5, float("nan"), {1: 2}, {"a": b"b"}, {"a": {1, 2}}])
def test_what_has_no_canonical_form_has_no_key(value: Any) -> None:
    with pytest.raises(TypeError):
        key(sample(declaration=Declaration("n", "sample", {"x": value})))


def test_derived_keys_are_apart() -> None:
    document = {"a": 1}
    keys = {
        key(document),
        derived_key("x", 1, document),
        derived_key("y", 1, document),
        derived_key("x", 2, document),
    }
    assert len(keys) == 4
