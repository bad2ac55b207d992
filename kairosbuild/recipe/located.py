"""YAML as values that know their place: text, lists and mappings, and nothing a parser made up.

Every scalar stays the text that was written (`6.10`, `no`, `0755`), with a note whether it was
quoted. Tags, several documents, merge keys and keys that are no text are errors; anchors are read,
within limits that a small file cannot outgrow. No Python object is ever constructed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from yaml._yaml import CParser

from kairosbuild.core.errors import InputError, KbuildError, Origin, raise_problems

MOST_BYTES = 32 << 20
MOST_VALUES = 2_000_000
MOST_ALIASED = 200_000  # values that aliases repeat, and that a reader would visit again
MOST_DEPTH = 64

_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


class Located:
    """A value and where it starts."""

    __slots__ = ("column", "file", "line")

    def __init__(self, file: str, line: int, column: int) -> None:
        self.file, self.line, self.column = file, line, column

    @property
    def origin(self) -> Origin:
        """The place of this value."""
        return Origin(self.file, self.line, self.column)


class Text(Located):
    """A scalar as written; `plain` when it was neither quoted nor a block."""

    __slots__ = ("plain", "value")

    def __init__(self, file: str, line: int, column: int, value: str, plain: bool) -> None:
        self.file, self.line, self.column = file, line, column
        self.value, self.plain = value, plain

    @property
    def null(self) -> bool:
        """Whether YAML reads this as no value at all."""
        return self.plain and self.value in _NULLS


class Items(Located):
    """A list."""

    __slots__ = ("items",)

    def __init__(self, file: str, line: int, column: int) -> None:
        self.file, self.line, self.column = file, line, column
        self.items: list[Located] = []


class Fields(Located):
    """A mapping in the order written, with its keys as `Text`."""

    __slots__ = ("fields", "keys")

    def __init__(self, file: str, line: int, column: int) -> None:
        self.file, self.line, self.column = file, line, column
        self.fields: dict[str, Located] = {}
        self.keys: dict[str, Text] = {}


def describe(value: Located) -> str:
    """What this is, for an error message."""
    if isinstance(value, Text):
        return "empty" if value.null else f"the text {_short(value.value)!r}"
    return "a list" if isinstance(value, Items) else "a mapping"


def read(data: bytes, file: str, problems: list[KbuildError] | None = None) -> Located:
    """The one value of this document. Raises InputError, or Problems, with places in `file`.

    What does not hinder reading (a key that stands twice, a tag) is added to `problems`, if given, to be told
    with all others.
    """
    text = _decode(data, file)
    parser = CParser(text)
    reader = _Reader(file)
    try:
        root = reader.run(iter(parser.get_event, None))
    except yaml.YAMLError as error:
        raise_problems([*reader.problems, _syntax(error, file, text)])
    finally:
        parser.dispose()
    if problems is None:
        raise_problems(reader.problems)
    else:
        problems += reader.problems
    if root is None:
        raise _error("the file is empty", "yaml-empty", Origin(file, 1, 1))
    return root


class _Reader:
    """Builds located values from events, without recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[KbuildError] = []
        self.root: Located | None = None
        self.stack: list[tuple[Items | Fields, str | None, int]] = []  # container, anchor, count before it
        self.keys: list[Text | None] = []  # the key that waits, by level
        self.anchors: dict[str, tuple[Located, int]] = {}
        self.count = 0
        self.aliased = 0
        self.documents = 0
        self.handlers: dict[type, Callable[[Any], None]] = {
            yaml.ScalarEvent: self.scalar,
            yaml.MappingStartEvent: self.mapping,
            yaml.SequenceStartEvent: self.sequence,
            yaml.MappingEndEvent: self.end,
            yaml.SequenceEndEvent: self.end,
            yaml.AliasEvent: self.alias,
            yaml.DocumentStartEvent: self.document,
        }

    def run(self, events: Iterator[Any]) -> Located | None:
        handlers = self.handlers
        for event in events:
            handler = handlers.get(event.__class__)
            if handler is not None:
                handler(event)
        return self.root

    def document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self.fatal("a second document starts here", "yaml-documents", event, "a file has one")

    def scalar(self, event: Any) -> None:
        mark = event.start_mark
        text = Text(self.file, mark.line + 1, mark.column + 1, event.value, not event.style)
        if event.tag is not None:
            self.complain("tags have no meaning here", "yaml-tag", text, f"leave out {event.tag}")
        if "\0" in event.value:
            self.complain("text cannot hold a NUL character", "yaml-character", text, "")
        if event.anchor is not None:
            self.anchors[event.anchor] = (text, 1)
        self.add(text, 1)

    def mapping(self, event: Any) -> None:
        mark = event.start_mark
        self.start(Fields(self.file, mark.line + 1, mark.column + 1), event)

    def sequence(self, event: Any) -> None:
        mark = event.start_mark
        self.start(Items(self.file, mark.line + 1, mark.column + 1), event)

    def start(self, container: Items | Fields, event: Any) -> None:
        if event.tag is not None:
            self.complain("tags have no meaning here", "yaml-tag", container, f"leave out {event.tag}")
        if len(self.stack) >= MOST_DEPTH:
            raise self.fatal("nested too deeply", "yaml-limit", event, f"at most {MOST_DEPTH} levels")
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
        before = self.count
        self.add(container, 1)
        self.stack.append((container, event.anchor, before))
        self.keys.append(None)

    def end(self, event: Any) -> None:
        container, anchor, before = self.stack.pop()
        self.keys.pop()
        if anchor is not None:
            self.anchors[anchor] = (container, self.count - before)

    def alias(self, event: Any) -> None:
        found = self.anchors.get(event.anchor)
        if found is None:
            raise self.fatal(
                f"no anchor {event.anchor!r} ends before this",
                "yaml-alias",
                event,
                "an anchor stands before its aliases and never around them",
            )
        if self.stack and isinstance(self.stack[-1][0], Fields) and self.keys[-1] is None:
            raise self.fatal("an alias cannot be a key", "yaml-key", event, "")
        self.aliased += found[1]
        if self.aliased > MOST_ALIASED:
            raise self.fatal("aliases repeat too much", "yaml-limit", event, f"at most {MOST_ALIASED} values")
        self.add(*found)

    def add(self, value: Located, weight: int) -> None:
        self.count += weight
        if self.count > MOST_VALUES:
            raise _error(f"more than {MOST_VALUES} values", "yaml-limit", value.origin)
        if not self.stack:
            self.root = value
            return
        container = self.stack[-1][0]
        if container.__class__ is Items:
            container.items.append(value)
        elif (key := self.keys[-1]) is None:
            self.keys[-1] = self.key(value)
        else:
            self.keys[-1] = None
            self.put(container, key, value)  # type: ignore[arg-type]

    def key(self, value: Located) -> Text:
        if not isinstance(value, Text):
            raise _error(f"a key is text, not {describe(value)}", "yaml-key", value.origin)
        return value

    def put(self, container: Fields, key: Text, value: Located) -> None:
        name = key.value
        if key.null:
            self.complain("a key is text, not empty", "yaml-key", key, "quote it if it is meant")
            return
        if key.plain and name == "<<":
            self.complain("merge keys are not read", "yaml-key", key, "write the fields out")
            return
        if name in container.fields:
            first = container.keys[name]
            self.complain(
                f"{_short(name)!r} stands twice in one mapping",
                "duplicate-key",
                key,
                f"first at line {first.line}, column {first.column}",
            )
            return
        container.fields[name] = value
        container.keys[name] = key

    def complain(self, message: str, reason: str, at: Located, hint: str) -> None:
        if len(self.problems) < 1000:
            self.problems.append(InputError(message, reason=reason, hint=hint, origin=at.origin))

    def fatal(self, message: str, reason: str, event: Any, hint: str) -> InputError:
        mark = event.start_mark
        return _error(message, reason, Origin(self.file, mark.line + 1, mark.column + 1), hint)


def _decode(data: bytes, file: str) -> str:
    if len(data) > MOST_BYTES:
        raise _error(f"larger than {MOST_BYTES >> 20} MiB", "yaml-limit", Origin(file, 1, 1))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(data[: error.start].decode("utf-8-sig", "replace"), file)
        raise _error("not UTF-8", "yaml-encoding", place, "save the file as UTF-8") from None
    if odd := _ODD.search(text):
        code = f"U+{ord(odd.group()):04X}"
        raise _error(f"the control character {code}", "yaml-character", _place(text[: odd.start()], file))
    return text


def _place(before: str, file: str) -> Origin:
    return Origin(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _syntax(error: yaml.YAMLError, file: str, text: str) -> InputError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = Origin(file, mark.line + 1, mark.column + 1) if mark else Origin(file, 1, 1)
    message = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    hint = getattr(error, "context", None) or ""
    if mark and text[mark.index : mark.index + 1] == "\t":
        message, hint = "a tab where YAML wants spaces", "indent with spaces"
    return _error(message, "yaml-syntax", place, hint)


def _error(message: str, reason: str, origin: Origin, hint: str = "") -> InputError:
    return InputError(message, reason=reason, hint=hint, origin=origin)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"
