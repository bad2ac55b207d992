"""`kbuild init`: a workspace to start from. Never overwrites."""

from __future__ import annotations

import argparse
from pathlib import Path

from kairosbuild.cli import given
from kairosbuild.cli.style import out
from kairosbuild.core.atomic import write_bytes

_RECIPE = """\
version: 1
name: my-os
nodes:
  base:   {kind: base, debian: {suite: trixie}}
  system: {kind: packages, on: base, install: [systemd, systemd-sysv, udev, kmod, mount, dbus, iproute2]}
  kernel: {kind: kernel, on: base, package: linux-image-cloud-amd64}
  site:   {kind: overlay, source: overlays/site}
  os:     {kind: image, layers: [base, system, kernel, site]}
  disk:   {kind: disk, image: os, format: qcow2}
  boots:  {kind: boot-test, artifact: disk, expect: multi-user}
publish: {targets: [os, disk], requires: [boots]}
"""
_FILES = {
    "BUILD.yaml": "version: 1\nrecipes: [recipes/*.yaml]\n",
    "recipes/my-os.yaml": _RECIPE,
    "overlays/site/etc/motd": "Hello from my own OS.\n",
    ".gitignore": "/cache/\n/dist/\n",
}


def main(arguments: argparse.Namespace) -> int:
    """Write what is not there yet and say what to do next."""
    folder = Path(arguments.folder)
    kept = [name for name in _FILES if (folder / name).exists()]
    made = [name for name in _FILES if name not in kept]
    for name in made:
        write_bytes(folder / name, _FILES[name].encode())
    if arguments.json:
        given.print_json({"folder": str(folder), "made": made, "kept": kept})
        return 0
    for name in _FILES:
        print(f"{out.dim('kept') if name in kept else out.green('made')}  {folder / name}")
    there = "" if folder == Path() else f"cd {folder} && "
    print(f"next:  {there}kbuild run")
    return 0
