"""Users and groups in /etc/passwd, shadow and group, written as every distribution reads them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairosbuild.node import durable
from kairosbuild.node.problem import Problem

_FIRST, _FIRST_SYSTEM, _LAST = 1000, 200, 60000
_ADMINS = ("admin", "sudo", "wheel")
_LOCKED = "!"


@dataclass(frozen=True, slots=True)
class Account:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


class Accounts:
    """The databases of the machine at `root`; every change is on disk at once."""

    def __init__(self, root: Path) -> None:
        self._etc = root / "etc"
        self._root = root

    def find(self, name: str) -> Account | None:
        """A user by name."""
        for row in self._rows("passwd"):
            if row[0] == name and len(row) >= 7:
                return Account(row[0], int(row[2]), int(row[3]), row[5])
        return None

    def uid(self, user: str) -> int:
        """A user's number. Raises Problem `bad-config`."""
        if user.isdigit():
            return int(user)
        if found := self.find(user):
            return found.uid
        raise Problem(f"there is no user {user!r}", reason="bad-config")

    def gid(self, group: str) -> int:
        """A group's number. Raises Problem `bad-config`."""
        if group.isdigit():
            return int(group)
        for row in self._rows("group"):
            if row[0] == group:
                return int(row[2])
        raise Problem(f"there is no group {group!r}", reason="bad-config")

    def primary(self, uid: int) -> int:
        """The first group of a user, or 0."""
        return next((int(row[3]) for row in self._rows("passwd") if row[2] == str(uid)), 0)

    def ensure(self, told: Mapping[str, Any]) -> Account:
        """A user as told: made when it is not there, its password, shell and groups set when they are given."""
        name = told["name"]
        if self.find(name) is None:
            self._make(told)
        if told.get("passwd") is not None or told.get("lock_passwd"):
            self._password(name, _LOCKED if told.get("lock_passwd") else _hashed(told["passwd"]))
        if shell := told.get("shell"):
            self._change("passwd", name, 6, shell)
        admins = [one for one in _ADMINS if self._has_group(one)] or ["admin"] if told.get("admin") else []
        for group in [*told.get("groups", ()), *admins]:
            self._join(group, name)
        found = self.find(name)
        assert found is not None, "it was made"
        return found

    def _make(self, told: Mapping[str, Any]) -> None:
        name = told["name"]
        taken = {int(row[2]) for row in (*self._rows("passwd"), *self._rows("group"))}
        start = _FIRST_SYSTEM if told.get("system") else _FIRST
        uid = int(told.get("uid") or next(n for n in range(start, _LAST) if n not in taken))
        primary = told.get("primary_group")
        if primary is None:
            self._write("group", [*self._rows("group"), [name, "x", str(uid), ""]])
            gid = uid
        else:
            if not self._has_group(primary):
                self._join(primary, "")
            gid = self.gid(primary)
        home, shell = told.get("homedir") or f"/home/{name}", told.get("shell") or self._shell()
        row = [name, "x", str(uid), str(gid), told.get("gecos", ""), home, shell]
        self._write("passwd", [*self._rows("passwd"), row])
        self._write(
            "shadow", [*self._rows("shadow"), [name, _LOCKED, _today(), "0", "99999", "7", "", "", ""]]
        )

    def _password(self, name: str, hashed: str) -> None:
        rows = self._rows("shadow")
        if not any(row[0] == name for row in rows):
            rows.append([name, "", _today(), "0", "99999", "7", "", "", ""])
        self._write(
            "shadow", [[*row[:1], hashed, _today(), *row[3:]] if row[0] == name else row for row in rows]
        )

    def _join(self, group: str, name: str) -> None:
        rows = self._rows("group")
        if not any(row[0] == group for row in rows):
            taken = {int(row[2]) for row in rows}
            gid = next(n for n in range(_FIRST_SYSTEM, _LAST) if n not in taken)
            rows.append([group, "x", str(gid), ""])
        self._write("group", [[*row[:3], _joined(row[3], name)] if row[0] == group else row for row in rows])

    def _has_group(self, group: str) -> bool:
        return any(row[0] == group for row in self._rows("group"))

    def _change(self, file: str, name: str, column: int, value: str) -> None:
        rows = self._rows(file)
        self._write(
            file, [[*row[:column], value, *row[column + 1 :]] if row[0] == name else row for row in rows]
        )

    def _shell(self) -> str:
        return "/bin/bash" if (self._root / "bin/bash").exists() else "/bin/sh"

    def _rows(self, file: str) -> list[list[str]]:
        path = self._etc / file
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split(":") for line in lines if line.count(":") >= 3]

    def _write(self, file: str, rows: list[list[str]]) -> None:
        path = self._etc / file
        before = path.stat() if path.exists() else None
        durable.write(path, "".join(":".join(row) + "\n" for row in rows).encode())
        path.chmod((before.st_mode & 0o777) if before else 0o640 if file == "shadow" else 0o644)
        if before and os.geteuid() == 0:
            os.chown(path, before.st_uid, before.st_gid)


def make_home(root: Path, account: Account) -> None:
    """A home folder out of /etc/skel, when there is none yet."""
    home = root / account.home.lstrip("/")
    if home.exists():
        return
    skeleton = root / "etc/skel"
    if skeleton.is_dir():
        shutil.copytree(skeleton, home, symlinks=True)
    else:
        home.mkdir(parents=True)
    home.chmod(0o700)
    if os.geteuid() == 0:
        for one in (home, *home.rglob("*")):
            os.chown(one, account.uid, account.gid, follow_symlinks=False)


def _joined(members: str, name: str) -> str:
    return ",".join(dict.fromkeys(filter(None, [*members.split(","), name])))


def _hashed(password: str) -> str:
    """A password as shadow has it: a hash as it is, plain text hashed by OpenSSL (SHA-512 crypt)."""
    if password.startswith("$") or password in ("", "!", "*"):
        return password or "*"
    from kairosbuild.node import openssl

    return openssl.crypt(password)


def _today() -> str:
    return str(int(time.time()) // 86400)
