"""A recipe file to a `Recipe`: read, typed, checked as a whole, with all problems at once."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import InputError, KbuildError, Origin, nearest, raise_problems
from kairosbuild.recipe import cells, checks, matrix, variables
from kairosbuild.recipe.compose import Composed, compose
from kairosbuild.recipe.declaration import Declaration, Recipe
from kairosbuild.recipe.fields import infos
from kairosbuild.recipe.language import ALSO_NODE, ALSO_TOP, NODE_NAME, RECIPE_NAME, NodeHints, RecipeSpec
from kairosbuild.recipe.located import Fields, Located, Text, describe
from kairosbuild.recipe.matrix import Cell
from kairosbuild.recipe.publication import Publish, PublishedCell
from kairosbuild.recipe.typed import Reader, Typed
from kairosbuild.recipe.workspace import Workspace


def load(
    file: Path, kinds: Mapping[str, Any], *, workspace: Workspace, set_vars: Mapping[str, str] | None = None
) -> Recipe:
    """The recipe in this file. Raises InputError, or Problems, with file, line and column."""
    return parse(_bytes(file), str(file), kinds, workspace=workspace, set_vars=set_vars)


def loading(
    file: Path, kinds: Mapping[str, Any], *, workspace: Workspace, set_vars: Mapping[str, str] | None = None
) -> Loading:
    """The same with all that was found out on the way, for `show`."""
    with _uncollected():
        found = _opened(_bytes(file), str(file), kinds, workspace, set_vars or {})
        found.recipe()
    return found


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror}",
            reason="no-recipe",
            hint="a recipe file is named first, nodes after it",
        ) from None


def parse(
    data: bytes,
    file: str,
    kinds: Mapping[str, Any],
    *,
    workspace: Workspace,
    set_vars: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe that these bytes are; `file` is for messages, and for the name if none is given."""
    with _uncollected():
        return _opened(data, file, kinds, workspace, set_vars or {}).recipe()


def _opened(
    data: bytes, file: str, kinds: Mapping[str, Any], workspace: Workspace, given: Mapping[str, str]
) -> Loading:
    problems: list[KbuildError] = []
    composed = compose(data, file, workspace.root, problems)
    root = composed.root
    if not isinstance(root, Fields):
        message = f"a recipe is a mapping, not {describe(root)}"
        raise _error(message, "wrong-type", root, "start with version: 1")
    return Loading(root, composed, file, kinds, workspace, given, problems)


class Loading:
    """One recipe on its way from located values to declarations."""

    top: Typed
    expansion: cells.Expansion
    final: Mapping[str, checks.Node]

    def __init__(
        self,
        root: Fields,
        composed: Composed,
        file: str,
        kinds: Mapping[str, Any],
        workspace: Workspace,
        given: Mapping[str, str],
        problems: list[KbuildError],
    ) -> None:
        self.root, self.file, self.kinds, self.workspace = root, file, kinds, workspace
        self.composed, self.problems = composed, problems
        self.matrix = matrix.read(root.fields.get("matrix"), given, problems)
        self.declared = variables.declared(root.fields.get("vars"), problems)
        self.dependence = matrix.Dependence(self.matrix, self.declared, given)
        self.known = {**self.declared, **self.matrix.everything()}
        problems += variables.undeclared(given, self.known, file)
        self.given = {name: value for name, value in given.items() if name not in self.matrix.names}
        self.reader = self._reader({})
        self.values = self.reader.variables.all(problems)
        self.changed = self._changed()
        self.given_to_all = self._given_to(self.root.fields.get(name) for name in ("platform", "epoch"))
        self.raws: list[cells.Raw] = []

    def _reader(self, cell: Cell) -> Reader:
        """A reader for what depends on these axes; all others differ between the cells it is for."""
        known = {**self.known, **self.matrix.declared(cell)}
        varying = self.dependence.varying(known, cell)
        return Reader(variables.Variables(known, self.given, varying), self.problems)

    def _changed(self) -> dict[str, str]:
        """What `--set` gives that is not what the recipe says anyway."""
        plain: dict[str, str] = {}
        if self.given:
            varying = self.dependence.varying(self.known)
            plain = variables.Variables(self.known, {}, varying).all([])
        return {name: value for name, value in self.given.items() if plain.get(name) != value}

    def _given_to(self, texts: Iterable[Located | None], names: Iterable[str] = ()) -> dict[str, str]:
        """What `--set` changed of the variables that these texts depend on, or these names."""
        if not self.changed:
            return {}
        used = {*names, *(name for text in texts if text is not None for name in variables.names_in(text))}
        used = self.dependence.variables(used)
        return {name: value for name, value in self.changed.items() if name in used}

    def recipe(self) -> Recipe:
        """What it comes to. Raises every problem at once."""
        self.top = top = self._top()
        self.readers: dict[cells.CellKey, Reader] = {(): self.reader}
        self.arch = str(top.spec.get("platform", "")).partition("/")[2]
        for name, node in self._entries():
            self._node(name, node)
        names = frozenset(self._entries_named())
        read = [self._as_read(raw, typed) for raw in self.raws for typed in raw.readings]
        self.problems += checks.references(read, top.nodes, names)
        self.problems += checks.cycles(read)
        self.problems += checks.sources(read, self.workspace.root)
        raise_problems(_once(self.problems))
        return self._result(top, *self._expanded())

    def _as_read(self, raw: cells.Raw, typed: Typed) -> checks.Node:
        declaration = Declaration(raw.name, raw.kind, typed.spec, typed.refs, origin=raw.key.origin)
        return checks.Node(declaration, typed, self.kinds[raw.kind], raw.key)

    def _expanded(self) -> tuple[cells.Expansion, list[checks.Node]]:
        expansion = cells.Expansion(self.raws, self.matrix, self.kinds)
        nodes = expansion.nodes()
        raise_problems(_once(expansion.problems or checks.cycles(nodes) or checks.of_kinds(nodes)))
        self.expansion, self.final = expansion, {node.name: node for node in nodes}
        return expansion, nodes

    def when_of(self, name: str) -> Located:
        """Where a node's `when` stands."""
        nodes = self.root.fields["nodes"]
        assert isinstance(nodes, Fields)
        node = nodes.fields[name]
        assert isinstance(node, Fields)
        return node.keys["when"]

    def _top(self) -> Typed:
        root = self.root
        if "nodes" not in root.fields:
            self._note("the recipe: the field 'nodes' is missing", "missing-field", root, "name → node")
        top = self.reader.fields(RecipeSpec, root, "the recipe", also=ALSO_TOP)
        if "platform" in root.fields and matrix.ARCH in self.matrix.names:
            hint = "leave one of them out"
            self._note("platform: the axis arch says it", "platform-axis", root.keys["platform"], hint)
        if top.spec.get("name") is None and "name" not in root.fields:
            top.spec["name"] = self._stem()
        return top

    def _stem(self) -> str:
        stem = Path(self.file).stem
        if not re.fullmatch(RECIPE_NAME, stem):
            self._note(f"{stem!r} cannot name a recipe", "missing-field", self.root, "give it a name: field")
        return stem

    def _entries(self) -> list[tuple[str, Located]]:
        nodes = self.root.fields.get("nodes")
        if nodes is not None and not isinstance(nodes, Fields):
            message = f"nodes: a mapping is expected, not {describe(nodes)}"
            self._note(message, "wrong-type", nodes, "name → node")
        return list(nodes.fields.items()) if isinstance(nodes, Fields) else []

    def _entries_named(self) -> list[str]:
        nodes = self.root.fields.get("nodes")
        return list(nodes.fields) if isinstance(nodes, Fields) else []

    def _node(self, name: str, node: Located) -> None:
        nodes = self.root.fields["nodes"]
        assert isinstance(nodes, Fields)
        key = nodes.keys[name]
        if not re.fullmatch(NODE_NAME, name):
            self._note(f"{name!r} cannot name a node", "bad-name", key, "a-z, 0-9, then also - _ .")
        if not isinstance(node, Fields):
            self._note(f"{name}: a mapping is expected, not {describe(node)}", "wrong-type", node, "")
            return
        if "override" in node.fields:
            hint = "it is for nodes of an included file"
            self._note(
                f"{name}: there is nothing to override", "override-nothing", node.keys["override"], hint
            )
        kind = self._kind(name, node)
        if kind is not None:
            self.raws.append(self._raw(cells.Raw(name, kind, key), node))

    def _raw(self, raw: cells.Raw, node: Fields) -> cells.Raw:
        """Read a node, once for each combination of the axes that its own text depends on."""
        when = self._when(raw.name, node.fields.get("when"))
        if self.matrix.axes:
            raw.axes = frozenset(self.dependence.of(node) | self.dependence.of_variables(when))
            raw.axes |= self.matrix.names & {matrix.ARCH}
        raw.given = {**self.given_to_all, **self._given_to([node], when)}
        for cell in self.matrix.projected(raw.axes) if raw.axes else ({},):
            reader = self._reader_of(cell)
            there = self._holds(reader, when)
            raw.typed[cells.key_of(cell)] = self._fields(reader, raw, node) if there else None
        return raw

    def _reader_of(self, cell: Cell) -> Reader:
        key = cells.key_of(cell)
        if key not in self.readers:
            self.readers[key] = self._reader(cell)
        return self.readers[key]

    def _when(self, name: str, node: Located | None) -> dict[str, tuple[str, ...]]:
        if node is None:
            return {}
        known = {
            matrix.ARCH: matrix.ARCHITECTURES,
            **{each: () for each in matrix.DESCRIBED if each in self.known},
        }
        known |= {axis.name: tuple(axis.values) for axis in self.matrix.axes}
        return matrix.conditions(f"{name}: when", node, known, self.problems)

    def _holds(self, reader: Reader, when: Mapping[str, tuple[str, ...]]) -> bool:
        return all(self._fact(reader, name) in values for name, values in when.items())

    def _fact(self, reader: Reader, name: str) -> str:
        if name == matrix.ARCH and name not in self.matrix.names:
            return self.arch
        try:
            return reader.variables.value(name, self.known[name])
        except variables.Broken:
            return ""  # noted where the variable is declared

    def _fields(self, reader: Reader, raw: cells.Raw, node: Fields) -> Typed:
        spec = self.kinds[raw.kind].Spec
        typed = reader.fields(spec, node, f"{raw.name} ({raw.kind})", also=ALSO_NODE)
        reader.common(NodeHints, node, typed, but=infos(spec))
        return typed

    def _kind(self, name: str, node: Fields) -> str | None:
        found = node.fields.get("kind")
        if found is None:
            self._note(f"{name}: the field 'kind' is missing", "missing-field", node, _known(self.kinds))
        elif not isinstance(found, Text):
            self._note(f"{name}: a kind is one word, not {describe(found)}", "wrong-type", found, "")
        elif found.value not in self.kinds:
            hint = nearest(found.value, self.kinds) if len(self.problems) < variables.MOST_HINTS else ""
            self._note(f"{name}: there is no kind {found.value!r}", "unknown-kind", found, hint)
        else:
            return found.value
        return None

    def _result(self, top: Typed, expansion: cells.Expansion, nodes: list[checks.Node]) -> Recipe:
        return Recipe(
            name=top.spec["name"],
            file=self.file,
            root=str(self.workspace.root),
            vars=self.values,
            nodes=tuple(node.declaration for node in nodes),
            publish=self._publish(top, expansion, nodes),
            epoch=top.spec["epoch"],
            platform=top.spec["platform"],
            files=self.composed.files,
            given=self.given_to_all,
            names=frozenset(self._entries_named()),
            settable=frozenset(self.known) - self.matrix.names,
        )

    def _publish(self, top: Typed, expansion: cells.Expansion, nodes: list[checks.Node]) -> Publish:
        values = top.spec["publish"]
        if values is None:
            return Publish()
        targets, requires = top.refs["publish.targets"], top.refs["publish.requires"]
        found = cells.published(expansion, nodes, targets, requires) if self.matrix.axes else {}
        at = top.places["publish"]
        raise_problems(_clashing_tags(found, at))
        return Publish(
            tuple(each for name in targets for each in expansion.names(name)),
            values["to"],
            tuple(values["tags"]),
            tuple(each for name in requires for each in expansion.names(name)),
            Origin(at.file, at.line, at.column),
            found,
            tuple(values["sbom"]),
            values["provenance"],
            values["sign"],
        )

    def _note(self, message: str, reason: str, at: Located, hint: str) -> None:
        self.problems.append(_error(message, reason, at, hint))


def _once(problems: Sequence[KbuildError]) -> list[KbuildError]:
    """Each problem once, though it was met in several cells."""
    return list({(one.reason, one.message, one.origin): one for one in problems}.values())


def _clashing_tags(found: Mapping[str, PublishedCell], at: Located) -> list[KbuildError]:
    seen: dict[tuple[str, str], str] = {}
    problems: list[KbuildError] = []
    for name, cell in found.items():
        first = seen.setdefault((cell.node, cell.suffix), name)
        if first != name:
            message = f"{first} and {name} would have the same tags, ending in {cell.suffix!r}"
            problems.append(
                _error(message, "matrix-tags", at, "name the values so that they differ joined by -")
            )
    return problems


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cycle collector: it would look again and again through values that all live."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _known(kinds: Mapping[str, Any]) -> str:
    return "known: " + ", ".join(sorted(kinds))


def _error(message: str, reason: str, at: Located, hint: str) -> InputError:
    return InputError(message, reason=reason, hint=hint, origin=at.origin)
