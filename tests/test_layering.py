"""Data flows one way: what each room may import, held against the AST, lazy and type-only imports included."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "kairosbuild"
MAY_IMPORT = {
    "core": set(),
    "recipe": {"core"},
    "oci": {"core"},
    "store": {"core"},
    "sources": {"core", "oci"},
    "boot": {"core", "oci"},
    "kernels": {"core", "oci", "boot"},
    "graph": {"core", "recipe"},
    "families": {"core", "oci", "graph", "sources", "boot", "kernels"},
    "keys": {"core"},
    "artifacts": {"core", "oci", "graph", "recipe", "boot", "families", "keys"},
    "kinds": {
        "core",
        "oci",
        "graph",
        "recipe",
        "sources",
        "boot",
        "kernels",
        "families",
        "artifacts",
        "keys",
        "node",
    },
    "execute": {"core", "graph", "store", "oci", "recipe"},
    "registry": {"core", "oci", "store"},
    "proof": {"core", "oci", "graph", "recipe", "registry", "keys"},
    "node": {"core", "boot"},
    "cli": {"core", "recipe", "oci", "store", "sources", "boot", "kernels", "graph", "artifacts", "kinds"}
    | {"execute", "registry", "proof", "keys"},
}
# A library that only these files may name: each stands behind one door.
ONLY_IN = {
    "networkx": {"graph/dag.py"},
    "diskcache": {"store/disk.py"},
    "tqdm": {"cli/progress.py"},
    "oras": {"registry/logins.py"},
    "cryptography": {"keys/keys.py", "keys/token.py", "keys/certificate.py", "sources/apkindex.py"},
    "nacl": {"keys/cosignkey.py"},
    "pkcs11": {"keys/token.py"},
    "pysequoia": {"sources/openpgp.py"},
    "yaml": {"recipe/located.py", "node/config.py"},
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_essay_has_the_same_table() -> None:
    """docs/architecture.md names each room with what it may import, and the libraries' doors."""
    essay = (ROOT.parent / "docs/architecture.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", essay, re.M))
    assert told.pop("cli").startswith("everything")
    for room, allowed in told.items():
        assert set(re.findall(r"\w+", allowed)) & set(MAY_IMPORT) == MAY_IMPORT[room], room
    assert {*told, "cli"} == set(MAY_IMPORT)
    doors = re.findall(r"`([\w/]+\.py)`", essay.partition("Libraries stand")[2].partition("\n\n")[0])
    assert doors and set(doors) <= set[str]().union(*ONLY_IN.values())


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_only_downwards(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    if room in ("__init__.py", "__main__.py"):
        return
    allowed = MAY_IMPORT[room] | {room}
    rooms = {name.split(".")[1] for name in imported(file) if name.startswith("kairosbuild.")}
    assert rooms & set(MAY_IMPORT) <= allowed, (
        f"{room} may not import {sorted(rooms & set(MAY_IMPORT) - allowed)}"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_libraries_stand_behind_one_door(file: Path) -> None:
    here = file.relative_to(ROOT).as_posix()
    tops = {name.split(".")[0] for name in imported(file)}
    wrong = [library for library, doors in ONLY_IN.items() if library in tops and here not in doors]
    assert not wrong, f"{here} imports {wrong}; only {[ONLY_IN[w] for w in wrong]} may"


def test_kinds_never_import_each_other() -> None:
    for file in (ROOT / "kinds").glob("*.py"):
        others = {n for n in imported(file) if n.startswith("kairosbuild.kinds.")}
        assert file.name == "table.py" or not others, f"{file.name} imports {others}"


def test_init_files_hold_a_docstring_only() -> None:
    for file in ROOT.rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        assert ast.get_docstring(ast.parse(file.read_text())), file
        assert all(isinstance(node, ast.Expr | ast.Assign) for node in body), file


def test_no_module_called_utils() -> None:
    assert not [f for f in FILES if f.stem in {"utils", "util", "helpers", "misc", "common"}]
