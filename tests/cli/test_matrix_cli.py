"""A matrix on the command line: cells share what they can, have names that select, and tags that do not collide."""

import json

from cli_workspace import RECIPE, Workspace

MATRIX = """\
matrix:
  word: [hello, bye]
  end: {dot: {mark: "."}, shout: {mark: "!"}}
  exclude: [{word: bye, end: dot}]
"""
NODES = """\
  last:  {kind: overlay, files: {etc/last: {content: "${word}${mark}"}}}
  shout: {kind: overlay, files: {etc/shout: {content: "loud"}}, when: {end: shout}}
  os:    {kind: image, layers: [base, site, last, shout]}
  slim:  {kind: image, layers: [base, site]}
publish: {targets: [os, slim], requires: [said]}
"""
CELLS = ("hello,dot", "hello,shout", "bye,shout")


def recipe(workspace: Workspace) -> None:
    text = RECIPE.replace("vars: {word: hello}\n", MATRIX) + NODES
    (workspace.folder / "small.yaml").write_text(text)


def test_cells_share_and_select_and_publish(workspace: Workspace) -> None:
    plain = RECIPE.replace("vars: {word: hello}", "vars: {word: bye, mark: '!'}") + NODES.replace(
        ", when: {end: shout}", ""
    )
    (workspace.folder / "plain.yaml").write_text(plain.replace("name: small", "name: plain"))
    recipe(workspace)
    planned = json.loads(workspace.kbuild("plan", "small.yaml", "--json")[0])["nodes"]
    names = [one["name"] for one in planned]
    assert [name for name in names if name.startswith(("base", "site", "made"))] == ["base", "site", "made"]
    assert {name for name in names if name.startswith("os")} == {f"os@{cell}" for cell in CELLS}
    assert {name for name in names if name.startswith("said")} == {"said@hello", "said@bye"}

    first = workspace.run("os@bye,shout", "--no-publish")
    assert set(first["nodes"]) >= {"base", "last@bye,shout", "os@bye,shout"} and "made" not in first["nodes"]
    again = workspace.run("os@hello", "--no-publish")
    assert again["built"] == 4 and again["hits"] + again["unchanged"] >= 3, (
        "base, site and shout are there; two last and two os are not"
    )
    workspace.run("said", "-o", "said@bye=said.txt", "--no-publish")
    assert (workspace.folder / "said.txt").read_text() == "bye\n"
    _, err = workspace.kbuild("run", "small.yaml", "said", "-o", "said=x", "--no-publish", code=2)
    assert "said@hello" in err and "said@bye" in err

    other = json.loads(workspace.kbuild("run", "plain.yaml", "os", "--no-publish", "--json")[0])
    for name in ("last", "os"):
        cell = first["nodes"][f"{name}@bye,shout"]
        assert other["nodes"][name]["key"] == cell["key"], "a cell is what it would be without a matrix"
    assert other["built"] == 0

    done = workspace.run()
    tags = [row["references"][0].rpartition(":")[2] for row in done["published"]]
    assert tags == ["latest-hello-dot", "latest-hello-shout", "latest-bye-shout", "latest"]
    index = json.loads((workspace.folder / "dist/small/index.json").read_text())
    digests = {
        m["annotations"]["org.opencontainers.image.ref.name"]: m["digest"]
        for m in index["manifests"]
        if "annotations" in m
    }
    assert len({digests[tag] for tag in tags}) == 4
    some = workspace.run("os@hello,dot", "said@hello")
    assert [row["references"][0].rpartition(":")[2] for row in some["published"]] == ["latest-hello-dot"]
    assert workspace.kbuild("why", "small.yaml", "os@hello,dot")[0] == "os@hello,dot is up to date\n"
    _, err = workspace.kbuild("why", "small.yaml", "os", code=2)
    assert "os@hello,dot" in err
    deps = workspace.kbuild("query", "small.yaml", "deps", "os@hello,dot")[0].split()
    assert "last@hello,dot" in deps and "shout@shout" not in deps
    _, err = workspace.kbuild("run", "small.yaml", "os@helo", code=2)
    assert "os@hello" in err


def test_an_edit_of_one_cell_leaves_the_others_alone(workspace: Workspace) -> None:
    recipe(workspace)
    workspace.run("--no-publish")
    text = (workspace.folder / "small.yaml").read_text()
    (workspace.folder / "small.yaml").write_text(text.replace('shout: {mark: "!"}', 'shout: {mark: "!!"}'))
    after = workspace.run("--no-publish")
    assert after["built"] == 4, "last and os of the two cells that shout"


def test_show_tells_where_values_come_from(workspace: Workspace) -> None:
    recipe(workspace)
    out = workspace.kbuild("show", "small.yaml", "last@bye")[0]
    (line,) = [line for line in out.splitlines() if "etc/last.content" in line]
    assert '"bye!"' in line and "small.yaml:" in line and "word: matrix bye" in line
    document = json.loads(workspace.kbuild("show", "small.yaml", "site", "--json")[0])
    (node,) = document["nodes"]
    (source,) = [value for value in node["fields"] if value["path"] == "source"]
    assert source["value"] == "site" and source["at"]["line"] == 9
