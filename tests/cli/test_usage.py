"""How kbuild is asked, and what it says to who asks wrongly."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from cli_workspace import RECIPE, Workspace

from kairosbuild.cli import given
from kairosbuild.cli.arguments import VERBS
from kairosbuild.cli.main import main
from kairosbuild.cli.parsing import parse
from kairosbuild.cli.verbs.init import _RECIPE
from kairosbuild.core.errors import InputError

ROOT = Path(__file__).parents[2]
NO_JSON = {"boot", "schema", "completion"}  # a console, JSON already, a script


def test_every_verb_with_a_result_tells_it_as_json() -> None:
    having = {verb.name for verb in VERBS if any("--json" in flag.names for flag in verb.flags)}
    assert {verb.name for verb in VERBS} - having == NO_JSON


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_help_has_examples_that_parse(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == main(["help", verb]) == 0
    examples = next(one.examples for one in VERBS if one.name == verb)
    assert examples[0] in capsys.readouterr().out
    for line in examples:
        words = shlex.split(
            line.replace("\\\n", "").removeprefix('eval "$(').removesuffix(')"').partition(" > ")[0]
        )
        assert parse(words[1:]).verb == verb


def test_every_verb_is_in_the_readme() -> None:
    table = (ROOT / "README.md").read_text().partition("## The commands")[2].partition("## ")[0]
    told = {word for cell in re.findall(r"`([^`]+)`", table) for word in re.findall(r"[a-z][a-z-]*", cell)}
    assert {verb.name for verb in VERBS} <= told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rnu r.yaml", "did you mean 'run'?"),
        ("--hlep", "did you mean '--help'?"),
        ("run r.yaml --jsn", "did you mean '--json'?"),
        ("run r.yaml --jso", "did you mean '--json'?"),
        ("run r.yaml -j 0", "-j/--jobs: '0' is no number above 0"),
        ("run r.yaml --progress loud", "--progress: invalid choice: 'loud'"),
        ("check --set", "--set: expected one argument"),
        ("why", "missing: NODE"),
        ("cache stats", "stat|gc|verify: invalid choice: 'stats'"),
        ("push r.yaml a b", "one word too many: b"),
    ],
)
def test_wrong_usage_is_one_error_with_what_would_be_right(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--json"] if " " in line else [line]) == 2
    caught = capsys.readouterr()
    assert caught.err.startswith("error: ") and "  hint: " in caught.err and said in caught.err
    if " " in line:
        assert json.loads(caught.out)["errors"][0]["reason"] == "bad-usage"


@pytest.mark.parametrize("line", ["r.yaml --set a=b n m", "--set a=b r.yaml n m", "r.yaml n m --set=a=b"])
def test_flags_may_stand_anywhere(line: str) -> None:
    found = parse(["run", *line.split()])
    assert (found.recipe, found.nodes, found.set) == ("r.yaml", ["n", "m"], ["a=b"])


def test_the_only_recipe_of_a_workspace_is_meant_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        given.only_recipe()
    assert caught.value.reason == "no-recipe"
    (tmp_path / "BUILD.yaml").write_text("version: 1\nrecipes: [a.yaml, more/*.yaml]\n")
    (tmp_path / "a.yaml").touch()
    (tmp_path / "more").mkdir()
    monkeypatch.chdir(tmp_path / "more")
    assert given.only_recipe() == "../a.yaml"
    (tmp_path / "more/b.yaml").touch()
    with pytest.raises(InputError) as caught:
        given.only_recipe()
    assert (caught.value.reason, caught.value.hint) == ("which-recipe", "name one: ../a.yaml, b.yaml")


def test_check_without_a_name_checks_all_of_the_workspace(workspace: Workspace) -> None:
    (workspace.folder / "BUILD.yaml").write_text("version: 1\nrecipes: [small.yaml, bad*.yaml]\n")
    found = json.loads(workspace.kbuild("check", "--json")[0])["recipes"]
    assert found["small.yaml"]["name"] == "small"
    for name in ("bad1.yaml", "bad2.yaml"):
        (workspace.folder / name).write_text(RECIPE.replace("kind: base", "kind: bas"))
    _, err = workspace.kbuild("check", code=2)
    assert "bad1.yaml:5:17: " in err and "bad2.yaml:5:17: " in err


def test_a_graph_and_a_log_as_json(workspace: Workspace) -> None:
    nodes = json.loads(workspace.kbuild("graph", "small.yaml", "--json")[0])["nodes"]
    assert {"name": "both", "kind": "rule", "needs": ["base", "made", "said"]} in nodes
    (workspace.folder / "loud.yaml").write_text(RECIPE.replace("echo ${word}", "echo ${word} >&2; echo x"))
    workspace.kbuild("run", "loud.yaml", "said")
    found = json.loads(workspace.kbuild("log", "loud.yaml", "said", "--json")[0])
    assert found == {"node": "said", "built": True, "log": "hello\n"}


def test_a_question_without_an_answer_says_so(workspace: Workspace) -> None:
    assert workspace.kbuild("query", "small.yaml", "somepath", "base", "both") == ("", "nothing\n")


def test_init_begins_with_what_the_repository_builds_and_says_what_it_made(workspace: Workspace) -> None:
    first = json.loads(workspace.kbuild("init", "new", "--json")[0])
    assert "BUILD.yaml" in first["made"] and not first["kept"]
    assert json.loads(workspace.kbuild("init", "new", "--json")[0])["kept"] == first["made"]
    assert "sound" in workspace.kbuild("check", "new/recipes/my-os.yaml")[0]
    packages = {
        re.findall("install: .*", text)[0]
        for text in (_RECIPE, (ROOT / "README.md").read_text(), (ROOT / "recipes/debian.yaml").read_text())
    }
    assert len(packages) == 1, packages


def test_a_store_is_not_made_by_looking_at_it(workspace: Workspace) -> None:
    _, err = workspace.kbuild("cache", "stat")
    assert "nothing is stored yet" in err and not (workspace.folder / "cache").exists()


@pytest.mark.parametrize("columns", ["40", "", "wide"])
def test_help_fits_any_terminal(workspace: Workspace, columns: str) -> None:
    out, _ = workspace.kbuild("run", "--help", env={"COLUMNS": columns})
    assert "--cache-from" in out


def test_a_pipe_gets_no_colour(workspace: Workspace) -> None:
    """Though errors go to a terminal."""
    leader, follower = os.openpty()
    try:
        child = workspace.start("check", "small.yaml", stderr=follower, env={"FORCE_COLOR": ""})
        assert child.communicate(timeout=60)[0] == "small.yaml: sound, 5 nodes\n"
    finally:
        os.close(leader)
        os.close(follower)
