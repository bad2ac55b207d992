"""`kbuild cache`: look at the store, tidy it, prove it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.cli.style import out
from kairosbuild.core.errors import InputError

if TYPE_CHECKING:
    from kairosbuild.store.store import Store

_DAY = 86_400.0  # what a build in another shell may have stored and not yet recorded is this young
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(arguments: argparse.Namespace) -> int:
    """Ask the store; a store that is damaged ends with 1."""
    from kairosbuild.execute import userns
    from kairosbuild.store.store import Store

    home = Path(arguments.cache_dir or given.cache_dir(None))
    if home.is_dir():
        store = Store(home)
        store.trees.remover = userns.remove  # trees of mapped owners
        found, code = {"stat": _stat, "gc": _gc, "verify": _verify}[arguments.question](store, arguments)
    elif arguments.cache_dir:
        raise InputError(f"{home}: there is no store", reason="no-store", hint="the first build makes it")
    else:
        print(f"{home}: nothing is stored yet", file=sys.stderr)
        found, code = {"store": str(home), **_nothing(arguments.question)}, 0
    if arguments.json:
        given.print_json(found)
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):16} {_shown(name, value)}")
    return code


def _nothing(question: str) -> dict[str, Any]:
    """What is said of a store that no build has made yet."""
    from kairosbuild.store.gc import Swept
    from kairosbuild.store.survey import Survey
    from kairosbuild.store.verify import Verified

    return dataclasses.asdict({"stat": Survey, "gc": Swept, "verify": Verified}[question]())


def _stat(store: Store, _: argparse.Namespace) -> tuple[dict[str, Any], int]:
    return {"store": str(store.home), **dataclasses.asdict(store.stat())}, 0


def _gc(store: Store, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    keep = given.number(arguments.keep, _BYTES, "--keep") if arguments.keep else None
    older = given.seconds(arguments.older, "--older") if arguments.older else None
    swept = store.gc(keep_bytes=keep, keep_age=older, grace=0.0 if arguments.now else _DAY)
    return dataclasses.asdict(swept), 0


def _verify(store: Store, _: argparse.Namespace) -> tuple[dict[str, Any], int]:
    verified = store.verify()
    if not verified.sound:
        print(out.red("damaged blobs were set aside; what needs them is built or fetched anew"))
    return dataclasses.asdict(verified), 0 if verified.sound else 1


def _shown(name: str, value: Any) -> str:
    if isinstance(value, int) and ("byte" in name or name in ("freed", "kept")):
        return size(value)
    if isinstance(value, list | tuple):
        return ", ".join(value) or "none"
    return str(value)


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
