"""The agent's layer: it runs where there is nothing but a shell, it is small, and it is the same twice."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from fleet import CACHE, Fleet
from peers import peer

pytestmark = pytest.mark.slow
SHELL = (
    "exec /usr/lib/kbuild/lib/loader --library-path /usr/lib/kbuild/lib /usr/lib/kbuild/bin/python -I -S -B"
)
USES = "import ctypes, resource, ssl, urllib.request, yaml, hashlib, fcntl; print(resource.getrusage(0).ru_maxrss)"


def layer(fleet: Fleet, name: str, cache: Path = CACHE) -> Path:
    at = ["--set", f"at={fleet.registry}/os", "-o", f"agent={name}"]
    fleet.kbuild("run", "machine.yaml", "agent", "--no-publish", *at, cache=cache)
    return fleet.folder / name


def test_the_agent_runs_where_there_is_nothing_but_a_shell(fleet: Fleet, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("changing the root folder wants root")
    root = tmp_path / "root"
    with tarfile.open(layer(fleet, "agent.tar")) as tar:
        tar.extractall(root, filter="tar")
        assert sum(member.size for member in tar) < 40_000_000
    (root / "bin").mkdir()
    shutil.copyfile(peer("busybox", "busybox-static"), root / "bin/sh")
    (root / "bin/sh").chmod(0o755)
    chroot = ["chroot", str(root)]
    done = subprocess.run(
        [*chroot, "/usr/bin/kbuild-node", "--help"], capture_output=True, text=True, check=True
    )
    assert "rollback" in done.stdout
    loader = SHELL.split()[1:]
    # Through a shell that forks once more: what a process has used at most, its program inherits.
    between = ["sh", "-c", '"$@"; exit $?', "sh"]
    done = subprocess.run(
        [*between, *chroot, *loader, "-c", USES], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 64 * 1024, "KiB in memory with everything an upgrade uses"
    openssl = [*loader[:3], "/usr/lib/kbuild/bin/openssl", "version"]
    assert (
        "OpenSSL 3" in subprocess.run([*chroot, *openssl], capture_output=True, text=True, check=True).stdout
    )


if os.environ.get("KBUILD_MACHINES") == "all":  # builds in a second store

    def test_the_agent_is_the_same_twice(fleet: Fleet) -> None:
        first = layer(fleet, "first.tar").read_bytes()
        other = fleet.folder / "other"
        assert layer(fleet, "second.tar", other).read_bytes() == first
        assert list((other / "v1/actions").iterdir()), "it was made there"
