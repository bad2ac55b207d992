"""Settling: what depends on the union of an image's layers, as one small layer on top of them.

depmod's files when modules come from several layers, the linker's cache when libraries lie above it, systemd's marks
that an update is over. Each is made once for the layers that it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kairosbuild.artifacts.stack import Layer, surveyed
from kairosbuild.boot.survey import Survey
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Outputs, Task
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import write_layer

_DEPMOD = (
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.symbols",
    "modules.symbols.bin",
    "modules.softdep",
    "modules.devname",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.weakdep",
)
_DEPMOD_SCRIPT = """
version=$1
shift
for layer in /in/*; do
    tar -x -f "$layer" -C /tmp --wildcards --no-same-owner "*lib/modules/$version/*" 2>/dev/null || true
    find /tmp -name '.wh.*' | while read -r mark; do
        rm -rf "${mark%.wh.*}${mark##*/.wh.}" "$mark"
    done
done
[ -e /tmp/lib ] || ln -s usr/lib /tmp/lib
depmod -b /tmp -o /out "$version"
cd "/out/lib/modules/$version"
for name; do [ -e "$name" ] || : > "$name"; done
"""
_STAMP = (
    b"# Everything that follows an update of /usr was settled when the image was built.\nTIMESTAMP_NSEC=%d\n"
)


def settled(task: Task, layers: Sequence[Layer]) -> Layer | None:
    """The layer of what depends on more than one layer, None when every layer is settled as it is."""
    files: dict[str, Any] = {}
    for version in sorted({v for one in layers for v in one.survey.modules}):
        if holders := _unsettled_modules(layers, version):
            files |= _depmod(task, version, holders)
    if holders := _unsettled_libraries(layers):
        files |= _ldconfig(task, holders)
    if _update_is_done(layers):
        files |= {
            f"{place}/.updated": task.put_bytes(_STAMP % (task.epoch * 10**9)) for place in ("etc", "var")
        }
    if not files:
        return None
    return _layer_of(task, files)


def _unsettled_modules(layers: Sequence[Layer], version: str) -> list[Layer]:
    """The layers with modules of this kernel, unless the topmost of them brings their dependencies."""
    holders = [one for one in layers if version in one.survey.modules]
    last = layers.index(holders[-1])
    settled = len(holders) == 1 and any(version in one.survey.depmod for one in layers[last:])
    return [] if settled else holders


def _depmod(task: Task, version: str, holders: Sequence[Layer]) -> Outputs:
    """depmod's files for the union of these layers, and of nothing else."""
    tools = task.tools("image")
    layers = [one.ref.layer for one in holders]

    def make() -> Outputs:
        done = task.execute(
            Action(
                ("/bin/sh", "-euc", _DEPMOD_SCRIPT, "sh", version, *_DEPMOD),
                (tools,),
                {f"{number:03}": layer for number, layer in enumerate(layers)},
                tuple(f"lib/modules/{version}/{name}" for name in _DEPMOD),
                platform=task.platform,
            )
        )
        return {f"{prefix}{path}": blob for path, blob in done.outputs.items() if blob.size}

    prefix = "" if any(_has_lib(one.survey) for one in holders) else "usr/"
    preimage = {"version": version, "layers": [one.digest for one in layers], "tools": tools.digest}
    return task.derive("settle-depmod", 1, preimage | ({} if prefix else {"lib": "lib"}), make)


def _has_lib(one: Survey) -> bool:
    """Whether /lib is a folder there, as on a distribution without merged /usr."""
    return one.top.get("lib") == "d" or any(path.partition("/")[0] == "lib" for path in one.implied)


def _unsettled_libraries(layers: Sequence[Layer]) -> list[Layer]:
    """All layers up to the last with libraries, when it lies above the linker's cache and there is one."""
    cached = max((n for n, one in enumerate(layers) if one.survey.library_cache), default=None)
    holders = [n for n, one in enumerate(layers) if one.survey.libraries]
    if cached is None or not holders or holders[-1] <= cached:
        return []
    return list(layers[: holders[-1] + 1])


def _ldconfig(task: Task, holders: Sequence[Layer]) -> Outputs:
    layers = [one.ref.layer for one in holders]

    def make() -> Outputs:
        done = task.execute(
            Action(
                ("/bin/sh", "-euc", "/sbin/ldconfig -X -C /out/ld.so.cache"),
                tuple(layers),
                outputs=("ld.so.cache",),
                platform=task.platform,
            )
        )
        return {"etc/ld.so.cache": done.outputs["ld.so.cache"]}

    return task.derive("settle-ldconfig", 1, {"layers": [one.digest for one in layers]}, make)


def _update_is_done(layers: Sequence[Layer]) -> bool:
    """Whether package scripts settled all that systemd would settle at the first start after an update."""
    installed = max((n for n, one in enumerate(layers) if one.survey.packages), default=-1)
    return any(one.survey.systemd for one in layers) and not any(
        one.survey.pending for one in layers[installed + 1 :]
    )


def _layer_of(task: Task, files: Outputs) -> Layer:
    """These files as a layer."""

    def make() -> Outputs:
        folders = {path[:at] for path in files for at, char in enumerate(path) if char == "/"}
        items = [(Entry(path, "dir", 0o755, mtime=task.epoch), None) for path in folders]
        tar = task.scratch / "settle.tar"
        with tar.open("wb") as out:
            index = write_layer(
                [
                    *items,
                    *(
                        (Entry(path, "file", 0o644, size=blob.size, mtime=task.epoch), task.path(blob))
                        for path, blob in files.items()
                    ),
                ],
                out,
                task.epoch,
            )
        return {"layer": task.put_file(tar), "index": task.put_bytes(index)}

    preimage = {"epoch": task.epoch, "files": {path: blob.digest for path, blob in files.items()}}
    made = task.derive("settle-layer", 1, preimage, make)
    ref = LayerRef(made["layer"], made["index"])
    return Layer(ref, surveyed(task, ref))
