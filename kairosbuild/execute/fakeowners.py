"""Owners for a step whose user namespace has only one: they are remembered instead of set.

An ordinary user without subordinate ids is root in a namespace of its own, and nobody else exists there:
`chown` to another owner fails. Here the kernel asks the step's first process about each call that sets or
shows an owner (seccomp_unotify(2)). It remembers what was asked for, and shows it again to who looks; the
layer gets the owners from its memory. Unlike a preloaded library this also reaches static programs and every
libc. Two things it does not do: what a process makes after it has become somebody else still is root's, and
a file made in a set-gid folder does not get that folder's group.

Like `jail` this file imports only the smallest parts of the standard library.
"""

# ruff: noqa: PTH115, PTH116

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from kairosbuild.execute import jail

Owner = tuple[int, int]
"""User and group."""

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X86 = {
    "stat": 4, "fstat": 5, "lstat": 6, "newfstatat": 262, "statx": 332, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114,
    "setgroups": 116, "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123,
}  # fmt: skip
_ARM = {
    "newfstatat": 79, "fstat": 80, "statx": 291, "fchownat": 54, "fchown": 55, "setregid": 143,
    "setgid": 144, "setreuid": 145, "setuid": 146, "setresuid": 147, "setresgid": 149, "setfsuid": 151,
    "setfsgid": 152, "setgroups": 159,
}  # fmt: skip
_CALLS = {"x86_64": _X86, "aarch64": _ARM}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_OWNER_AT = {"x86_64": 28, "aarch64": 24}  # of st_uid in struct stat; st_gid follows
_STATX_OWNER_AT = 20

_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
_ASKED = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_REPLY = struct.Struct("=Qqi I")  # struct seccomp_notif_resp
_GO_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_AT_CWD, _NOFOLLOW, _EMPTY = -100, 0x100, 0x1000
_PATH_MAX = 4096
_LOOK = 100  # milliseconds between looks at orphans
_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether this machine's processor is one that the table of calls knows."""
    return os.uname().machine in _CALLS


def run_as_init(
    command: list[str],
    env: dict[str, str],
    cwd: str,
    log: int,
    owners: Iterable[tuple[str, int, int]],
    say: int,
) -> int:
    """Run a command as `jail.run_as_init` does; `owners` (path, user, group) are those of the root so far.

    Of a path that is named twice the last owner counts. Afterwards the owners of all that is not root's
    go to the descriptor `say`, a line each: `USER GROUP PATH`, ended by a zero byte.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _become(command, env, cwd, log, theirs)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    memory = Memory()
    memory.know(owners)
    theirs.close()
    listener = _received(ours)
    code = 127 if listener < 0 else _serve(listener, child, memory)
    if listener < 0:
        os.waitpid(child, 0)
    jail.kill_all_others()
    memory.tell(say)
    return code


# -- in the child ----------------------------------------------------------------------------------


def _become(command: list[str], env: dict[str, str], cwd: str, log: int, sock: socket.socket) -> None:
    """Ask to be watched, and become the command. Never returns."""
    try:
        os.chdir(cwd)
        jail.reset_signals()
        os.setsid()
        for source, target in ((os.open("/dev/null", os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        program = jail.which(command[0], env)
        listener = _install()
        sock.sendmsg([b"l"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        os.close(listener)
        os.execve(program, command, env)  # noqa: S606 - a shell is none of its business
    except OSError as error:
        os.write(log, f"{error.filename or command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _install() -> int:
    """Let the kernel ask about the calls of this process from now on; the descriptor that it asks at."""
    machine = os.uname().machine
    numbers = sorted(_CALLS[machine].values())
    code = [(0x20, 0, 0, 4), (0x15, 0, len(numbers) + 1, _ARCH[machine]), (0x20, 0, 0, 0)]
    code += [(0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]  # RET_ALLOW, RET_USER_NOTIF
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    header = struct.pack("@HP", len(code), ctypes.addressof(program))
    jail.no_new_privileges()
    found: int = _libc.syscall(ctypes.c_long(_SECCOMP[machine]), 1, 8, ctypes.c_char_p(header))
    if found < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return found


def _received(sock: socket.socket) -> int:
    """The listener that the child sent; -1 when it ended before."""
    with sock:
        data, extra, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(4))
    return int(array.array("i", extra[0][2])[0]) if data and extra else -1


# -- in the first process --------------------------------------------------------------------------


class Memory:
    """Who owns what, by device and inode. A descriptor is held of each, so no inode is given to another file."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int], tuple[Owner, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._owners)

    def of(self, info: os.stat_result) -> Owner | None:
        """The owner of a file, None where it is root's."""
        found = self._owners.get((info.st_dev, info.st_ino))
        return found[0] if found else None

    def set(self, fd: int, owner: Owner) -> None:
        """Remember the owner of an open file; the descriptor is this memory's from now on."""
        info = os.fstat(fd)
        before = self._owners.pop((info.st_dev, info.st_ino), None)
        if before:
            os.close(before[1])
        if owner == (0, 0):
            os.close(fd)
        else:
            self._owners[info.st_dev, info.st_ino] = owner, fd

    def know(self, owners: Iterable[tuple[str, int, int]]) -> None:
        """Remember the owners of a root, as its layers tell them."""
        last: Mapping[str, Owner] = {path: (user, group) for path, user, group in owners}
        for path, owner in last.items():
            try:
                self.set(os.open(f"/{path}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), owner)
            except OSError:
                continue  # a layer above has removed it

    def tell(self, fd: int) -> None:
        """Write down the owner of everything in the root that is not root's."""
        fresh = {}
        for owner, held in self._owners.values():
            info = os.fstat(held)
            fresh[info.st_dev, info.st_ino] = owner
        with open(fd, "wb", closefd=False) as out:
            todo = ["/"] if fresh else []
            while todo:
                for item in os.scandir(todo.pop()):
                    info = item.stat(follow_symlinks=False)
                    if (found := fresh.get((info.st_dev, info.st_ino))) is not None:
                        out.write(b"%d %d %s\0" % (*found, os.fsencode(item.path[1:])))
                    if item.is_dir(follow_symlinks=False) and item.path[1:] not in jail.MADE_HERE:
                        todo.append(item.path)


def _serve(listener: int, child: int, memory: Memory) -> int:
    """Answer until the child ends; its status as a shell has it."""
    ended = os.pidfd_open(child)
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(ended, select.POLLIN)
    table = _table(memory)
    question = bytearray(_ASKED.size)
    while True:
        # POLLIN only: a listener that has hung up, as all are gone that it watched, is always ready.
        ready = {fd for fd, event in poller.poll(_LOOK) if event & select.POLLIN}
        if listener in ready:
            _one(listener, question, table)
        elif ended in ready:
            return jail.status_of(os.waitpid(child, 0)[1])
        elif not ready:
            _reap_others(child)


def _reap_others(child: int) -> None:
    while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid != child:
        os.waitpid(found.si_pid, 0)


def _one(listener: int, question: bytearray, table: Mapping[int, _Call]) -> None:
    """Take one question and answer it. A process that is gone meanwhile has none."""
    question[:] = bytes(_ASKED.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, question)
    except OSError:
        return
    number, pid, _, call, _, _, *words = _ASKED.unpack(question)
    try:
        go_on, error = table[call](pid, words), 0
    except OSError as problem:
        go_on, error = False, -(problem.errno or 1)
    try:
        fcntl.ioctl(listener, _SEND, _REPLY.pack(number, 0, error, _GO_ON if go_on else 0))
    except OSError:
        return


_Call = Callable[[int, list[int]], bool]
"""What answers a call: whether the kernel shall go on with it, else it has succeeded. Raises OSError."""


def _table(memory: Memory) -> Mapping[int, _Call]:
    """The answer to each call, by its number."""
    stat_at = _OWNER_AT[os.uname().machine]

    def show(
        pid: int, place: str, follow: bool, buffer: int, ask: Callable[[str, bool], bytearray], where: int
    ) -> bool:
        if not memory:
            return True
        try:
            owner = memory.of(os.stat(place, follow_symlinks=follow))
        except OSError:
            return True
        if owner is None:
            return True
        data = ask(place, follow)
        data[where : where + 8] = struct.pack("=II", *owner)
        _write(pid, buffer, data)
        return False

    def stat(pid: int, at: int, path: int, flags: int, buffer: int) -> bool:
        place, follow = _place(pid, at, path, flags)
        return show(pid, place, follow, buffer, _stat, stat_at)

    def statx(pid: int, words: list[int]) -> bool:
        at, path, flags, mask, buffer = words[:5]
        place, follow = _place(pid, _signed(at), path, flags)
        return show(pid, place, follow, buffer, partial(_statx, mask), _STATX_OWNER_AT)

    def own(pid: int, at: int, path: int, flags: int, user: int, group: int) -> bool:
        place, follow = _place(pid, at, path, flags)
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        user, group = _signed(user), _signed(group)
        before = memory.of(os.fstat(fd)) or (0, 0)
        # The kernel's part of it: copying up, clearing set-id bits and capabilities, saying no.
        if _libc.fchownat(fd, b"", min(user, 0), min(group, 0), _EMPTY):
            os.close(fd)
            raise OSError(ctypes.get_errno(), "chown")
        memory.set(fd, (before[0] if user < 0 else user, before[1] if group < 0 else group))
        return False

    def become(pid: int, words: list[int]) -> bool:
        return False

    answers: dict[str, _Call] = {
        "stat": lambda pid, w: stat(pid, _AT_CWD, w[0], 0, w[1]),
        "lstat": lambda pid, w: stat(pid, _AT_CWD, w[0], _NOFOLLOW, w[1]),
        "fstat": lambda pid, w: stat(pid, _signed(w[0]), 0, _EMPTY, w[1]),
        "newfstatat": lambda pid, w: stat(pid, _signed(w[0]), w[1], w[3], w[2]),
        "statx": statx,
        "chown": lambda pid, w: own(pid, _AT_CWD, w[0], 0, w[1], w[2]),
        "lchown": lambda pid, w: own(pid, _AT_CWD, w[0], _NOFOLLOW, w[1], w[2]),
        "fchown": lambda pid, w: own(pid, _signed(w[0]), 0, _EMPTY, w[1], w[2]),
        "fchownat": lambda pid, w: own(pid, _signed(w[0]), w[1], w[4], w[2], w[3]),
    }
    return {number: answers.get(name, become) for name, number in _CALLS[os.uname().machine].items()}


def _signed(word: int) -> int:
    return ctypes.c_int32(word & 0xFFFFFFFF).value


def _place(pid: int, at: int, path: int, flags: int) -> tuple[str, bool]:
    """Where this process can find what another one names, whose root may be a folder of ours.

    And whether a link at its end is to be followed, as one always is that stands for a descriptor.
    """
    follow = not flags & _NOFOLLOW
    name = os.fsdecode(_read(pid, path)) if path else ""
    here = f"/proc/{pid}/cwd" if at == _AT_CWD else f"/proc/{pid}/fd/{at}"
    if not name:
        return here, True
    for own, whose in (("/proc/self/", f"/proc/{pid}/"), ("/dev/fd/", f"/proc/{pid}/fd/")):
        if name.startswith(own):
            return whose + name[len(own) :], follow
    if name.startswith("/"):
        root = os.readlink(f"/proc/{pid}/root")
        return (name if root == "/" else root + name), follow
    return f"{here}/{name}", follow


def _read(pid: int, address: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, _PATH_MAX, address).partition(b"\0")[0]
    finally:
        os.close(fd)


def _write(pid: int, address: int, data: bytes | bytearray) -> None:
    fd = os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)


def _stat(place: str, follow: bool) -> bytearray:
    """What the kernel says of a file, in its own words (newfstatat)."""
    buffer = ctypes.create_string_buffer(144 if os.uname().machine == "x86_64" else 128)
    number = _CALLS[os.uname().machine]["newfstatat"]
    return _said(buffer, number, _AT_CWD, os.fsencode(place), buffer, 0 if follow else _NOFOLLOW)


def _statx(mask: int, place: str, follow: bool) -> bytearray:
    buffer = ctypes.create_string_buffer(256)
    number = _CALLS[os.uname().machine]["statx"]
    return _said(buffer, number, _AT_CWD, os.fsencode(place), 0 if follow else _NOFOLLOW, mask, buffer)


def _said(buffer: ctypes.Array[ctypes.c_char], number: int, *words: object) -> bytearray:
    if _libc.syscall(ctypes.c_long(number), *words):
        raise OSError(ctypes.get_errno(), "stat")
    return bytearray(buffer.raw)
