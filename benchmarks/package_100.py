"""One package changed in a set of 100 → a new bootable disk, the whole process, against mkosi's incremental build."""

from __future__ import annotations

import itertools
import statistics

from benchmarks.disk import RECIPE, Ours, mirror, timed
from benchmarks.harness import Benchmark, Result
from benchmarks.mkosi import PACKAGES, Mkosi

GOAL = 1 / 4
RUNS = 3
SET = (
    *PACKAGES,
    "acl", "apg", "attr", "bc", "bash-completion", "bsdextrautils", "bzip2", "bzip3", "ca-certificates", "ccrypt",
    "chrony", "colordiff", "conntrack", "cpio", "cron", "curl", "dbus-user-session", "dc", "dialog", "diffstat",
    "dnsutils", "dos2unix", "dosfstools", "e2fsprogs", "ed", "entr", "ethtool", "expect", "fdisk", "file", "gdisk",
    "gettext-base", "git", "hdparm", "htop", "iftop", "inotify-tools", "iotop-c", "iperf3", "iptables", "iputils-ping",
    "ipset", "jq", "kmod", "ldnsutils", "less", "libcap2-bin", "logrotate", "lsof", "lsscsi", "lz4", "lzip", "make",
    "mawk", "mc", "moreutils", "mtr-tiny", "nano", "ncdu", "netcat-openbsd", "nftables", "nvme-cli", "openssh-server",
    "parallel", "parted", "patch", "pciutils", "pigz", "procps", "psmisc", "pv", "rsync", "screen", "socat", "sqlite3",
    "strace", "sudo", "sysstat", "tcpdump", "time", "tmux", "traceroute", "tree", "tzdata", "unzip", "usbutils",
    "util-linux", "vim-tiny", "wget", "whois", "xfsprogs", "xz-utils", "zip", "zstd",
)  # fmt: skip
"""99 packages as a small server has them; the hundredth is the one that changes."""
CHANGING = ("sl", "figlet", "toilet", "cowsay", "lolcat", "boxes")


def run() -> Result:
    """Both have built before; each run has another hundredth package."""
    assert len(set(SET)) == 99, len(set(SET))
    names = itertools.cycle(CHANGING)
    ours, theirs = Set(), Mkosi(mirror(), "mkosi-100", (*SET, next(names)))
    ours.choose(CHANGING[0])
    ours.build()
    theirs.build()
    times, digests = [], set()
    for _ in range(RUNS):
        ours.choose(name := next(names))
        seconds, report = timed(ours.build)
        digests.add(ours.disk(report))
        times.append(seconds)
    assert len(digests) == RUNS, "a changed package made no new disk"
    theirs.configure((*SET, name))
    before = theirs.image.stat().st_mtime_ns
    theirs_seconds, _ = timed(theirs.build)
    assert theirs.image.stat().st_mtime_ns > before, "mkosi made no new disk"
    return Result("package-100", "s", statistics.median(times), theirs_seconds, "mkosi --incremental", GOAL)


class Set(Ours):
    """Our side, with a hundred packages."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe = self.home / "bench-100.yaml"

    def choose(self, last: str) -> None:
        """The recipe with this hundredth package."""
        wanted = ", ".join(f'"{name}"' for name in (*SET, last))
        self.recipe.write_text(RECIPE.replace(", ".join(PACKAGES), wanted))


BENCHMARK = Benchmark(
    "package-100", "one package changed in a set of 100 → new bootable disk, Debian trixie", run
)
