"""What dnf and zypper have in common: repositories of RPMs as a resolver's inputs, and rpm in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.families.family import Below, KernelRequest
from kairosbuild.graph.node import Locker, Material

if TYPE_CHECKING:
    from kairosbuild.sources.repomd import Described, Metadata

SETTINGS = r"""set -eu
mkdir -p /tmp/home/.config/rpm
export HOME=/tmp/home SYSTEMD_OFFLINE=1
# What our sandbox is already, rpm need not do again; what is mounted there, it has to let alone. Signatures
# were checked when the packages were locked, and their digests since.
cat >/tmp/home/.config/rpm/macros <<'END'
%__transaction_unshare %{nil}
%__transaction_systemd_inhibit %{nil}
%__transaction_syslog %{nil}
%__transaction_audit %{nil}
%_pkgverify_level none
%_netsharedpath /sys:/proc:/dev
END
cp /tmp/home/.config/rpm/macros /tmp/home/.rpmmacros
words() { tr '\n' ' ' <"/in/$1"; }
"""
"""Shell: rpm as it has to be in a sandbox."""

BELOW = r"""quiet='--nodeps --noscripts --notriggers --justdb'
if [ -e /in/below ]; then
    rpm -U $quiet --force --ignoresize --nosignature --nodigest $(find /in/below -name '*.rpm' | sort)
fi
for name in $(words gone); do ! rpm -q "$name" >/dev/null 2>&1 || rpm -e $quiet "$name"; done
"""
"""Shell: enter what the nodes below install, and take out what they remove."""

CLOSED = r"""rpm -qa >/dev/null
# SQLite's log beside the database: empty files, so that rpm can read it where nothing can be written.
for base in /usr/lib/sysimage/rpm /var/lib/rpm; do
    [ -e $base/rpmdb.sqlite-wal ] || continue
    [ ! -s $base/rpmdb.sqlite-wal ] || { echo "$base: the log of the database was not worked in" >&2; exit 1; }
    : >$base/rpmdb.sqlite-shm
done
"""
"""Shell: the database as a layer can have it."""

LOCKS = ("usr/lib/sysimage/rpm/.rpm.lock", "var/lib/rpm/.rpm.lock")
"""What of rpm is no part of a layer."""


def inputs(every: Sequence[Metadata], below: Below, locker: Locker) -> dict[str, Blob]:
    """The repositories by number, and what was put on the base, each package as it was installed last."""
    from kairosbuild.sources.rpm import read

    found: dict[str, Blob] = {}
    for number, metadata in enumerate(every):
        for path, content in metadata.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            found[f"repositories/{number}/{path}"] = locker.put_bytes(data)
    newest: dict[str, Material] = {}
    for one in below.packages:
        newest[read(locker.fetch(one.uri, digest=one.digest, size=one.size)).name] = one
    for name, material in newest.items():
        if name not in below.removed:
            found[f"below/{name}.rpm"] = Blob(material.digest, material.size)
    return found


def names(every: Sequence[Metadata]) -> set[str]:
    """The names of all packages."""
    return {name for metadata in every for name in metadata.names()}


def kernels(request: KernelRequest, every: Sequence[Metadata]) -> list[Described]:
    """The packages of this name and, where one is held, version, newest first. Raises InputError (`package-unknown`)."""
    from kairosbuild.sources.evr import newest_last

    named = [one for metadata in every for one in metadata.named(request.package)]
    named.sort(key=lambda one: newest_last(one.evr), reverse=True)
    if not named:
        known = {name for name in names(every) if name.startswith("kernel")}
        hint = nearest(request.package, known) if known else ""
        raise InputError(f"there is no package {request.package!r}", reason="package-unknown", hint=hint)
    chosen = [one for one in named if request.version in ("", one.package.version)]
    if not chosen:
        raise InputError(
            f"no repository has {request.package} in version {request.version}",
            reason="package-unknown",
            hint=f"there is {', '.join(one.package.version for one in named)}",
        )
    return chosen
