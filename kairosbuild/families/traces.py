"""What any installation leaves that no layer may have: what differs between equal runs, and identities."""

from __future__ import annotations

TRACES = (
    "var/cache/ldconfig/aux-cache", "var/log/*.log", "var/log/wtmp", "var/log/btmp", "var/log/lastlog",
    "etc/*-", "etc/.pwd.lock", "etc/.updated", "var/.updated", "run/*", "tmp/*", "var/tmp/*", "dev/*",
)  # fmt: skip
"""Bookkeeping that differs between equal runs."""

IDENTITIES = (
    "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
    "etc/ssh/ssh_host_*", "etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/pacman.d/gnupg/*",
)  # fmt: skip
"""Identities and secrets that each machine has to make for itself."""

SETTLED = r"""rm -f /etc/machine-id
: >/etc/machine-id
chmod 444 /etc/machine-id
"""
"""Shell: an empty machine-id. systemd then makes a passing one, and takes no start for the first one."""
