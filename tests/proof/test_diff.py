"""`kbuild diff`: trees by what is in them, recipes against what is published, and files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from boot_samples import disk, kernel_image
from cli_workspace import Workspace
from layer_samples import layer

from kairosbuild.boot import qcow2
from kairosbuild.core.digest import of_bytes
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.proof.diff import Changed, Difference, Side, difference
from kairosbuild.proof.view import Layer, View
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.target import INDEX, MANIFEST, TITLE, Manifest, Target
from kairosbuild.sources import version

STATUS = "Package: {0}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {1}\n\n"
MODULES = "usr/lib/modules"


def compared(a: Side, b: Side) -> Difference:
    return difference(a, b, lambda _, one, other: version.compare(one, other))


def side(folder: Path, *layers: Layer, **more) -> Side:  # type: ignore[no-untyped-def]
    rows = tuple((one.node, one.digest, one.size) for one in layers)
    return Side("x", View(layers), rows, **more)


def status(**versions: str) -> str:
    return "".join(STATUS.format(name, one) for name, one in versions.items())


def test_packages_kernel_modules_and_command_line(tmp_path: Path) -> None:
    old = layer(tmp_path, "base", {
        "var/lib/dpkg/status": status(same="1", up="1.9", down="2", gone="3"),
        f"{MODULES}/6.1/vmlinuz": b"k", f"{MODULES}/6.1/kernel/old.ko.xz": b"", f"{MODULES}/6.1/kernel/kept.ko": b"",
    })  # fmt: skip
    new = layer(tmp_path, "base", {
        "var/lib/dpkg/status": status(same="1", up="1.10", down="2~rc1", new="4"),
        f"{MODULES}/6.12/vmlinuz": b"k", f"{MODULES}/6.12/kernel/kept.ko.zst": b"", f"{MODULES}/6.12/kernel/new.ko.zst": b"",
    })  # fmt: skip
    found = compared(side(tmp_path, old, cmdline="quiet a=1"), side(tmp_path, new, cmdline="a=2 quiet"))
    assert (found.packages.added, found.packages.removed) == ({"new": "4"}, {"gone": "3"})
    assert found.packages.changed == (
        Changed("down", "2", "2~rc1", "down"),
        Changed("up", "1.9", "1.10", "up"),
    )
    assert (set(found.kernels.added), set(found.kernels.removed)) == ({"6.12"}, {"6.1"})
    assert (set(found.modules.added), set(found.modules.removed)) == ({"new"}, {"old"})
    assert (set(found.cmdline.added), set(found.cmdline.removed)) == ({"a=2"}, {"a=1"})
    assert not compared(
        side(tmp_path, old, cmdline="x"), side(tmp_path, old)
    ).cmdline  # unknown is no difference
    json.dumps(found.json())


def test_files_by_content_mode_and_type(tmp_path: Path) -> None:
    old = layer(
        tmp_path,
        "a",
        {"same": "x", "content": "one", "size": "1", "type": "t", "gone": "12345"},
        {"link": "one"},
    )
    new = layer(
        tmp_path,
        "b",
        {"same": "x", "content": "two", "size": "22", "type/file": "t", "come": ""},
        {"link": "two"},
    )
    found = compared(side(tmp_path, old), side(tmp_path, new)).files
    assert found.added == {"come": 0, "type/file": 1}
    assert found.removed == {"gone": 5}
    assert found.changed == (
        Changed("content", 3, 3, "content"), Changed("link", 0, 0, "target"),
        Changed("size", 1, 2, "content"), Changed("type", 1, 0, "file → dir"),
    )  # fmt: skip
    assert compared(side(tmp_path, old), side(tmp_path, old)).equal


def test_a_mode_and_an_owner(tmp_path: Path) -> None:
    import io

    from kairosbuild.oci.layer import write_layer

    made = []
    for number, entry in enumerate((Entry("f", "file", 0o644, 0, 0), Entry("f", "file", 0o755, 7, 0))):
        out = io.BytesIO()
        index = Index.loads(write_layer([(entry, b"")], out, number))
        tar = tmp_path / f"{number}.tar"
        tar.write_bytes(out.getvalue())
        made.append(Layer("x", f"sha256:{number}", 0, tar, index))
    (changed,) = compared(side(tmp_path, made[0]), side(tmp_path, made[1])).files.changed
    assert changed.how == "mode, owner"


def test_what_is_fetched_is_what_is_lacking(tmp_path: Path) -> None:
    base = layer(tmp_path, "base", {"a": "x" * 5000})
    one, two = layer(tmp_path, "site", {"b": "1"}), layer(tmp_path, "site", {"b": "2"})
    found = compared(side(tmp_path, base, one), side(tmp_path, base, two, files={"disk": ("sha256:d", 7)}))
    assert found.fetch == two.size + 7
    assert [one.name for one in found.layers.changed] == ["site"]
    assert found.artifacts.added == {"disk": 7}


def test_of_what_comes_in_pieces_only_those_lacking_are_fetched(tmp_path: Path) -> None:
    old, new = layer(tmp_path, "site", {"b": "1"}), layer(tmp_path, "site", {"b": "2"})
    pieces = {"x": 700, "y": 200}
    a = side(
        tmp_path, old, files={"d": ("sha256:1", 1000)}, pieces={"sha256:1": pieces, old.digest: {"f": 9}}
    )
    b = side(tmp_path, new, files={"d": ("sha256:2", 1010)}, pieces={"sha256:2": {"x": 700, "z": 210}})
    assert compared(a, b).fetch == new.size + 310  # a part of the file; the layer is had whole only
    assert compared(a, side(tmp_path, old, files={"d": ("sha256:2", 1010)})).fetch == 1010  # nobody listed it


# -- as a command ----------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "work").mkdir()
    return Workspace(tmp_path / "work")


def test_a_recipe_against_what_is_published(workspace: Workspace, place: str) -> None:
    workspace.kbuild("run", "image.yaml", "--push", place)
    out, _ = workspace.kbuild("diff", f"{place}:latest", "image.yaml")
    assert out == "nothing differs\n"
    workspace.edit("something longer")
    found = json.loads(workspace.kbuild("diff", f"{place}:latest", "image.yaml", "--json", code=1)[0])
    assert [one["name"] for one in found["files"]["changed"]] == ["etc/motd"]
    assert [one["name"] for one in found["layers"]["changed"]] == ["site"]
    assert 0 < found["fetch"] < 10_000
    assert not found["files"]["added"] and not found["files"]["removed"]
    out, _ = workspace.kbuild(
        "diff", "image.yaml", f"{place}:latest", code=1, env={"FORCE_COLOR": "1", "NO_COLOR": "1"}
    )
    assert "~ etc/motd  17 bytes → 4 bytes  content" in out
    assert "\x1b" not in out
    out, _ = workspace.kbuild("diff", "image.yaml", f"{place}:latest", code=1, env={"FORCE_COLOR": "1"})
    assert "\x1b[" in out


def test_layers_in_pieces_and_platforms(workspace: Workspace, place: str) -> None:
    """zstd:chunked layers count by the files that are lacking; an index is compared on each platform."""
    recipe = workspace.folder / "image.yaml"
    recipe.write_text(recipe.read_text().replace("site]}", 'site], compression: "zstd:chunked"}'))
    (workspace.folder / "site/big").write_bytes(os.urandom(1 << 20))
    for tag in ("one", "two"):
        workspace.edit(tag)
        workspace.kbuild("run", "image.yaml", "--push", f"{place}:{tag}")
        workspace.kbuild("registry", "index", f"{place}:all-{tag}", f"{place}:{tag}")
    found = json.loads(workspace.kbuild("diff", f"{place}:one", f"{place}:two", "--json", code=1)[0])
    assert 0 < found["fetch"] < 20_000
    assert found["layers"]["changed"][0]["after"] > 1 << 20
    for b in (f"{place}:all-two", f"{place}:two", "image.yaml"):
        told = json.loads(workspace.kbuild("diff", f"{place}:all-one", b, "--json", code=1)[0])
        assert told["layers"] == found["layers"], b
    target, _ = Registries().open(place)
    index = json.loads(target.get_manifest("all-two").data)
    index["manifests"][0]["platform"]["architecture"] = "arm64"
    other = Manifest(INDEX, json.dumps(index).encode())
    target.put_manifest(other)
    target.tag({"other": other})
    out, _ = workspace.kbuild("diff", f"{place}:all-one", f"{place}:other", code=1)
    assert out == "- linux/amd64\n+ linux/arm64\n"


def published(target: Target, tag: str, title: str, data: bytes) -> None:
    """An artifact of one file."""
    row = {"mediaType": "x/y", **of_bytes(data).json(), "annotations": {TITLE: title}}
    document = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.kairosbuild.x.v1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", **of_bytes(b"{}").json()}, "layers": [row],
    }  # fmt: skip
    for blob in (data, b"{}"):
        target.put_blob(of_bytes(blob), lambda blob=blob: io.BytesIO(blob))
    manifest = Manifest(MANIFEST, json.dumps(document).encode())
    target.put_manifest(manifest)
    target.tag({tag: manifest})


def told(folder: Path, a: object, b: object) -> tuple[list[str], list[str]]:
    """The words of the command line that came, and that went."""
    command = [sys.executable, "-m", "kairosbuild", "diff", str(a), str(b), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["cmdline"]
    return list(found["added"]), list(found["removed"])


def test_netboot_has_its_command_line_in_its_script(place: str, tmp_path: Path) -> None:
    target, _ = Registries().open(place)
    for tag, words in (("a", "quiet console=ttyS0"), ("b", "console=ttyS0 ro")):
        script = f"#!ipxe\nkernel os.linux initrd=os.initrd {words}\ninitrd os.initrd\nboot\n"
        published(target, tag, "os.ipxe", script.encode())
    assert told(tmp_path, f"{place}:a", f"{place}:b") == (["ro"], ["quiet"])


def test_a_disk_has_its_command_line_inside_published_or_as_a_file(place: str, tmp_path: Path) -> None:
    target, _ = Registries().open(place)
    for tag, words in (("a", "quiet console=ttyS0"), ("b", "console=ttyS0 ro")):
        with (tmp_path / f"{tag}.qcow2").open("wb") as out:
            qcow2.write(disk({"EFI/Linux/os-1+3.efi": kernel_image(words)}), out.write)
        published(target, tag, "os.qcow2", (tmp_path / f"{tag}.qcow2").read_bytes())
    assert told(tmp_path, f"{place}:a", f"{place}:b") == (["ro"], ["quiet"])
    assert told(tmp_path, "a.qcow2", "b.qcow2") == (["ro"], ["quiet"])
    assert told(tmp_path, "b.qcow2", f"{place}:a") == (["quiet"], ["ro"])


def test_tars_and_other_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc/x").write_text(name)
        subprocess.run(["tar", "-czf", f"{name}.tar.gz", "-C", name, "etc"], cwd=tmp_path, check=True)
        (tmp_path / f"{name}.img").write_text(name)
    for kind, expected in (("tar.gz", "~ etc/x"), ("img", "~ file")):
        command = [sys.executable, "-m", "kairosbuild", "diff", f"a.{kind}", f"b.{kind}"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), check=False
        )
        assert done.returncode == 1, done.stderr
        assert expected in done.stdout
    command = [sys.executable, "-m", "kairosbuild", "diff", "a.img", "no-such-thing", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["errors"][0]["reason"] == "bad-reference"
    command[-2] = "./no-such-thing"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["errors"][0]["reason"] == "no-such-file"
