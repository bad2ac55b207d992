"""What runs inside when dnf resolves and installs, 5 or 4."""

from __future__ import annotations

from kairosbuild.families.rpms import BELOW, CLOSED, LOCKS
from kairosbuild.families.rpms import SETTINGS as RPM
from kairosbuild.families.traces import IDENTITIES, SETTLED, TRACES

DROPPED = (
    *TRACES,
    *IDENTITIES,
    "var/cache/dnf/*", "var/cache/libdnf5/*", "var/log/dnf*", "var/log/hawkey.log",
    # When and by whom something was installed; what is installed, and why, lies elsewhere.
    "usr/lib/sysimage/libdnf5/transaction_history.sqlite*", "var/lib/dnf/*.lock", "var/lib/dnf/history.sqlite*",
    *LOCKS,
)  # fmt: skip

SETTINGS = (
    RPM
    + r"""mkdir -p /tmp/cache /tmp/logs
options='--setopt=reposdir=/none --setopt=pluginpath=/none --setopt=plugins=False --setopt=cachedir=/tmp/cache
 --setopt=system_cachedir=/tmp/cache --setopt=logdir=/tmp/logs --setopt=keepcache=False --setopt=gpgcheck=False
 --setopt=pkg_gpgcheck=False --setopt=localpkg_gpgcheck=False'
if command -v dnf5 >/dev/null; then dnf=dnf5; else dnf=dnf; fi
"""
)

RESOLVE = (
    r""". /in/settings.sh
: >/out/wanted; : >/out/asked; : >/out/removed; : >/out/complaint
names() { rpm -qa --qf '%{NAME}\n' | sort -u; }
"""
    + BELOW
    + r"""if [ "$dnf" = dnf ]; then
    python=$(command -v python3 || echo /usr/libexec/platform-python)
    "$python" /in/resolve.py >/dev/null 2>/out/complaint || [ -s /out/complaint ] || echo "dnf failed" >/out/complaint
    exit 0
fi
options="$options --setopt=install_weak_deps=$(words weak)"
for folder in /in/repositories/*; do
    number=${folder##*/}
    repositories="${repositories:-} --repofrompath=r$number,file://$folder --setopt=r$number.gpgcheck=False"
done
if [ -s /in/remove ]; then
    names >/tmp/before
    if ! dnf5 -yq $options --setopt=tsflags=justdb,noscripts remove --no-autoremove $(words remove) >/tmp/said 2>&1; then
        cat /tmp/said >/out/complaint
        exit 0
    fi
    names >/tmp/after
    comm -23 /tmp/before /tmp/after >/out/removed
fi
[ -s /in/install ] || exit 0
# What `download` resolves may conflict; `install` says so, and says no to itself.
dnf5 -q $options $repositories --assumeno install $(words install) >/tmp/said 2>&1 || :
if grep -q 'Failed to resolve the transaction' /tmp/said; then cp /tmp/said /out/complaint; exit 0; fi
download="dnf5 -q $options $repositories download --url"
if ! { $download --resolve $(words install) >/out/wanted && $download $(words install) >/out/asked; } 2>/tmp/said
then
    { echo "failed"; cat /tmp/said; } >/out/complaint
fi
"""
)

RESOLVE_4 = r'''"""Asks dnf 4 by its own API, which every dnf 4 has: the command that would print a plan is a plugin of it."""
import os
import sys

import dnf
import dnf.rpm


def words(name):
    with open("/in/" + name) as file:
        return file.read().split()


def main():
    base = dnf.Base()
    conf = base.conf
    conf.read()
    conf.reposdir, conf.cachedir, conf.logdir, conf.plugins = ["/none"], "/tmp/cache", "/tmp/logs", False
    conf.install_weak_deps, conf.clean_requirements_on_remove = words("weak") == ["True"], False
    conf.substitutions["releasever"] = dnf.rpm.detect_releasever("/") or ""
    places = {}
    for number in sorted(os.listdir("/in/repositories")):
        place = "file:///in/repositories/" + number
        repo = base.repos.add_new_repo("r" + number, conf, baseurl=[place])
        repo.gpgcheck = repo.repo_gpgcheck = False
        places["r" + number] = place
    base.fill_sack(load_system_repo=True)
    unknown = []
    for word in words("install"):
        try:
            base.install(word)
        except dnf.exceptions.MarkingError:
            unknown.append(word)
    for word in words("remove"):
        try:
            base.remove(word)
        except dnf.exceptions.MarkingError:
            unknown.append(word)
    if unknown:
        sys.exit("No match for argument: " + unknown[0])
    try:
        base.resolve()
    except dnf.exceptions.DepsolveError as error:
        sys.exit(str(error))
    transaction = base.transaction or []
    installed = list(getattr(transaction, "install_set", []))
    replaced = {package.name for package in installed}
    write("wanted", (places[p.repoid] + "/" + p.location for p in installed))
    users = set()
    for word in words("install"):
        users |= {p.name for p in dnf.subject.Subject(word).get_best_query(base.sack)}
    write("asked", (places[p.repoid] + "/" + p.location for p in installed if p.name in users))
    write("removed", (p.name for p in getattr(transaction, "remove_set", []) if p.name not in replaced))


def write(name, lines):
    with open("/out/" + name, "w") as file:
        file.write("".join(line + "\n" for line in lines))


main()
'''

INSTALL = (
    r""". /in/settings.sh
[ ! -s /in/removed ] || $dnf -yq $options --setopt=clean_requirements_on_remove=False remove $(words removed)
if [ -e /in/rpms ]; then
    $dnf -yq $options --setopt=install_weak_deps=False install $(find /in/rpms -name '*.rpm' | sort)
fi
if [ -s /in/dependencies ]; then
    if [ "$dnf" = dnf5 ]; then dnf5 -yq $options mark dependency $(words dependencies)
    else dnf -yq $options mark remove $(words dependencies); fi
fi
"""
    + CLOSED
    + SETTLED
)
