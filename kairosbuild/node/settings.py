"""What the image's makers declared for its machines (kind `agent`), and what the machine itself adds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairosbuild.node.http import Access, logins_in
from kairosbuild.node.problem import Problem

SHIPPED = Path("/usr/lib/kbuild/settings.json")
OWN = Path("/etc/kbuild")


@dataclass(frozen=True, slots=True)
class Health:
    """What has to be so before an image is kept: units that run, commands that succeed, within seconds."""

    units: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    timeout: int = 300


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything declared."""

    health: Health = field(default_factory=Health)
    upgrade: str = ""  # the reference `upgrade` takes when none is given
    insecure: tuple[str, ...] = ()  # registries without TLS
    keys: tuple[str, ...] = ()  # public keys (PEM); with any, only what one of them signed is taken


def load(shipped: Path = SHIPPED) -> Settings:
    """Read what the agent's layer has. Raises Problem `bad-settings`."""
    try:
        found: dict[str, Any] = json.loads(shipped.read_text())
        health = found["health"]
        return Settings(
            Health(tuple(health["units"]), tuple(health["commands"]), int(health["timeout"])),
            str(found["upgrade"]),
            tuple(found["insecure"]),
            tuple(found["keys"]),
        )
    except FileNotFoundError:
        return Settings()
    except (ValueError, KeyError, TypeError) as problem:
        raise Problem(f"{shipped} cannot be read: {problem!r}", reason="bad-settings") from problem


def access(settings: Settings, own: Path = OWN) -> Access:
    """How registries are reached: the image's word, and the machine's authorities and logins."""
    ca = own / "ca.crt"
    return Access(ca if ca.exists() else None, frozenset(settings.insecure), logins_in(own / "auth.json"))
