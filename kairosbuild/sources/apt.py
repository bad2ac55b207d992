"""apt as a resolver: what to give it, and what to make of its plan. Nothing here runs it.

apt reads our verified indexes, offline; its plan names packages and versions, and every digest is looked up
in the verified index again. So apt decides what is installed, and never what a file is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.sources.debian import Archive, unknown
from kairosbuild.sources.stanza import Package

PLAN, COMPLAINT = "plan", "complaint"
"""What the command leaves in /out: apt's simulation, and what it said on stderr."""

_HOST = "mirror.invalid"  # a name that RFC 2606 keeps out of any network
_STEP = re.compile(r"(?m)^(Inst|Conf|Remv) ([^\s:]+)(?::\S+)?(?: \[\S*\])?(?: \((\S+) [^)]*\[(\S+)\]\))?")
_WORD = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?([=/][A-Za-z0-9.+~:-]+)?")
_STATUS_FIELDS = (
    "Package", "Essential", "Protected", "Important", "Priority", "Section", "Installed-Size", "Architecture",
    "Multi-Arch", "Source", "Version", "Provides", "Depends", "Pre-Depends", "Recommends", "Conflicts",
    "Breaks", "Replaces",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be installed onto what. `status` is dpkg's database of what is there."""

    install: tuple[str, ...]
    remove: tuple[str, ...] = ()
    recommends: bool = False
    status: bytes = b""


@dataclass(frozen=True, slots=True)
class Plan:
    """What apt decided: the packages to unpack, in runs that dpkg takes at once, and names to remove.

    A step is `("unpack" | "configure", names)`, in the order in which apt would have dpkg do it.
    """

    packages: tuple[Package, ...]
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    removed: tuple[str, ...] = field(default=())


def check(request: Request, archive: Archive) -> None:
    """Refuse a name that apt would take for an option or a pattern, or that no suite has.

    Raises InputError (`package-name`, `package-unknown`).
    """
    for word in (*request.install, *request.remove):
        if not _WORD.fullmatch(word):
            raise InputError(
                f"{word!r} is not the name of a package",
                reason="package-name",
                hint="NAME, NAME=VERSION, NAME/SUITE",
            )
    for word in request.install:
        name = re.split("[=/:]", word)[0]
        if name not in archive.index and not archive.index.providers(name):
            raise unknown(name, archive.index)


def inputs(request: Request, archive: Archive) -> dict[str, bytes]:
    """The files of /in. Of the indexes only what the request can reach, which apt reads ten times as fast."""
    made = {"status": request.status, "sources.list": b"", "nothing/README": b""}
    for release in archive.releases:
        suite = release.suite
        made[f"lists/{_HOST}_{suite.label}_Release"] = release.text
        parts = " ".join(suite.components)
        made["sources.list"] += (
            f"deb [trusted=yes] http://{_HOST}/{suite.mirror} {suite.name} {parts}\n".encode()
        )
    for label, data in archive.index.part(_reach(request, archive)).items():
        made[f"lists/{_HOST}_{label}"] = data
    return made


def command(request: Request, architecture: str) -> tuple[str, ...]:
    """The command that leaves a plan; apt's failure is in the plan too, not in the exit status."""
    options: Mapping[str, str] = {
        "Dir::State": "/tmp/state",  # noqa: S108 - the sandbox's own
        "Dir::State::status": "/in/status",
        "Dir::State::Lists": "/in/lists",
        "Dir::Cache": "/tmp/cache",  # noqa: S108
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::SourceList": "/in/sources.list",
        "Dir::Etc::SourceParts": "/in/nothing",
        "Dir::Etc::Preferences": "/in/nothing/preferences",
        "Dir::Etc::PreferencesParts": "/in/nothing",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": str(request.recommends).lower(),
        "APT::Install-Suggests": "false",
        "Debug::NoLocking": "true",
    }
    words = ["apt-get", "--simulate", "--yes", "--no-show-upgraded"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    words += ["install", *request.install, *(f"{name}-" for name in request.remove)]
    run = f'"$@" >/out/{PLAN} 2>/out/{COMPLAINT} || echo "failed $?" >>/out/{PLAN}'
    script = f"mkdir -p /tmp/state /tmp/cache; {run}"
    return ("/bin/sh", "-c", script, "sh", *words)


def read_plan(plan: bytes, complaint: bytes, request: Request, archive: Archive) -> Plan:
    """What the command left, each package looked up in the verified index.

    Raises InputError (`package-conflict`, `package-removal`) and NodeError (`apt-plan`).
    """
    text = plan.decode("utf-8", "replace")
    if text.rstrip().rpartition("\n")[2].startswith("failed "):
        raise InputError(
            f"apt finds no way to install {' '.join(request.install)}: {_essence(text, complaint)}",
            reason="package-conflict",
        )
    packages: dict[str, Package] = {}
    steps: list[tuple[str, list[str]]] = []
    removed: list[str] = []
    for word, name, version, architecture in _STEP.findall(text):
        if word == "Remv":
            removed.append(name)
            continue
        if word == "Inst":
            packages[name] = _exact(archive, name, version, architecture)
        step = "unpack" if word == "Inst" else "configure"
        if not steps or steps[-1][0] != step:
            steps.append((step, []))
        steps[-1][1].append(name)
    surprising = sorted(set(removed) - set(request.remove))
    if surprising:
        raise InputError(
            f"to install {' '.join(request.install)}, apt would remove {' '.join(surprising)}",
            reason="package-removal",
            hint="list it under `remove` if that is wanted",
        )
    return Plan(tuple(packages.values()), tuple((s, tuple(names)) for s, names in steps), tuple(removed))


def status(paragraphs: Iterable[Mapping[str, str]]) -> bytes:
    """dpkg's database as it is when these packages are installed: what a resolver looks at of it."""
    return b"".join(map(_installed, paragraphs))


def joined(databases: Sequence[bytes]) -> bytes:
    """Databases as one; of a package that several have, the last counts."""
    found: dict[bytes, bytes] = {}
    for database in databases:
        for paragraph in re.split(rb"\n\n+", database.strip(b"\n")):
            if paragraph.startswith(b"Package: "):
                found[paragraph.partition(b"\n")[0]] = paragraph + b"\n\n"
    return b"".join(found.values())


def _reach(request: Request, archive: Archive) -> set[str]:
    names = [re.split("[=/:]", word)[0] for word in (*request.install, *request.remove)]
    there = re.findall(rb"(?m)^Package: (.*)$", request.status)
    followed = ("Depends", "Pre-Depends") + (("Recommends",) if request.recommends else ())
    return archive.index.within_reach([*names, *(name.decode() for name in there)], followed)


def _installed(found: Mapping[str, str]) -> bytes:
    lines = [f"{name}: {found[name]}" for name in _STATUS_FIELDS if name in found]
    return "\n".join([lines[0], "Status: install ok installed", *lines[1:], "\n"]).encode()


def _exact(archive: Archive, name: str, version: str, architecture: str) -> Package:
    for package, _ in archive.index.candidates(name):
        if package.version == version and package.architecture == architecture:
            return package
    raise NodeError(f"apt chose {name} {version} [{architecture}], which no index has", reason="apt-plan")


def _essence(text: str, complaint: bytes) -> str:
    """Of what apt printed, what says why."""
    lines = [line.strip() for line in complaint.decode("utf-8", "replace").splitlines()]
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    start = text.find("unmet dependencies:")
    details = text[start:].splitlines()[1:9] if start >= 0 else []
    wanted = [line.strip() for line in details if " : " in line or "Depends" in line or "Conflicts" in line]
    return "; ".join(wanted or errors or ["it does not say why"])
