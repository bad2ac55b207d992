"""The recipe's Alpine, out of real packages in a repository of the test: locked, built, booted by OpenRC, published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from debian_registry import started
from distros.alpine import Alpine
from distros.serving import Served, layout
from peers import peer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
MIRROR = '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "HOST"\n'
PROBE = r"""#!/bin/sh
exec > /dev/console 2>&1
say() { echo "probe: $*"; }
for place in / /usr; do touch $place/touched && say "$place is writable"; done
for place in /etc /var /home /root /tmp /run; do touch $place/touched || say "$place is read-only"; done
say "root $(grep ' / ' /proc/mounts)"
say "host $(hostname), init $(readlink /sbin/init), libc $(ls /lib/ld-musl*)"
say "crashed: $(rc-status --crashed)"
modprobe vfat && say "modules load"
say end
"""


def test_alpine_boots_by_openrc_and_is_published(tmp_path: Path) -> None:
    alpine = Alpine()
    alpine.add_real()
    alpine.publish()
    alpine.publish("community")
    served = Served(alpine.files)
    for name in ("recipes", "overlays"):
        subprocess.run(["cp", "-a", ROOT / name, tmp_path], check=True)
    (tmp_path / "recipes/alpine.lock").unlink(missing_ok=True)
    (tmp_path / "BUILD.yaml").write_text("version: 1\nrecipes: [recipes/alpine.yaml]\n")
    recipe = tmp_path / "recipes/alpine.yaml"
    base = layout(tmp_path / "image", alpine.base(), "3.23").replace("oci-layout:", "oci:")
    probe = tmp_path / "overlays/openrc/etc/local.d/probe.start"
    probe.parent.mkdir()
    probe.write_text(PROBE)
    probe.chmod(0o755)
    (tmp_path / "registry").mkdir()
    with started(tmp_path / "registry") as (host, _):
        place = f"{host}/os/alpine"
        copy = [peer("skopeo"), "copy", "-q", "--dest-tls-verify=false", base]
        subprocess.run([*copy, f"docker://{host}/library/alpine:3.23"], check=True)
        (tmp_path / "registries.conf").write_text(MIRROR.replace("HOST", host))
        command = [sys.executable, "-m", "kairosbuild", "run", str(recipe), "--push", place]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "KBUILD_MIRROR_ALPINE": served.url}
        env["CONTAINERS_REGISTRIES_CONF"] = str(tmp_path / "registries.conf")
        done = subprocess.run(
            [*command, "--cache-dir", str(CACHE)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        read = [peer("skopeo"), "inspect", "--tls-verify=false", f"docker://{place}:latest"]
        assert len(json.loads(subprocess.run(read, check=True, capture_output=True).stdout)["Layers"]) == 4
    served.close()
    show = [sys.executable, "-m", "kairosbuild", "log", str(recipe), "boots", "--cache-dir", str(CACHE)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    console = subprocess.run(show, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    said = [line.partition("probe: ")[2].strip() for line in console.splitlines() if "probe: " in line]
    assert "host alpine, init /bin/busybox, libc /lib/ld-musl-x86_64.so.1" in said
    assert any(line.startswith("root kbuild / overlay ro") for line in said)
    assert not [line for line in said if "is writable" in line or "is read-only" in line]
    assert "modules load" in said and "crashed:" in said and said[-1] == "end"
    assert "OpenRC" in console and "[ !! ]" not in console
