"""Kind `agent`: the machine's own program as a layer, on a private Python: `/usr/bin/kbuild-node` and its services.

Interpreter, libraries and their loader come out of a pinned tools tree and lie together under /usr/lib/kbuild,
so that it runs on every distribution, with musl or without a Python of its own. The library is compiled once, in
the sandbox, and trimmed to what the program uses.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kairosbuild import node
from kairosbuild.boot import elf
from kairosbuild.boot.files import Files, index_of
from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import Content, write_layer
from kairosbuild.oci.reader import read_tar
from kairosbuild.recipe.fields import duration, record, source, sourcemap, text, texts

HOME = "usr/lib/kbuild"
PYTHON = "python3.13"
PROGRAMS = ("openssl",)  # what the machine's program runs besides itself
BORROWED = ("boot/ext4.py", "boot/fat.py", "boot/gpt.py", "boot/grub.py", "core/errors.py")
_LIBRARY = f"usr/lib/{PYTHON}"
_PLACES = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib")
_UNITS = "usr/lib/systemd/system"
_FILES = {
    "usr/bin/kbuild-node": ("kbuild-node.sh", 0o755),
    f"{_UNITS}/kbuild-node.service": ("kbuild-node.service", 0o644),
    f"{_UNITS}/kbuild-node-config.service": ("kbuild-node-config.service", 0o644),
    f"{_UNITS}/kbuild-node-extensions.service": ("kbuild-node-extensions.service", 0o644),
    "usr/lib/systemd/system.conf.d/50-kbuild.conf": ("watchdog.conf", 0o644),
    "etc/init.d/kbuild-node": ("kbuild-node.openrc", 0o755),
    "etc/init.d/kbuild-watchdog": ("kbuild-watchdog.openrc", 0o755),
    f"{HOME}/feed-watchdog": ("feed-watchdog.sh", 0o755),
}
_LINKS = {
    f"{_UNITS}/sysinit.target.wants/kbuild-node.service": "../kbuild-node.service",
    f"{_UNITS}/sysinit.target.wants/kbuild-node-config.service": "../kbuild-node-config.service",
    f"{_UNITS}/sysinit.target.wants/kbuild-node-extensions.service": "../kbuild-node-extensions.service",
    "etc/systemd/system/systemd-bless-boot.service": "/dev/null",  # the entry's tries are the agent's
    "etc/systemd/system/kbuild-watchdog.service": "/dev/null",  # OpenRC's, which systemd would take for its own
    "etc/runlevels/boot/kbuild-node": "/etc/init.d/kbuild-node",
    "etc/runlevels/sysinit/kbuild-watchdog": "/etc/init.d/kbuild-watchdog",
}
_WITHOUT = (
    "__phello__", "_pyrepl", "asyncio", "config-", "ctypes/macholib", "curses", "dbm", "dist-packages", "doctest",
    "ensurepip", "idlelib", "lib2to3", "multiprocessing", "pdb", "pydoc", "pydoc_data", "sqlite3", "statistics",
    "sysconfig", "test", "tkinter", "turtle", "turtledemo", "unittest", "venv", "wsgiref", "xml", "xmlrpc", "zoneinfo",
)  # fmt: skip
_MODULES_WITHOUT = ("_asyncio", "_codecs_", "_curses", "_dbm", "_decimal", "_multiprocessing", "_sqlite3", "_test",
                    "_uuid", "_xxtestfuzz", "_zoneinfo", "mmap", "readline", "termios", "xx")  # fmt: skip
_COMPILE = """
import importlib.util, marshal, os, sys, tarfile, io
without = tuple(sys.argv[2:])
roots = {sys.argv[1]: "", "/usr/lib/python3/dist-packages/yaml": "yaml/", "/in/kairosbuild": "kairosbuild/"}
found = {}
for root, prefix in roots.items():
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            inner = os.path.relpath(path, root)
            if name.endswith(".py") and not (prefix == "" and inner.startswith(without)):
                found[prefix + inner] = path
with tarfile.open("/out/library.tar", "w", format=tarfile.USTAR_FORMAT) as out:
    for inner, path in sorted(found.items()):
        with open(path, "rb") as file:
            source = file.read()
        code = compile(source, "/usr/lib/kbuild/" + inner, "exec", dont_inherit=True, optimize=2)
        digest = importlib.util.source_hash(source)
        data = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + digest + marshal.dumps(code, 2)
        member = tarfile.TarInfo(inner + "c")
        member.size = len(data)
        out.addfile(member, io.BytesIO(data))
"""
"""Bytecode in place of its source, known by the source's hash and never checked again (PEP 552).

`marshal` of version 2 knows no references, whose counts are chance.
"""


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """What has to be so before a new image is kept."""

    units: tuple[str, ...] = texts("Services that have to run.", (), example="[sshd.service]")
    commands: tuple[str, ...] = texts("Commands (of /bin/sh) that have to succeed, within a minute each.", ())
    timeout: int = duration("After so long it is not healthy, and the machine restarts.", 300)


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What the machine's program is told."""

    health: HealthSpec = record("What has to be so before a new image is kept.", HealthSpec, HealthSpec())
    upgrade: str = text("The reference that `kbuild-node upgrade` takes when none is given.", "")
    insecure: tuple[str, ...] = texts("Registries (HOST:PORT) that are spoken to without TLS.", ())
    keys: Mapping[str, str] = sourcemap(
        "Public keys (PEM): with any, only what one of them signed is installed.", {}
    )
    extensions: Mapping[str, str] = sourcemap(
        "Certificates (PEM) that sign extensions: with any, only what one of them signed is merged.", {}
    )
    config: str = source("A cloud-config file that every machine starts with (docs/node.md).", "")


class Agent:
    """See the module."""

    name: ClassVar[str] = "agent"
    version: ClassVar[int] = 8
    Spec: ClassVar[type] = AgentSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: AgentSpec) -> tuple[str, ...]:
        """Python, what it is linked to, and OpenSSL's program."""
        return ("agent",)

    def ships(self) -> Mapping[str, str]:
        """The machine's program and its services: whoever changes them changes every agent."""
        return {name: of_bytes(data).digest for name, data in (*program().items(), *_services().items())}

    def lock(self, spec: AgentSpec, locker: Locker) -> Locked:
        """Nothing is mutable: the tools tree is pinned."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """The runtime, made once whatever is declared, and what is declared."""
        files: dict[str, tuple[int, Content]] = {}
        with task.path(_runtime(task)).open("rb") as stream:
            for entry, content in read_tar(stream):
                if content is not None:
                    files[entry.path] = entry.mode, content.read()
        services = _services()
        for path, (name, mode) in _FILES.items():
            files[path] = mode, services[name]
        files[f"{HOME}/settings.json"] = 0o644, _settings(task)
        for label in task.spec.extensions:  # where systemd looks for them
            certificate = task.source_path(f"extensions.{label}", "").read_bytes()
            files[f"usr/lib/verity.d/{label}.crt"] = 0o644, certificate
        if "config" in task.sources:
            files[f"{HOME}/config.yaml"] = 0o644, _config(task)
        tar = task.scratch / "agent.tar"
        with tar.open("wb") as out:
            index = write_layer(_items(files), out, task.epoch, flat_time=True)
        return layer_outputs(task, tar, index)


def _config(task: Task) -> bytes:
    """The configuration that the image embeds, judged by the code that will read it on the machine."""
    from kairosbuild.node.config import read
    from kairosbuild.node.problem import Problem

    data = task.source_path("config", "").read_bytes()
    try:
        read(data.decode(), task.spec.config)
    except (Problem, UnicodeDecodeError) as problem:
        raise InputError(f"{task.name}: {problem}", reason="bad-config") from problem
    return data


def _settings(task: Task) -> bytes:
    spec: AgentSpec = task.spec
    keys = [task.source_path(f"keys.{label}", "").read_text() for label in spec.keys]
    health = {
        "units": list(spec.health.units),
        "commands": list(spec.health.commands),
        "timeout": spec.health.timeout,
    }
    found = {"health": health, "upgrade": spec.upgrade, "insecure": list(spec.insecure), "keys": keys}
    return dumps(found)


def _items(files: Mapping[str, tuple[int, Content]]) -> Iterator[tuple[Entry, Content]]:
    folders = {path[:at] for path in (*files, *_LINKS) for at, char in enumerate(path) if char == "/"}
    yield from ((Entry(folder, "dir", 0o755), None) for folder in folders)
    yield from ((Entry(path, "symlink", 0o777, target=target), None) for path, target in _LINKS.items())
    for path, (mode, content) in files.items():
        assert isinstance(content, bytes), "everything here was read"
        yield Entry(path, "file", mode, size=len(content)), content


# -- the runtime ---------------------------------------------------------------------------------


def _runtime(task: Task) -> Blob:
    """A tar of all that does not depend on the recipe, made once for this program and this tools tree."""
    tools = task.tools("agent")
    sources = {f"kairosbuild/{name}": task.put_bytes(data) for name, data in program().items()}

    def make() -> Outputs:
        tree = Files([(task.path(tools), index_of(task.path(tools)))])
        files = {**_interpreter(tree), **_library(task, sources)}
        made = task.scratch / "runtime.tar"
        with made.open("wb") as out:
            write_layer(((Entry(p, "file", m, size=len(d)), d) for p, (m, d) in files.items()), out, 0)
        return {"runtime": task.put_file(made)}

    preimage = {"tools": tools.digest, "program": {name: blob.digest for name, blob in sources.items()}}
    return task.derive("agent-runtime", 1, preimage, make)["runtime"]


def program() -> dict[str, bytes]:
    """The machine's program: the modules of the room `node`, and the few of the builder that they use."""
    folder = Path(next(iter(node.__path__)))
    found = {f"node/{one.name}": one.read_bytes() for one in sorted(folder.glob("*.py"))}
    borrowed = {path: (folder.parent / path).read_bytes() for path in BORROWED}
    return {"__init__.py": b"", "boot/__init__.py": b"", "core/__init__.py": b"", **borrowed, **found}


def _services() -> dict[str, bytes]:
    """What has an image's service manager start the program, by file name."""
    folder = Path(next(iter(node.__path__))) / "files"
    return {name: (folder / name).read_bytes() for name, _ in _FILES.values()}


def _interpreter(tree: Files) -> dict[str, tuple[int, bytes]]:
    """Python and OpenSSL, Python's own modules in machine code, the loader, and every library they want."""
    files = {
        f"{HOME}/bin/python": (0o755, _read(tree, f"usr/bin/{PYTHON}")),
        **{f"{HOME}/bin/{name}": (0o755, _read(tree, f"usr/bin/{name}")) for name in PROGRAMS},
    }
    for path in sorted(tree.paths(f"{_LIBRARY}/lib-dynload")):
        name = posixpath.basename(path)
        if not name.startswith(_MODULES_WITHOUT):
            files[f"{HOME}/lib/{PYTHON}/lib-dynload/{name}"] = (0o644, _read(tree, path))
    wanted = [one for _, image in files.values() for one in elf.needed(image)]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            image = _library_file(tree, name)
            where = "loader" if name.startswith("ld-linux") else name
            files[f"{HOME}/lib/{where}"] = (0o755, image)
            wanted += elf.needed(image)
    return files


def _library(task: Task, sources: Mapping[str, Blob]) -> dict[str, tuple[int, bytes]]:
    """Python's library, PyYAML and the program as bytecode."""
    done = task.execute(
        Action(
            (f"/usr/bin/{PYTHON}", "-I", "-S", "/in/compile.py", f"/{_LIBRARY}", *_WITHOUT),
            (task.tools("agent"),),
            {"compile.py": task.put_bytes(_COMPILE.encode()), **sources},
            ("library.tar",),
            env={"PYTHONHASHSEED": "0"},
            platform=task.platform,
        )
    )
    found = {}
    with task.path(done.outputs["library.tar"]).open("rb") as stream:
        for entry, content in read_tar(stream):
            if content is not None:
                found[f"{HOME}/lib/{PYTHON}/{entry.path}"] = (0o644, content.read())
    return found


def _library_file(tree: Files, name: str) -> bytes:
    for place in _PLACES:
        if (image := tree.read(f"{place}/{name}")) is not None:
            return image
    raise NodeError(f"the tools tree `agent` has no {name}", reason="missing-tool")


def _read(tree: Files, path: str) -> bytes:
    if (found := tree.read(path)) is None:
        raise NodeError(f"the tools tree `agent` has no {path}", reason="missing-tool")
    return found
