"""The workspace: the folder that sources are relative to, and its settings in BUILD.yaml.

Found by walking up from the current folder, then from the recipe's; a recipe without one works on
defaults. What a person's own settings file says of mirrors and cache wins over the workspace's,
since both are about the machine and neither is ever part of a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kairosbuild.core.errors import InputError, KbuildError, raise_problems
from kairosbuild.recipe import places
from kairosbuild.recipe.fields import choice, flag, integer, record, records, size, text, textmap, texts
from kairosbuild.recipe.instances import from_json
from kairosbuild.recipe.places import FILE

MIRROR = r"(?:https?|file)://[^\s]+(?: +(?:https?|file)://[^\s]+)*"
SUITE = "trixie"


@dataclass(frozen=True, slots=True)
class Defaults:
    """Flags of the command line that need not be repeated."""

    jobs: int | None = integer(
        "Nodes built at a time; as many as there are processors if left out.", None, least=1, most=4096
    )
    keep_going: bool = flag("Build what does not depend on a failed node.")
    progress: str = choice("How progress is shown.", ("auto", "plain", "json", "none"), "auto")


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where results are kept and shared."""

    dir: str = text("The store's folder, relative to the workspace.", "cache", least=1)
    from_: tuple[str, ...] = texts("Repositories of a registry that results are looked up in.", ())
    to: str = text("Repository of a registry that results are put into.", "")
    insecure: bool = flag("Speak plain HTTP to these registries.")
    sign: str = text(
        "Key to sign with what is put there: a file of the workspace, `env://NAME`, `pkcs11:…`.", ""
    )
    trust: tuple[str, ...] = texts(
        "Public keys, as files of the workspace. If there are any, only results that one of them signed"
        " are used.",
        (),
    )


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """Where recipes publish to that name no place of their own."""

    to: str = text("A reference, or `oci:DIR`.", "", example="registry.example.com/os")
    insecure: bool = flag("Speak plain HTTP to it.")
    ca: str = text("A bundle of certificates to trust instead of the system's: a file of the workspace.", "")
    immutable: tuple[str, ...] = texts(
        "Tags (patterns such as `v*`) that are never moved once they are there.", ()
    )


@dataclass(frozen=True, slots=True)
class ToolchainSettings:
    """Where the tools trees come from."""

    suite: str = text("The Debian suite that tools are taken from.", SUITE, pattern="[a-z][a-z-]*")


@dataclass(frozen=True, slots=True)
class SignedImages:
    """Who must have signed some images."""

    images: str = text("Images, as a pattern of their names without tags.", example="quay.io/fedora/*")
    keys: tuple[str, ...] = texts(
        "Public keys, one of which must have signed (cosign's signatures): files of the workspace, `env://NAME`."
        " With none, these images need no signature.",
        (),
    )


@dataclass(frozen=True, slots=True)
class LicensePolicy:
    """Which licences may be published, as patterns of SPDX names."""

    allow: tuple[str, ...] = texts("Only these, where any are named.", (), example="GPL-*")
    deny: tuple[str, ...] = texts("None of these.", (), example="AGPL-3.0*")
    unknown: str = choice("Packages that state no licence which can be read.", ("allow", "deny"), "allow")
    exempt: tuple[str, ...] = texts("Packages that this is not asked of, as patterns of their names.", ())


@dataclass(frozen=True, slots=True)
class SizePolicy:
    """How large what is published may be, uncompressed."""

    image: int | None = size("All layers of an image together.", None, least=1)
    layer: int | None = size("A layer.", None, least=1)
    artifact: int | None = size("All files of an artifact together, such as a disk.", None, least=1)


@dataclass(frozen=True, slots=True)
class Policy:
    """What must hold of what is built upon (before anything is built) and of what is published (before it is)."""

    signed: tuple[SignedImages, ...] = records(
        "Signatures of images that nodes are built on; the first pattern that fits counts.", SignedImages, ()
    )
    forbidden: tuple[str, ...] = texts("Packages that may not be in it, as patterns of their names.", ())
    licenses: LicensePolicy = record("Licences of the packages in it.", LicensePolicy, LicensePolicy())
    sizes: SizePolicy = record("How large it may be.", SizePolicy, SizePolicy())


@dataclass(frozen=True, slots=True)
class BuildFile:
    """BUILD.yaml, the workspace file."""

    version: int = integer("Version of this file's language; this is 1.", 1, least=1, most=1)
    recipes: tuple[str, ...] = texts("Recipes of the workspace: paths or globs.", ("recipes/*.yaml",))
    defaults: Defaults = record("Defaults of the command line.", Defaults, Defaults())
    mirrors: Mapping[str, str] = textmap(
        "Mirrors by name, as `debian: http://…`; several, asked in order, with spaces between.",
        {},
        pattern=MIRROR,
        example="http://mirror.example.org/debian",
    )
    cache: CacheSettings = record("The store, and caches shared with others.", CacheSettings, CacheSettings())
    registry: RegistrySettings = record("Where to publish.", RegistrySettings, RegistrySettings())
    toolchain: ToolchainSettings = record("The pinned tools.", ToolchainSettings, ToolchainSettings())
    policy: Policy = record("What must hold of what is built and published.", Policy, Policy())


@dataclass(frozen=True, slots=True)
class UserCache:
    """The person's own say on the store."""

    dir: str | None = text(
        "The store's folder: absolute, or beginning with `~/`.", None, pattern=r"(?:/|~/).*"
    )
    from_: tuple[str, ...] | None = texts("Repositories that results are looked up in.", None)
    to: str | None = text("Repository that results are put into.", None)
    sign: str | None = text(
        "Key to sign them with: an absolute path, `~/…`, `env://NAME` or `pkcs11:…`.",
        None,
        pattern=r"(?:/|~/|env://|pkcs11:).*",
    )
    downloads: str | None = text(
        "Folder of downloads that all workspaces share; empty for none.", None, pattern=r"(?:(?:/|~/).*)?"
    )


@dataclass(frozen=True, slots=True)
class UserFile:
    """The settings file of one person, $XDG_CONFIG_HOME/kairosbuild/config.yaml."""

    version: int = integer("Version of this file's language; this is 1.", 1, least=1, most=1)
    mirrors: Mapping[str, str] = textmap(
        "Mirrors by name; several, asked in order, with spaces between.", {}, pattern=MIRROR
    )
    cache: UserCache = record("The store, and caches shared with others.", UserCache, UserCache())


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache settings in force: `dir` is absolute."""

    dir: Path
    from_: tuple[str, ...] = ()
    to: str = ""
    insecure: bool = False
    sign: str = ""
    trust: tuple[str, ...] = ()
    downloads: str | None = None


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace and every setting in force in it. `file` is None where defaults stand in."""

    root: Path
    cache: Cache
    file: Path | None = None
    recipes: tuple[str, ...] = ("recipes/*.yaml",)
    defaults: Defaults = field(default_factory=Defaults)
    mirrors: Mapping[str, str] = field(default_factory=dict)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    toolchain: ToolchainSettings = field(default_factory=ToolchainSettings)
    policy: Policy = field(default_factory=Policy)

    def recipe_files(self) -> tuple[Path, ...]:
        """The recipes that exist, sorted, each once."""
        found = {path for pattern in self.recipes for path in self.root.glob(pattern) if path.is_file()}
        return tuple(sorted(found))


def find(start: Path, recipe: Path | None = None, *, user: Path | None = None) -> Workspace:
    """The workspace for work in folder `start`, on this recipe. `user` is a settings file."""
    root = places.root_of(str(start), str(recipe) if recipe else None)
    workspace = _read_workspace(Path(root, FILE)) if root else _default(start, recipe)
    return _with_user(workspace, user) if user is not None and user.is_file() else workspace


def user_file(environ: Mapping[str, str]) -> Path:
    """Where the person's own settings are."""
    return Path(places.user_file(environ))


def _default(start: Path, recipe: Path | None) -> Workspace:
    root = Path(places.default_root(str(start), str(recipe) if recipe else None))
    return Workspace(root, Cache(root / "cache"))


def _read_workspace(file: Path) -> Workspace:
    found = read_settings(file, BuildFile)
    root = file.parent
    said = found.cache
    cache = Cache(
        root / said.dir,
        said.from_,
        said.to,
        said.insecure,
        _key(root, said.sign),
        tuple(_key(root, key) for key in said.trust),
    )
    return Workspace(
        root, cache, file, found.recipes, found.defaults, found.mirrors, found.registry, found.toolchain,
        found.policy,
    )  # fmt: skip


def _with_user(workspace: Workspace, file: Path) -> Workspace:
    found = read_settings(file, UserFile)
    own, cache = found.cache, workspace.cache
    merged = replace(
        cache,
        dir=Path(own.dir).expanduser() if own.dir else cache.dir,
        from_=cache.from_ if own.from_ is None else own.from_,
        to=cache.to if own.to is None else own.to,
        sign=_own_key(own.sign) if own.sign else cache.sign,
        downloads=own.downloads,
    )
    return replace(workspace, cache=merged, mirrors={**workspace.mirrors, **found.mirrors})


def _own_key(said: str) -> str:
    return str(Path(said).expanduser()) if said.startswith("~/") else said


def _key(root: Path, said: str) -> str:
    """A key as `proof.keys` takes it; a plain path is below `root`."""
    return str(root / said) if said and ":" not in said else said


FileT = TypeVar("FileT")


def read_settings(file: Path, spec: type[FileT]) -> FileT:
    """A settings file as its spec. Raises InputError, or Problems, with places."""
    from kairosbuild.recipe import located  # here: a workspace on defaults needs no YAML
    from kairosbuild.recipe.typed import Reader
    from kairosbuild.recipe.variables import Variables

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", reason="no-settings") from None
    problems: list[KbuildError] = []
    root = located.read(data, str(file))
    typed = Reader(Variables({}, {}), problems).fields(spec, root, file.name)
    raise_problems(problems)
    return from_json(spec, typed.spec)
