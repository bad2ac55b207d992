"""A task whose actions are played, with layers and tools trees small enough to write down."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from boot_samples import module, object_file, stub
from small_task import SmallTask

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob
from kairosbuild.graph.action import Action, ActionResult, LayerRef
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.graph.stack import dump
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import write_layer
from kairosbuild.store.store import Store

Content = Mapping[str, bytes | str | None]
"""Path to a file's bytes, a link's target (text), or None for a folder."""

EFI = "usr/lib/systemd/boot/efi"
VERSION = "6.12.1"
MODULES = f"usr/lib/modules/{VERSION}"
TOOLS: dict[str, Content] = {
    "image": {"usr/bin/mkfs.erofs": b"not run here"},
    "crypt": {
        **{f"usr/sbin/{name}": object_file({".text": b"static"}) for name in ("cryptsetup", "mke2fs")},
        **{f"usr/bin/systemd-crypt{name}": object_file({".text": b""}) for name in ("enroll", "setup")},
        **{f"usr/lib/libtss2-{name}.so.0": object_file({}) for name in ("esys", "mu", "rc", "tcti-device")},
    },
    "qemu": {"usr/bin/qemu": b"not run here"},
    "media": {"usr/bin/grub-mkimage": b"not run here"},
    "boot": {
        f"{EFI}/linuxx64.efi.stub": stub(),
        f"{EFI}/systemd-bootx64.efi": stub(),
        "usr/bin/busybox": object_file({".text": b"static"}),
        "usr/sbin/dmsetup": object_file({".text": b"static too"}),
    },
}
BASE: Content = {
    "etc": None,
    "etc/motd": b"hello\n",
    "lib": "usr/lib",
    "usr": None,
    "usr/lib": None,
    "usr/lib/os-release": b"ID=test\nNAME=Test\n",
    "var": None,
}
KERNEL: Content = {
    f"{MODULES}/vmlinuz": b"a kernel" * 999,
    f"{MODULES}/kernel/erofs.ko": module(depends="crc"),
    f"{MODULES}/kernel/crc.ko": module(),
    f"{MODULES}/modules.dep": b"",
    f"{MODULES}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
}


EMPTY: Mapping[str, Any] = {"schema": 1, "platform": "linux/amd64", "epoch": 0, "config": {}, "layers": []}
"""An image's document before it has layers."""


class BootTask(SmallTask):
    """Remembers what it derives in the store's own way, and counts what it executes."""

    def __init__(
        self, store: Store, spec: Any, play: Callable[[Action], Mapping[str, bytes]], **more: Any
    ) -> None:
        super().__init__(store, spec, **more)
        self.play = play
        self.actions: list[Action] = []
        self.derived: dict[bytes, Outputs] = {}

    def tools(self, purpose: str) -> Blob:
        return layer(self.store, TOOLS[purpose]).layer

    def execute(self, action: Action) -> ActionResult:
        self.actions.append(action)
        made = {path: self.put_bytes(content) for path, content in self.play(action).items()}
        assert set(made) == set(action.outputs)
        return ActionResult(made, None, b"")

    def derive(
        self, domain: str, version: int, preimage: Mapping[str, Any], make: Callable[[], Outputs]
    ) -> Outputs:
        key = dumps([domain, version, preimage])
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]


def layer(store: Store, content: Content) -> LayerRef:
    """A layer with these members."""
    out = io.BytesIO()
    index = write_layer([_member(path, what) for path, what in content.items()], out, 1)
    return LayerRef(store.cas.put_bytes(out.getvalue()), store.cas.put_bytes(index))


def node(store: Store, name: str, content: Content, *below: Input, kind: str = "overlay") -> Input:
    """A built layer node on top of others."""
    own = layer(store, content)
    refs = [LayerRef(one.outputs["layer"], one.outputs["index"]) for one in below]
    stack = store.cas.put_bytes(dump((*refs, own)))
    return Input(name, kind, {"layer": own.layer, "index": own.index, "stack": stack})


def _member(path: str, what: bytes | str | None) -> tuple[Entry, bytes | None]:
    if what is None:
        return Entry(path, "dir", 0o755), None
    if isinstance(what, str):
        return Entry(path, "symlink", 0o777, target=what), None
    return Entry(path, "file", 0o644, size=len(what)), what
