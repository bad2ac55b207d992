"""What a Dockerfile names, without building it: its stages, the images they start from, what of the context is read.

Only as much of the language is read as that takes (docs.docker.com/reference/dockerfile): directives, comments,
continued lines, here-documents, JSON arrays, flags, ARG before the first FROM. What the instructions do
is the builder's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kairosbuild.core.errors import InputError, Origin

_WORD = re.compile(r"\s*([A-Za-z]+)(?:\s+(.*))?$", re.DOTALL)
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S+))?\s*")
_HEREDOC = re.compile(r"<<-?([\"']?)([A-Za-z_][A-Za-z0-9_]*)\1")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:[-+])([^}]*))?\})")
_REMOTE = re.compile(r"https?://|git@|git://|ssh://")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word in capitals, its flags, the rest, and the line it begins on."""

    word: str
    flags: tuple[tuple[str, str], ...]
    rest: str
    line: int

    def flag(self, name: str) -> str:
        """A flag's value, or ""."""
        return next((value for key, value in self.flags if key == name), "")

    def words(self) -> list[str]:
        """The arguments, in either of their two forms."""
        if self.rest.startswith("["):
            try:
                return [str(word) for word in json.loads(self.rest.partition("\n")[0])]
            except ValueError:
                pass
        return self.rest.partition("\n")[0].split()


@dataclass
class Stage:
    """A stage: what it starts from, its name, its instructions."""

    start: str
    name: str
    line: int
    body: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Named:
    """An image that a Dockerfile names and no stage of it is."""

    image: str
    line: int


@dataclass(frozen=True, slots=True)
class Containerfile:
    """The stages that the target takes, in their order, as the builder will have them."""

    stages: tuple[Stage, ...]

    @property
    def images(self) -> tuple[Named, ...]:
        """The images outside that these stages name, each once."""
        own = {stage.name for stage in self.stages}
        found: dict[str, Named] = {}
        for stage in self.stages:
            for image, line in [(stage.start, stage.line), *_copied_from(stage)]:
                if image != "scratch" and image.lower() not in own and not image.isdigit():
                    found.setdefault(image, Named(image, line))
        return tuple(found.values())

    def base(self) -> str:
        """What the last stage stands on, stages followed: an image's name, or `scratch`."""
        by_name = {stage.name: stage for stage in self.stages if stage.name}
        stage = self.stages[-1]
        while (below := by_name.get(stage.start.lower())) is not None and below is not stage:
            stage = below
        return stage.start

    def reads(self) -> tuple[str, ...] | None:
        """The patterns of the context's paths that are read; None when that cannot be told: all of them."""
        found: list[str] = []
        for stage in self.stages:
            for one in stage.body:
                paths = _read_by(one)
                if paths is None:
                    return None
                found += paths
        return tuple(dict.fromkeys(path.strip("/").removeprefix("./") or "." for path in found))


def parse(text: str, args: Mapping[str, str], target: str = "", file: str = "Dockerfile") -> Containerfile:
    """Read a Dockerfile. Raises InputError (`dockerfile-syntax`, `dockerfile-target`, `dockerfile-remote`)."""
    stages: list[Stage] = []
    known: dict[str, str] = {}
    for one in instructions(text, file):
        if one.word == "FROM":
            stages.append(_stage(one, known, file))
        elif stages:
            stages[-1].body.append(_checked(one, file))
        elif one.word == "ARG":
            for name, default in _assigned(one.rest):
                known[name] = args.get(name, _filled(default, known))
        else:
            raise _bad(f"{one.word} before the first FROM", one.line, file)
    if not stages:
        raise _bad("there is no FROM", 1, file)
    return Containerfile(tuple(_taken(stages, target, file)))


def instructions(text: str, file: str = "Dockerfile") -> Iterator[Instruction]:
    """The instructions in their order."""
    escape = "`" if re.match(r"(#[^\n]*\n)*#\s*escape\s*=\s*`", text, re.IGNORECASE) else "\\"
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        first, logical, more = at + 1, "", True
        while more and at < len(lines):
            line = lines[at]
            at += 1
            if line.lstrip().startswith("#") or (not line.strip() and logical):
                continue  # comments and empty lines also stand between continued ones
            more = line.rstrip().endswith(escape)
            logical += line.rstrip()[:-1] + " " if more else line
            if not logical.strip():
                break
        if not logical.strip():
            continue
        documents = []
        if logical.split(None, 1)[0].upper() in ("RUN", "COPY", "ADD"):
            for _, mark in _HEREDOC.findall(logical):
                while at < len(lines) and lines[at].strip("\t") != mark:
                    documents.append(lines[at])
                    at += 1
                at += 1
        yield _instruction("\n".join([logical.strip(), *documents]), first, file)


def ignored(text: str) -> Callable[[str], bool]:
    """Whether a .dockerignore leaves a path out: the last pattern that matches it or a folder above it counts."""
    rules = []
    for line in text.splitlines():
        pattern = line.strip()
        if not pattern or line.startswith("#"):
            continue
        kept = pattern.startswith("!")
        pattern = pattern.lstrip("!").strip().strip("/").removeprefix("./")
        if pattern:
            rules.append((kept, re.compile(glob(pattern) + "(?:/.*)?", re.DOTALL)))

    def left_out(path: str) -> bool:
        found = False
        for kept, rule in rules:
            if rule.fullmatch(path):
                found = not kept
        return found

    return left_out


def glob(pattern: str) -> str:
    """The regular expression of a pattern as Go's filepath.Match has it, with `**` for any folders."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\]|\\.)", pattern)
    return "".join(
        parts.get(part)
        or (part if part.startswith("[") else re.escape(part[1:] if part[:1] == "\\" else part))
        for part in found
    )


def _instruction(text: str, line: int, file: str) -> Instruction:
    match = _WORD.match(text)
    if match is None:
        raise _bad(f"{text[:40]!r} is no instruction", line, file)
    rest, flags = (match[2] or "").lstrip(), []
    while found := _FLAG.match(rest):
        flags.append((found[1], found[2] or ""))
        rest = rest[found.end() :]
    return Instruction(match[1].upper(), tuple(flags), rest, line)


def _stage(one: Instruction, known: Mapping[str, str], file: str) -> Stage:
    words = _filled(one.rest, known).split()
    if len(words) == 3 and words[1].lower() == "as":
        return Stage(words[0], words[2].lower(), one.line)
    if len(words) != 1:
        raise _bad("FROM takes an image, or an image AS name", one.line, file)
    return Stage(words[0], "", one.line)


def _checked(one: Instruction, file: str) -> Instruction:
    if one.word == "ADD" and any(map(_REMOTE.match, one.words()[:-1])):
        raise InputError(
            "a build step has no network: ADD cannot fetch",
            reason="dockerfile-remote",
            hint="fetch it with a node of kind fetch, or put it into the context",
            origin=Origin(file, one.line, 1),
        )
    return one


def _taken(stages: Sequence[Stage], target: str, file: str) -> list[Stage]:
    """The target and the stages it takes from."""
    by_name = {stage.name: number for number, stage in enumerate(stages) if stage.name}
    if target and target.lower() not in by_name:
        raise InputError(
            f"there is no stage {target!r}",
            reason="dockerfile-target",
            hint="there is " + ", ".join(by_name) if by_name else "no stage has a name",
            origin=Origin(file, stages[0].line, 1),
        )
    todo = [by_name[target.lower()] if target else len(stages) - 1]
    found: set[int] = set()
    while todo:
        number = todo.pop()
        found.add(number)
        stage = stages[number]
        for name in (stage.start, *(image for image, _ in _copied_from(stage))):
            earlier = int(name) if name.isdigit() else by_name.get(name.lower(), len(stages))
            if earlier < number and earlier not in found:
                todo.append(earlier)
    return [stages[number] for number in sorted(found)]


def _copied_from(stage: Stage) -> list[tuple[str, int]]:
    found = []
    for one in stage.body:
        if one.word in ("COPY", "ADD") and one.flag("from"):
            found.append((one.flag("from"), one.line))
        for mount in _mounts(one):
            if mount.get("from"):
                found.append((mount["from"], one.line))
    return found


def _mounts(one: Instruction) -> list[dict[str, str]]:
    if one.word != "RUN":
        return []
    values = (value for key, value in one.flags if key == "mount")
    return [{k: v for k, _, v in (pair.partition("=") for pair in value.split(","))} for value in values]


def _read_by(one: Instruction) -> list[str] | None:
    if one.word in ("COPY", "ADD") and not one.flag("from"):
        words = [word for word in one.words()[:-1] if not word.startswith("<<")]
        return None if any("$" in word for word in words) else words
    found = []
    for mount in _mounts(one):
        if mount.get("type", "bind") == "bind" and not mount.get("from"):
            source = mount.get("source") or mount.get("src") or "."
            if "$" in source:
                return None
            found.append(source)
    return found


def _assigned(rest: str) -> Iterator[tuple[str, str]]:
    for word in rest.split():
        name, _, default = word.partition("=")
        yield name, default.strip("\"'")


def _filled(text: str, known: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        has = known.get(match[1] or match[2], "")
        if match[3] == ":-":
            return has or match[4]
        return (match[4] if has else "") if match[3] == ":+" else has

    return _VARIABLE.sub(value, text)


def _bad(what: str, line: int, file: str) -> InputError:
    return InputError(
        f"the Dockerfile cannot be read: {what}", reason="dockerfile-syntax", origin=Origin(file, line, 1)
    )


def matcher(patterns: Iterable[str]) -> Callable[[str, bool], bool]:
    """Whether a path of the context is read by one of these patterns, or is a folder on the way to one that is."""
    rules = [re.compile(".*" if one == "." else glob(one) + "(?:/.*)?", re.DOTALL) for one in patterns]
    fixed = [re.split(r"[*?\[\\]", one)[0] for one in patterns]

    def wanted(path: str, folder: bool) -> bool:
        if any(rule.fullmatch(path) for rule in rules):
            return True
        return folder and any(start.startswith(path + "/") or path.startswith(start) for start in fixed)

    return wanted
