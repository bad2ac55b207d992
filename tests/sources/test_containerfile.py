"""What a Dockerfile names: stages, images, and the paths of its context."""

import pytest

from kairosbuild.core.errors import InputError
from kairosbuild.sources.containerfile import ignored, instructions, matcher, parse

TEXT = """\
# syntax=docker/dockerfile:1
# a comment
ARG VERSION=1.25
ARG EMPTY
FROM --platform=linux/amd64 golang:${VERSION} AS Build
COPY go.mod \\
     # a comment between
     go.sum ./
RUN --mount=type=bind,source=cmd,target=/src make
RUN <<EOF
COPY secret /
EOF
FROM unused AS other
COPY other/ /
FROM base
COPY --from=build /out/app /usr/bin/
COPY --from=tools:1 /x /x
COPY ["with space", "/srv/"]
COPY assets/*.png <<mark /srv/
COPY not read /
mark
"""


def test_the_target_and_what_it_takes_from_count() -> None:
    found = parse(TEXT, {})
    assert [(stage.start, stage.name) for stage in found.stages] == [("golang:1.25", "build"), ("base", "")]
    assert [(one.image, one.line) for one in found.images] == [
        ("golang:1.25", 5),
        ("base", 15),
        ("tools:1", 17),
    ]
    assert found.base() == "base"
    assert found.reads() == ("go.mod", "go.sum", "cmd", "with space", "assets/*.png")
    assert parse(TEXT, {"VERSION": "1.26"}, "BUILD").images[0].image == "golang:1.26"
    assert parse(TEXT, {}, "other").reads() == ("other",)


def test_a_stage_on_a_stage_stands_on_what_that_stands_on() -> None:
    found = parse("FROM a AS one\nFROM one AS two\nFROM two\nCOPY --from=0 x y\n", {})
    assert found.base() == "a" and [one.image for one in found.images] == ["a"]


@pytest.mark.parametrize(
    "line",
    ["COPY $WHAT /", "COPY a ${b}/c /", "RUN --mount=target=/s,source=$X true", "COPY . /", "ADD ./ /"],
)
def test_what_cannot_be_told_is_the_whole_context(line: str) -> None:
    assert parse(f"FROM a\n{line}\n", {}).reads() in (None, (".",))


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("", "dockerfile-syntax", 1),
        ("RUN true\nFROM a\n", "dockerfile-syntax", 1),
        ("FROM a b\n", "dockerfile-syntax", 1),
        ("FROM a\n\n!x\n", "dockerfile-syntax", 3),
        ("FROM a\nADD https://example.org/x /x\n", "dockerfile-remote", 2),
    ],
)
def test_an_error_names_the_line(text: str, reason: str, line: int) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, {}, file="docker/Dockerfile")
    assert caught.value.reason == reason
    assert str(caught.value.origin) == f"docker/Dockerfile:{line}:1"


def test_an_unknown_target_names_those_there_are() -> None:
    with pytest.raises(InputError, match="nothing") as caught:
        parse("FROM a AS one\n", {}, "nothing")
    assert caught.value.reason == "dockerfile-target" and "one" in (caught.value.hint or "")


def test_the_escape_can_be_another_and_then_a_backslash_is_one() -> None:
    found = list(instructions("# escape=`\nFROM a\nCOPY a `\n  b\nRUN dir c:\\\n"))
    assert [(one.word, one.rest.split()) for one in found] == [
        ("FROM", ["a"]), ("COPY", ["a", "b"]), ("RUN", ["dir", "c:\\"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("a.log", True), ("sub/a.log", False), ("deep/x/b.tmp", True), ("b.tmp", True), ("node/x/y", True),
        ("node/keep", False), ("kept.log", False), ("README", False),
    ],
)  # fmt: skip
def test_dockerignore_as_docker_has_it(path: str, out: bool) -> None:
    assert ignored("# no\n*.log\n**/*.tmp\n/node/\n!node/keep\n!kept.log\n")(path) is out


def test_of_a_context_only_what_is_named_and_the_folders_on_the_way() -> None:
    wanted = matcher(("a/b", "c*/d", "e?"))
    paths = ["a", "a/b", "a/b/c", "a/x", "cc", "cc/d", "cc/e", "ef", "f"]
    assert [path for path in paths if wanted(path, False)] == ["a/b", "a/b/c", "cc/d", "ef"]
    assert wanted("a", True) and wanted("cc", True) and not wanted("f", True)
