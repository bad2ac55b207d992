"""`#cloud-config` of a machine: read strictly, checked against one table, every problem told at once.

The table below is the schema: it validates, it is published (`schema()`), and it decides what unknown keys are
compared with. YAML is read as version 1.2 has it: `no` is a word, `0644` a mode, and a key stands once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kairosbuild.node.problem import Problem, nearest

HEADERS = ("#cloud-config", "#kairos-config")
STAGES = ("rootfs", "initramfs", "boot", "fs", "network", "reconcile")
"""The names of stages that Kairos users know; `rootfs` and `initramfs` run with `boot`."""

_MODE = r"0?[0-7]{3,4}"
_BUNDLE = (
    r"(?:(?:docker|container)://)?[A-Za-z0-9.-]+(?::\d+)?/[a-z0-9._/-]+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?"
)
_NAME = r"[a-z_][a-z0-9_-]{0,31}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value may be. `kind` is text, flag, integer, list, map (known keys) or table (any keys)."""

    kind: str
    doc: str = ""
    of: Rule | None = None  # items of a list, values of a table
    keys: Mapping[str, Rule] | None = None
    needs: tuple[str, ...] = ()
    pattern: str = ""
    choices: tuple[str, ...] = ()


def _text(doc: str, pattern: str = "", choices: tuple[str, ...] = ()) -> Rule:
    return Rule("text", doc, pattern=pattern, choices=choices)


def _texts(doc: str) -> Rule:
    return Rule("list", doc, of=Rule("text"))


_FILE = Rule(
    "map",
    "A file.",
    keys={
        "path": _text("Where, from the root.", r"/.*"),
        "content": _text("What is in it."),
        "encoding": _text(
            "How the content is written.", choices=("", "b64", "base64", "gz+b64", "gzip+base64")
        ),
        "permissions": _text("Its mode, in octal.", _MODE),
        "owner": Rule("any", "Its owner: `user`, `user:group` or numbers."),
        "owner_string": _text("The same, as Kairos writes it."),
        "group": Rule("any", "Its group, a name or a number."),
        "append": Rule("flag", "Put it behind what is there."),
    },
    needs=("path",),
)
_USER = Rule(
    "map",
    "A user.",
    keys={
        "name": _text("The login name.", _NAME),
        "passwd": _text("The password's hash (crypt), or plain text."),
        "gecos": _text("The full name."),
        "homedir": _text("The home folder; /home/NAME by default.", r"/.*"),
        "shell": _text("The login shell.", r"/.*"),
        "uid": Rule("any", "The user's number."),
        "groups": Rule("list", "More groups; those that are not there are made.", of=Rule("text")),
        "primary_group": _text("The first group; one of the user's name by default."),
        "system": Rule("flag", "A number below 1000."),
        "no_create_home": Rule("flag", "Make no home folder."),
        "lock_passwd": Rule("flag", "No login by password."),
        "admin": Rule("flag", "Member of the group `admin`, and of `sudo` and `wheel` where there are such."),
        "ssh_authorized_keys": _texts("Keys that may log in: the key, or github:NAME, which is fetched."),
    },
    needs=("name",),
)
_STEP_KEYS = {
    "name": _text("What it is called."),
    "if": _text("A command that has to succeed first."),
    "only_os": _text("A regular expression for the ID of os-release."),
    "hostname": _text("The machine's name.", r"[A-Za-z0-9.-]{1,253}"),
    "files": Rule("list", "Files to write.", of=_FILE),
    "directories": Rule(
        "list",
        "Folders to make.",
        of=Rule(
            "map",
            keys={
                "path": _text("Where.", r"/.*"),
                "permissions": _text("Its mode.", _MODE),
                "owner": Rule("any", "Its owner."),
                "group": Rule("any", "Its group."),
            },
            needs=("path",),
        ),
    ),
    "commands": _texts("Commands of /bin/sh."),
    "environment": Rule("table", "Lines of /etc/environment.", of=Rule("text")),
    "environment_file": _text("Where environment goes instead.", r"/.*"),
    "sysctl": Rule("table", "Kernel settings, now and at each start.", of=Rule("text")),
    "modules": _texts("Kernel modules to load."),
    "timesyncd": Rule("table", "Settings of systemd-timesyncd.", of=Rule("text")),
    "users": Rule("table", "Users by name.", of=Rule("map", keys={**(_USER.keys or {})})),
    "authorized_keys": Rule("table", "SSH keys by user.", of=Rule("list", of=Rule("text"))),
    "systemctl": Rule(
        "map",
        "Services.",
        keys={name: _texts("Units.") for name in ("enable", "disable", "start", "mask")},
    ),
    "dns": Rule(
        "map", "Name servers.", keys={"nameservers": _texts("Addresses."), "search": _texts("Domains.")}
    ),
}
_STEP = Rule("map", "One step.", keys=_STEP_KEYS)

ROOT = Rule(
    "map",
    "A machine's configuration.",
    keys={
        "name": _text("What this configuration is called."),
        "hostname": _text("The machine's name.", r"[A-Za-z0-9.-]{1,253}"),
        "users": Rule("list", "Users.", of=_USER),
        "ssh_authorized_keys": _texts("Keys that may log in as root, or as the first user."),
        "write_files": Rule("list", "Files to write, before services start.", of=_FILE),
        "runcmd": _texts("Commands of /bin/sh, once, when the machine is up."),
        "bootcmd": _texts("Commands of /bin/sh, early, at each start."),
        "growpart": Rule(
            "table", "Taken, and not needed: the persistent partition always grows.", of=Rule("any")
        ),
        "timezone": _text("As Europe/Berlin.", r"[A-Za-z0-9_+/-]+"),
        "locale": _text("As en_US.UTF-8.", r"[A-Za-z0-9_.@-]+"),
        "stages": Rule(
            "map",
            "Steps by stage.",
            keys={name: Rule("list", "Steps.", of=_STEP) for name in STAGES},
        ),
        "bundles": Rule(
            "list",
            "Extensions (nodes of kind sysext or confext) to have, fetched when the machine is up.",
            of=Rule(
                "map",
                keys={
                    "targets": Rule(
                        "list",
                        "References, as HOST/REPOSITORY:TAG; what `run://` and `package://` name is not understood.",
                        of=_text("", _BUNDLE),
                    )
                },
                needs=("targets",),
            ),
        ),
        "install": Rule(
            "map",
            "How the machine is installed.",
            keys={
                "auto": Rule("flag", "Install without asking."),
                "device": _text("The disk, or `auto` for the largest.", r"auto|/dev/[\w/.-]+"),
                "reboot": Rule("flag", "Restart afterwards."),
                "poweroff": Rule("flag", "Turn off afterwards."),
            },
        ),
    },
)

UNSUPPORTED = {
    "upgrade": "set `upgrade` on the recipe's agent node",
    "reset": "kbuild-node reset --keep PLACE",
    "k3s": "install it as a layer of the image, and enable it in a stage",
    "k3s-agent": "install it as a layer of the image, and enable it in a stage",
    "k0s": "install it as a layer of the image, and enable it in a stage",
    "p2p": "edgevpn is not part of this project",
    "kcrypt": "set `encrypt` on the recipe's boot node",
    "grub_options": "the kernel command line is part of the signed boot entry: set it on the recipe's boot node",
    "bind_mounts": "set `binds` on the recipe's boot node",
    "ephemeral_mounts": "every place is ephemeral unless the recipe's boot node names it under `persistent`",
    "options": "this project installs nothing by options",
    "autoInstall": "write install: {auto: true}",
    "package_update": "packages are layers of the image",
    "packages": "packages are layers of the image: a node of kind packages",
}
"""Keys that Kairos or cloud-init know and a machine of this project does not, and what to do instead."""


def read(text: str, name: str = "config") -> dict[str, Any]:
    """The configuration in a text. Raises Problem `bad-config` with every problem, each with its place."""
    if not text.lstrip("\ufeff").startswith(HEADERS):
        raise Problem(
            f"{name}:1:1: the first line is not {HEADERS[0]}",
            reason="bad-config",
            hint=f"begin with {HEADERS[0]}",
        )
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        raise Problem(f"{name}:{_where_yaml(problem)}", reason="bad-config") from problem
    problems = list(_check(node, ROOT, "")) if node else []
    if problems:
        raise Problem("\n".join(f"{name}:{one}" for one in problems), reason="bad-config")
    found = _value(node, ROOT) if node else {}
    assert isinstance(found, dict), "the root is a map"
    return found


def merged(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several as one: lists are joined, the same item once, maps merged, single values replaced by the later."""
    found: dict[str, Any] = {}
    for config in configs:
        found = _merge(found, config)
    return found


def schema() -> dict[str, Any]:
    """The table as a JSON schema, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cloud-config of a machine of kairosbuild",
        **_schema(ROOT),
    }


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {
            key: _merge(old[key], new[key]) if key in old and key in new else {**old, **new}[key]
            for key in {**old, **new}
        }
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *(one for one in new if one not in old)]
    return new


# -- checking ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Only the tree is asked for; what a scalar means, the rule decides."""


def _check(node: yaml.Node, rule: Rule, path: str) -> Iterator[str]:
    """Every problem below a node, as LINE:COLUMN: words."""
    if rule.kind == "any":
        return
    if rule.kind in ("map", "table"):
        yield from _check_map(node, rule, path)
    elif rule.kind == "list":
        if not isinstance(node, yaml.SequenceNode):
            yield _said(node, f"{path} is a list; write it as [one, two]")
            return
        for number, item in enumerate(node.value):
            yield from _check(item, rule.of or Rule("any"), f"{path}[{number}]")
    else:
        yield from _check_scalar(node, rule, path)


def _check_map(node: yaml.Node, rule: Rule, path: str) -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        yield _said(node, f"{path or 'the configuration'} is a mapping of keys")
        return
    seen: set[str] = set()
    for key_node, value in node.value:
        key = str(key_node.value)
        place = f"{path}.{key}" if path else key
        if key in seen:
            yield _said(key_node, f"{place} stands there twice")
        seen.add(key)
        if rule.kind == "table":
            yield from _check(value, rule.of or Rule("any"), place)
        elif key in (rule.keys or {}):
            yield from _check(value, (rule.keys or {})[key], place)
        elif not path and key in UNSUPPORTED:
            yield _said(key_node, f"{place} is not understood here: {UNSUPPORTED[key]}")
        else:
            yield _said(key_node, f"{place} is unknown; {nearest(key, rule.keys or {})}")
    for key in rule.needs:
        if key not in seen:
            yield _said(node, f"{path}.{key} is missing")


def _check_scalar(node: yaml.Node, rule: Rule, path: str) -> Iterator[str]:
    if not isinstance(node, yaml.ScalarNode):
        yield _said(node, f"{path} is a single value")
        return
    text = str(node.value)
    if rule.kind == "flag" and text.lower() not in ("true", "false"):
        yield _said(node, f"{path} is true or false, not {text!r}")
    if rule.kind == "integer" and not re.fullmatch(r"\d+", text):
        yield _said(node, f"{path} is a whole number, not {text!r}")
    if rule.choices and text not in rule.choices:
        yield _said(node, f"{path} is {text!r}; {nearest(text, rule.choices)}")
    if rule.pattern and not re.fullmatch(rule.pattern, text, re.DOTALL):
        yield _said(node, f"{path} is {text!r}, which does not match {rule.pattern}")


def _value(node: yaml.Node, rule: Rule | None) -> Any:
    rule = rule or Rule("any")
    if isinstance(node, yaml.MappingNode):
        rules = rule.keys or {}
        return {
            str(key.value): _value(value, rules.get(str(key.value)) or rule.of) for key, value in node.value
        }
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, rule.of) for item in node.value]
    text = str(node.value)
    return text.lower() == "true" if rule.kind == "flag" else text


def _said(node: yaml.Node, words: str) -> str:
    return f"{node.start_mark.line + 1}:{node.start_mark.column + 1}: {words}"


def _where_yaml(problem: yaml.YAMLError) -> str:
    mark = getattr(problem, "problem_mark", None)
    place = f"{mark.line + 1}:{mark.column + 1}: " if mark else " "
    return f"{place}{getattr(problem, 'problem', None) or problem}"


def _schema(rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = {"description": rule.doc} if rule.doc else {}
    if rule.kind == "any":
        return found
    if rule.kind == "map":
        keys = {name: _schema(one) for name, one in (rule.keys or {}).items()}
        found |= {"type": "object", "additionalProperties": False, "properties": keys}
        return {**found, **({"required": list(rule.needs)} if rule.needs else {})}
    if rule.kind == "table":
        return {**found, "type": "object", "additionalProperties": _schema(rule.of or Rule("any"))}
    if rule.kind == "list":
        return {**found, "type": "array", "items": _schema(rule.of or Rule("any"))}
    types = {"flag": "boolean", "integer": "integer", "text": ["string", "number", "boolean"]}
    found["type"] = types[rule.kind]
    if rule.choices:
        return {**found, "enum": list(rule.choices)}
    return {**found, **({"pattern": f"^(?:{rule.pattern})$"} if rule.pattern else {})}
