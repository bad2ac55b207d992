"""Which places to ask for a reference: mirrors and pull-through caches, as containers-registries.conf(5) has them.

The files that podman, skopeo and buildah read, version 2: `[[registry]]` tables with `prefix`, `location`,
`insecure`, `blocked`, `mirror-by-digest-only` and `[[registry.mirror]]`. A mirror is never identity: what it
serves is held against the digest that the lock has. `insecure` means plain HTTP here; a certificate that
nobody vouches for is not taken either way. Short names and credential helpers are not of interest here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import HostError, InputError
from kairosbuild.registry.reference import Reference, parse

ETC = Path("/etc/containers")
VARIABLE = "CONTAINERS_REGISTRIES_CONF"
_PULL = ("all", "digest-only", "tag-only")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another place with the same content. `pull` says for which references: `all`, `digest-only`, `tag-only`."""

    location: str
    insecure: bool = False
    pull: str = "all"

    def serves(self, where: Reference) -> bool:
        """Whether this mirror is asked for such a reference."""
        return self.pull == "all" or (self.pull == "digest-only") == bool(where.digest)


@dataclass(frozen=True, slots=True)
class Table:
    """One `[[registry]]`. `file` is for messages."""

    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]
    file: str

    def matched(self, where: Reference) -> int:
        """How many characters of the reference this prefix stands for; 0 when it is not meant."""
        if self.prefix.startswith("*."):
            return len(where.host) if where.host.endswith(self.prefix[1:]) else 0
        text = str(where)
        rest = text[len(self.prefix) :]
        return len(self.prefix) if text.startswith(self.prefix) and (not rest or rest[0] in "/:@") else 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to ask, and whether that is by plain HTTP though it is not this machine."""

    reference: Reference
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Configured:
    """The tables in force."""

    tables: tuple[Table, ...] = ()

    def endpoints(self, where: Reference) -> tuple[Endpoint, ...]:
        """Where to look for a reference, in order, itself last. Raises HostError (`registry-blocked`)."""
        table = self._table(where)
        if table is None:
            return (Endpoint(where),)
        rest = str(where)[table.matched(where) :]
        places = [
            Endpoint(_moved(mirror.location, rest, table), mirror.insecure)
            for mirror in table.mirrors
            if mirror.serves(where)
        ]
        itself = _moved(table.location, rest, table) if table.location else where
        return (*places, Endpoint(itself, table.insecure))

    def insecure(self, where: Reference) -> bool:
        """Whether this very place is spoken to in plain HTTP. Raises HostError (`registry-blocked`)."""
        table = self._table(where)
        return table is not None and table.insecure

    def _table(self, where: Reference) -> Table | None:
        """The table with the longest match."""
        table = max(self.tables, key=lambda one: one.matched(where), default=None)
        if table is None or not table.matched(where):
            return None
        if table.blocked:
            raise HostError(
                f"{where} is blocked on this machine", reason="registry-blocked", hint=f"by {table.file}"
            )
        return table


def load(environ: Mapping[str, str], etc: Path = ETC) -> Configured:
    """What this machine's files say. `CONTAINERS_REGISTRIES_CONF` names a file that counts alone.

    Raises InputError (`registries-conf`).
    """
    found: dict[str, Table] = {}
    for file in _files(environ, etc):
        found |= {table.prefix: table for table in _read(file)}
    return Configured(tuple(found.values()))


def _files(environ: Mapping[str, str], etc: Path) -> Iterable[Path]:
    if named := environ.get(VARIABLE):
        return [Path(named)]
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", ""), ".config")  # noqa: PTH118
    own = Path(config) / "containers"
    mine = (own / "registries.conf").is_file()
    folders = [own] if mine else [etc, own]
    files = [own / "registries.conf"] if mine else [etc / "registries.conf"]
    files += [file for folder in folders for file in sorted((folder / "registries.conf.d").glob("*.conf"))]
    return [file for file in files if file.is_file()]


def _read(file: Path) -> list[Table]:
    try:
        document = _document(file.read_text())
    except (OSError, ValueError) as error:
        raise _wrong(file, str(error)) from None
    if "registries" in document:
        raise _wrong(file, "version 1 of its format is not read", "write [[registry]] tables")
    return [_table(row, file) for row in _rows(document, "registry", file)]


def _document(text: str) -> Mapping[str, Any]:
    """What a file says of registries, nothing where no line begins to: short names are many, and TOML slow to read."""
    if not any(map(_speaks, text.splitlines())):
        return {}
    import tomllib

    return tomllib.loads(text)


def _speaks(line: str) -> bool:
    """Whether a line names registries; `"registry" = "docker.io/library/registry"` is a short name."""
    start = line.lstrip(" \t[\"'")
    return start.startswith("registr") and ("[" in line or line.strip() == start.strip())


def _table(row: Mapping[str, Any], file: Path) -> Table:
    location, prefix = _text(row, "location", file), _text(row, "prefix", file)
    prefix = prefix or location
    if not prefix or (not location and not prefix.startswith("*.")):
        raise _wrong(file, "a [[registry]] has no location")
    only = _flag(row, "mirror-by-digest-only", file)
    mirrors = tuple(_mirror(each, file, only) for each in _rows(row, "mirror", file))
    insecure, blocked = _flag(row, "insecure", file), _flag(row, "blocked", file)
    return Table(prefix.rstrip("/"), location.rstrip("/"), insecure, blocked, mirrors, str(file))


def _mirror(row: Mapping[str, Any], file: Path, digest_only: bool) -> Mirror:
    location = _text(row, "location", file)
    if not location:
        raise _wrong(file, "a [[registry.mirror]] has no location")
    pull = _text(row, "pull-from-mirror", file) or ("digest-only" if digest_only else "all")
    if pull not in _PULL:
        raise _wrong(file, f"pull-from-mirror is {pull!r}", f"one of {', '.join(_PULL)}")
    return Mirror(location.rstrip("/"), _flag(row, "insecure", file), pull)


def _rows(document: Mapping[str, Any], name: str, file: Path) -> list[Mapping[str, Any]]:
    rows = document.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _wrong(file, f"{name} is no list of tables")
    return rows


def _text(row: Mapping[str, Any], name: str, file: Path) -> str:
    value = row.get(name, "")
    if not isinstance(value, str) or "://" in value:
        raise _wrong(file, f"{name} is {value!r}", "write HOST[:PORT][/REPOSITORY]")
    return value


def _flag(row: Mapping[str, Any], name: str, file: Path) -> bool:
    value = row.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(file, f"{name} is {value!r}, not true or false")
    return value


def _moved(location: str, rest: str, table: Table) -> Reference:
    try:
        return parse(f"{location}{rest}")
    except InputError as error:
        raise _wrong(Path(table.file), f"{location}{rest}: {error.message}") from None


def _wrong(file: Path, why: str, hint: str = "see containers-registries.conf(5)") -> InputError:
    return InputError(f"{file}: {why}", reason="registries-conf", hint=hint)
