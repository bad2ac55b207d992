"""Foreign programs that tests compare with: found, installed or unpacked; never silently absent under CI.

Looked for on PATH, in the cache of peers, in the machine's own distribution (as root, by apt-get), and in
Debian trixie: the .deb by its digest from the signed index, unpacked into the cache and run from there.
"""

import fcntl
import functools
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

SUITE = "trixie"
CACHE = Path(os.environ.get("KBUILD_TEST_PEERS") or Path.home() / ".cache/kairosbuild-peers")
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
PACKAGE = {"mkfs.erofs": "erofs-utils", "qemu-system-x86_64": "qemu-system-x86"}
PLACES = ("usr/bin", "usr/sbin", "bin", "sbin")


def peer(name: str, package: str = "", suite: str = "") -> str:
    """The path of a program, of this Debian suite if one is said. Without it the test is skipped, and failed under CI."""
    found = _unpacked(name, package or name, suite) if suite else find(name, package)
    return found or _absent(name)


def pinned(name: str, package: str = "") -> str:
    """The program out of trixie's package, whatever the machine has; for what is put into an image."""
    return _cached(name, package or name) or _unpacked(name, package or name) or _absent(name)


def outside_of_a_chroot(what: str) -> None:
    """Skip in a chroot, where the kernel makes no user namespaces and nothing can be pivoted: `what` gives up there."""
    import pytest

    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{what} cannot work in a chroot")


def softhsm(folder: Path, key: Path) -> str:
    """The URI of a key (PEM) on a token that is made in this folder; SOFTHSM2_CONF is its softhsm.conf.

    The library reads its configuration once in a process: sign in one of your own.
    """
    import pytest

    tool = peer("softhsm2-util", "softhsm2")
    pytest.importorskip("pkcs11")
    (folder / "tokens").mkdir()
    (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    (folder / "pin").write_text("1234\n")
    env = {**os.environ, "SOFTHSM2_CONF": str(folder / "softhsm.conf")}
    named = ("--label", "db", "--id", "01", "--token", "ci", "--pin", "1234")
    for words in (
        ("--init-token", "--free", "--label", "ci", "--pin", "1234", "--so-pin", "4321"),
        ("--import", str(key), *named),
    ):
        subprocess.run([tool, *words], env=env, check=True, capture_output=True)
    places = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
    module = next(place for place in places if Path(place).exists())
    return f"pkcs11:token=ci;object=db?module-path={module}&pin-source={folder / 'pin'}"


def _absent(name: str) -> NoReturn:
    import pytest  # benchmarks look for peers too, without it

    message = f"no {name} on this machine, and none could be had"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


@functools.cache
def find(name: str, package: str = "") -> str | None:
    """The path of a program, got if need be; None where that is impossible."""
    package = package or PACKAGE.get(name, name)
    return _present(name, package) or _installed(name, package) or _unpacked(name, package)


def _present(name: str, package: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path) or _cached(name, package)


def _cached(name: str, package: str, suite: str = "") -> str | None:
    places = (CACHE / suite / package / place / name for place in PLACES)
    return next((str(place) for place in places if os.access(place, os.X_OK) and _links(place)), None)


def _links(program: Path) -> bool:
    """Whether this machine has the libraries of a program out of another suite."""
    command = ["ldd", str(program)]
    return "not found" not in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _installed(name: str, package: str) -> str | None:
    if os.geteuid() != 0 or not shutil.which("apt-get") or not _offered(package):
        return None
    with _locked():
        if not _present(name, package):
            command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=False)
    return _present(name, package)


def _offered(package: str) -> bool:
    command = ["apt-cache", "policy", package]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "Candidate:" in shown and "Candidate: (none)" not in shown


def _unpacked(name: str, package: str, suite: str = "") -> str | None:
    from kairosbuild.core.errors import KbuildError

    with _locked():
        if not _cached(name, package, suite):
            try:
                _unpack(package, CACHE / suite / package, suite or SUITE)
            except (KbuildError, KeyError) as problem:
                print(f"{package}: {problem}")
    return _cached(name, package, suite)


def _unpack(package: str, into: Path, suite: str) -> None:
    from kairosbuild.sources.deb import members
    from kairosbuild.sources.download import Downloader, Wanted
    from kairosbuild.sources.mirrors import find as find_mirrors
    from kairosbuild.store.cas import Cas

    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        cas = Cas(Path(folder) / "cas")
        loader = Downloader(cas, find_mirrors(environ=os.environ))

        def get(uri: str, digest: str = "", size: int | None = None) -> Path:
            wanted = Wanted(f"debian:{uri}", digest, size)
            return cas.path(loader.get([wanted])[wanted.uri].digest)

        row = _row(get, package, suite)
        deb = get(row["Filename"], f"sha256:{row['SHA256']}", int(row["Size"]))
        tree = Path(folder) / "tree"
        for entry, content in members(deb):
            place = tree / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                with place.open("wb") as out:
                    shutil.copyfileobj(content, out)
                place.chmod(entry.mode)
            elif entry.type == "symlink":
                place.symlink_to(entry.target)
        shutil.rmtree(into, ignore_errors=True)
        into.parent.mkdir(parents=True, exist_ok=True)
        tree.rename(into)


def _row(get, package: str, suite: str) -> Mapping[str, str]:  # type: ignore[no-untyped-def]
    """The stanza of a package in the index that the signed release names."""
    from kairosbuild.sources.openpgp import signed_text

    base = f"dists/{suite}"
    release = signed_text(get(f"{base}/InRelease").read_bytes(), "InRelease").decode()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    index = f"main/binary-{machine}/Packages.xz"
    match = re.search(rf"^ ([0-9a-f]{{64}}) +(\d+) {re.escape(index)}$", release, re.MULTILINE)
    assert match, f"{index} is not in the release"
    packages = get(f"{base}/{index}", f"sha256:{match[1]}", int(match[2]))
    for stanza in lzma.decompress(packages.read_bytes()).decode().split("\n\n"):
        if stanza.startswith(f"Package: {package}\n"):
            return dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
    raise KeyError(f"{suite} has no package {package}")


@contextmanager
def _locked() -> Iterator[None]:
    """One at a time, over all of the suite's processes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
