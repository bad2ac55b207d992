"""What goes into an initrd: archive, modules in their order, programs with their libraries."""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path

import pytest
from boot_samples import module, object_file
from peers import peer

from kairosbuild.boot import cpio, elf, initrd, modules
from kairosbuild.boot.files import Files
from kairosbuild.core.errors import KbuildError
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import write_layer


def closure(tree: dict[str, bytes], *wanted: str, builtin: tuple[str, ...] = ()) -> list[modules.Module]:
    paths = {name: f"kernel/{name}.ko.xz" for name in tree}
    packed = {paths[name]: lzma.compress(content) for name, content in tree.items()}
    return modules.closure(wanted, paths, frozenset(builtin), packed.__getitem__)


def test_modules_come_after_what_they_need():
    tree = {"a": module(depends="b,c"), "b": module(depends="d"), "c": module(depends="d"), "d": module()}
    assert [one.name for one in closure(tree, "a")] == ["d", "b", "c", "a"]


def test_soft_dependencies_count_where_they_exist():
    tree = {"fs": module(softdep="pre: crc there-not post: later"), "crc": module(), "later": module()}
    assert [one.name for one in closure(tree, "fs")] == ["crc", "fs"]


def test_dashes_are_underscores_and_builtin_needs_no_file():
    tree = {"dm_verity": module(depends="dm-bufio,dm-mod"), "dm_bufio": module()}
    assert [one.name for one in closure(tree, "dm-verity", builtin=("dm_mod",))] == ["dm_bufio", "dm_verity"]


def test_a_module_that_is_wanted_may_lack_but_not_one_that_is_needed():
    assert closure({}, "nvme") == []
    with pytest.raises(KbuildError) as caught:
        closure({"a": module(depends="gone")}, "a")
    assert caught.value.reason == "missing-module"


def test_a_circle_of_modules_ends():
    tree = {"a": module(softdep="pre: b"), "b": module(softdep="pre: a")}
    assert {one.name for one in closure(tree, "a")} == {"a", "b"}


def test_depmod_says_what_modprobe_needs():
    tree = {"a": module(depends="b", aliases=("pci:v1*", "scsi:*")), "b": module(depends="c"), "c": module()}
    texts = modules.depmod(closure(tree, "a"), frozenset({"ext4"}))
    assert "a.ko: b.ko c.ko\n" in texts["modules.dep"]
    assert texts["modules.alias"] == "alias pci:v1* a\nalias scsi:* a\n"
    assert texts["modules.builtin"] == "ext4.ko\n"


@pytest.mark.parametrize("cut", [0, 3, 60, 70, 200])
def test_a_broken_elf_file_is_an_error(cut):
    with pytest.raises(KbuildError) as caught:
        elf.modinfo(module()[:cut])
    assert caught.value.reason == "bad-elf"


def test_libraries_of_a_real_program_are_found():
    image = Path(os.path.realpath("/bin/ls")).read_bytes()
    assert "libc.so.6" in elf.needed(image)
    assert "ld-linux" in elf.interpreter(image)


def test_cpio_unpacks_to_what_was_packed(tmp_path):
    tree = cpio.Tree({"bin/a": (0o755, b"abc"), "deep/er/b": (0o644, b"")}, {"bin/link": "a"}, ("dev",))
    archive = cpio.pack(tree.members())
    subprocess.run([peer("cpio"), "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/a").read_bytes() == b"abc"
    assert (tmp_path / "bin/a").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "bin/link").readlink() == Path("a")
    assert (tmp_path / "deep/er/b").read_bytes() == b""
    assert (tmp_path / "dev").is_dir()


def test_cpio_has_folders_before_what_is_in_them():
    names = [name for name, _, _ in cpio.Tree({"a/b/c": (0o644, b""), "a.b": (0o644, b"")}, {}).members()]
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")


def test_the_script_has_only_applets_that_the_initrd_holds(tmp_path):
    script = initrd.script().decode()
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    for word in ("findfs", "losetup", "switch_root", "modprobe", "xargs", "stat", "cmp"):
        assert word in initrd.APPLETS
        assert word in script


def test_the_script_and_the_survey_name_the_same_places():
    from kairosbuild.boot.survey import PLACES

    assert f'PLACES="{" ".join(PLACES)}"' in initrd.script().decode()


KERNEL = {
    "usr/lib/modules/6.1/kernel/nvme.ko": module(depends="nvme-core"),
    "usr/lib/modules/6.1/kernel/nvme-core.ko": module(),
    "usr/lib/modules/6.1/kernel/thing.ko": module(depends="part"),
    "usr/lib/modules/6.1/kernel/part.ko": module(),
    "usr/lib/modules/6.1/modules.builtin": b"kernel/fs/ext4.ko\n",
}


def kernel_files(tmp_path: Path) -> Files:
    tar = tmp_path / "kernel.tar"
    with tar.open("wb") as out:
        entries = [(Entry(path, "file", size=len(data)), data) for path, data in KERNEL.items()]
        index = write_layer(entries, out, 0)
    return Files([(tar, Index.loads(index))])


def programs(path: str) -> bytes:
    return object_file({".text": path.encode()})


def test_modules_files_and_hooks_more(tmp_path):
    more = initrd.More(
        ("thing", "ext4"), ("nvme",), {"etc/thing.conf": (0o600, b"x")}, {"root": [b"echo 1", b"echo 2"]}
    )
    found = initrd.tree(programs, kernel_files(tmp_path), "6.1", more)
    assert found.files["etc/modules"][1] == b"thing\n", "ext4 is built in"
    assert {"thing", "part", "nvme", "nvme_core"} == {
        name.split("/")[-1].removesuffix(".ko") for name in found.files if name.endswith(".ko")
    }
    assert found.files["etc/thing.conf"] == (0o600, b"x")
    assert found.files["hooks/root/01"] == (0o755, b"echo 2")
    assert more.json() != initrd.More().json()


def test_an_initrd_that_encrypts_has_what_opens_it(tmp_path):
    opener = initrd.More(encryption=programs)
    found, plain = (initrd.tree(programs, kernel_files(tmp_path), "6.1", m) for m in (opener, initrd.More()))
    more = set(found.files) - set(plain.files)
    assert {"bin/encrypted", "bin/cryptsetup", "bin/systemd-cryptsetup", "lib/libtss2-esys.so.0"} < more
    script = found.files["bin/encrypted"][1]
    assert subprocess.run(["sh", "-n"], input=script, check=False).returncode == 0
    assert opener.json() != initrd.More().json()
    assert set(plain.files) < set(found.files)


def test_a_module_asked_for_by_name_has_to_be_there(tmp_path):
    with pytest.raises(KbuildError) as caught:
        initrd.tree(programs, kernel_files(tmp_path), "6.1", initrd.More(early=("thign",)))
    assert caught.value.reason == "initrd-module"
    assert "thing" in caught.value.hint


def test_what_restarts_a_machine_that_hangs_is_in_the_initrd(tmp_path):
    """By name, for a chipset that says what it has; and never short of a minute."""
    found = initrd.tree(programs, kernel_files(tmp_path), "6.1")
    told = found.files["etc/modprobe.d/kbuild-watchdog.conf"][1].decode().splitlines()
    assert all(line.startswith("options ") and line.endswith("=60") for line in told)
    assert {line.split()[1] for line in told} == set(modules.WATCHDOGS) - {"lpc_ich", "i2c_i801"}
    assert set(modules.WATCHDOGS) < set(modules.BY_DEVICE)


GIVEN = "usr/lib/systemd/systemd usr/lib/systemd/system.conf.d/50-kbuild.conf"


@pytest.mark.parametrize(
    ("there", "stopped"),
    [
        ("", True),
        (GIVEN, False),
        (GIVEN.split()[0], True),
        ("sbin/openrc etc/init.d/kbuild-watchdog", False),
        ("sbin/openrc", True),
    ],
)
def test_a_watchdog_is_given_only_to_an_image_that_feeds_it(tmp_path, there, stopped):
    root, device = tmp_path / "root", tmp_path / "watchdog"
    for name in there.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch(0o755)
    script = initrd.script().decode().replace("/sysroot", str(root))
    functions = script[script.index("alive() {") : script.index("\nwatch_over\n")]
    functions += "\n" + script[script.index("give_watchdog() {") : script.index("\nhook() {")]
    words = f"{functions}\nWATCHDOG=mine\nexec 9> {device}\ngive_watchdog\n! {{ echo x >&9; }} 2>/dev/null"
    subprocess.run(["sh", "-c", words], check=True)
    assert device.read_bytes().endswith(b"V\n") == stopped
