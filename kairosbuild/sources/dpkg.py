"""dpkg as an installer: the script that runs inside, and what of its traces is left out of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import Item

Steps = Sequence[tuple[str, Sequence[str]]]

DROPPED = (
    # Bookkeeping that differs between equal runs.
    "var/cache/ldconfig/aux-cache", "var/cache/debconf/*-old", "var/cache/apt/*", "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/lib/dpkg/triggers/Lock",
    "var/log/*.log", "var/log/apt/*",
    "etc/*-", "etc/.pwd.lock", "run/*", "tmp/*", "var/tmp/*", "dev/*",
    # Identities and secrets that each machine has to make for itself.
    "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
    "etc/ssh/ssh_host_*", "etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem",
)  # fmt: skip
"""Globs, relative to the root, of what a run leaves and no layer may have."""

ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "DEBCONF_NOWARNINGS": "yes",
    "DPKG_MAINTSCRIPT_DEBUG": "",
    "HOME": "/root",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}

_HEAD = r"""set -eu
run() { dpkg --force-unsafe-io --force-confold --force-confdef --log=/dev/null "$@" </dev/null; }
had=; [ ! -e /usr/sbin/policy-rc.d ] || had=1
[ -n "$had" ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; }
"""
_TAIL = r"""run --configure --pending
[ -n "$had" ] || rm -f /usr/sbin/policy-rc.d
[ -z "$(dpkg --audit)" ] || { dpkg --audit >&2; exit 1; }
rm -f /etc/machine-id
: >/etc/machine-id
chmod 444 /etc/machine-id
ssh=/usr/lib/systemd/system/ssh.service
if [ -f $ssh ] && [ ! -e $ssh.d/host-keys.conf ] && ! grep -q ssh-keygen $ssh; then
    mkdir -p $ssh.d
    printf '%s\n' '[Service]' ExecStartPre= 'ExecStartPre=/usr/bin/ssh-keygen -A' \
        'ExecStartPre=/usr/sbin/sshd -t' >$ssh.d/host-keys.conf
fi
"""
# Host keys are made when the package is installed, and no layer may have them: the service makes what it lacks
# before it tests its configuration, as other distributions' own does.
#
# An empty machine-id, not one that says `uninitialized`: systemd then makes a passing one in /run and binds
# it over the file, which also works where /etc is read-only, and it does not take each start for the first,
# when it would apply presets over what the image enables and ask questions (machine-id(5), "First Boot
# Semantics").


def bootstrap_script(names: Iterable[str]) -> str:
    """Installs everything over a root where its files already lie: owners first, then all at once.

    The root has to hold `seed()`. What depends on what is of no matter while the files of all are there.
    """
    first = ["base-passwd", "base-files"]
    rest = sorted(set(names) - set(first))
    return (
        _HEAD
        + f"run --install --force-depends {_files(first)}\n"
        + f"run --install --force-depends {_files(rest)}\n"
        + _TAIL
    )


def install_script(steps: Steps, removed: Sequence[str] = ()) -> str:
    """Takes the steps of a plan (see `apt.Plan`), each run of them at once; triggers run at the end."""
    lines = [f"run --purge --force-depends {' '.join(removed)}\n"] if removed else []
    for step, names in steps:
        if step == "unpack":
            lines.append(f"run --unpack --no-triggers {_files(names)}\n")
        else:
            lines.append(f"run --configure --no-triggers {' '.join(names)}\n")
    return _HEAD + "".join(lines) + _TAIL


def file_name(package: str) -> str:
    """Where a package is in /in."""
    return f"debs/{package}.deb"


def seed(items: Iterable[Item], read: dict[str, bytes]) -> list[Item]:
    """What dpkg needs to find in an otherwise unpacked root: its database, and names for the owners.

    `read` holds the content of `usr/share/base-passwd/{passwd,group}.master`.
    """
    made = {entry.path: (entry, content) for entry, content in items}
    for name in ("passwd", "group"):
        master = read[f"usr/share/base-passwd/{name}.master"]
        made[f"etc/{name}"] = Entry(f"etc/{name}", "file", 0o644), master
    for folder in ("var/lib/dpkg", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"):
        made.setdefault(folder, (Entry(folder, "dir", 0o755), None))
    for name in ("status", "available"):
        made[f"var/lib/dpkg/{name}"] = Entry(f"var/lib/dpkg/{name}", "file", 0o644), b""
    return list(made.values())


def _files(names: Iterable[str]) -> str:
    return " ".join(f"/in/{file_name(name)}" for name in names)
