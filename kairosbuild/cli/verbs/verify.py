"""`kbuild verify`: build twice in ways that should not matter, and name the first difference.

The second build has an empty store, a copy of the workspace under another path, another umask, time zone,
locale and home, one job, and a clock that is more than a year ahead. Only pinned downloads are carried over,
by digest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.cli.running import failures, outcome_json, running
from kairosbuild.cli.style import out
from kairosbuild.core.errors import HostError, KbuildError
from kairosbuild.execute.engine import evaluate
from kairosbuild.graph.node import WITNESSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome

_OTHERWISE = {
    "TZ": "Pacific/Kiritimati",
    "LC_ALL": "tr_TR.UTF-8",
    "LANG": "tr_TR.UTF-8",
    "HOME": "/nonexistent",
}
_DAYS = 400  # how far the second build's clock is ahead: another year, month, day and day of the week
_LEFT_BEHIND = shutil.ignore_patterns("cache", "dist", ".git", ".venv*", "__pycache__", ".*_cache")


def main(arguments: argparse.Namespace) -> int:
    """Build, build again elsewhere, compare node by node in build order; 1 when something differs."""
    with running(arguments) as parts:
        outcome = evaluate(parts.request(), parts.wiring(), parts.events)
        if code := failures(parts, outcome):
            return code
        folder = Path(tempfile.mkdtemp(prefix="kbuild verify ", dir=os.path.dirname(parts.store_root())))
        try:
            difference = _compare(parts, outcome, folder)
        finally:
            _remove(folder)
    if arguments.json:
        outcome_json(outcome, difference=difference)
    elif difference:
        print(f"{out.red('differs')}  {difference['node']}: {difference['what']}")
    else:
        print(f"{out.green('equal')}  {outcome.total} nodes, built twice")
    return 1 if difference else 0


def _compare(parts: Parts, outcome: Outcome, folder: Path) -> dict[str, str] | None:
    again = _build_again(parts, outcome, folder)
    for name in outcome.names():
        if name not in again or not outcome.has(name):
            continue
        for output, blob in outcome.outputs(name).items():
            other = again[name]["outputs"].get(output)
            if other != blob.digest and output not in WITNESSES:
                return {"node": name, "what": _first_difference(parts, outcome, folder, name, again[name])}
    return None


def _build_again(parts: Parts, outcome: Outcome, folder: Path) -> Any:
    root = folder / "another path" / "workspace"
    shutil.copytree(outcome.root, root, symlinks=True, ignore=_LEFT_BEHIND)
    recipe = root / os.path.relpath(os.path.abspath(parts.arguments.recipe), outcome.root)
    _carry_downloads(parts, folder / "cache")
    command = [sys.executable, "-m", "kairosbuild", "run", str(recipe), *parts.arguments.nodes]
    command += ["--no-publish", "--json", "--progress=none", "--locked", "-j1"]
    command += [f"--cache-dir={folder / 'cache'}"]
    command += [f"--set={word}" for word in parts.arguments.set]
    command += [f"--mirror={word}" for word in parts.arguments.mirror]
    env = {**os.environ, **_OTHERWISE, **_clock(parts, folder)}
    done = subprocess.run(command, cwd="/", env=env, umask=0o077, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise HostError("the second build failed", reason="verify-failed", hint="its errors are above")
    return json.loads(done.stdout)["nodes"]


def _clock(parts: Parts, folder: Path) -> dict[str, str]:
    """Another clock for the second build's steps and, where the library loads here, for kbuild itself."""
    from kairosbuild.boot.files import Files, index_of
    from kairosbuild.cli.wiring import CLOCK
    from kairosbuild.execute.elsewhen import environment
    from kairosbuild.execute.engine import tools

    try:
        layer = parts.store.cas.path(tools(parts.request(), parts.wiring(), parts.events, "clock").digest)
    except KbuildError as error:
        parts.events.emit("note", message=f"the second build has the same clock: {error.message}")
        return {}
    index = index_of(layer)
    path = next(one for one in index.paths() if one.endswith("/libfaketimeMT.so.1"))
    library = folder / "clock.so"
    library.write_bytes(Files([(layer, index)]).read(path) or b"")
    env = environment(str(library), _DAYS)
    return {CLOCK: f"{library}:{_DAYS}", **(env if _is_later(env) else {})}


def _is_later(env: Mapping[str, str]) -> bool:
    """Whether this interpreter believes in a clock."""
    words = [sys.executable, "-c", "import time; print(time.time())"]
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    return done.returncode == 0 and float(done.stdout) > time.time() + 86400


def _carry_downloads(parts: Parts, cache: Path) -> None:
    """Give the second store what the lock pins, so that it need not be fetched again."""
    from kairosbuild.core.digest import Blob
    from kairosbuild.recipe import lockfile
    from kairosbuild.store.store import Store

    file = lockfile.path_for(Path(parts.arguments.recipe))
    if not file.exists():
        return
    lock, store = lockfile.read(file), Store(cache)
    for entry in (*lock.nodes.values(), *lock.toolchain.values()):
        for pin in entry.materials:
            if parts.store.cas.has(Blob(pin.digest, pin.size)):
                store.cas.add_copy(parts.store.cas.path(pin.digest))


def _first_difference(parts: Parts, outcome: Outcome, folder: Path, name: str, again: Any) -> str:
    """The first output of a node that differs: for a layer the path, else the byte."""
    from kairosbuild.cli import compare
    from kairosbuild.store.store import Store

    outputs, others, other = outcome.outputs(name), again["outputs"], Store(folder / "cache").cas
    output = next(
        key for key, blob in outputs.items() if others.get(key) != blob.digest and key not in WITNESSES
    )
    if output not in others:
        return f"{output} came to be only once"
    if output in ("index", "stack") and outputs["layer"].digest != others["layer"]:
        output = "layer"
    parts.bring(outputs.values())
    at = compare.offset(parts.store.cas.path(outputs[output].digest), other.path(others[output]))
    if output == "layer" and at is not None:
        return compare.path_at(parts.store.cas.read(outputs["index"]), at)
    return f"{output}, byte {at}"


def _remove(folder: Path) -> None:
    """The second store has trees of mapped owners."""
    from kairosbuild.execute import userns

    userns.remove(folder)
