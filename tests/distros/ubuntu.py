"""An archive of Ubuntu's shape: suites, components and a key of its own; and a base of Debian's files that calls itself so.

`whole(folder)` fills it with Debian trixie's real packages, as far as recipes/ubuntu.yaml needs them, each fetched
when it is asked for.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from distros.rpm_distribution import write_layout
from local_archive import Archive
from peers import CACHE as PEERS

from kairosbuild.sources.debian import closure, open_archive, suites
from kairosbuild.sources.download import Downloader, Wanted
from kairosbuild.sources.mirrors import find
from kairosbuild.store.store import Store

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
BASE = "version: 1\nname: base\nnodes:\n  base: {kind: base, debian: {suite: trixie}}\n"
RELEASE = b'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID=24.04\nVERSION_CODENAME=noble\n'
KEYS = "usr/share/keyrings/ubuntu-archive-keyring.gpg"
SUITES = ("noble", "noble-updates", "noble-security")
INSTALLED = ("systemd", "systemd-sysv", "udev", "kmod", "mount", "dbus", "iproute2")
KERNEL = "linux-image-cloud-amd64"


def base(folder: Path, keyring: bytes) -> bytes:
    """The root of a minimal Debian by kbuild itself, with what makes an Ubuntu of it, as a tar."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(BASE)
    (folder / "BUILD.yaml").write_text("version: 1\nrecipes: [base.yaml]\n")
    command = [sys.executable, "-m", "kairosbuild", "run", "base.yaml", "base", "--no-publish"]
    done = subprocess.run(
        [*command, "-o", "base.layer=base.tar", "--cache-dir", str(CACHE)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    more = {"usr/lib/os-release": RELEASE, KEYS: keyring}
    out = io.BytesIO()
    with tarfile.open(folder / "base.tar") as tar, tarfile.open(fileobj=out, mode="w") as made:
        for member in tar:
            if member.name not in more:
                made.addfile(member, tar.extractfile(member) if member.isfile() else None)
        for path, content in more.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def publish(archive: Archive, suite: str) -> None:
    """A suite with an empty component beside `main`."""
    archive.publish(suite)
    text = archive.files[f"dists/{suite}/InRelease"].decode()
    main = text[text.index("SHA256:\n") : text.index("\n-----BEGIN PGP SIG")].partition("\n")[2]
    rows, archive.paragraphs = archive.paragraphs, []
    archive.publish(suite, component="universe")
    archive.paragraphs = rows
    text = archive.files[f"dists/{suite}/InRelease"].decode()
    plain = text[text.index("Origin:") : text.index("\n-----BEGIN PGP SIG")]
    archive.files[f"dists/{suite}/InRelease"] = archive.key.sign(
        f"{plain.rstrip()}\n{main.rstrip()}\n".encode()
    )


class Fetched(dict[str, bytes]):
    """Files by their path on the mirror; a package of Debian's is fetched when it is asked for."""

    def __init__(self, files: dict[str, bytes], store: Store, loader: Downloader) -> None:
        super().__init__(files)
        self.wanted: dict[str, Wanted] = {}
        self._store, self._loader = store, loader

    def get(self, path: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        """A file's content."""
        if (wanted := self.wanted.get(path)) is None:
            return super().get(path, default)
        return self._store.cas.path(self._loader.get([wanted])[wanted.uri].digest).read_bytes()


def whole(folder: Path) -> dict[str, bytes]:
    """The files of a mirror that has what the recipe needs; its base image is the layout `folder/image`."""
    store = Store(PEERS / "ubuntu")
    loader = Downloader(store.cas, find(environ=os.environ))

    def fetch(uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        return store.cas.path(loader.get([Wanted(uri, digest or "", size)])[uri].digest)

    debian = open_archive(suites("trixie"), "amd64", fetch)
    packages = closure(debian.index, [*INSTALLED, KERNEL])
    archive = Archive()
    found = Fetched(archive.files, store, loader)
    archive.files = found
    real = next(package.name for package in packages if package.name.endswith("+deb13-cloud-amd64"))
    archive.add("linux-image-virtual", "1", Depends=real, Maintainer="a@example.org", Description="a kernel")
    for package in packages:
        fields = debian.index.at(package.uri, package.digest)
        assert fields is not None
        archive.paragraphs.append("".join(f"{name}: {_folded(value)}\n" for name, value in fields.items()))
        found.wanted[fields["Filename"]] = Wanted(package.uri, package.digest, package.size)
    for suite in SUITES:
        publish(archive, suite)
    (folder / "keys").parent.mkdir(parents=True, exist_ok=True)
    (folder / "root.tar").write_bytes(
        base(folder / "base", archive.key.keyring(folder / "keys").read_bytes())
    )
    write_layout(folder / "image", "24.04", folder / "root.tar")
    return found


def _folded(value: str) -> str:
    return value.replace("\n", "\n ")
