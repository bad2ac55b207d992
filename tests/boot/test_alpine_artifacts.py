"""Every artifact of an Alpine on a machine that starts from it and comes up by OpenRC.

In the suite each once, with KBUILD_BOOTS=all in every way that it can be started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distros.alpine import Alpine
from distros.serving import Served, layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
RECIPE = """\
version: 1
name: alpine-artifacts
nodes:
  base:   {kind: base, image: "BASE"}
  system: {kind: packages, on: base, install: [openrc, busybox-openrc]}
  kernel: {kind: kernel, on: base, package: linux-virt}
  site:   {kind: overlay, source: overlays/openrc}
  os:     {kind: image, layers: [base, system, kernel, site]}

  disk:    {kind: disk, image: os, format: vmdk, firmware: both}
  vhd:     {kind: disk, image: os, format: vhd}
  gce:     {kind: disk, image: os, format: gce}
  large:   {kind: disk, image: os, sector_size: "4096", root: single}
  iso:     {kind: iso, image: os}
  modern:  {kind: iso, image: os, bios: false}
  uki:     {kind: uki, image: os}
  netboot: {kind: netboot, image: os, url: "http://10.0.2.2:8080"}

  disk-uefi:     {kind: boot-test, artifact: disk, modules: [erofs, dm-verity], kernel: '-virt$',
                  commands: [{run: rc-status --crashed, status: 1}, {run: cat /etc/motd, expect: kairosbuild}]}
  disk-bios:     {kind: boot-test, artifact: disk, firmware: bios}
  vhd-uefi:      {kind: boot-test, artifact: vhd}
  gce-uefi:      {kind: boot-test, artifact: gce}
  large-uefi:    {kind: boot-test, artifact: large}
  iso-cd-uefi:   {kind: boot-test, artifact: iso}
  modern-cd:     {kind: boot-test, artifact: modern}
  iso-disk-bios: {kind: boot-test, artifact: iso, medium: disk, firmware: bios}
  uki-uefi:      {kind: boot-test, artifact: uki}
  netboot-uefi:  {kind: boot-test, artifact: netboot, memory: 2048}
  netboot-bios:  {kind: boot-test, artifact: netboot, memory: 2048, firmware: bios}
"""
SAMPLE = (
    "disk-bios", "vhd-uefi", "gce-uefi", "large-uefi", "iso-cd-uefi", "modern-cd", "uki-uefi", "netboot-uefi",
)  # fmt: skip
REST = ("disk-uefi", "iso-disk-bios", "netboot-bios")
CHOSEN = (*SAMPLE, *(REST if os.environ.get("KBUILD_BOOTS") == "all" else ()))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A workspace with the recipe, and where its packages are served."""
    folder = tmp_path_factory.mktemp("alpine")
    alpine = Alpine()
    alpine.add_real()
    alpine.publish()
    alpine.publish("community")
    served = Served(alpine.files)
    base = layout(folder / "image", alpine.base(), "3.23")
    (folder / "alpine.yaml").write_text(RECIPE.replace("BASE", base))
    subprocess.run(["cp", "-a", ROOT / "overlays", folder], check=True)
    yield folder, served.url
    served.close()


@pytest.mark.parametrize("test", CHOSEN)
def test_it_starts_by_openrc(workspace: tuple[Path, str], test: str) -> None:
    folder, mirror = workspace
    command = [sys.executable, "-m", "kairosbuild", "run", "alpine.yaml", test, "--no-publish"]
    done = subprocess.run(
        [*command, "--cache-dir", CACHE, "-o", f"{test}.serial={folder / test}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KBUILD_MIRROR_ALPINE": mirror},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert b"OpenRC" in (folder / test).read_bytes()
