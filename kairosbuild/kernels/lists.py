"""Which modules are loaded, when, how, and which never: the files that say so (modprobe.d(5), modules-load.d(5))."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kairosbuild.core.digest import of_bytes


def files(load: Sequence[str], blacklist: Sequence[str], options: Mapping[str, str]) -> dict[str, bytes]:
    """The files by path, named by their content: several nodes may each have theirs.

    A blacklisted module is not loaded for a device, and not by name either.
    """
    refused = [f"blacklist {name}\ninstall {name} /bin/false\n" for name in blacklist]
    given = [f"options {name} {value}\n" for name, value in sorted(options.items())]
    found = {}
    for folder, lines in (("modprobe.d", refused + given), ("modules-load.d", [f"{n}\n" for n in load])):
        if text := "".join(lines).encode():
            found[f"usr/lib/{folder}/kbuild-{of_bytes(text).hex[:8]}.conf"] = text
    return found


def boot(cmdline: Sequence[str], early: Sequence[str]) -> dict[str, Any]:
    """What whoever starts the kernel has to know: arguments, and modules that the initrd loads."""
    return {"cmdline": list(cmdline), "early": list(early)}


def complaint(names: Sequence[str]) -> str:
    """What is wrong with names of modules, or ""."""
    for name in names:
        if not name or not set(name) <= _LETTERS:
            return f"{name!r} is not the name of a module"
    return ""


def argument_complaint(arguments: Sequence[str]) -> str:
    """What is wrong with arguments of the kernel, or ""."""
    for one in arguments:
        if not one or (any(c.isspace() for c in one.replace('"', "")) and one.count('"') != 2):
            return f"{one!r} is not one argument of the kernel; list each by itself"
    return ""


_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
