"""kbuild as a person or a CI job uses it: real processes, the real sandbox."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from cli_workspace import Workspace

from benchmarks.grid import host_tar

ALL = 5
MARK = os.getpid()  # other suites may run on this machine


def test_the_second_run_does_nothing_and_a_changed_file_rebuilds_what_it_must(workspace: Workspace) -> None:
    assert workspace.run()["built"] == ALL
    again = workspace.run()
    assert (again["built"], again["unchanged"]) == (0, ALL)
    workspace.edit("two")
    changed = workspace.run()
    assert (changed["built"], changed["unchanged"]) == (3, ALL - 3)  # site, made, both


def test_early_cutoff_stops_the_wave(workspace: Workspace) -> None:
    workspace.run()
    recipe = workspace.folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("echo ${word}", "printf 'hello\\\\n'"))
    after = workspace.run()
    assert after["built"] == 1, "the same bytes by another way are the same to whoever needs them"


def test_plan_and_why_tell_before_anything_runs(workspace: Workspace) -> None:
    states = [
        one["state"] for one in json.loads(workspace.kbuild("plan", "small.yaml", "--json")[0])["nodes"]
    ]
    assert set(states) == {"run", "wait"}
    workspace.run()
    assert workspace.kbuild("why", "small.yaml", "site")[0] == "site is up to date\n"
    workspace.edit("two")
    assert "etc/motd" in workspace.kbuild("why", "small.yaml", "site")[0]
    assert workspace.run()["built"] == 3


def test_variables_are_set_from_the_command_line(workspace: Workspace) -> None:
    workspace.kbuild("run", "small.yaml", "--set", "word=bye", "-o", "said=said.txt", "--no-publish")
    assert (workspace.folder / "said.txt").read_text() == "bye\n"
    _, err = workspace.kbuild("run", "small.yaml", "--set", "wrod=bye", code=2)
    assert "word" in err


def test_an_output_of_nothing_is_told_before_anything_is_built(workspace: Workspace) -> None:
    for words in (["-o", "sad=x"], ["site", "-o", "said=x"], ["-o", "sad.o=x"]):
        _, err = workspace.kbuild("run", "small.yaml", *words, code=2)
        assert "no node" in err
    assert workspace.run()["built"] == 5, "nothing was built for those"
    workspace.kbuild("run", "small.yaml", "site", "-o", "said=x", code=2)


def test_a_key_that_is_not_there_is_a_users_mistake(workspace: Workspace) -> None:
    for verb in ("sign", "verify-signature"):
        out, _ = workspace.kbuild(verb, "oci:nothing:latest", "--key", "nowhere.pem", "--json", code=2)
        assert json.loads(out)["errors"][0]["reason"] == "key-unreadable"


def test_a_store_that_no_build_has_made_yet_is_empty(workspace: Workspace) -> None:
    for question in ("stat", "gc", "verify"):
        out, err = workspace.kbuild("cache", question, "--json")
        assert json.loads(out)["blobs"] == 0 and "nothing is stored yet" in err
        workspace.kbuild("cache", question, "--cache-dir", "misspelt", code=2)
    assert not (workspace.folder / "cache").exists()


def test_every_problem_is_told_at_once_with_its_place(workspace: Workspace) -> None:
    (workspace.folder / "bad.yaml").write_text(
        "version: 1\nnodes:\n  a: {kind: overlay, sorce: site}\n  b: {kind: imag, layers: [a]}\n"
    )
    out, err = workspace.kbuild("check", "bad.yaml", "--json", code=2)
    errors = json.loads(out)["errors"]
    assert [(e["origin"]["line"], e["origin"]["column"]) for e in errors] == [(3, 22), (4, 13)]
    assert "bad.yaml:3:22" in err and "did you mean 'source'" in err


def test_a_failed_node_tells_its_log_and_keeps_it_and_the_others_go_on(workspace: Workspace) -> None:
    recipe = workspace.folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("echo ${word} >/out/o", "echo secret-of-the-log; exit 7"))
    _, err = workspace.kbuild("run", "small.yaml", "-k", code=1)
    assert "secret-of-the-log" in err and "small.yaml:8" in err
    assert "secret-of-the-log" in workspace.kbuild("log", "small.yaml", "said")[0]
    assert workspace.run("made", "site")["built"] == 0, "they did not need it and were built"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_every_child_and_leaves_nothing_half_done(
    workspace: Workspace, number: signal.Signals
) -> None:
    recipe = workspace.folder / "small.yaml"
    recipe.write_text(
        recipe.read_text().replace(
            "echo ${word} >/out/o", f"echo x >/out/o; cat /dev/zero /{MARK} >/dev/null"
        )
    )
    child = workspace.start("run", "small.yaml", "--progress=plain")
    deadline = time.monotonic() + 60
    while not _sleeping() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _sleeping()
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == 130
    assert not _sleeping()
    recipe.write_text(recipe.read_text().replace(f"; cat /dev/zero /{MARK} >/dev/null", ""))
    assert workspace.run()["failed"] == {}
    workspace.kbuild("cache", "verify")


def _sleeping() -> bool:
    return any(f"/dev/zero\0/{MARK}".encode() in _words(process) for process in Path("/proc").glob("[0-9]*"))


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_publishing_goes_to_a_layout_once_and_a_dead_registry_ends_with_3(workspace: Workspace) -> None:
    workspace.kbuild("run", "image.yaml")
    again = json.loads(workspace.kbuild("run", "image.yaml", "--json")[0])
    assert (again["built"], again["published"][0]["uploaded"]) == (0, 0)
    began = time.monotonic()
    _, err = workspace.kbuild("run", "image.yaml", "--push", "localhost:9/x/y", code=3)
    assert "localhost:9" in err and time.monotonic() - began < 60
    index = json.loads((workspace.folder / "dist/small/index.json").read_text())
    names = [
        m["annotations"]["org.opencontainers.image.ref.name"]
        for m in index["manifests"]
        if "annotations" in m
    ]
    assert names == ["latest"]
    _, err = workspace.kbuild("pull", "oci:dist/small:latest", code=2)
    assert "no titled files" in err


def test_graph_query_schema_completion_and_init(workspace: Workspace) -> None:
    assert workspace.kbuild("query", "image.yaml", "somepath", "os", "base")[0] == "os → base\n"
    assert workspace.kbuild("query", "image.yaml", "rdeps", "site")[0] == "os\n"
    for form, begin in (("dot", "digraph"), ("mermaid", "flowchart"), ("svg", "<svg")):
        assert workspace.kbuild("graph", "small.yaml", "--format", form)[0].startswith(begin)
    assert json.loads(workspace.kbuild("schema")[0])["$schema"].startswith("https://json-schema.org/")
    for shell in ("bash", "zsh", "fish"):
        assert "--keep-going" in workspace.kbuild("completion", shell)[0].replace("-l keep", "--keep")
    workspace.kbuild("init", "new")
    assert "sound" in workspace.kbuild("check", "new/recipes/my-os.yaml")[0]


def test_events_trace_and_colour(workspace: Workspace) -> None:
    _, err = workspace.kbuild(
        "run", "small.yaml", "--events=e.jsonl", "--trace=t.json", env={"NO_COLOR": "1"}
    )
    assert "\x1b[" not in err
    types = {json.loads(line)["type"] for line in (workspace.folder / "e.jsonl").read_text().splitlines()}
    assert {"run-started", "node-started", "node-finished", "run-finished"} <= types
    spans = json.loads((workspace.folder / "t.json").read_text())["traceEvents"]
    assert {"base", "both"} <= {span["name"] for span in spans}
    assert "\x1b[" in workspace.kbuild("run", "small.yaml", env={"FORCE_COLOR": "1"})[1]


def test_wrong_usage_and_a_missing_recipe_end_with_2(workspace: Workspace) -> None:
    workspace.kbuild("run", code=2)
    workspace.kbuild("run", "none.yaml", code=2)
    workspace.kbuild("query", "small.yaml", "deps", "oss", code=2)


def test_verify_names_the_file_that_differs(workspace: Workspace) -> None:
    assert "equal" in workspace.kbuild("verify", "small.yaml", "both")[0]
    recipe = workspace.folder / "small.yaml"
    clock = "cat /proc/sys/kernel/random/uuid >/usr/unique"
    more = f"  odd: {{kind: run, on: [base], command: {clock}}}\n"
    recipe.write_text(recipe.read_text() + more)
    out, _ = workspace.kbuild("verify", "small.yaml", "odd", code=1)
    assert "odd" in out and "/usr/unique" in out


@pytest.mark.parametrize("libraries", [(), ("libm.so.6",)], ids=["does-not-load", "loads"])
def test_verify_sets_another_clock(workspace: Workspace, libraries: tuple[str, ...]) -> None:
    host_tar(workspace.folder / "base.tar", libraries)
    recipe = workspace.folder / "small.yaml"
    recipe.write_text(
        recipe.read_text() + "  odd: {kind: run, on: [base], command: date +%Y-%m >/usr/month}\n"
    )
    out, _ = workspace.kbuild("verify", "small.yaml", "odd", code=1 if libraries else 0)
    assert ("/usr/month" if libraries else "equal") in out


def test_the_cache_can_be_looked_at_tidied_and_proved(workspace: Workspace) -> None:
    workspace.run()
    assert json.loads(workspace.kbuild("cache", "stat", "--json")[0])["records"] >= ALL
    blob = max(
        (workspace.folder / "cache/v1/blobs").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size
    )
    _flip(blob)
    out, _ = workspace.kbuild("cache", "verify", code=1)
    assert blob.name in out
    assert workspace.run()["failed"] == {}
    workspace.kbuild("cache", "verify")
    workspace.kbuild("cache", "gc", "--keep", "0K", "--now")
    assert json.loads(workspace.kbuild("cache", "stat", "--json")[0])["records"] == 0
    assert workspace.run()["built"] == ALL


def _flip(blob: Path) -> None:
    blob.chmod(0o644)
    with blob.open("r+b") as stream:
        stream.seek(700)
        byte = stream.read(1)
        stream.seek(700)
        stream.write(bytes([byte[0] ^ 1]))


def test_push_says_where_and_is_a_run(workspace: Workspace) -> None:
    out, _ = workspace.kbuild("push", "image.yaml", "oci:elsewhere:v1", "--json")
    assert json.loads(out)["published"][0]["references"] == ["oci:elsewhere:v1"]
    assert (workspace.folder / "elsewhere/oci-layout").exists()


def test_no_verb_shows_the_help_and_a_wrong_one_the_nearest(workspace: Workspace) -> None:
    assert "VERB" in workspace.kbuild(code=2)[1]
    assert "did you mean 'plan'?" in workspace.kbuild("plann", "small.yaml", code=2)[1]
