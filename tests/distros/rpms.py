"""Debian's packages as RPMs: real files, names and scripts of an RPM distribution, made by rpmbuild and createrepo_c.

Debian's mirrors are the only ones that can be counted on where the tests run. So the honest nearest thing to
Fedora is made of what Debian ships: one RPM per package, its files with their owners and modes, its dependencies
by name. What Debian's maintainer scripts would do, triggers do, as in the distributions these stand for.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peers import peer

from kairosbuild.oci.entry import Entry
from kairosbuild.sources.deb import members
from kairosbuild.sources.debian import Archive
from kairosbuild.sources.stanza import alternatives

Content = bytes | str | None
"""Of a file its bytes, of a link its target, None for a folder."""


@dataclass
class Rpm:
    """One package to be. `scripts` are sections of a spec by their heading, as `%post` or `%transfiletriggerin`."""

    name: str
    version: str = "1"
    release: str = "1"
    epoch: int = 0
    requires: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    obsoletes: tuple[str, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)
    files: dict[str, tuple[Entry, Path | None]] = field(default_factory=dict)

    def add(self, path: str, content: Content, stage: Path, mode: int = 0o644) -> Rpm:
        """A file that no Debian package has."""
        if isinstance(content, str):
            self.files[path] = Entry(path, "symlink", 0o777, target=content), None
        elif content is None:
            self.files[path] = Entry(path, "dir", 0o755), None
        else:
            place = stage / self.name / path.replace("/", "%")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            self.files[path] = Entry(path, "file", mode, size=len(content)), place
        return self


def of_deb(archive: Archive, name: str, file: Path, stage: Path, names: Mapping[str, str]) -> Rpm:
    """The RPM of a Debian package. `names` maps Debian's names to those of the distribution that is made."""
    package, fields = archive.index.newest(name)
    epoch, version, release = evr(package.version)
    provided = [n for some in alternatives(fields.get("Provides", "")) for n in some]
    rpm = Rpm(
        names[name],
        version,
        release,
        epoch,
        _relations(fields.get("Pre-Depends", "") + ", " + fields.get("Depends", ""), archive, names),
        _relations(fields.get("Recommends", ""), archive, names),
        tuple(names.get(one, one) for one in provided),
    )
    folder = stage / rpm.name
    folder.mkdir(parents=True, exist_ok=True)
    for number, (entry, content) in enumerate(members(file)):
        place = None
        if content is not None:
            place = folder / str(number)
            with place.open("wb") as out:
                shutil.copyfileobj(content, out)
        rpm.files[entry.path] = entry, place
    return rpm


def build(
    rpms: Iterable[Rpm], folder: Path, owners: Mapping[int, str], groups: Mapping[int, str]
) -> list[Path]:
    """The packages as files in `folder`, by one run of rpmbuild."""
    every = list(rpms)
    work = folder.parent / f"{folder.name}.work"
    root, buildroot = work / "stage", work / "root"
    shutil.rmtree(work, ignore_errors=True)
    for rpm in every:
        for path, (entry, place) in rpm.files.items():
            _put(root / path, entry, place, root)
    spec = work / "distribution.spec"
    spec.write_text(_spec(every, root, work, owners, groups))
    folder.mkdir(parents=True, exist_ok=True)
    macros = {
        "_rpmformat": "4",
        "_topdir": str(work),
        "_rpmdir": str(folder),
        "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        "_binary_payload": "w3.gzdio",
        "_buildhost": "localhost",
        "use_source_date_epoch_as_buildtime": "1",
        "_dbpath": str(work / "db"),
    }
    words = [word for name, value in macros.items() for word in ("-D", f"{name} {value}")]
    command = [peer("rpmbuild", "rpm"), "-bb", "--quiet", "--nodeps", "--target", "x86_64-linux"]
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(work), "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [*command, "--buildroot", str(buildroot), *words, str(spec)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    shutil.rmtree(work)
    return sorted(folder.glob("*.rpm"))


def repository(folder: Path) -> None:
    """The metadata of the packages in this folder."""
    command = [peer("createrepo_c", "createrepo-c"), "--quiet", "--no-database", "--revision", "1"]
    subprocess.run([*command, "--simple-md-filenames", str(folder)], check=True)


class Signer:
    """A key in a folder of its own, that signs packages and metadata."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name
        if not home.exists():
            home.mkdir(parents=True, mode=0o700)
            self._gpg("--quick-gen-key", name, "rsa3072", "sign", "never")

    def certificate(self) -> bytes:
        """The public part, as it lies in /etc/pki/rpm-gpg."""
        return self._gpg("--armor", "--export", self.name)

    def sign(self, rpms: Iterable[Path]) -> None:
        """Sign packages as distributions do, by rpmsign."""
        command = [peer("rpmsign", "rpm"), "--addsign", "-D", f"_gpg_name {self.name}", "-D"]
        options = [f"_gpg_path {self.home}", "-D", f"__gpg {peer('gpg')}"]
        done = subprocess.run(
            [*command, *options, *map(str, rpms)],
            env=self._env(),
            capture_output=True,
            text=True,
            check=False,
        )
        self._rest()
        assert done.returncode == 0, done.stderr

    def sign_metadata(self, folder: Path) -> None:
        """Sign a repository's repomd.xml, as openSUSE does."""
        metadata = folder / "repodata/repomd.xml"
        signature = metadata.with_name("repomd.xml.asc")
        signature.unlink(missing_ok=True)
        self._gpg("--armor", "--detach-sign", "-u", self.name, "--output", str(signature), str(metadata))
        metadata.with_name("repomd.xml.key").write_bytes(self.certificate())

    def _gpg(self, *words: str) -> bytes:
        peer("gpg-agent")  # which gpg starts by itself, and a package of its own
        command = [peer("gpg"), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
        done = subprocess.run([*command, *words], env=self._env(), capture_output=True, check=False)
        self._rest()
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def _rest(self) -> None:
        """End the agent, which would outlive the test."""
        command = [peer("gpgconf"), "--kill", "gpg-agent"]
        subprocess.run(command, env=self._env(), check=True)

    def _env(self) -> dict[str, str]:
        return {"GNUPGHOME": str(self.home), "PATH": "/usr/bin:/bin", "HOME": str(self.home)}


def evr(version: str) -> tuple[int, str, str]:
    """Epoch, version and release that a Debian version comes to."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, "1"
    return int(epoch), upstream.replace("-", "."), revision


def _relations(text: str, archive: Archive, names: Mapping[str, str]) -> tuple[str, ...]:
    """The names that a relation comes to in this distribution; what is not part of it is left out."""
    found = []
    for some in alternatives(text):
        expanded = [
            real for n in some for real in ([n] if n in archive.index else archive.index.providers(n))
        ]
        known = [names[one] for one in expanded if one in names]
        found += known[:1]
    return tuple(dict.fromkeys(found))


def _put(place: Path, entry: Entry, content: Path | None, root: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if entry.type == "dir":
        place.mkdir(exist_ok=True)
    elif entry.type == "symlink":
        if not place.is_symlink():
            place.symlink_to(entry.target)
    elif entry.type == "hardlink":
        place.unlink(missing_ok=True)
        place.hardlink_to(root / entry.target)
    elif content is not None:
        place.unlink(missing_ok=True)
        place.hardlink_to(content)


def _spec(
    rpms: list[Rpm], root: Path, work: Path, owners: Mapping[int, str], groups: Mapping[int, str]
) -> str:
    parts = [
        "%global debug_package %{nil}\n%global __os_install_post %{nil}\n%undefine __brp_mangle_shebangs\n"
        "%global _build_id_links none\n"
        "Name: distribution\nVersion: 1\nRelease: 1\nSummary: A distribution\nLicense: Various\n"
        f"AutoReqProv: no\n%description\n.\n%install\ncp -al {root}/. %{{buildroot}}/\n"
    ]
    for number, rpm in enumerate(rpms):
        listed = work / f"{number}.files"
        listed.write_text("".join(_listed(entry, owners, groups) for entry, _ in rpm.files.values()))
        parts.append(_package(rpm, listed))
    return "\n".join(parts)


def _package(rpm: Rpm, listed: Path) -> str:
    relations = (
        ("Requires", rpm.requires), ("Recommends", rpm.recommends), ("Provides", rpm.provides),
        ("Conflicts", rpm.conflicts), ("Obsoletes", rpm.obsoletes),
    )  # fmt: skip
    lines = [f"%package -n {rpm.name}", f"Version: {rpm.version}", f"Release: {rpm.release}"]
    lines += [f"Epoch: {rpm.epoch}"] if rpm.epoch else []
    lines += [f"Summary: {rpm.name} of Debian", "AutoReqProv: no"]
    lines += [f"{word}: {name}" for word, names in relations for name in names if name != rpm.name]
    lines += [f"%description -n {rpm.name}", "."]
    for head, script in rpm.scripts.items():
        section, _, rest = head.partition(" ")
        lines += [f"{section} -n {rpm.name} {rest}", script]
    return "\n".join([*lines, f"%files -n {rpm.name}" + (f" -f {listed}" if rpm.files else ""), ""])


def _listed(entry: Entry, owners: Mapping[int, str], groups: Mapping[int, str]) -> str:
    path = entry.path.replace("%", "%%").replace(" ", "?")
    path = re.sub(r"\[(.*)]", r"?\1?", path)  # a pattern to rpmbuild; one bracket alone is none
    mode = "-" if entry.type == "symlink" else f"{entry.mode:04o}"
    attributes = f"%attr({mode},{owners.get(entry.uid, 'root')},{groups.get(entry.gid, 'root')})"
    kind = "%dir " if entry.type == "dir" else ""
    config = "%config(noreplace) " if entry.path.startswith("etc/") and entry.type == "file" else ""
    return f"{kind}{config}{attributes} /{path}\n"
