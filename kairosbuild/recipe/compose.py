"""`include`: several files as one recipe, every value still knowing the file and line it stands at.

A recipe may include files of the workspace, and those others. What two files say is joined by part: a
variable, a node, a field of `publish`, `epoch`, `platform` and `matrix` are a part each.

- What is included is what the including file builds on, so for every part but a node its own word wins.
- A node is declared once. To change an included one says so: `override: fields` puts the fields written
  here over those of the included node, `override: node` replaces it.
- Two included files that say the same part clash, unless one of them builds on the other's word, or the
  including file has the last word. So the order of includes never matters.

A file is read once however many ways lead to it. Nothing remote is read: what a recipe is made of lies
beside it, under the same version control.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from kairosbuild.core.errors import InputError, KbuildError, Problems
from kairosbuild.recipe import located
from kairosbuild.recipe.located import Fields, Items, Located, Text, describe

MOST_FILES = 200
OVERRIDES = ("fields", "node")
INCLUDE = "Files of the workspace, relative to this one, whose variables, nodes and `publish` are taken over."
OVERRIDE = "For a node of an included file: `fields` puts the fields written here over that node's, `node` replaces it."

_BY_ENTRY = ("vars", "nodes", "publish")
_OWN = ("version", "name", "include")  # of each file; never taken from an included one
_REMOTE = ("://", "oci:", "git@")

Part = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Said:
    """What one file says of a part, and what of other files it builds on."""

    key: Text
    value: Located
    over: frozenset[Said] = frozenset()

    @property
    def covered(self) -> frozenset[Said]:
        """Everything below it."""
        return self.over.union(*(one.covered for one in self.over))


Parts = dict[Part, list[Said]]
"""More than one word for a part is a clash that nobody settled yet."""


@dataclass(frozen=True, slots=True)
class Composed:
    """One recipe out of its files. `files` are the included ones: absolute path and sha256 of what was read."""

    root: Located
    files: tuple[tuple[str, str], ...] = ()


def compose(data: bytes, file: str, workspace: Path, problems: list[KbuildError]) -> Composed:
    """The recipe that these bytes and what they include are. Raises what `located.read` does for the file itself."""
    root = located.read(data, file, problems)
    if not isinstance(root, Fields) or "include" not in root.fields:
        return Composed(root)
    composer = _Composer(os.path.realpath(workspace), problems)
    parts = composer.parts(root, file, [(os.path.realpath(file), file)])
    for part, said in parts.items():
        if len(said) > 1:
            problems.append(_clash(part, said))
    return Composed(_joined(root, parts), tuple(composer.files.items()))


@dataclass
class _Composer:
    """Reads files, each once."""

    workspace: str
    problems: list[KbuildError]
    files: dict[str, str] = field(default_factory=dict)
    _read: dict[str, Parts] = field(default_factory=dict)

    def parts(self, root: Fields, file: str, path: list[tuple[str, str]]) -> Parts:
        """What a file says, joined with what it includes. `path` is how we came here: real and shown names."""
        below: Parts = {}
        for place in self._includes(root):
            for part, said in self._included(place, file, path).items():
                below[part] = _without_covered([*below.get(part, []), *said])
        for part, own in _split(root, self.problems):
            below[part] = [self._over(part, own, below.get(part, []))]
        return below

    def _includes(self, root: Fields) -> list[Text]:
        said = root.fields.get("include")
        if said is None:
            return []
        if not isinstance(said, Items):
            hint = f"write [{said.value}]" if isinstance(said, Text) and not said.null else ""
            self._note(f"include: a list is expected, not {describe(said)}", "wrong-type", said, hint)
            return []
        for each in said.items:
            if not isinstance(each, Text) or each.null:
                self._note(f"include: a path is expected, not {describe(each)}", "wrong-type", each)
        return [each for each in said.items if isinstance(each, Text) and not each.null]

    def _included(self, place: Text, file: str, path: list[tuple[str, str]]) -> Parts:
        shown = os.path.normpath(Path(file).parent / place.value)
        real = os.path.realpath(shown)
        if complaint := self._complaint(place.value, real):
            self._note(*complaint[:2], place, complaint[2])
            return {}
        if real in (name for name, _ in path):
            names = [name for _, name in path]
            self._note(f"files include each other: {' → '.join([*names, shown])}", "include-cycle", place)
            return {}
        if real not in self._read:
            self._read[real] = self._file(real, shown, place, [*path, (real, shown)])
        return self._read[real]

    def _complaint(self, written: str, real: str) -> tuple[str, str, str] | None:
        if any(mark in written for mark in _REMOTE):
            what = "copy it into the workspace, where its history is yours"
            return (
                f"{written!r} is remote, and only files of the workspace are included",
                "include-remote",
                what,
            )
        if "$" in written:
            return f"{written!r}: no variable is replaced here", "include-variable", "write the path out"
        if written.startswith("/") or not real.startswith(self.workspace.rstrip("/") + "/"):
            hint = "name it relative to this file, inside of the workspace"
            return f"{written!r} lies outside of the workspace", "include-outside", hint
        if len(self.files) >= MOST_FILES:
            return f"more than {MOST_FILES} files are included", "include-limit", ""
        return None

    def _file(self, real: str, shown: str, place: Text, path: list[tuple[str, str]]) -> Parts:
        try:
            data = Path(real).read_bytes()
        except OSError as error:
            self._note(f"{place.value!r}: {error.strerror}", "missing-include", place, f"looked for {shown}")
            return {}
        self.files[str(Path.cwd() / shown)] = sha256(data).hexdigest()
        try:
            root = located.read(data, shown, self.problems)
        except KbuildError as error:
            self.problems += error.problems if isinstance(error, Problems) else (error,)
            return {}
        if not isinstance(root, Fields):
            self._note(
                f"a recipe is a mapping, not {describe(root)}", "wrong-type", root, "start with version: 1"
            )
            return {}
        version = root.fields.get("version")
        if not isinstance(version, Text) or version.value != "1":
            self._note(f"{shown} has to say version: 1", "include-version", version or root)
        return self.parts(root, shown, path)

    def _over(self, part: Part, own: Said, below: list[Said]) -> Said:
        """What a file says itself, over what it includes says of the same."""
        joined = Said(own.key, own.value, frozenset(below))
        if part[0] != "nodes" or not isinstance(own.value, Fields):
            return joined
        override = own.value.fields.get("override")
        how = override.value if isinstance(override, Text) else None
        if override is not None and how not in OVERRIDES:
            self._note(f"{part[1]}: override is `fields` or `node`", "bad-choice", override)
        elif override is not None and not below:
            self._note(f"{part[1]}: no included file has a node to override", "override-nothing", override)
        elif override is None and below:
            self.problems.append(_clash(part, [*below, own], f"; {_SAY}"))
        elif how == "fields" and len(below) > 1:
            self.problems.append(_clash(part, below))
        base = below[0].value if below and how != "node" else None
        return Said(own.key, _overridden(base, own.value), joined.over) if override is not None else joined

    def _note(self, message: str, reason: str, at: Located, hint: str = "") -> None:
        self.problems.append(InputError(message, reason=reason, hint=hint, origin=at.origin))


_SAY = "say `override: fields` to change fields of that one, `override: node` to replace it"


def _split(root: Fields, problems: list[KbuildError]) -> Iterator[tuple[Part, Said]]:
    """The parts of one file."""
    for name, value in root.fields.items():
        if name in _OWN:
            continue
        if name not in _BY_ENTRY:
            yield (name,), Said(root.keys[name], value)
        elif isinstance(value, Fields):
            for entry, inner in value.fields.items():
                yield (name, entry), Said(value.keys[entry], inner)
        else:
            message = f"{name}: a mapping is expected, not {describe(value)}"
            problems.append(InputError(message, reason="wrong-type", origin=value.origin))


def _without_covered(said: list[Said]) -> list[Said]:
    """Each once, and none that another of them builds on."""
    once = list(dict.fromkeys(said))
    return [one for one in once if not any(one in other.covered for other in once)]


def _overridden(base: Located | None, own: Fields) -> Fields:
    """A node of these fields, over those of the base."""
    made = Fields(own.file, own.line, own.column)
    for each in (base, own):
        if isinstance(each, Fields):
            made.fields.update(each.fields)
            made.keys.update(each.keys)
    made.fields.pop("override", None)
    made.keys.pop("override", None)
    return made


def _joined(root: Fields, parts: Parts) -> Fields:
    """One mapping out of parts, with what is the file's own."""
    made = Fields(root.file, root.line, root.column)
    for name in _OWN[:2]:
        if name in root.fields:
            made.fields[name], made.keys[name] = root.fields[name], root.keys[name]
    for name in _BY_ENTRY:
        if isinstance(at := root.fields.get(name), Fields):
            made.fields[name], made.keys[name] = Fields(at.file, at.line, at.column), root.keys[name]
    for part, (said, *_) in parts.items():
        into = made
        if len(part) > 1:
            place = (said.key.file, said.key.line, said.key.column)
            into = made.fields.setdefault(part[0], Fields(*place))  # type: ignore[assignment]
            made.keys.setdefault(part[0], Text(*place, part[0], True))
        into.fields[part[-1]], into.keys[part[-1]] = said.value, said.key
    return made


def _clash(part: Part, said: list[Said], more: str = "") -> KbuildError:
    *others, last = said
    places = " and ".join(str(one.key.origin) for one in others)
    what = {"vars": "the variable ", "nodes": "the node ", "publish": "publish."}.get(part[0], "")
    hint = f"it also stands at {places}{more}"
    if not more:
        hint += (
            f"; settle it in the file that includes both{', with `override: node`' * (part[0] == 'nodes')}"
        )
    message = f"{what}{part[-1]} is said twice"
    return InputError(message, reason="include-clash", hint=hint, origin=last.key.origin)
