"""The classic trap: a kind's code changed, its version did not, and old results are served.

`tests/golden/kinds.json` holds, for every kind, its version and the digest of its code: its own
module and the modules in `ALSO`, without comments and docstrings. When the code changed and the
version did not, the test is red. If other bytes may come out, raise the kind's `version`; then,
either way, bless the new code:

    python -m pytest tests/graph/test_kind_versions.py --bless
"""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import tokenize
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import kairosbuild
from kairosbuild.kinds.table import TABLE

PACKAGE = Path(kairosbuild.__path__[0])
GOLDEN = Path(__file__).parent.parent / "golden" / "kinds.json"
WRITER = tuple(f"kairosbuild.oci.{name}" for name in ("entry", "header", "index", "layer"))
STEP = (*WRITER, "kairosbuild.oci.tree", "kairosbuild.oci.extract", "kairosbuild.execute.worker")
BOOT = (
    *(f"kairosbuild.artifacts.{name}" for name in ("stack", "entry", "document", "signing")),
    *(f"kairosbuild.boot.{name}" for name in ("authenticode", "pcr")),
    *(f"kairosbuild.keys.{name}" for name in ("certificate", "cms", "der")),
    *(f"kairosbuild.boot.{name}" for name in ("cpio", "elf", "files", "initrd", "layerfs", "modules")),
    *(f"kairosbuild.boot.{name}" for name in ("survey", "uki", "verity")),
    "kairosbuild.oci.configuration",
    "boot/initrd.sh",
)
DISK = (
    *BOOT,
    *(f"kairosbuild.artifacts.{name}" for name in ("grub", "merged", "partitions", "writing")),
    *(f"kairosbuild.boot.{name}" for name in ("ext4", "fat", "gce", "gpt", "qcow2", "sparse", "vhd", "vmdk")),
)
KERNELS = (
    *(f"kairosbuild.kernels.{name}" for name in ("abi", "compiling", "firmware", "install", "kconfig")),
    *(f"kairosbuild.kernels.{name}" for name in ("lists", "module", "signature")),
)
APT = (
    "kairosbuild.families.apt",
    *(f"kairosbuild.sources.{name}" for name in ("dpkg", "apt", "deb", "spool")),
    *(f"kairosbuild.families.{name}" for name in ("parts", "steps")),
)
DNF = tuple(f"kairosbuild.families.{name}" for name in ("dnf", "dnf_scripts", "rpms", "traces"))
APK = ("kairosbuild.families.apk", "kairosbuild.sources.apkindex")
PACMAN = ("kairosbuild.families.pacman", "kairosbuild.sources.alpm")
FAMILIES = (*APT, *DNF, *APK, *PACMAN, "kairosbuild.families.zypper")
EXTENSION = (*DISK, "kairosbuild.artifacts.extension", *WRITER)
AGENT = (*WRITER, "kairosbuild.boot.elf")  # what it ships is in its keys
ALSO = {
    "base": (*APT, "kairosbuild.families.below", *STEP),
    "packages": (*FAMILIES, *STEP),
    "run": STEP,
    "overlay": WRITER,
    "kernel": (
        *FAMILIES,
        "kairosbuild.sources.rpm",
        *KERNELS,
        "kernels/kernel.sh",
        *WRITER,
    ),
    "drivers": (
        "kairosbuild.families.prebuilt",
        "kairosbuild.families.firmware",
        "kairosbuild.sources.tree",
        "kairosbuild.sources.deb",
        "kairosbuild.sources.spool",
        *KERNELS,
        "kernels/modules.sh",
        *WRITER,
    ),
    "tools": ("kairosbuild.sources.deb", "kairosbuild.sources.spool", "kairosbuild.sources.tree", *WRITER),
    "image": ("kairosbuild.boot.survey", "kairosbuild.artifacts.settle", *WRITER),
    "agent": AGENT,
    "boot": BOOT,
    "disk": DISK,
    "dockerfile": (
        "kairosbuild.sources.containerfile",
        "kinds/dockerfile.sh",
        "kairosbuild.oci.reader",
        *WRITER,
    ),
    "initrd": (*BOOT, "boot/dracut.sh"),
    "sign-modules": (
        "kairosbuild.kernels.signature",
        "kairosbuild.keys.cms",
        "kairosbuild.keys.der",
        *WRITER,
    ),
    "iso": (*DISK, "kairosbuild.boot.iso9660", *WRITER),
    "uki": BOOT,
    "netboot": BOOT,
    "rootfs": (*BOOT, "kairosbuild.artifacts.merged", "kairosbuild.oci.merge", *WRITER),
    "sysext": EXTENSION,
    "confext": EXTENSION,
    "boot-test": (
        "kairosbuild.artifacts.partitions",
        *(
            f"kairosbuild.boot.{name}"
            for name in ("ext4", "fat", "gce", "gpt", "inside", "ovmf", "qemu", "sparse")
        ),
        "kairosbuild.keys.enrolment",
        "boot/qemu.sh",
    ),
}
"""What besides its own module decides the bytes a kind yields: code that is the kind's in all but place."""


def digest(module: str) -> str:
    """The digest of a module's code: its lines without comments, docstrings and blank ones.

    Made of positions alone, because how Python prints its own syntax trees differs between versions.
    """
    if "/" in module:
        return sha256((PACKAGE / module).read_bytes()).hexdigest()[:32]
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} is no module"
    text = Path(spec.origin).read_bytes()
    lines = [bytearray(line) for line in text.splitlines()]
    for first, start, last, end in (*_comments(text), *_docstrings(text)):
        for n in range(first, last + 1):
            lines[n][start if n == first else 0 : end if n == last else len(lines[n])] = b""
    return sha256(b"\n".join(line.rstrip() for line in lines if line.strip())).hexdigest()[:32]


Span = tuple[int, int, int, int]
"""First line and column in it, last line and the column behind it; lines from 0, columns in bytes."""


def _comments(text: bytes) -> Iterator[Span]:
    for token in tokenize.tokenize(io.BytesIO(text).readline):
        if token.type == tokenize.COMMENT:
            column = len(token.line[: token.start[1]].encode())
            yield token.start[0] - 1, column, token.start[0] - 1, column + len(token.string.encode())


def _docstrings(text: bytes) -> Iterator[Span]:
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            found = first.value
            if isinstance(found.value, str) and found.end_lineno and found.end_col_offset:
                yield found.lineno - 1, found.col_offset, found.end_lineno - 1, found.end_col_offset


def code(name: str) -> str:
    modules = (type(TABLE[name]).__module__, *ALSO.get(name, ()))
    return sha256("\n".join(map(digest, modules)).encode()).hexdigest()[:32]


def test_every_kind_is_blessed(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--bless", False):
        found = {name: {"version": TABLE[name].version, "code": code(name)} for name in sorted(TABLE)}
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert set(json.loads(GOLDEN.read_text())) == set(TABLE), "bless it: see the top of this file"


@pytest.mark.parametrize("name", list(TABLE))
def test_code_changed_only_with_its_version(name: str) -> None:
    blessed = json.loads(GOLDEN.read_text()).get(name, {})
    version, found = TABLE[name].version, code(name)
    if blessed.get("version") != version:
        pytest.fail(
            f"kind {name} has version {version}, {blessed.get('version')} is blessed: bless it with --bless"
        )
    assert found == blessed["code"], (
        f"the code of kind {name} changed and its version is still {version}: "
        "raise it if other bytes may come out, then run this file with --bless"
    )


def test_words_are_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for n, text in enumerate(
        (
            '"""Doc."""\ndef f(x):\n    return x + 1\n',
            '"""Other\n\n→."""\n\n# words\ndef f(x):  # é\n    """Says\n    x."""\n    return x + 1  # →\n',
            "def f(x):\n    return x + 2\n",
        )
    ):
        (tmp_path / f"sample_kind_{n}.py").write_text(text)
        digests.append(digest(f"sample_kind_{n}"))
    assert digests[0] == digests[1] != digests[2]
