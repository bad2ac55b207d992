"""A configuration put into effect: users, keys, files, names, services, stages. Doing it again changes nothing more.

Everything goes below `root`, so that it can be tried on a folder; programs of the machine are run through `Do`.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairosbuild.node import accounts, durable
from kairosbuild.node.accounts import Accounts
from kairosbuild.node.problem import Problem

Run = Callable[[str], int]
"""Runs a command of /bin/sh; its exit code."""

EARLY = ("rootfs", "initramfs", "boot")
LATE = ("fs", "network", "reconcile")


def shell(command: str) -> int:
    """Run a command on this machine."""
    return subprocess.run(["/bin/sh", "-c", command], check=False).returncode


@dataclass(slots=True)
class Applier:
    """Applies to the machine at `root`. What went wrong is kept in `problems`; one step's failure stops no other."""

    root: Path = Path("/")
    run: Run = shell
    problems: list[str] = field(default_factory=list)

    def early(self, config: Mapping[str, Any]) -> None:
        """What has to be so before services start."""
        self._try("hostname", self.hostname, config.get("hostname"))
        self._try("timezone", self.timezone, config.get("timezone"))
        if locale := config.get("locale"):
            self._try("locale", self.file, {"path": "/etc/locale.conf", "content": f"LANG={locale}\n"})
        for user in config.get("users", ()):
            self._try(f"user {user['name']}", self.user, user)
        if keys := config.get("ssh_authorized_keys"):
            first = config["users"][0]["name"] if config.get("users") else "root"
            self._try("ssh_authorized_keys", lambda given: self.keys(first, given), keys)
        for one in config.get("write_files", ()):
            self._try(f"file {one['path']}", self.file, one)
        for command in config.get("bootcmd", ()):
            self._try(f"bootcmd {command!r}", self.command, command)
        for stage in EARLY:
            self.stage(config, stage)

    def late(self, config: Mapping[str, Any], *, first: bool) -> None:
        """What wants the machine up; `runcmd` only at the first start."""
        for stage in LATE:
            self.stage(config, stage)
        for command in config.get("runcmd", ()) if first else ():
            self._try(f"runcmd {command!r}", self.command, command)

    def stage(self, config: Mapping[str, Any], name: str) -> None:
        """The steps of a stage, in their order."""
        for number, step in enumerate(config.get("stages", {}).get(name, ()), 1):
            if self._applies(step):
                label = f"stage {name}, step {step.get('name') or number}"
                for key, value in step.items():
                    if act := self._acts().get(key):
                        self._try(f"{label}: {key}", act, value, step)

    # -- steps -----------------------------------------------------------------------------------

    def _acts(self) -> dict[str, Callable[[Any, Mapping[str, Any]], None]]:
        return {
            "hostname": lambda name, step: self.hostname(name),
            "files": lambda files, step: _each(self.file, files),
            "directories": lambda folders, step: _each(self.folder, folders),
            "commands": lambda commands, step: _each(self.command, commands),
            "users": lambda users, step: _each(
                self.user, [{**one, "name": name} for name, one in users.items()]
            ),
            "authorized_keys": lambda keys, step: _each(lambda pair: self.keys(*pair), keys.items()),
            "environment": lambda values, step: self.environment(values, step.get("environment_file")),
            "sysctl": lambda values, step: self.sysctl(values),
            "modules": lambda names, step: _each(self.command, [f"modprobe {name}" for name in names]),
            "systemctl": lambda units, step: self.systemctl(units),
            "timesyncd": lambda values, step: self.timesyncd(values),
            "dns": lambda values, step: self.dns(values),
        }

    def _applies(self, step: Mapping[str, Any]) -> bool:
        if (only := step.get("only_os")) and not re.fullmatch(only, self._os()):
            return False
        return not step.get("if") or self.run(step["if"]) == 0

    def _os(self) -> str:
        for place in ("usr/lib/os-release", "etc/os-release"):
            path = self.root / place
            for line in path.read_text().splitlines() if path.is_file() else ():
                if line.startswith("ID="):
                    return line[3:].strip("\"'")
        return "linux"

    def hostname(self, name: str | None) -> None:
        """The machine's name, now and from now on."""
        if name:
            self._write("/etc/hostname", f"{name}\n".encode())
            self.run(f"hostname {name}")

    def timezone(self, name: str | None) -> None:
        """The machine's time zone."""
        if name:
            target = f"/usr/share/zoneinfo/{name}"
            if not (self.root / target.lstrip("/")).exists():
                raise Problem(f"there is no time zone {name}", reason="bad-config")
            link = self.root / "etc/localtime"
            link.unlink(missing_ok=True)
            link.symlink_to(target)

    def user(self, user: Mapping[str, Any]) -> None:
        """A user as told, made or changed; with home, groups and keys."""
        known = Accounts(self.root)
        account = known.ensure(user)
        if not user.get("no_create_home"):
            accounts.make_home(self.root, account)
        if some := user.get("ssh_authorized_keys"):
            self.keys(account.name, some)

    def keys(self, name: str, keys: list[str]) -> None:
        """Keys that may log in as a user, added to those there."""
        account = Accounts(self.root).find(name)
        if account is None:
            raise Problem(f"there is no user {name!r} to give keys to", reason="bad-config")
        folder = self.root / account.home.lstrip("/") / ".ssh"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "authorized_keys"
        there = path.read_text().splitlines() if path.exists() else []
        wanted = [line for key in keys for line in self._fetched(key)]
        durable.write(path, "".join(f"{line}\n" for line in dict.fromkeys([*there, *wanted])).encode())
        path.chmod(0o600)
        for one in (folder, path):
            _chown(one, account.uid, account.gid)

    def file(self, told: Mapping[str, Any]) -> None:
        """A file with content, mode and owner."""
        data = _decoded(told.get("content", ""), told.get("encoding", ""))
        path = self._inside(told["path"])
        if told.get("append") and path.exists():
            there = path.read_bytes()
            data = there if there.endswith(data) else there + data
        self._write(told["path"], data, int(told.get("permissions") or "644", 8))
        self._own(path, told)

    def folder(self, told: Mapping[str, Any]) -> None:
        """A folder with mode and owner."""
        path = self._inside(told["path"])
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(int(told.get("permissions") or "755", 8))
        self._own(path, told)

    def command(self, command: str) -> None:
        """A command; one that fails is a problem."""
        if code := self.run(command):
            raise Problem(f"it ended with {code}", reason="command-failed")

    def environment(self, values: Mapping[str, str], where: str | None) -> None:
        """Lines NAME=VALUE, those of the same name replaced."""
        self._set_lines(where or "/etc/environment", values, '{}="{}"')

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Kernel settings."""
        self._set_lines("/etc/sysctl.d/90-kbuild.conf", values, "{} = {}")
        for name, value in values.items():
            place = self.root / "proc/sys" / name.replace(".", "/")
            if place.exists():
                place.write_text(value)

    def systemctl(self, units: Mapping[str, list[str]]) -> None:
        """Services enabled, disabled, masked, started."""
        for verb in ("mask", "disable", "enable", "start"):
            for unit in units.get(verb, ()):
                self.command(f"systemctl {verb} {unit}")

    def timesyncd(self, values: Mapping[str, str]) -> None:
        """Settings of systemd-timesyncd."""
        lines = "".join(f"{name}={value}\n" for name, value in values.items())
        self._write("/etc/systemd/timesyncd.conf.d/90-kbuild.conf", f"[Time]\n{lines}".encode())

    def dns(self, values: Mapping[str, list[str]]) -> None:
        """Name servers and search domains."""
        lines = [f"nameserver {one}" for one in values.get("nameservers", ())]
        lines += [f"search {' '.join(values['search'])}"] if values.get("search") else []
        self._write("/etc/resolv.conf", "".join(f"{one}\n" for one in lines).encode())

    # -- parts -----------------------------------------------------------------------------------

    def _try(self, what: str, act: Callable[..., Any], *given: Any) -> None:
        try:
            act(*given)
        except (Problem, OSError, ValueError, subprocess.SubprocessError) as problem:
            self.problems.append(f"{what}: {problem}")

    def _inside(self, path: str) -> Path:
        if ".." in Path(path).parts:
            raise Problem(f"{path} leads elsewhere", reason="bad-config")
        return self.root / path.lstrip("/")

    def _write(self, where: str, data: bytes, mode: int = 0o644) -> None:
        path = self._inside(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, data)
        path.chmod(mode)

    def _own(self, path: Path, told: Mapping[str, Any]) -> None:
        owner = str(told.get("owner") or told.get("owner_string") or "0")
        user, _, group = owner.partition(":")
        known = Accounts(self.root)
        uid = known.uid(user)
        gid = known.gid(str(told.get("group") or group or "")) if told.get("group") or group else None
        _chown(path, uid, known.primary(uid) if gid is None else gid)

    def _set_lines(self, where: str, values: Mapping[str, str], form: str) -> None:
        path = self._inside(where)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.partition("=")[0].strip() not in values]
        kept += [form.format(name, value) for name, value in values.items()]
        self._write(where, "".join(f"{line}\n" for line in kept).encode())

    def _fetched(self, key: str) -> list[str]:
        """A key as it is, or those that a forge publishes of an account."""
        forge, _, name = key.partition(":")
        hosts = {"github": "https://github.com", "gitlab": "https://gitlab.com"}
        if forge not in hosts:
            return [key]
        import urllib.request

        try:
            with urllib.request.urlopen(f"{hosts[forge]}/{name}.keys", timeout=30) as reply:  # noqa: S310
                return str(reply.read(1 << 20).decode()).splitlines()
        except OSError as problem:
            raise Problem(f"{key}: {problem}", reason="registry-unreachable") from problem


def _each(act: Callable[[Any], None], things: Iterable[Any]) -> None:
    for one in things:
        act(one)


def _decoded(content: str, encoding: str) -> bytes:
    if not encoding:
        return content.encode()
    data = base64.b64decode(content, validate=False)
    return gzip.decompress(data) if encoding.startswith("gz") else data


def _chown(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)
