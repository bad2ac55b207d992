# Names are text here: pathlib would make every fork of these processes dearer.
# ruff: noqa: PTH116, PTH211
"""Namespaces, mounts and capabilities: what the sandbox is made of, by the kernel's own calls.

This file imports only the smallest parts of the standard library, because it also serves processes
that are started without site-packages and forked once for every action. See namespaces(7),
mount(2), pivot_root(2), capabilities(7), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import errno
import os

NEWNS, NEWCGROUP, NEWUTS = 0x20000, 0x2000000, 0x4000000
NEWIPC, NEWUSER, NEWPID, NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
SEALED = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET
"""All of a sandbox's namespaces but that of users."""

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, REC, PRIVATE, SLAVE = 1 << 12, 1 << 14, 1 << 18, 1 << 19
_KEPT = {2: NOSUID, 4: NODEV, 8: NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # statvfs(3) → mount(2)
_DETACH = 2
# System calls that the C library has no function for: clone, pivot_root, keyctl.
_NUMBERS = {"x86_64": (56, 155, 250), "aarch64": (220, 41, 219), "riscv64": (220, 41, 219)}
_CLONE, _PIVOT, _KEYCTL = _NUMBERS.get(os.uname().machine, (0, 0, 0))
_SIGINT, SIGKILL, _SIGCHLD, _SIG_IGN = 2, 9, 17, 1
_PDEATHSIG, _DUMPABLE, _SET_NAME, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 15, 24, 38
_CAPABILITIES = 64  # more than any kernel has
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
PROC_COVERED = ("sys", "sysrq-trigger", "irq", "bus")

SETUP_CAPABILITIES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 18, 27, 29, 31})
"""What installing packages takes: chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid,
setuid, setpcap, net_bind_service, sys_chroot, mknod, audit_write, setfcap. Not sys_admin: mounts stay."""

MADE_HERE = frozenset({"proc", "dev", "tmp", "in", "out"})
"""Names at the top of a root that the sandbox makes; a layer's own are not looked at."""

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: a child of `clone` needs it


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    words = [os.fsencode(word) if word else None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None):
        _fail(f"mount {kind or 'bind'} {source} on {target}")


def bind(source: str, target: str, *, read_only: bool, flags: int = NOSUID | NODEV) -> None:
    """Show a file or folder at a second place. Its file system's own flags stay (they are locked)."""
    mount(source, target, flags=BIND)
    before = os.statvfs(target).f_flag
    kept = sum(bit for flag, bit in _KEPT.items() if before & flag)
    mount("", target, flags=REMOUNT | BIND | flags | kept | (RDONLY if read_only else 0))


def unmount(target: str) -> None:
    """umount2(2), lazily."""
    if _libc.umount2(os.fsencode(target), _DETACH):
        _fail(f"unmount {target}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(ctypes.c_int(flags)):
        _fail("unshare")


def enter_user_namespace(flags: int = 0) -> None:
    """unshare(2) with a new user namespace, and `flags`.

    The kernel makes none for a process whose root is not its mount namespace's own, as in a chroot
    (user_namespaces(7)). root may make the one into the other first.
    """
    try:
        unshare(NEWUSER | flags)
    except PermissionError:
        if os.geteuid() != 0:
            raise
        _root_of_own()
        unshare(NEWUSER | flags)


def _root_of_own() -> None:
    """Make the root of this process, which may be a chroot's folder, the root of a mount namespace of its own."""
    unshare(NEWNS)
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    inside = next(entry.path for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False))
    os.chdir("/")
    os.chroot(inside)  # the working folder is above the root now, and from there all ways lead up
    above: tuple[int, ...] = ()
    while above != (above := os.stat("..")[1:3]):
        os.chdir("..")
    os.chroot(".")
    own_mounts()
    os.fchdir(here)
    folder = os.getcwd()  # noqa: PTH109
    mount(".", ".", flags=BIND | REC)
    old = enter(folder)
    leave(old)
    os.close(here)


def clone(flags: int) -> int:
    """Fork into new namespaces: 0 in the child, its process id in the parent. For processes of one thread."""
    found: int = _libc.syscall(ctypes.c_long(_CLONE), ctypes.c_ulong(flags | _SIGCHLD), 0, 0, 0, 0)
    if found < 0:
        _fail("clone")
    return found


def write_single_map(uid: int, gid: int, process: int | str = "self") -> None:
    """In a user namespace just entered by `uid` and `gid`: they become root there, and nobody else exists."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/{process}/{name}", "w") as file:  # noqa: PTH123
            file.write(text)


def be_init() -> None:
    """As a namespace's first process: show nothing of this one to others, and let no signal disturb it.

    The command line would name folders of the host. See prctl(2), and proc(5) for the fields of `stat`.
    """
    with open("/proc/self/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
    ctypes.memset(start, 0, end - start)
    _libc.prctl(_SET_NAME, ctypes.c_char_p(b"init"), 0, 0, 0)
    _prctl(_DUMPABLE, 0)
    _libc.signal(_SIGINT, ctypes.c_void_p(_SIG_IGN))


def die_with_parent() -> None:
    """Be killed when the process that made this one ends (prctl(2), PR_SET_PDEATHSIG)."""
    _prctl(_PDEATHSIG, SIGKILL)


def bound_capabilities(keep: frozenset[int] = frozenset()) -> None:
    """Let no program started from now on have capabilities but these; with none, nor gain any by set-id."""
    for number in range(_CAPABILITIES):
        if number not in keep and _libc.prctl(_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0):
            if ctypes.get_errno() != errno.EINVAL:
                _fail("prctl(PR_CAPBSET_DROP)")
            break  # the last one this kernel knows was before
    if not keep:
        _prctl(_NO_NEW_PRIVS, 1)


def keep_capabilities(keep: frozenset[int] = frozenset()) -> None:
    """Lose all of this process's own capabilities but these."""
    low, high = (sum(1 << bit % 32 for bit in keep if bit // 32 == word) for word in (0, 1))
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)):
        _fail("capset")


def name_host(name: str) -> None:
    """sethostname(2)."""
    if _libc.sethostname(name.encode(), ctypes.c_size_t(len(name))):
        _fail("sethostname")


def loopback_up() -> None:
    """Give this network namespace a working lo, which is all it has (netdevice(7), SIOCSIFFLAGS)."""
    fd = _libc.socket(2, 2, 0)
    request = ctypes.create_string_buffer(b"lo".ljust(16, b"\0") + b"\x01\x00", 40)
    failed = _libc.ioctl(fd, ctypes.c_ulong(0x8914), request)
    os.close(fd)
    if failed:
        _fail("loopback")


def own_mounts() -> None:
    """Let no mount of ours reach anybody else."""
    mount("", "/", flags=REC | SLAVE)


def enter(root: str) -> int:
    """Make a mounted folder the root; return a descriptor of the old one, mounted until `leave`."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(root)
    if _libc.syscall(ctypes.c_long(_PIVOT), b".", b"."):
        _fail("pivot_root")
    return old


def leave(old: int) -> None:
    """Let go of the old root: from here on there is no way to what is outside."""
    os.fchdir(old)
    unmount(".")
    os.close(old)
    os.chdir("/")


def mount_proc(*, read_only: bool) -> int:
    """A /proc for this process namespace; where it can be written, not in what concerns the whole machine.

    Returns a descriptor for `count_processes_from`.
    """
    flags = NOSUID | NODEV | NOEXEC
    mount("proc", "/proc", "proc", flags)
    last = os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
    if read_only:
        bind("/proc", "/proc", read_only=True, flags=flags)
        return last
    for name in PROC_COVERED:
        if os.path.exists(f"/proc/{name}"):  # noqa: PTH110
            bind(f"/proc/{name}", f"/proc/{name}", read_only=True, flags=flags)
    return last


def count_processes_from(last: int, number: int) -> None:
    """Let the next process of this namespace have the id after `number` (proc(5), ns_last_pid)."""
    os.pwrite(last, b"%d" % number, 0)


def kill_all_others() -> None:
    """As a namespace's first process: end every other one, and reap them all."""
    while True:
        try:
            os.kill(-1, SIGKILL)
            os.waitpid(-1, 0)
        except (ProcessLookupError, ChildProcessError):
            return


def forget_keys() -> None:
    """Hold a new, empty session keyring instead of the one inherited (keyctl(2))."""
    _libc.syscall(ctypes.c_long(_KEYCTL), 1, None, 0, 0, 0)


def status_of(status: int) -> int:
    """A wait status as a shell has it: the exit code, or 128 and the signal's number."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def mount_dev(sources: dict[str, int], *, read_only: bool) -> None:
    """A /dev of these open devices (by name) and the usual links."""
    mount("tmpfs", "/dev", "tmpfs", NOSUID | NOEXEC, "mode=0755")
    for name, fd in sources.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        mount(f"/proc/self/fd/{fd}", f"/dev/{name}", flags=BIND)
    links = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "shm": "/tmp"}  # noqa: S108
    for name, target in links.items():
        os.symlink(target, f"/dev/{name}")
    if read_only:
        mount("", "/dev", flags=REMOUNT | BIND | RDONLY | NOSUID | NOEXEC)


def open_devices(more: tuple[str, ...] = ()) -> dict[str, int]:
    """Descriptors of the devices that a sandbox has, and of those of `more` ("/dev/kvm") that there are."""
    names = (*_DEVICES, *(path.removeprefix("/dev/") for path in more))
    there = [name for name in names if os.access(f"/dev/{name}", os.F_OK)]
    return {name: os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in there}


def spawn(command: list[str], env: dict[str, str], log: int) -> int:
    """Start a command with its output in `log`; no signal is ignored or blocked. Raises OSError."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    moves = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    signals = [number for number in range(1, 32) if number not in (SIGKILL, 19)]
    return os.posix_spawn(
        which(command[0], env),
        command,
        env,
        file_actions=moves,
        setsid=True,
        setsigmask=(),
        setsigdef=signals,
    )


def run_as_init(command: list[str], env: dict[str, str], cwd: str, log: int) -> int:
    """As a namespace's first process: run a command, reap orphans, return its status as a shell does."""
    try:
        os.chdir(cwd)
        child = spawn(command, env, log)
    except OSError as error:
        os.write(log, f"{error.filename or command[0]}: {error.strerror}\n".encode())
        return 127
    while True:
        pid, status = os.wait()
        if pid == child:
            return status_of(status)


def which(program: str, env: dict[str, str]) -> str:
    """Where a program of this name is, by the PATH of an environment; the name itself when it is nowhere."""
    if "/" in program:
        return program
    places = (f"{folder}/{program}" for folder in env.get("PATH", "").split(":"))
    return next((place for place in places if os.access(place, os.X_OK)), program)


def reset_signals() -> None:
    """Let every signal do what it does by itself, as a program that is started expects it."""
    for number in range(1, 32):
        if number not in (SIGKILL, 19):
            _libc.signal(number, None)


def no_new_privileges() -> None:
    """Let no program started from now on gain rights by set-id or file capabilities (prctl(2))."""
    _prctl(_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), 0, 0, 0):
        _fail(f"prctl {option}")


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
