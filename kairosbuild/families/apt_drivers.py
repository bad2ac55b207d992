"""What drivers take from a Debian archive: a kernel's headers and compiler, sources for DKMS, firmware, modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, InputError, KbuildError, raise_problems
from kairosbuild.families.family import DriversRequest
from kairosbuild.graph.node import Locked, Locker, Material
from kairosbuild.kernels import abi
from kairosbuild.kernels.module import read

if TYPE_CHECKING:
    from kairosbuild.sources.debian import Archive
    from kairosbuild.sources.stanza import Package

IMAGE = re.compile(r"linux-image-(\d[a-z0-9.+~-]*?)(-unsigned)?$")
MODULES = re.compile(r"(?:usr/)?lib/modules/([^/]+)/.+\.ko(?:\.(?:xz|zst|gz))?")
_SYMVERS = re.compile(r"usr/src/.+/Module\.symvers")
_HEADERS = re.compile(r"linux-(headers|kbuild)-\d[a-z0-9.+~-]*$")
_COMPILER = re.compile(r"gcc-\d+(-for-host)?$")
_FIRMWARE = re.compile(r"(?:usr/)?lib/firmware/(.+)")
_NON_FREE = "non-free-firmware"
_SUITE = "trixie"
_EMPTY = 64  # bytes that a list of nothing may have, packed
_TOOLS = ("make", "bash", "mawk", "xz-utils", "diffutils", "base-files")
_UNUSED = (
    "libasan8", "libtsan2", "liblsan0", "libubsan1", "libhwasan0", "libgprofng0", "libitm1", "libquadmath0",
    "libgomp1", "libcc1-0", "openssl-provider-legacy", "libsystemd0", "dpkg-dev", "linux-base", "systemd",
)  # fmt: skip
"""Dependencies of compilers and headers that no compilation of a module touches."""


def headers(image: Package, archive: Archive) -> tuple[list[Package], str]:
    """The headers of exactly this kernel and the compiler they name; nothing when the archive has none."""
    from kairosbuild.sources.stanza import alternatives

    match = IMAGE.match(image.name)
    found: dict[str, Package] = {}
    compiler = ""
    todo = [f"linux-headers-{match[1]}"] if match else []
    while todo:
        name = todo.pop()
        exact = [one for one in archive.index.candidates(name) if one[0].version == image.version]
        if name in found or not exact:
            continue
        found[name] = exact[0][0]
        wanted = [first for first, *_ in alternatives(exact[0][1].get("Depends", ""))]
        todo += [one for one in wanted if _HEADERS.match(one)]
        compiler = next((one for one in wanted if _COMPILER.match(one)), compiler)
    return [found[name] for name in sorted(found)], compiler


def lock(request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
    """See `Family.lock_drivers`."""
    archive = _open(request, kernel, locker)
    dkms = [archive.newest(name) for name in request.dkms]
    ready = [archive.newest(name) for name in request.packages]
    _check_dkms(request, dkms, locker)
    _check_modules(request, ready, kernel, locker)
    asked, holding = _firmware(request, kernel, archive, locker)
    tools = _toolchain(request, kernel, archive)
    rows = {"dkms": dkms, "prebuilt": ready, "firmware": holding}
    data: dict[str, Any] = {
        "packages": [one.json() | {"use": use} for use, some in rows.items() for one in some],
        "toolchain": [one.json() for one in tools],
        "asked": asked,
    }
    every = [*dkms, *ready, *holding, *tools]
    return Locked(data, tuple(Material(one.uri, one.digest, one.size) for one in every))


def _open(request: DriversRequest, kernel: Locked, locker: Locker) -> Archive:
    from dataclasses import replace

    from kairosbuild.sources.debian import Suite, open_archive, suites

    given = [Suite.of(one) for one in kernel.data.get("repositories", ())] or list(suites(_SUITE))
    more = request.repositories or ((_NON_FREE,) if request.firmware or request.firmware_packages else ())
    wanted = [replace(one, components=tuple(dict.fromkeys([*one.components, *more]))) for one in given]
    return open_archive(wanted, locker.platform.split("/")[1], locker.fetch)


# -- compiling -------------------------------------------------------------------------------------


def _toolchain(request: DriversRequest, kernel: Locked, archive: Archive) -> list[Package]:
    """The compiler that the headers name, make and what else compiling takes; without the headers."""
    from kairosbuild.sources.debian import closure
    from kairosbuild.sources.tree import SHELL, WITHOUT

    if not request.compiles:
        return []
    own = [one["name"] for one in kernel.data.get("headers", ())]
    if kernel.data.get("packages") and not own:
        raise _no_headers(request, kernel, archive)
    names = [kernel.data.get("compiler") or "gcc", *_TOOLS, *SHELL, *(("dkms",) if request.dkms else ())]
    libraries = ["libelf1t64", "libssl3t64", "pahole"] if not own else []
    image = kernel.data.get("image", "")
    left_out = (*WITHOUT, *_UNUSED, image, f"{image}-unsigned")
    wanted = [one for one in (*names, *own, *libraries) if one in archive.index or one in names]
    return [one for one in closure(archive.index, wanted, left_out) if one.name not in own]


def _no_headers(request: DriversRequest, kernel: Locked, archive: Archive) -> InputError:
    image = kernel.data["image"]
    version = next(one["version"] for one in kernel.data["packages"] if one["name"] == image)
    name = image.replace("linux-image-", "linux-headers-").removesuffix("-unsigned")
    have = [one.version for one, _ in archive.index.candidates(name)]
    lacking = f"there is no {name} of that version" + (f": only of {', '.join(have)}" if have else "")
    if version in have:
        lacking = f"{request.kernel!r} is told to have no headers"
    return InputError(
        f"{request.name} compiles modules for {request.kernel!r}, which is {image} {version}, and {lacking}",
        reason="drivers-headers",
        hint="take `headers: false` away"
        if version in have
        else f"let {request.kernel!r} be of a version whose headers the archive has",
    )


def _check_dkms(request: DriversRequest, packages: Iterable[Package], locker: Locker) -> None:
    from kairosbuild.sources.deb import members

    for one in packages:
        paths = [e.path for e, _ in members(locker.fetch(one.uri, digest=one.digest, size=one.size))]
        if not any(path.startswith("usr/src/") and path.endswith("/dkms.conf") for path in paths):
            raise InputError(
                f"{request.name}: the package {one.name} has no dkms.conf: it is not for DKMS",
                reason="drivers-dkms",
                hint="packages with compiled modules stand under `packages`",
            )


def _check_modules(
    request: DriversRequest, packages: Iterable[Package], kernel: Locked, locker: Locker
) -> None:
    """Prebuilt modules fit the kernel, as far as its packages tell. What is to be compiled may export more."""
    paths = {one.name: locker.fetch(one.uri, digest=one.digest, size=one.size) for one in packages}
    named = {f"{request.name}: the package {name}": path for name, path in paths.items()}
    refuse_unfit(named, request.kernel, kernel, locker, alone=not request.compiles)


def refuse_unfit(
    archives: Mapping[str, Path], name: str, kernel: Locked, locker: Locker, *, alone: bool
) -> None:
    """Raises what a build of these modules would, as far as the kernel's packages tell what it promises.

    `archives` are by what messages call them; `alone` says that nothing else exports what they lack.
    """
    from kairosbuild.families import prebuilt

    match = IMAGE.match(kernel.data.get("image", ""))
    problems: list[KbuildError] = []
    for owner, path in archives.items() if match else ():
        assert match is not None
        modules = prebuilt.chosen(prebuilt.files(path), match[1], owner, name)
        if promised := _promise(name, match[1], kernel, locker):
            found = abi.problems(owner, modules, promised)
            problems += [one for one in found if alone or one.reason != "driver-symbol"]
    raise_problems(problems)


def _promise(name: str, release: str, kernel: Locked, locker: Locker) -> abi.Kernel | None:
    """What the kernel's packages say that it promises; None when its headers or its modules are not among them."""
    debs = [locker.fetch(one.uri, digest=one.digest, size=one.size) for one in kernel.materials]
    count = len(kernel.data.get("packages", ()))
    one = next((read(path, data) for path, data in _files(debs[:count], MODULES)), None)
    symvers = next((data for _, data in _files(debs[count:], _SYMVERS)), None)
    if one is None or symvers is None:
        return None
    return abi.Kernel(name, release, abi.Abi(one.flags), abi.symbols(symvers))


def _files(debs: Iterable[Path], wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """The files of packages whose paths are such, one by one: who has enough need not unpack the rest."""
    from kairosbuild.sources.deb import members

    for deb in debs:
        for entry, content in members(deb):
            if content is not None and wanted.fullmatch(entry.path):
                yield entry.path, content.read()


# -- firmware --------------------------------------------------------------------------------------


def _firmware(
    request: DriversRequest, kernel: Locked, archive: Archive, locker: Locker
) -> tuple[dict[str, list[str]] | None, list[Package]]:
    """What each module asks for (None where only the built kernel can say), and the packages that have it."""
    from kairosbuild.kernels.firmware import chosen, is_file, wishes

    named = [archive.newest(name) for name in request.firmware_packages]
    if not request.firmware:
        return {}, named
    modules = [word for word in request.firmware if not is_file(word)]
    asked = _asked(modules, kernel, locker) if modules else {}
    if named:
        return asked, named
    if asked is None:
        raise InputError(
            f"{request.name}: what the modules of {request.kernel!r} ask for is known when it is built, not before",
            reason="firmware-packages",
            hint="name the packages that have it under `firmware_packages`, as firmware-iwlwifi",
        )
    holders = _contents(archive, locker)
    found: dict[str, Package] = {}
    for wish in wishes(request.firmware, asked, request.kernel):
        for path in chosen(wish, dict.fromkeys(holders, "")):
            found[holders[path]] = archive.newest(holders[path])
    return asked, [found[name] for name in sorted(found)]


def _asked(words: Sequence[str], kernel: Locked, locker: Locker) -> dict[str, list[str]] | None:
    """Module → its firmware, of the modules named, out of the kernel's packages; None when it has none.

    Of a module that does not exist there is nothing: so the names of all are there, with empty lists.
    """
    from kairosbuild.boot import elf
    from kairosbuild.boot.modules import canonical, expand, name_of
    from kairosbuild.kernels.module import firmware_of
    from kairosbuild.sources.deb import members

    count = len(kernel.data.get("packages", ()))
    if not count:
        return None
    wanted = {canonical(word) for word in words}
    found: dict[str, list[str]] = {}
    for material in kernel.materials[:count]:
        deb = locker.fetch(material.uri, digest=material.digest, size=material.size)
        for entry, content in members(deb):
            if not MODULES.fullmatch(entry.path) or content is None or not (name := name_of(entry.path)):
                continue
            read = name in wanted
            info = elf.modinfo(expand(entry.path, content.read())) if read else []
            found[name] = list(firmware_of(info))
    return {name: files for name, files in found.items() if name in wanted or not wanted <= found.keys()}


def _contents(archive: Archive, locker: Locker) -> dict[str, str]:
    """Firmware file → package, out of the archive's own lists of what is where."""
    from kairosbuild.oci.transport import decompress

    architecture = locker.platform.split("/")[1]
    found: dict[str, str] = {}
    for release in archive.releases:
        for component in release.suite.components:
            if component == "main":
                continue  # its list has forty million bytes; what firmware is in it, is named by hand
            for part in ("all", architecture):
                path = f"{component}/Contents-{part}.gz"
                blob = release.files.get(path)
                if blob is None or blob.size <= _EMPTY:
                    continue
                base = f"{release.suite.mirror}:dists/{release.suite.name}"
                file = _either(
                    locker, f"{base}/{component}/by-hash/SHA256/{blob.hex}", f"{base}/{path}", blob
                )
                if file is None:
                    locker.note(f"{path} of {release.suite.name} is not to be had; it is left out")
                    continue
                with file.open("rb") as stream:
                    found |= _listed(decompress(stream).read().decode("utf-8", "replace"))
    return found


def _either(locker: Locker, by_hash: str, by_name: str, blob: Blob) -> Path | None:
    """The file at one of two places; mirrors are known to lack the small ones by hash."""
    for uri in (by_hash, by_name):
        try:
            return locker.fetch(uri, digest=blob.digest, size=blob.size)
        except HostError:
            continue
    return None


def _listed(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        path, _, holders = line.rpartition(" ")
        if match := _FIRMWARE.fullmatch(path.rstrip()):
            found[match[1]] = holders.partition(",")[0].rpartition("/")[2]
    return found
