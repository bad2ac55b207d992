"""A machine in QEMU that restarts as it likes: disk, firmware variables and network of its own, and a root shell.

What boots it has a unit that puts a shell on the second serial port; `sh` asks it, wherever the machine has got to.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")
SHELL_UNIT = """\
[Unit]
Description=A shell for the test
DefaultDependencies=no
After=local-fs.target
Conflicts=shutdown.target
Before=shutdown.target
[Service]
ExecStart=/bin/sh
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
Restart=always
RestartSec=1
KillSignal=SIGKILL
"""
NETWORK = (
    "until ip route | grep -q default; do for i in /sys/class/net/e*; do i=${i##*/}; ip link set $i up; "
    "ip addr add 10.0.2.15/24 dev $i; ip route replace default via 10.0.2.2; done; sleep 1; done"
)
"""Again until it holds: udev may rename the interface meanwhile."""
HOST = "10.0.2.2"


class Vm:
    """`tree` is the unpacked tools tree `qemu`; its own loader starts it, so nothing of the host is needed."""

    def __init__(
        self,
        tree: Path,
        folder: Path,
        disk: Path,
        *more: str,
        uefi: bool = True,
        memory: int = 1024,
        bootfile: str = "",
    ) -> None:
        self.tree, self.folder, self.disk, self.memory = tree, folder, disk, memory
        self.console_file, self._socket = folder / "console", folder / "shell"
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self.more, self._uefi = more, uefi
        self._bootfile = bootfile  # what the network offers, when the disk starts nothing
        self.watchdog = True
        self._asked = 0
        self._incoming: list[str] = []
        if uefi and not (folder / "vars").exists():
            shutil.copyfile(tree / "usr/share/OVMF/OVMF_VARS_4M.fd", folder / "vars")
            (folder / "vars").chmod(0o600)

    # -- power ----------------------------------------------------------------------------------

    def on(self) -> None:
        loader = next(self.tree.glob("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
        libraries = self.tree / "usr/lib/x86_64-linux-gnu"
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    loader,
                    "--library-path",
                    f"{libraries}:{libraries}/pulseaudio",
                    self.tree / "usr/bin/qemu-system-x86_64",
                    *self._arguments(),
                ],
                stdout=log,
                stderr=log,
                env={
                    "PATH": "/usr/bin:/bin",
                    "QEMU_MODULE_DIR": str(libraries / "qemu"),
                    "TMPDIR": str(self.folder),
                },
            )
        self._line = None

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._process is not None

    @property
    def frozen(self) -> bool:
        """Whether there is something to go on from."""
        return (self.folder / "frozen").exists()

    def freeze(self) -> None:
        """Stop the machine as it is, and keep its memory beside its disk: `thawed` goes on from here, often."""
        with _Monitor(self.folder / "monitor") as monitor:
            monitor.ask("stop")
            monitor.ask("migrate-set-parameters", **{"max-bandwidth": 16 << 30})
            monitor.ask("migrate", uri=f"file:{self.folder / 'memory'}")
            while (state := monitor.ask("query-migrate")["status"]) != "completed":
                assert state in ("setup", "active", "device"), state
                time.sleep(0.1)
        self.off()
        (self.folder / "frozen").touch()

    def thawed(self, folder: Path) -> Vm:
        """Another machine in the state in which this one was frozen, running."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("disk.raw", "console", *(["vars"] if self._uefi else [])):
            subprocess.run(["cp", "--sparse=always", self.folder / name, folder / name], check=True)
        found = Vm(self.tree, folder, folder / "disk.raw", *self.more, uefi=self._uefi, memory=self.memory)
        found._incoming = ["-incoming", f"file:{self.folder / 'memory'}"]
        found.on()
        found._incoming = []
        with _Monitor(folder / "monitor") as monitor:
            while monitor.ask("query-status")["status"] == "inmigrate":
                time.sleep(0.1)
            monitor.ask("cont")
        return found

    def off(self) -> None:
        """Cut the power."""
        if self._line:
            self._line.close()
            self._line = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _arguments(self) -> list[str]:
        share = self.tree / "usr/share"
        firmware = [
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={share}/OVMF/OVMF_CODE_4M.fd",
            "-drive", f"if=pflash,format=raw,unit=1,file={self.folder}/vars",
        ] if self._uefi else []  # fmt: skip
        return [
            "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", str(self.memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-L", f"{share}/qemu", "-L", f"{share}/seabios",
            *firmware,
            "-chardev", f"file,id=console,path={self.console_file},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=shell,path={self._socket},server=on,wait=off", "-serial", "chardev:shell",
            "-drive", f"if=none,id=disk,format=raw,file={self.disk},cache=unsafe",
            "-device", "virtio-blk-pci,drive=disk,bootindex=1", "-device", "virtio-rng-pci",
            *self._network(),
            *(["-device", "i6300esb"] if self.watchdog else []), "-qmp", f"unix:{self.folder}/monitor,server=on,wait=off",
            *self.more, *self._incoming,
        ]  # fmt: skip

    def _network(self) -> list[str]:
        if self._bootfile:
            net = f"user,id=net,bootfile={self._bootfile}"
            return ["-netdev", net, "-device", "virtio-net-pci,netdev=net,bootindex=2"]
        return ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]

    # -- looking ---------------------------------------------------------------------------------

    def console(self) -> str:
        if not self.console_file.exists():
            return ""
        return _CONTROL.sub("", self.console_file.read_bytes().decode("utf-8", "replace"))

    def starts(self) -> int:
        """How often a kernel has come up."""
        return self.console().count("Linux version ")

    def wait(self, pattern: str, seconds: float = 600, *, after: int = 0) -> str:
        """The first match of a pattern on the console, behind so many characters of it."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            if match := re.search(pattern, self.console()[after:]):
                found.append(match)
            return bool(found)

        self._until(look, seconds, f"{pattern!r} did not show")
        return found[0].group(0)

    def healthy(self, starts: int, seconds: float = 900) -> None:
        """Wait until this many starts have happened and the last one was found healthy."""

        def look() -> bool:
            parts = self.console().split("Linux version ")
            assert len(parts) <= starts + 1, "it started once too often:\n" + "\n".join(
                self.console().splitlines()[-80:]
            )
            return len(parts) == starts + 1 and "kbuild-node: healthy" in parts[-1]

        self._until(look, seconds, f"start {starts} did not become healthy")
        self.ready()

    def _until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert self._process and self._process.poll() is None, (self.folder / "qemu.log").read_text()[
                -2000:
            ]
            assert time.monotonic() < end, f"{what}:\n" + "\n".join(self.console().splitlines()[-60:])
            time.sleep(0.2)

    # -- asking ----------------------------------------------------------------------------------

    def sh(self, command: str, seconds: float = 300) -> tuple[int, str]:
        """Exit code and output of a command in the machine, which has to be `ready`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            mark = self._mark()
            half = mark[:2] + '""' + mark[2:]  # so that the command's own echo is no answer
            asked = (
                f"\necho; echo {half}begin; ({command}) 2>&1 </dev/null; e=$?; echo; echo {half} $e {half}\n"
            )
            output = self._exchange(asked, mark, end)
            if output is not None:
                return output
        raise AssertionError(f"no answer to {command!r}:\n" + "\n".join(self.console().splitlines()[-60:]))

    def ok(self, command: str, seconds: float = 300) -> str:
        """Output of a command that has to succeed."""
        code, output = self.sh(command, seconds)
        assert code == 0, f"{command}: {code}\n{output}\n" + "\n".join(self.console().splitlines()[-30:])
        return output

    def ready(self, seconds: float = 600) -> None:
        """Wait for the shell, by asking it something until it answers.

        Of what is typed before it listens a part may be lost: so this has no quote or bracket that would be left open.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            mark, _ = self._mark(), self._connected(end)
            if self._exchange(f"echo {mark} $? {mark}\n", mark, min(end, time.monotonic() + 5)):
                return
            assert self._process and self._process.poll() is None, (self.folder / "qemu.log").read_text()[
                -2000:
            ]
        raise AssertionError("no shell:\n" + "\n".join(self.console().splitlines()[-60:]))

    def typed(self, line: str, answer: str, seconds: float = 300) -> str:
        """What is said to a line that a person types, up to this answer."""
        end, heard = time.monotonic() + seconds, ""
        connection = self._connected(end)
        connection.sendall(f"{line}\n".encode())
        connection.settimeout(seconds)
        while not re.search(answer, heard):
            data = connection.recv(65536)
            assert data and time.monotonic() < end, heard
            heard += data.decode("utf-8", "replace")
        return heard

    def _mark(self) -> str:
        self._asked += 1
        return f"@@{os.getpid()}.{self._asked}"

    def _exchange(self, asked: str, mark: str, end: float) -> tuple[int, str] | None:
        line = self._connected(end)
        line.sendall(b"stty -echo 2>/dev/null\n" + asked.encode())
        heard = ""
        pattern = re.compile(rf"{re.escape(mark)} (\d+) {re.escape(mark)}")
        while time.monotonic() < end:
            line.settimeout(max(0.1, min(1.0, end - time.monotonic())))
            try:
                data = line.recv(65536)
            except TimeoutError:
                continue
            if not data:
                self._line = None
                return None
            heard += data.decode("utf-8", "replace")
            if match := pattern.search(heard):
                return int(match[1]), _tidy(heard[: match.start()].rpartition(f"{mark}begin")[2])
        return None

    def _handed_over(self) -> bool:
        console = self.console()
        loading = max(map(console.rfind, ("BdsDxe: loading", "kbuild: starting", "iPXE")))
        return console.rfind("verified layers, read-only; starting") > loading

    def _connected(self, end: float) -> socket.socket:
        while not self._handed_over():  # what is typed before that goes to the boot loader's menu
            assert time.monotonic() < end, "no system to ask"
            time.sleep(0.2)
        while self._line is None:
            candidate = socket.socket(socket.AF_UNIX)
            try:
                candidate.connect(os.fspath(self._socket))
                self._line = candidate
            except OSError:
                candidate.close()
                assert time.monotonic() < end, (self.folder / "qemu.log").read_text()[-2000:]
                time.sleep(0.2)
        return self._line


class _Monitor:
    """QEMU's machine protocol."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Monitor:
        end = time.monotonic() + 60
        self._socket = socket.socket(socket.AF_UNIX)
        while self._socket.connect_ex(os.fspath(self._path)):
            assert time.monotonic() < end, "no monitor"
            time.sleep(0.1)
        self._stream = self._socket.makefile("rwb")
        self._stream.readline()
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *failure: object) -> None:
        self._stream.close()
        self._socket.close()

    def ask(self, command: str, **arguments: object) -> dict:
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._stream.flush()
        while True:  # events come between
            reply = json.loads(self._stream.readline())
            assert "error" not in reply, reply
            if "return" in reply:
                return reply["return"]


def _tidy(heard: str) -> str:
    """What a command said, without prompts and the echo of what was asked."""
    lines = [_CONTROL.sub("", one) for one in heard.replace("\r", "").splitlines()]
    return "\n".join(
        re.sub(r"^((\S+ )?# )+", "", one)
        for one in lines
        if "@@" not in one and "stty -echo" not in one and one.strip("/# ")
    )


@contextmanager
def running(vm: Vm, *, keep: bool = False) -> Iterator[Vm]:
    """The machine, on, if it is not yet; off behind, and its disk gone unless it is kept."""
    if not vm.is_on:
        vm.on()
    try:
        yield vm
    finally:
        vm.off()
        if not keep:
            vm.disk.unlink(missing_ok=True)
