"""Checks inside a machine under test: a script for it to run, and what its answers mean.

The script goes to the machine beside the artifact (see `initrd.sh`), so that what is tested is what is shipped. It
writes to the second serial port, where nothing else writes: a name, an exit status, and the output in base64
or, where there is no such program, as it is.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PORT = "/dev/ttyS1"
_SCRIPT = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
exec > {port} 2>&1
stty -F {port} -opost 2>/dev/null
answer() {{
    name=$1
    shift
    output=$("$@" 2>&1)
    status=$?
    echo "answer $name $status $(printf %s "$output" | base64 | tr -d '\\n')"
}}
settled() {{
    if command -v systemctl; then
        systemctl is-system-running --wait
    fi
}}
failed() {{
    if command -v systemctl > /dev/null; then
        systemctl --failed --plain --no-legend | cut -d' ' -f1
    elif command -v rc-status > /dev/null; then
        rc-status --crashed
    fi
}}
settled > /dev/null 2>&1
"""
_ANSWER = re.compile(r"^answer (\S+) (\d+) (\S*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command and a regular expression its output has to show, with the status it ends with."""

    run: str
    expect: str = ""
    status: int = 0


@dataclass(frozen=True, slots=True)
class Checks:
    """What has to hold: which units may have failed (None: not asked), modules that are there, commands."""

    failed: tuple[str, ...] | None = None
    modules: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()

    def __bool__(self) -> bool:
        return self.failed is not None or bool(self.modules or self.commands)


def script(checks: Checks) -> bytes:
    """The program the machine runs."""
    lines = [_SCRIPT.format(port=PORT)]
    if checks.failed is not None:
        lines.append("answer failed failed")
    lines += [f"answer module:{name} test -d /sys/module/{name}" for name in map(_module, checks.modules)]
    lines += [
        f"answer command:{number} /bin/sh -c {shlex.quote(one.run)}"
        for number, one in enumerate(checks.commands)
    ]
    return ("\n".join([*lines, "echo end"]) + "\n").encode()


def handed(checks: Checks) -> bytes:
    """The script as a string of the SMBIOS tables (DSP0134, type 11), where the initrd looks for it."""
    return b"kbuild.test=" + base64.b64encode(script(checks))


def complaints(checks: Checks, said: str) -> Iterator[str]:
    """What the answers do not agree with."""
    answers = {name: (int(status), _text(data)) for name, status, data in _ANSWER.findall(said)}
    yield from _failed(checks.failed, answers)
    for name in map(_module, checks.modules):
        if answers.get(f"module:{name}", (1, ""))[0]:
            yield f"the module {name} is not loaded"
    for number, one in enumerate(checks.commands):
        status, output = answers.get(f"command:{number}", (-1, "no answer"))
        if status != one.status:
            yield f"`{one.run}` ended with {status}, not {one.status}: {output}"
        elif not re.search(one.expect, output, re.MULTILINE):
            yield f"`{one.run}` does not show {one.expect!r} but {output!r}"


def _failed(allowed: Sequence[str] | None, answers: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    if allowed is None:
        return
    _, output = answers.get("failed", (0, "no answer"))
    if units := [unit for unit in output.split("\n") if unit.strip() and unit.strip() not in allowed]:
        yield f"units failed: {', '.join(units)}"


def _module(name: str) -> str:
    return name.replace("-", "_")


def _text(data: str) -> str:
    return base64.b64decode(data, validate=True).decode("utf-8", "replace")
