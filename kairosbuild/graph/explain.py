"""Why a node would run, in words: what differs between two preimages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kairosbuild.graph.keys import Preimage

NEVER = "it was never built here"
_LONG = 60  # characters of a value that are shown
_MOST = 20  # differences of one sort that are listed


@dataclass(frozen=True, slots=True)
class Last:
    """The last result of a node: its key, its preimage, and which of its outputs are no longer stored."""

    key: str
    preimage: Preimage
    lost: tuple[str, ...] = ()


def reasons(key: str, document: Preimage, last: Last | None) -> tuple[str, ...]:
    """Why a node with this key and preimage would run, given its last result."""
    if last is None:
        return (NEVER,)
    if last.key == key:
        lost = ", ".join(last.lost) or "the record"
        return (f"its result was evicted from the store ({lost} missing)",)
    return compare(last.preimage, document)


def compare(old: Preimage, new: Preimage) -> tuple[str, ...]:
    """Every difference between two preimages, a sentence each."""
    found = [*_head(old, new)]
    for part, differ in _PARTS.items():
        found += differ(old.get(part, {}), new.get(part, {}))
    return tuple(found) or ("the key was made another way",)


def _head(old: Preimage, new: Preimage) -> Iterator[str]:
    if old.get("kind") != new.get("kind"):
        yield f"the kind: {_show(old.get('kind'))} → {_show(new.get('kind'))}"
    elif old.get("version") != new.get("version"):
        yield f"the kind {new.get('kind')} has a new version: {old.get('version')} → {new.get('version')}"
    for name in ("format", "platform", "epoch"):
        if old.get(name) != new.get(name):
            yield f"the {name}: {_show(old.get(name))} → {_show(new.get(name))}"


def _spec(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for path, before, after in _values("", old, new):
        yield f"the field {path}: {_change(before, after)}"


def _sources(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for role in _keys(old, new):
        yield from _few(f"files of {role}", list(_files(role, old.get(role, []), new.get(role, []))))


def _files(role: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    before, after = ({file[0]: file for file in files} for files in (old, new))
    for logical in _keys(before, after):
        name = f"the file {logical} of {role}" if logical else f"the file {role}"
        if logical not in before:
            yield f"{name} was added"
        elif logical not in after:
            yield f"{name} was removed"
        elif before[logical] != after[logical]:
            yield f"{name} {_file_change(before[logical], after[logical])}"


def _file_change(old: Sequence[Any], new: Sequence[Any]) -> str:
    if old[1] != new[1]:
        return f"is a {new[1]} now, not a {old[1]}"
    if old[3] != new[3]:
        return f"points elsewhere: {old[3]} → {new[3]}" if new[1] == "link" else "changed"
    return f"has another mode: {old[2]:o} → {new[2]:o}"


def _inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for role in _keys(old, new):
        before, after = old.get(role, []), new.get(role, [])
        if len(before) != len(after):
            yield f"the number of inputs {role}: {len(before)} → {len(after)}"
        for place, (one, other) in enumerate(zip(before, after, strict=False)):
            label = f"the input {role}" + (f" ({place + 1} of {len(after)})" if len(after) > 1 else "")
            yield from _input(label, one, other)


def _input(label: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old.get("name") != new.get("name"):
        yield f"{label} is another node: {_show(old.get('name'))} → {_show(new.get('name'))}"
    if old.get("kind") != new.get("kind"):
        yield f"{label} is of another kind: {old.get('kind')} → {new.get('kind')}"
    before, after = old.get("outputs", {}), new.get("outputs", {})
    for name in _keys(before, after):
        if before.get(name) != after.get(name):
            named = f" ({new['name']})" if "name" in new else ""
            change = f"{_digest(before.get(name))} → {_digest(after.get(name))}"
            yield f"{label}{named} has another {name}: {change}"


def _locked(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = (locked.get("data", {}) for locked in (old, new))
    packages = [_packages(data) for data in (before, after)]
    told = [] if packages[0] == packages[1] else list(_package_changes(*packages))
    yield from _few("packages", told)
    rest = [(path, a, b) for path, a, b in _values("", before, after) if path.partition(".")[0] != "packages"]
    for path, a, b in rest:
        yield f"the lock's {path}: {_change(a, b)}"
    if not told and not rest and old.get("materials") != new.get("materials"):
        yield "the locked files are other ones"


def _packages(data: Mapping[str, Any]) -> dict[str, str]:
    """name → version of locked package lists, whichever way they are written down."""
    found = {}
    for one in data.get("packages", ()) if isinstance(data.get("packages"), list) else ():
        if isinstance(one, Mapping):
            found[str(one.get("name") or one.get("package"))] = str(one.get("version", ""))
        elif isinstance(one, list) and len(one) >= 2:
            found[str(one[0])] = str(one[1])
        else:
            name, _, version = str(one).partition("=")
            found[name] = version
    return found


def _package_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in _keys(old, new):
        if name not in old:
            yield f"the package {name} {new[name]} is new"
        elif name not in new:
            yield f"the package {name} {old[name]} is gone"
        elif old[name] != new[name]:
            yield f"the package {name}: {old[name]} → {new[name]}"


def _tools(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for purpose in _keys(old, new):
        if old.get(purpose) != new.get(purpose):
            change = f"{_digest(old.get(purpose))} → {_digest(new.get(purpose))}"
            yield f"the tools tree {purpose}: {change}"


def _program(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    changed = [name for name in _keys(old, new) if old.get(name) != new.get(name)]
    yield from _few(
        "files of this program", [f"this program's {name} changed, which it ships" for name in changed]
    )


_PARTS: Mapping[str, Callable[[Any, Any], Iterator[str]]] = {
    "spec": _spec,
    "sources": _sources,
    "inputs": _inputs,
    "locked": _locked,
    "tools": _tools,
    "program": _program,
}


def _values(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two documents differ, as deep as both are mappings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in _keys(old, new):
            yield from _values(f"{path}.{name}" if path else name, old.get(name), new.get(name))
    elif _listed(old) != _listed(new):
        yield path, old, new


def _change(old: Any, new: Any) -> str:
    """Two values beside each other; of two lists, what came and went."""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        came = [one for one in new if one not in old]
        went = [one for one in old if one not in new]
        if came or went:
            return " ".join([*(f"+{_show(one)}" for one in came), *(f"-{_show(one)}" for one in went)])
        return "another order"
    return f"{_show(old)} → {_show(new)}"


def _few(what: str, sentences: Sequence[str]) -> Iterator[str]:
    yield from sentences[:_MOST]
    if len(sentences) > _MOST:
        yield f"… and {len(sentences) - _MOST} more {what}"


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted({*old, *new})


def _digest(digest: Any) -> str:
    return str(digest)[7:19] if digest else "nothing"


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split()) or '""'
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"
