"""`kbuild-node encryption`: whether what this machine keeps is encrypted, and its recovery key where that was kept.

The initrd makes and opens it (boot/encrypted.sh); the key it leaves lies inside of what it opens, for root to read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kairosbuild.node import durable, machine
from kairosbuild.node.problem import Problem

KEY = "recovery-key"
_PERSISTENT = machine.RUN / "persistent"


def add_verb(verbs: Any) -> None:
    """The words of the command line."""
    about = "whether what is kept is encrypted, and its recovery key"
    one = verbs.add_parser("encryption", help=about)
    one.add_argument("--json", action="store_true", help="as a document")
    one.add_argument("--forget", action="store_true", help="remove the recovery key once it is written down")
    one.set_defaults(verb=_verb)


def state(persistent: Path = _PERSISTENT) -> dict[str, Any]:
    """What is known: the mapped device, and the key, "" where it is not kept."""
    device = machine.mounted_from(persistent)
    uuid = machine.block(device) / "dm/uuid" if device else persistent / "none"
    encrypted = uuid.exists() and uuid.read_text().startswith("CRYPT-LUKS2-")
    key = persistent / KEY
    return {
        "encrypted": encrypted,
        "device": device,
        "recovery_key": key.read_text().strip() if encrypted and key.exists() else "",
    }


def _verb(asked: argparse.Namespace) -> None:
    found = state()
    if asked.forget:
        if not found["recovery_key"]:
            raise Problem("no recovery key is kept here", reason="no-recovery-key")
        durable.remove(_PERSISTENT / KEY)
        found["recovery_key"] = ""
    print(json.dumps(found, indent=1) if asked.json else _told(found))


def _told(found: dict[str, Any]) -> str:
    if not found["encrypted"]:
        return "what this machine keeps is not encrypted"
    key = found["recovery_key"] or "not kept here"
    return f"what this machine keeps is encrypted, opened by its TPM\nrecovery key: {key}"
