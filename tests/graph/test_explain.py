"""Why a node would run, in words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kairosbuild.graph.explain import NEVER, Last, compare, reasons

A, B = ("sha256:" + letter * 64 for letter in "ab")
PREIMAGE: dict[str, Any] = {
    "format": 1,
    "kind": "packages",
    "version": 2,
    "spec": {"install": ["bash", "vim"], "deep": {"suite": "trixie"}, "text": "t"},
    "platform": "linux/amd64",
    "epoch": 0,
    "inputs": {"on": [{"kind": "base", "outputs": {"layer": A}, "name": "base"}], "more": []},
    "sources": {
        "source": [["", "dir", 0o755, ""], ["etc/motd", "file", 0o644, A], ["l", "link", 0o777, "x"]],
        "one": [["", "file", 0o644, A]],
    },
    "locked": {"data": {"packages": [{"name": "bash", "version": "5.2-1"}], "suite": "s"}, "materials": [A]},
    "tools": {"image": A},
}


def edited(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(PREIMAGE)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    at: Any = document
    for part in way:
        at = at[part]
    if value is None:
        del at[last]
    elif isinstance(at, list) and last == len(at):
        at.append(value)
    else:
        at[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("kind", "run", "the kind: packages → run"),
        ("version", 3, "the kind packages has a new version: 2 → 3"),
        ("platform", "linux/arm64", "the platform: linux/amd64 → linux/arm64"),
        ("epoch", 5, "the epoch: 0 → 5"),
        ("spec/text", "u", "the field text: t → u"),
        ("spec/install", ["bash", "nano"], "the field install: +nano -vim"),
        ("spec/install", ["vim", "bash"], "the field install: another order"),
        ("spec/deep/suite", "sid", "the field deep.suite: trixie → sid"),
        ("spec/new", True, "the field new: nothing → True"),
        ("sources/source/1/3", B, "the file etc/motd of source changed"),
        ("sources/source/1/2", 0o755, "the file etc/motd of source has another mode: 644 → 755"),
        ("sources/source/1", None, "the file etc/motd of source was removed"),
        ("sources/source/3", ["new", "file", 0o644, A], "the file new of source was added"),
        ("sources/source/2/3", "y", "the file l of source points elsewhere: x → y"),
        ("sources/source/1/1", "link", "the file etc/motd of source is a link now, not a file"),
        ("sources/one/0/3", B, "the file one changed"),
        ("inputs/on/0/outputs/layer", B, f"the input on (base) has another layer: {'a' * 12} → {'b' * 12}"),
        ("inputs/on/0/kind", "run", "the input on is of another kind: base → run"),
        ("inputs/on/0/name", "other", "the input on is another node: base → other"),
        ("inputs/more/0", {"kind": "x", "outputs": {}}, "the number of inputs more: 0 → 1"),
        ("tools/image", B, f"the tools tree image: {'a' * 12} → {'b' * 12}"),
        ("tools/qemu", B, f"the tools tree qemu: nothing → {'b' * 12}"),
        ("locked/data/packages/0/version", "5.2-2", "the package bash: 5.2-1 → 5.2-2"),
        ("locked/data/packages/1", {"name": "vim", "version": "9"}, "the package vim 9 is new"),
        ("locked/data/packages/0", None, "the package bash 5.2-1 is gone"),
        ("locked/data/suite", "t", "the lock's suite: s → t"),
        ("locked/materials/0", B, "the locked files are other ones"),
    ],
)
def test_one_difference_is_one_sentence(path: str, value: Any, sentence: str) -> None:
    assert compare(PREIMAGE, edited(path, value)) == (sentence,)


def test_every_difference_is_told() -> None:
    other = edited("epoch", 1)
    other["spec"]["text"] = "u"
    assert len(compare(PREIMAGE, other)) == 2


def test_many_files_are_told_shortly() -> None:
    other = edited("epoch", 0)
    other["sources"]["source"] += [[f"f{n:03}", "file", 0o644, A] for n in range(100)]
    told = compare(PREIMAGE, other)
    assert len(told) == 21 and told[-1] == "… and 80 more files of source"


def test_never_built_and_evicted() -> None:
    assert reasons("k", PREIMAGE, None) == (NEVER,)
    told = reasons("k", PREIMAGE, Last("k", PREIMAGE, ("index", "layer")))
    assert told == ("its result was evicted from the store (index, layer missing)",)
    assert reasons("k", edited("epoch", 1), Last("j", PREIMAGE)) == ("the epoch: 0 → 1",)


def test_long_values_are_cut() -> None:
    (told,) = compare(PREIMAGE, edited("spec/text", "line\n" * 100))
    assert len(told) < 100 and "\n" not in told
