# Names are text here: pathlib would make every fork of these processes dearer.
# ruff: noqa: PTH102, PTH115, PTH208, PTH211
"""The inside of a zygote: a process that entered its namespaces once and starts one command after the other.

It is the first process of its namespace, so its own end ends all. It reads a request from its
socket (see `request`), renews what an action could have changed (/tmp, System V IPC, the count of
process ids), starts the command, kills whatever that left running, and answers with its status.
When the socket closes, it ends.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from kairosbuild.execute import jail

READY, BROKEN = b"ready\n", b"broken "
SETUP_FAILED, NOT_STARTED = 125, 127
_HEAD = 8  # hex digits of the length of a request


def request(cwd: str, command: Sequence[str], env: dict[str, str]) -> bytes:
    """A request: its length, then fields ended by NULs: cwd, number of words, words, environment."""
    fields = [cwd, str(len(command)), *command, *(f"{name}={value}" for name, value in env.items())]
    body = b"".join(os.fsencode(field) + b"\0" for field in fields)
    return b"%08x" % len(body) + body


def arguments(sock: int, log: int, folder: str, host: str, devices: Sequence[str]) -> list[str]:
    """The command line of a cell, after the words that start the interpreter on `main`."""
    return [str(sock), str(log), folder, host, *devices]


def main(argv: Sequence[str]) -> None:
    """Enter the namespaces, then serve. Never returns."""
    sock, log, folder, host, *devices = argv
    cell = _Cell(int(sock), int(log))
    try:
        uid, gid = os.getuid(), os.getgid()
        os.umask(0o022)
        jail.enter_user_namespace(jail.SEALED)
        jail.write_single_map(uid, gid)
        child = os.fork()
        if child:
            os.close(cell.sock)
            os.waitpid(child, 0)
            os._exit(0)
        cell.last = _build(folder, host, tuple(devices))
    except OSError as error:
        os.write(cell.sock, BROKEN + str(error).encode())
        os._exit(1)
    os.write(cell.sock, READY)
    cell.serve()


def _build(folder: str, host: str, devices: tuple[str, ...]) -> int:
    """Put the root together and make it ours. What stands in `folder` was prepared by the other side.

    Returns the descriptor that `jail.count_processes_from` takes.
    """
    jail.own_mounts()
    root = f"{folder}/root"
    jail.mount("tmpfs", root, "tmpfs", jail.NOSUID | jail.NODEV, "mode=0755")
    _show(_tree(folder), root)
    for name in sorted(jail.MADE_HERE):  # tmpfs lists its members in the order they were made
        os.mkdir(f"{root}/{name}", 0o755)
    into, out = (os.open(f"{folder}/{name}", os.O_PATH | os.O_CLOEXEC) for name in ("in", "out"))
    found = jail.open_devices(devices)
    old = jail.enter(root)
    last = jail.mount_proc(read_only=True)
    jail.bind(f"/proc/self/fd/{into}", "/in", read_only=True)
    jail.bind(f"/proc/self/fd/{out}", "/out", read_only=False)
    jail.mount_dev(found, read_only=True)
    jail.leave(old)
    for fd in (into, out, *found.values()):
        os.close(fd)
    jail.mount("", "/", flags=jail.REMOUNT | jail.BIND | jail.RDONLY | jail.NOSUID | jail.NODEV)
    jail.mount("", "/", flags=jail.REC | jail.PRIVATE)
    jail.name_host(host)
    jail.loopback_up()
    jail.be_init()
    jail.forget_keys()
    jail.bound_capabilities()
    return last


def _tree(folder: str) -> str:
    """The folder that has what the root shows: the only layer's, or an overlay of them all."""
    lower = f"{folder}/lower"
    names = sorted(os.listdir(lower), key=int, reverse=True)
    if len(names) == 1:
        return os.path.realpath(f"{lower}/{names[0]}")
    os.chdir(lower)  # names relative to it are short and plain, whatever the store's path is
    jail.mount("overlay", f"{folder}/merged", "overlay", jail.RDONLY, f"lowerdir={':'.join(names)},userxattr")
    return f"{folder}/merged"


def _show(tree: str, root: str) -> None:
    """Bind all that is at the top of a tree into the root, so that no mount point is made in the tree."""
    with os.scandir(tree) as found:
        items = sorted(found, key=lambda item: item.name)
    for item in items:
        place = f"{root}/{item.name}"
        if item.name in jail.MADE_HERE:
            continue
        if item.is_symlink():
            os.symlink(os.readlink(item.path), place)
            continue
        if item.is_dir():
            os.mkdir(place, 0o755)
        elif item.is_file():
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        else:
            continue
        jail.bind(item.path, place, read_only=True)


class _Cell:
    """The loop, with the two descriptors that were handed in."""

    def __init__(self, sock: int, log: int) -> None:
        self.sock = sock
        self.log = log
        self.last = -1
        for fd in (sock, log):
            os.set_inheritable(fd, False)

    def serve(self) -> None:
        """One action after the other, until the other side is gone."""
        while True:
            cwd, command, env = self._request()
            code = self._act(cwd, command, env)
            os.write(self.sock, b"%d\n" % code)

    def _act(self, cwd: str, command: list[str], env: dict[str, str]) -> int:
        """Run one command in what the one before left no trace in; return its status as a shell does."""
        try:
            jail.unshare(jail.NEWIPC)
            jail.mount("tmpfs", "/tmp", "tmpfs", jail.NOSUID | jail.NODEV, "mode=1777")  # noqa: S108
            jail.count_processes_from(self.last, 1)
        except OSError as error:
            os.write(self.log, f"sandbox: {error}\n".encode())
            return SETUP_FAILED
        try:
            os.chdir(cwd)
            child = jail.spawn(command, env, self.log)
            code = self._await(child)
        except OSError as error:
            os.write(self.log, f"{error.filename or command[0]}: {error.strerror}\n".encode())
            code = NOT_STARTED
        os.chdir("/")
        jail.kill_all_others()
        jail.unmount("/tmp")  # noqa: S108
        return code

    def _await(self, child: int) -> int:
        """Reap until the command has ended; end at once when nobody waits for us."""
        fd = os.pidfd_open(child)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(self.sock, select.POLLIN)
        if any(ready == self.sock for ready, _ in poller.poll()):
            os._exit(0)
        os.close(fd)
        return jail.status_of(os.waitpid(child, 0)[1])

    def _request(self) -> tuple[str, list[str], dict[str, str]]:
        size = int(self._read(_HEAD), 16)
        cwd, count, *rest = os.fsdecode(self._read(size)).split("\0")[:-1]
        words = int(count)
        return cwd, rest[:words], dict(pair.split("=", 1) for pair in rest[words:])

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.sock, size)
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


if __name__ == "__main__":
    main(sys.argv[1:])
