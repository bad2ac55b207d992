"""What is read out of a stack of layers: places, cuts, links, single files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from kairosbuild.boot.files import Files, index_of
from kairosbuild.boot.survey import Survey, cuts, hidden_links, survey, visible
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import write_layer

DATABASES = ("var/lib/dpkg/status",)


def _entry(path: str, content: bytes | str | None) -> tuple[Entry, bytes | None]:
    if isinstance(content, str):
        return Entry(path, "symlink", 0o777, target=content), None
    if content is None:
        return Entry(path, "dir", 0o755), None
    return Entry(path, "file", size=len(content)), content


class Stack:
    """Layers on disk, out of {path: content}; text is a link's target, None a folder."""

    def __init__(self, folder: Path, *layers: dict[str, bytes | str | None]) -> None:
        self.layers = []
        for number, layer in enumerate(layers):
            out = io.BytesIO()
            index = write_layer([_entry(*item) for item in layer.items()], out, 0)
            tar = folder / f"{number}.tar"
            tar.write_bytes(out.getvalue())
            self.layers.append((tar, Index.loads(index)))

    @property
    def surveys(self) -> list[Survey]:
        return [survey(index, DATABASES) for _, index in self.layers]


def test_a_kernel_its_modules_and_the_rest_are_seen(tmp_path):
    (found,) = Stack(
        tmp_path,
        {
            "boot/vmlinuz-6.1": b"k",
            "usr/lib/modules/6.1/kernel/a.ko.xz": b"m",
            "usr/lib/modules/6.1/modules.dep": b"",
            "usr/lib/os-release": b"ID=x",
            "usr/lib/systemd/systemd": b"",
            "etc": None,
            "var/lib/dpkg/status": b"",
            "usr/lib/x86_64-linux-gnu/libc.so.6": b"",
            "etc/ld.so.cache": b"",
        },
    ).surveys
    assert found.kernels == {"6.1": "boot/vmlinuz-6.1"}
    assert found.modules == ["6.1"]
    assert found.depmod == ["6.1"]
    assert found.os_release == "usr/lib/os-release"
    assert found.libraries and found.library_cache and found.packages and found.systemd
    assert found.places == {"etc": "dir"}
    assert "usr/lib" in found.implied
    assert "etc" not in found.implied
    assert Survey(**found.json()) == found


def test_fedora_keeps_its_kernel_with_the_modules(tmp_path):
    (found,) = Stack(tmp_path, {"usr/lib/modules/6.2/vmlinuz": b"k"}).surveys
    assert found.kernels == {"6.2": "usr/lib/modules/6.2/vmlinuz"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{"etc": None}, {"etc": None}], {}),
        ([{"etc": None}, {".wh.etc": b""}], {"etc": 0}),
        ([{"etc": None}, {"etc": None, "etc/.wh..wh..opq": b""}], {"etc": 1}),
        ([{"etc": None}, {".wh.etc": b""}, {"etc": None}], {"etc": 1}),
        ([{"etc": None}, {"etc": "usr/etc"}, {"etc": None}], {"etc": 1}),
        ([{"etc": None, "etc/.wh..wh..opq": b""}, {"etc": None}], {}),
        ([{"var": None}, {"etc": None, "etc/.wh..wh..opq": b""}, {"var": None, "var/.wh..wh..opq": b""}],
         {"etc": 2, "var": 1}),
    ],
)  # fmt: skip
def test_cuts(tmp_path, layers, expected):
    assert cuts(Stack(tmp_path, *layers).surveys) == expected


def test_an_opaque_root_hides_what_is_below(tmp_path):
    assert visible(Stack(tmp_path, {"a": b""}, {".wh..wh..opq": b"", "b": b""}, {"c": b""}).surveys) == 1


def test_a_folder_over_a_link_is_found(tmp_path):
    stack = Stack(tmp_path, {"lib": "usr/lib", "usr/lib": None}, {"usr/lib/x": b""}, {"lib/x": b""})
    assert hidden_links(stack.surveys) == [(2, "lib")]


def test_files_follow_links_and_whiteouts(tmp_path):
    stack = Stack(
        tmp_path,
        {
            "usr/lib/real.1": b"old",
            "usr/lib/real": "real.1",
            "lib": "usr/lib",
            "gone": b"x",
            "folder/in": b"y",
        },
        {
            "usr/lib/real.1": b"new",
            ".wh.gone": b"",
            "folder/.wh..wh..opq": b"",
            "loop": "loop",
            "up": "../../lib/real",
        },
    )
    files = Files(stack.layers)
    assert files.read("lib/real") == b"new"
    assert files.read("up") == b"new"
    assert files.read("gone") is None
    assert files.read("folder/in") is None
    assert files.read("usr/lib") is None
    assert files.read("loop") is None
    assert files.read("nowhere/at/all") is None


def test_an_index_is_found_again_in_the_tar(tmp_path):
    ((tar, _),) = Stack(tmp_path, {"a/b": b"content", "c": b"x" * 3000, "l": "a/b"}).layers
    files = Files([(tar, index_of(tar))])
    assert files.read("l") == b"content"
    assert files.read("c") == b"x" * 3000
