"""What is done as root among all owners (see `userns`): unpack layers, run layer steps, remove trees.

One request, one answer, both a line of JSON. When the socket closes before the answer, the worker
kills what it started, removes what it made and ends.
"""

# ruff: noqa: PTH102, PTH103, PTH118, PTH208, PTH211

from __future__ import annotations

import fnmatch
import json
import os
import re
import select
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kairosbuild.execute import fakeowners, jail

SKELETON = ("proc", "dev", "tmp", "in", "out", "sys", "run")
"""Mount points of the sandbox. They are the lowest layer of the overlay, so no step is seen to make them."""

_FAILED = 125
_OWNERS = "owners"


def main(argv: Sequence[str]) -> None:
    """Enter a user namespace, do one thing, answer. Never returns."""
    sock, log = map(int, argv)
    for fd in (sock, log):
        os.set_inheritable(fd, False)
    os.umask(0o022)
    try:
        jail.enter_user_namespace()
    except OSError as error:
        os.write(sock, f"{error}\n".encode())
        os._exit(1)
    os.write(sock, b"entered\n")
    asked = open(sock, "rb", closefd=False)  # noqa: SIM115 - open until the process ends
    mapped = asked.readline()
    if mapped in (b"mapped\n", b"alone\n"):
        if mapped == b"mapped\n":
            os.setgroups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        request = json.loads(asked.readline())
        os.write(sock, json.dumps(_answer(request, sock, log)).encode() + b"\n")
    os._exit(0)


def _answer(request: dict[str, Any], sock: int, log: int) -> dict[str, Any]:
    try:
        return _DO[request["do"]](request, sock, log)
    except Exception as error:  # the other side turns it into one of its own
        return {"error": f"{type(error).__name__}: {error}", "hint": getattr(error, "hint", "")}


def _extract(request: dict[str, Any], sock: int, log: int) -> dict[str, Any]:
    """Unpack the layer `tar` into the folder `into`; with `alone` all but its owners."""
    from kairosbuild.oci.extract import extract

    tar, into = Path(request["tar"]), Path(request["into"])
    extract(tar, into, owners="elsewhere" if request["alone"] else "kept", overlay=True)
    return {"code": 0}


def _remove(request: dict[str, Any], sock: int, log: int) -> dict[str, Any]:
    shutil.rmtree(request["path"], ignore_errors=True)
    return {"code": 0}


def _step(request: dict[str, Any], sock: int, log: int) -> dict[str, Any]:
    """Run a command over an overlay of trees; leave what changed as `layer.tar` and `layer.index`."""
    folder: str = request["folder"]
    for name in ("upper", "work", "merged", *(f"lower/{len(request['trees'])}/{name}" for name in SKELETON)):
        os.makedirs(f"{folder}/{name}")
    for number, tree in enumerate(reversed(request["trees"])):
        os.symlink(tree, f"{folder}/lower/{number}")
    try:
        child = jail.clone(jail.SEALED)
        if child == 0:
            os.close(sock)
            _inside(request, folder, log)
        code = _await(child, sock)
        if code == 0:
            _capture(request, folder)
        return {"code": code}
    finally:
        for name in ("upper", "work", "lower"):
            shutil.rmtree(f"{folder}/{name}", ignore_errors=True)


def _inside(request: dict[str, Any], folder: str, log: int) -> None:
    """In the child: make the root, enter it, run the command. Never returns."""
    code = _FAILED
    told = os.open(f"{folder}/{_OWNERS}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        jail.die_with_parent()
        jail.own_mounts()
        _enter(request, folder)
        jail.bound_capabilities(jail.SETUP_CAPABILITIES)
        jail.keep_capabilities(jail.SETUP_CAPABILITIES)
        jail.be_init()
        jail.forget_keys()
        code = _run(request, log, told)
    except Exception as error:  # whatever it is, the log has to say it
        os.write(log, f"sandbox: {error!r}\n".encode())
    finally:
        os._exit(code)


def _run(request: dict[str, Any], log: int, told: int) -> int:
    """Run the command; what it says of owners that do not exist here goes to the descriptor `told`."""
    words = request["command"], request["env"], request["cwd"], log
    if request["owners"] is None:
        return jail.run_as_init(*words)
    return fakeowners.run_as_init(*words, request["owners"], told)


def _enter(request: dict[str, Any], folder: str) -> None:
    os.chdir(f"{folder}/lower")  # names relative to it are short and plain, whatever the store's path is
    lower = ":".join(sorted(os.listdir("."), key=int))
    options = f"lowerdir={lower},upperdir=../upper,workdir=../work,userxattr,volatile,index=off"
    jail.mount("overlay", f"{folder}/merged", "overlay", jail.NODEV, options)
    into, out = (os.open(f"{folder}/{name}", os.O_PATH | os.O_CLOEXEC) for name in ("in", "out"))
    devices = jail.open_devices(tuple(request["devices"]))
    old = jail.enter(f"{folder}/merged")
    jail.mount_proc(read_only=False)
    jail.bind(f"/proc/self/fd/{into}", "/in", read_only=True)
    jail.bind(f"/proc/self/fd/{out}", "/out", read_only=False)
    jail.mount_dev(devices, read_only=False)
    flags = jail.NOSUID | jail.NODEV
    jail.mount("tmpfs", "/tmp", "tmpfs", flags, "mode=1777")  # noqa: S108
    jail.mount("tmpfs", "/run", "tmpfs", flags, "mode=0755")
    jail.mount("tmpfs", "/sys", "tmpfs", flags | jail.RDONLY, "mode=0555")
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)  # noqa: PTH101, S103 - as on any Debian
    jail.leave(old)
    for fd in (into, out, *devices.values()):
        os.close(fd)
    jail.name_host(request["host"])
    jail.loopback_up()


def _await(child: int, sock: int) -> int:
    """The status of the child; when the other side is gone, its end."""
    fd = os.pidfd_open(child)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(sock, select.POLLIN)
    if any(ready == sock for ready, _ in poller.poll()):
        os.kill(child, jail.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _capture(request: dict[str, Any], folder: str) -> None:
    """Write what changed as a layer, without what is to be dropped; give the outputs to who asked."""
    from kairosbuild.oci.tree import write_tree

    upper = f"{folder}/upper"
    _drop(upper, request["drop"])
    with open(f"{folder}/layer.tar", "xb") as out:  # noqa: PTH123
        index = write_tree(Path(upper), out, request["epoch"], overlay=True, owners=_owners(folder))
    with open(f"{folder}/layer.index", "xb") as out:  # noqa: PTH123
        out.write(index)
    for top, names, files in os.walk(f"{folder}/out"):
        for name in (*names, *files):
            os.lchown(os.path.join(top, name), 0, 0)


def _owners(folder: str) -> dict[str, tuple[int, int]]:
    """Who owns what, where the file system does not know it."""
    with open(f"{folder}/{_OWNERS}", "rb") as file:  # noqa: PTH123
        lines = [line.split(b" ", 2) for line in file.read().split(b"\0") if line]
    return {os.fsdecode(path): (int(user), int(group)) for user, group, path in lines}


def _drop(upper: str, globs: Sequence[str]) -> None:
    """Remove what matches from the upper folder, which leaves what is below as it was."""
    matches = [re.compile(fnmatch.translate(glob.strip("/"))).match for glob in globs]
    if not matches:
        return
    for top, names, files in os.walk(upper):
        for name in (*names, *files):
            path = os.path.join(top, name)
            if any(match(os.path.relpath(path, upper)) for match in matches):
                if name in names and not os.path.islink(path):  # noqa: PTH114
                    shutil.rmtree(path)
                    names.remove(name)
                else:
                    os.unlink(path)  # noqa: PTH108


_DO: dict[str, Callable[[dict[str, Any], int, int], dict[str, Any]]] = {
    "extract": _extract,
    "remove": _remove,
    "step": _step,
}
