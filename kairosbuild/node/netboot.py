"""What a machine that was started from the network installs from: files of that server, each known by its sha256.

The kernel's command line names the list, and the list names the files: nothing else is believed.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.request
from pathlib import Path

from kairosbuild.node import durable
from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import is_digest

_TIMEOUT = 60.0
_MOST = 1 << 30
_TRIES = 3


def fetch(base: str, listed: str, into: Path) -> None:
    """Bring the files of the list of this sha256 to a folder. Raises Problem `netboot-failed`, `netboot-lied`."""
    try:
        files = json.loads(_fetched(base, listed))
        names = {str(path): str(name) for path, name in files.items()}
    except (ValueError, AttributeError) as problem:
        raise Problem(f"{base} has no list of what to install", reason="netboot-lied") from problem
    for path, name in names.items():
        target = into / path
        if into.resolve() not in target.resolve().parents:
            raise Problem(f"{base} lists the path {path!r}", reason="netboot-lied")
        target.parent.mkdir(parents=True, exist_ok=True)
        durable.write(target, _fetched(base, name))


def _fetched(base: str, name: str) -> bytes:
    if not is_digest(f"sha256:{name}") or not base.startswith("http://"):
        raise Problem(f"{name!r} is no file that {base!r} could have", reason="netboot-lied")
    url = f"{base.rstrip('/')}/{name}"
    for left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:  # noqa: S310  # http:// only
                data: bytes = reply.read(_MOST)
            break
        except (OSError, http.client.HTTPException) as problem:
            if not left:
                hint = "is the network up, and the server still there?"
                raise Problem(f"{url}: {problem}", reason="netboot-failed", hint=hint) from problem
    if hashlib.sha256(data).hexdigest() != name:
        raise Problem(
            f"{url} is not what it is called",
            reason="netboot-lied",
            hint="offer all files of the netboot artifact",
        )
    return data
