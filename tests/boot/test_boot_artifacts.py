"""Every artifact of a Debian on a machine that starts from it.

In the suite each artifact once, with KBUILD_BOOTS=all in every way that it can be started. What each test has to show is in
the recipe, and a boot-test node that does not pass fails the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
MAIN = "from kairosbuild.cli.main import run; run()"
RECIPE = """\
version: 1
name: artifacts
nodes:
  base:   {kind: base, debian: {suite: trixie}}
  system: {kind: packages, on: base, install: [systemd, systemd-sysv, udev, dbus, iproute2]}
  kernel: {kind: kernel, on: base, package: linux-image-cloud-amd64}
  site:   {kind: overlay, source: overlays/site}
  os:     {kind: image, layers: [base, system, kernel, site]}

  disk:    {kind: disk, image: os, format: vmdk, firmware: both}
  qcow2:   {kind: disk, image: os, format: qcow2}
  vhd:     {kind: disk, image: os, format: vhd}
  gce:     {kind: disk, image: os, format: gce}
  large:   {kind: disk, image: os, sector_size: "4096", root: single}
  iso:     {kind: iso, image: os}
  modern:  {kind: iso, image: os, bios: false}
  uki:     {kind: uki, image: os}
  netboot: {kind: netboot, image: os, url: "http://10.0.2.2:8080"}

  signed:   {kind: disk, image: os, sign: {certificate: keys/public/db.crt, key: keys/db.key, enrol: keys/public}}
  signed-iso:  {kind: iso, image: os, sign: {certificate: keys/public/db.crt, key: keys/db.key}}
  signed-uki:  {kind: uki, image: os, sign: {certificate: keys/public/db.crt, key: keys/db.key}}
  signed-net:  {kind: netboot, image: os, url: "http://10.0.2.2:8080",
                sign: {certificate: keys/public/db.crt, key: keys/db.key}}
  wrong:    {kind: disk, image: os, sign: {certificate: other/public/db.crt, key: other/db.key}}
  unsigned: {kind: disk, image: os}

  secure:           {kind: boot-test, artifact: signed, firmware: secure-boot, enrolled: keys/public}
  secure-iso:       {kind: boot-test, artifact: signed-iso, firmware: secure-boot, enrolled: keys/public}
  secure-uki:       {kind: boot-test, artifact: signed-uki, firmware: secure-boot, enrolled: keys/public}
  secure-net:       {kind: boot-test, artifact: signed-net, firmware: secure-boot, enrolled: keys/public, memory: 2048}
  refused-iso:      {kind: boot-test, artifact: iso, firmware: secure-boot, enrolled: keys/public, expect: refused}
  refused-net:      {kind: boot-test, artifact: netboot, firmware: secure-boot, enrolled: keys/public, expect: refused}
  refused-wrong:    {kind: boot-test, artifact: wrong, firmware: secure-boot, enrolled: keys/public, expect: refused}
  refused-unsigned: {kind: boot-test, artifact: unsigned, firmware: secure-boot, enrolled: keys/public, expect: refused}

  disk-uefi:      {kind: boot-test, artifact: disk, tpm: true, modules: [erofs, dm-verity], kernel: '^6\\.12\\.',
                   commands: [{run: cat /etc/motd, expect: kairosbuild},
                              {run: cat /sys/class/tpm/tpm0/tpm_version_major, expect: ^2$},
                              {run: systemctl is-system-running, expect: ^running$}]}
  disk-bios:      {kind: boot-test, artifact: disk, firmware: bios}
  qcow2-uefi:     {kind: boot-test, artifact: qcow2}
  vhd-uefi:       {kind: boot-test, artifact: vhd}
  gce-uefi:       {kind: boot-test, artifact: gce}
  large-uefi:     {kind: boot-test, artifact: large}
  iso-cd-uefi:    {kind: boot-test, artifact: iso}
  iso-cd-bios:    {kind: boot-test, artifact: iso, firmware: bios}
  modern-cd:      {kind: boot-test, artifact: modern}
  modern-disk:    {kind: boot-test, artifact: modern, medium: disk}
  iso-disk-uefi:  {kind: boot-test, artifact: iso, medium: disk}
  iso-disk-bios:  {kind: boot-test, artifact: iso, medium: disk, firmware: bios}
  uki-uefi:       {kind: boot-test, artifact: uki}
  netboot-uefi:   {kind: boot-test, artifact: netboot, memory: 2048}
  netboot-bios:   {kind: boot-test, artifact: netboot, memory: 2048, firmware: bios}
"""
SAMPLE = (
    "disk-uefi", "disk-bios", "qcow2-uefi", "vhd-uefi", "gce-uefi", "large-uefi", "iso-disk-bios", "modern-cd",
    "uki-uefi", "netboot-uefi",
)  # fmt: skip
REST = ("iso-cd-uefi", "iso-cd-bios", "iso-disk-uefi", "modern-disk", "netboot-bios")
EVERY = os.environ.get("KBUILD_BOOTS") == "all"
CHOSEN = (*SAMPLE, *(REST if EVERY else ()))
SECURE = ("secure", "secure-iso", "secure-uki", "secure-net") if EVERY else ("secure",)
REFUSED = ("refused-wrong", "refused-unsigned", *(("refused-iso", "refused-net") if EVERY else ()))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    (folder / "artifacts.yaml").write_text(RECIPE)
    subprocess.run(["cp", "-r", ROOT / "overlays", folder], check=True)
    for name in ("keys", "other"):
        command = [sys.executable, "-c", MAIN, "keys", "new", folder / name]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def kbuild(workspace: Path, *words: str) -> None:
    command = [
        sys.executable,
        "-c",
        MAIN,
        "run",
        "artifacts.yaml",
        *words,
        "--no-publish",
        "--cache-dir",
        CACHE,
    ]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.mark.parametrize("test", CHOSEN)
def test_it_starts(workspace: Path, test: str) -> None:
    screen = workspace / f"{test}.png"
    kbuild(workspace, test, "-o", f"{test}.screen={screen}", "-o", f"{test}.serial={workspace / test}")
    assert screen.read_bytes().startswith(b"\x89PNG"), "what the machine's screen showed"
    assert b"Linux version" in (workspace / test).read_bytes()


@pytest.mark.parametrize("test", SECURE)
def test_the_firmware_starts_what_is_signed(workspace: Path, test: str) -> None:
    kbuild(workspace, test, "-o", f"{test}.serial={workspace / test}")
    console = (workspace / test).read_bytes()
    assert b"Secure boot enabled" in console
    assert b"Kernel is locked down from EFI Secure Boot" in console


@pytest.mark.parametrize("test", REFUSED)
def test_the_firmware_refuses_everything_else(workspace: Path, test: str) -> None:
    kbuild(workspace, test, "-o", f"{test}.serial={workspace / test}")
    console = (workspace / test).read_bytes()
    assert b"Access Denied" in console
    assert b"Linux version" not in console


def test_a_check_that_does_not_hold_fails_the_run(workspace: Path) -> None:
    wrong = "[{run: cat /etc/motd, expect: someone else}]"
    recipe = RECIPE + f"  unmet: {{kind: boot-test, artifact: uki, commands: {wrong}, modules: [nonesuch]}}\n"
    (workspace / "wrong.yaml").write_text(recipe)
    words = ["unmet", "--no-publish", "--cache-dir", CACHE]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "run", "wrong.yaml", *words],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "the module nonesuch is not loaded" in said
    assert "does not show 'someone else'" in said
