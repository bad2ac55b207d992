import pytest
from local_archive import Archive
from small_locker import Made

from kairosbuild.core.errors import InputError
from kairosbuild.kinds.tools import PURPOSES, SUITE, SUITES, Tools, ToolsSpec, declaration_for
from kairosbuild.oci.index import Index
from kairosbuild.recipe.instances import typed_spec

SPEC = ToolsSpec(packages=("tool",))


@pytest.fixture
def small(archive: Archive) -> Archive:
    archive.add(
        "tool",
        files={"bin/tool": b"#!/bin/sh\n", "usr/share/doc/tool/copyright": b"c", "etc/tool.conf": b"x"},
        Depends="libtool, debconf",
    )
    archive.add("libtool", files={"lib/libtool.so": b"elf", "var/lib/tool/db": b"db"})
    archive.add("debconf")
    archive.publish()
    return archive


def test_a_tree(small: Archive, locker: Made) -> None:
    made = locker()
    locked = Tools().lock(SPEC, made)
    assert [package["name"] for package in locked.data["packages"]] == ["libtool", "tool"]
    assert all("mirror" not in str(value) and "127" not in str(value) for value in locked.data["packages"])
    outputs = made.build(Tools(), SPEC)
    index = Index.loads(made.path(outputs["index"]).read_bytes())
    files = {path for path in index.paths() if index[path].entry.type == "file"}
    assert files == {"usr/bin/tool", "usr/lib/libtool.so", "etc/tool.conf"}
    assert {index[p].entry.target for p in ("bin", "lib", "sbin", "lib64")} == {
        "usr/bin", "usr/lib", "usr/sbin", "usr/lib64",
    }  # fmt: skip
    assert all((e.entry.uid, e.entry.gid, e.entry.mtime) == (0, 0, 0) for e in index)
    assert {"tmp", "proc", "dev", "in", "out"} <= set(index.paths())


def test_equal_at_any_time(small: Archive, locker: Made) -> None:
    first = locker().build(Tools(), SPEC, epoch=1)
    assert locker().build(Tools(), SPEC, epoch=2_000_000_000) == first


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ToolsSpec(purpose="imaeg"), "tools-purpose"),
        (ToolsSpec(), "tools-empty"),
        (ToolsSpec(packages=("toool",)), "package-unknown"),
    ],
)
def test_bad_specs(small: Archive, locker: Made, spec: ToolsSpec, reason: str) -> None:
    with pytest.raises(InputError) as error:
        Tools().lock(spec, locker())
    assert error.value.reason == reason


@pytest.mark.parametrize("purpose", PURPOSES)
def test_declarations(purpose: str) -> None:
    declared = declaration_for(purpose)
    assert (declared.name, declared.kind) == (f"tools:{purpose}", "tools")
    assert typed_spec(ToolsSpec, declared) == ToolsSpec(
        purpose=purpose, packages=PURPOSES[purpose], suite=SUITES.get(purpose, SUITE)
    )


def test_no_declaration_of_what_is_not_there() -> None:
    with pytest.raises(InputError, match="image"):
        declaration_for("images")
