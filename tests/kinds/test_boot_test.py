"""Kind boot-test: what is a pass, what is said of a failure. The machine is played; see test_boot_debian."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_task import BootTask
from peers import peer

from kairosbuild.artifacts.document import File, document
from kairosbuild.boot import gce, inside, qemu
from kairosbuild.boot.sparse import Sparse
from kairosbuild.core.canonical import loads
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.kinds.boot_test import BootTest, BootTestSpec, CommandSpec
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import infos
from kairosbuild.store.store import Store

CONSOLE = (
    b"\x1b[0m[ 0.0] Linux version 6.12.1 (x)\r\n"
    b"[\x1b[32m  OK  \x1b[0m] Reached target \x1b[1mmulti-user.target\x1b[0m\r\n"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def build(
    store: Store,
    verdict: str,
    console: bytes,
    *,
    guest: bytes = b"answer failed 0 \nend\n",
    what: str = "disk",
    files: tuple[tuple[str, str], ...] = (("os.qcow2", "disk.qcow2"),),
    annotations: Mapping[str, str] | None = None,
    content: bytes = b"a disk",
    **spec: Any,
) -> tuple[Outputs, BootTask]:
    def play(action: Action) -> Mapping[str, bytes]:
        return {"verdict": verdict.encode() + b"\n", "serial": console, "guest": guest, "screen": b"PNG"}

    blob = store.cas.put_bytes(content)
    made = document(what, [File(title, kind, blob) for title, kind in files], annotations)
    given = {"artifact": (Input("disk", what, {"artifact": store.cas.put_bytes(made)}),)}
    task = BootTask(store, BootTestSpec(artifact="disk", **spec), play, inputs=given)
    return BootTest().build(task), task


def test_a_pass_is_a_verdict_without_a_clock(store: Store) -> None:
    outputs, task = build(store, "reached", CONSOLE)
    assert set(outputs) == {"verdict", "serial", "screen"}
    verdict = loads(task.path(outputs["verdict"]).read_bytes())
    assert verdict["passed"] is True
    assert verdict["kernel"] == "6.12.1"
    assert verdict["artifact"] == task.inputs["artifact"][0].outputs["artifact"].digest
    again, _ = build(store, "reached", CONSOLE.replace(b"0.0", b"9.9"))
    assert again["verdict"] == outputs["verdict"]


@pytest.mark.parametrize("verdict", ["failed", "restarted", "stopped", "timeout"])
def test_a_failure_says_why_and_shows_the_console(store: Store, verdict: str) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, verdict, CONSOLE + b"\n".join(b"line %d" % n for n in range(99)))
    assert caught.value.reason == "boot-failed"
    assert "line 98" in caught.value.message
    assert "line 9\n" not in caught.value.message
    assert "\x1b" not in caught.value.message


def test_a_marker_without_a_kernel_is_no_boot(store: Store) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, "reached", b"Reached target multi-user.target")
    assert "no kernel" in caught.value.message


def argument(action: Action, start: str) -> str:
    return next((one for one in action.command if one.startswith(start)), "")


def test_the_machine_gets_what_the_disk_says(store: Store) -> None:
    _, task = build(store, "reached", CONSOLE, expect="login", memory=512, cpus=1, timeout=77)
    (action,) = task.actions
    assert "format=qcow2" in argument(action, "if=none,id=disk")
    assert action.command[action.command.index("-m") + 1] == "512"
    assert action.command[action.command.index("-smp") + 1] == "1"
    assert action.env["SECONDS_MAX"] == "77"
    assert action.timeout is not None and action.timeout > 77
    assert action.devices == ()
    assert argument(action, "if=pflash,format=raw,unit=0").endswith("OVMF_CODE_4M.fd")


def test_large_sectors_are_the_disks_own(store: Store) -> None:
    _, task = build(store, "reached", CONSOLE, annotations={"sector-size": "4096"})
    assert "logical_block_size=4096" in argument(task.actions[0], "virtio-blk-pci")


@pytest.mark.parametrize(
    ("spec", "what", "files", "shown"),
    [
        ({"firmware": "bios"}, "disk", (("os.raw", "disk.raw"),), "virtio-blk-pci,drive=disk,bootindex=0"),
        ({}, "disk", (("os.vhd", "disk.vhd"),), "if=none,id=disk,format=vpc"),
        ({}, "iso", (("os.iso", "iso"),), "scsi-cd,drive=cd,bootindex=0"),
        ({"medium": "disk"}, "iso", (("os.iso", "iso"),), "virtio-blk-pci,drive=disk,bootindex=0"),
        (
            {},
            "netboot",
            (("n.ipxe", "netboot.ipxe"), ("n.efi", "uki")),
            "user,id=net,tftp=/in/www,bootfile=n.efi",
        ),
        (
            {"firmware": "bios"},
            "netboot",
            (("n.ipxe", "netboot.ipxe"),),
            "user,id=net,tftp=/in/www,bootfile=n.ipxe",
        ),
        ({"tpm": True}, "disk", (("os.raw", "disk.raw"),), "tpm-tis,tpmdev=tpm0"),
        ({"firmware": "secure-boot"}, "disk", (("os.raw", "disk.raw"),), "q35,smm=on"),
    ],
)
def test_every_artifact_has_its_machine(
    store: Store, spec: dict[str, Any], what: str, files: tuple[tuple[str, str], ...], shown: str
) -> None:
    _, task = build(store, "reached", CONSOLE, what=what, files=files, **spec)
    assert argument(task.actions[0], shown), task.actions[0].command


def test_a_unified_image_starts_from_a_partition_of_its_own(store: Store, tmp_path: Path) -> None:
    _, task = build(store, "reached", CONSOLE, what="uki", files=(("os.efi", "uki"),))
    with task.path(task.actions[0].inputs["disk"]).open("rb") as disk:
        disk.seek(1 << 20)
        (tmp_path / "esp").write_bytes(disk.read(128 << 20))
    subprocess.run([peer("fsck.vfat", "dosfstools"), "-n", tmp_path / "esp"], check=True, capture_output=True)


def test_googles_archive_is_unpacked_for_the_machine(store: Store, tmp_path: Path) -> None:
    disk = Sparse(1 << 20)
    disk.add(65536, b"what is on it")
    with (tmp_path / "archive").open("wb") as out:
        gce.write(disk, out.write, epoch=0)
    given = (tmp_path / "archive").read_bytes()
    _, task = build(store, "reached", CONSOLE, content=given, files=(("os.tar.gz", "disk.gce"),))
    assert argument(task.actions[0], "if=none,id=disk,format=raw")
    expected = bytes(65536) + b"what is on it"
    assert task.path(task.actions[0].inputs["disk"]).read_bytes() == expected.ljust(1 << 20, b"\0")


def answer(name: str, status: int, output: str) -> bytes:
    return f"answer {name} {status} {base64.b64encode(output.encode()).decode()}\n".encode()


@pytest.mark.parametrize(
    ("spec", "guest", "complaint"),
    [
        ({}, answer("failed", 0, "ssh.service\nx.service"), "units failed: ssh.service, x.service"),
        ({"failed": ("ssh.service",)}, answer("failed", 0, "ssh.service"), ""),
        ({}, b"", "units failed: no answer"),
        ({"modules": ("dm-verity",)}, answer("failed", 0, "") + answer("module:dm_verity", 0, ""), ""),
        ({"modules": ("nope",)}, answer("failed", 0, "") + answer("module:nope", 1, ""), "nope is not loaded"),
        ({"commands": (CommandSpec(run="x", expect="^b"),)}, answer("failed", 0, "") + answer("command:0", 0, "a\nb"), ""),
        ({"commands": (CommandSpec(run="x", expect="c"),)}, answer("failed", 0, "") + answer("command:0", 0, "a"), "does not show"),
        ({"commands": (CommandSpec(run="x", status=3),)}, answer("failed", 0, "") + answer("command:0", 0, ""), "ended with 0"),
        ({"kernel": r"^6\.1\."}, answer("failed", 0, ""), "its kernel is 6.12.1"),
    ],
)  # fmt: skip
def test_what_is_found_inside_counts(
    store: Store, spec: dict[str, Any], guest: bytes, complaint: str
) -> None:
    if not complaint:
        build(store, "reached", CONSOLE, guest=guest, **spec)
        return
    with pytest.raises(KbuildError) as caught:
        build(store, "reached", CONSOLE, guest=guest, **spec)
    assert complaint in caught.value.message


def test_the_script_inside_says_what_the_checks_read(tmp_path: Path) -> None:
    """Run here: a port that is a file, and commands of every outcome."""
    commands = (
        inside.Command("echo 'a b'; echo c", "^c$"),
        inside.Command("exit 3", status=3),
        inside.Command("printf '\\303\\251 $HOME'", "é"),
    )
    checks = inside.Checks(None, (), commands)
    port = tmp_path / "port"
    text = inside.script(checks).decode().replace(inside.PORT, str(port))
    subprocess.run(["sh", "-c", text.replace("is-system-running --wait", "--version")], check=True)
    said = port.read_text()
    assert said.endswith("end\n")
    assert list(inside.complaints(checks, said)) == []
    wrong = inside.Checks(None, (), (inside.Command("echo x", "y"),))
    assert len(list(inside.complaints(wrong, said))) == 1


@pytest.mark.parametrize(("kernel", "passes"), [(b"", True), (CONSOLE, False)])
def test_refused_is_what_the_firmware_does_before_any_kernel(
    store: Store, kernel: bytes, passes: bool
) -> None:
    console = b'BdsDxe: failed to load Boot0001 "UEFI": Access Denied\r\n' + kernel
    if passes:
        build(store, "reached", console, expect="refused", firmware="secure-boot")
        return
    with pytest.raises(KbuildError):
        build(store, "reached", console, expect="refused", firmware="secure-boot")


def test_what_cannot_be_asked_is_told_from_the_recipe() -> None:
    spec = {"modules": ["erofs"], "commands": [], "firmware": "secure-boot", "checks": True}
    (problem,) = BootTest().check("b", Declaration("b", "boot-test", spec), {})
    assert problem[0] == "modules"


@pytest.mark.parametrize(
    ("expect", "line", "shows"),
    [
        ("multi-user", "[  OK  ] Reached target multi-user.target - Multi-User System.", True),
        ("multi-user", "[ 9.1] systemd[1]: Reached target multi-user.target - Multi-User.", True),
        ("multi-user", "Queued start job for default target multi-user.target", False),
        ("login", "vm login: ", True),
        ("ready [0-9]+", "ready 42", True),
        (
            "refused",
            'BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0): Access Denied',
            True,
        ),
    ],
)
def test_markers(expect: str, line: str, shows: bool) -> None:
    env = qemu.environment(expect=expect, seconds=1)
    assert bool(re.search(env["EXPECT"], line)) is shows


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("Kernel panic - not syncing: VFS", True),
        ("Oops: 0000 [#1]", True),
        ("[FAILED] Failed to start x.service - X.", True),
        ("kbuild: FAILED: layer abc is not on /dev/vda2", True),
        ("device-mapper: verity: 7:0: data block 3 is corrupted", True),
        ("Starting a.service", False),
        ("Started a.service", False),
    ],
)
def test_failures(line: str, bad: bool) -> None:
    assert bool(re.search(qemu.FAILURE, line)) is bad


def test_the_driver_asks_for_nothing_it_is_not_given() -> None:
    script = qemu.driver().decode()
    given = qemu.environment(expect="login", seconds=1)
    assert set(re.findall(r"\$\{?([A-Z_]+)", script)) <= set(given)
    assert all(name in script for name in given)


def test_a_bad_expression_is_told_in_the_recipe() -> None:
    check = infos(BootTestSpec)["expect"].check
    assert check is not None
    assert "no regular expression" in check("(")
    assert check("login") == ""


def test_a_console_is_read_without_what_moves_the_cursor(tmp_path: Path) -> None:
    """By the driver while the machine runs and by us afterwards, alike; `[mem 0x0]` is no such thing."""
    serial = b"\x1b[=3h\x1b[2J[mem 0x1]\x1b[!p\x1b]104\x07 x\x1bM[  \x1b[0;32mOK\x1b[0m  ] up\r\n\x1b(Blogin: \x1b[6"
    (tmp_path / "serial").write_bytes(serial)
    function = re.search(r"^plain\(\) \{.*?^\}", qemu.driver().decode(), re.M | re.S)
    assert function is not None
    shell = ["sh", "-c", f"serial=serial\n{function[0]}\nplain"]
    said = subprocess.run(shell, cwd=tmp_path, capture_output=True, check=True).stdout
    assert said == qemu.plain(serial).encode()
    assert said.startswith(b"[mem 0x1] x[  OK  ] up\nlogin: ")
