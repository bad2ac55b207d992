"""root in a chroot, where the kernel makes no user namespaces: a step, and a command of each executor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostroot import host_root
from peers import outside_of_a_chroot

from kairosbuild.store.store import Store

ENTER = """
cd "$1"
shift
for one in /*; do
    if [ -L "$one" ]; then cp -P "$one" .; elif [ -d "$one" ]; then mkdir ".$one"; mount --rbind "$one" ".$one"; fi
done
exec chroot . "$@"
"""
INSIDE = """
import json, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kairosbuild.core.digest import Blob
from kairosbuild.execute.sandbox import LocalExecutor
from kairosbuild.execute import jail
from kairosbuild.graph.action import Action
from kairosbuild.store.store import Store
try:
    jail.unshare(jail.NEWUSER)
    sys.exit("user namespaces can be made here: nothing is tested")
except PermissionError:
    pass
store = Store(Path(sys.argv[2]))
local = LocalExecutor(store, epoch=1700000000)
def run(script, **more):
    action = Action(("/bin/sh", "-euc", script), (Blob(sys.argv[3], int(sys.argv[4])),), **more)
    return local.execute(action, name="n", scratch=store.cas.tmp(), cancel=threading.Event())
done = run("mkdir /a; echo x > /a/b; chown 7:8 /a/b", layer=True)
said = run("cat /bin/cat > /out/cat; ls /; touch /x 2>/dev/null || echo refused", outputs=("cat",))
local.close()
print(json.dumps([done.layer.layer.digest, said.log.decode(), [str(one) for one in store.cas.root.glob("tmp/*/*")]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can chroot")
def test_root_builds_in_a_chroot_what_it_builds_outside(tmp_path: Path) -> None:
    outside_of_a_chroot("making another one")
    store = Store(tmp_path / "store")
    root = host_root(store).layer
    (tmp_path / "jail").mkdir()
    package = Path(__file__).parents[2]
    inside = [
        sys.executable,
        "-c",
        INSIDE,
        str(package),
        str(tmp_path / "store"),
        root.digest,
        str(root.size),
    ]
    words = ["unshare", "--mount", "sh", "-euc", ENTER, "sh", str(tmp_path / "jail"), *inside]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    layer, said, left = json.loads(done.stdout)
    assert said.split()[-1] == "refused" and "jail" not in said
    assert not left

    import threading

    from kairosbuild.execute.sandbox import LocalExecutor
    from kairosbuild.graph.action import Action

    local = LocalExecutor(store, epoch=1700000000)
    action = Action(("/bin/sh", "-euc", "mkdir /a; echo x > /a/b; chown 7:8 /a/b"), (root,), layer=True)
    ours = local.execute(action, name="n", scratch=store.cas.tmp(), cancel=threading.Event())
    assert ours.layer is not None and ours.layer.layer.digest == layer
