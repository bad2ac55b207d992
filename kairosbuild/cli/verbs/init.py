"""`kbuild init`: a workspace to start from. Never overwrites."""

from __future__ import annotations

import argparse
from pathlib import Path

from kairosbuild.cli.style import style
from kairosbuild.core.atomic import write_bytes

_RECIPE = """\
version: 1
name: my-os
nodes:
  base:   {kind: base, debian: {suite: trixie}}
  system: {kind: packages, on: base, install: [systemd, systemd-sysv, udev, dbus]}
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
    for name, content in _FILES.items():
        file = folder / name
        if file.exists():
            print(f"{style.dim('kept')}  {file}")
        else:
            write_bytes(file, content.encode())
            print(f"{style.green('made')}  {file}")
    print(f"next:  cd {folder} && kbuild run recipes/my-os.yaml")
    return 0
