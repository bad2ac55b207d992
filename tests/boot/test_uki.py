"""The unified kernel image, as objdump and its own reader see it."""

from __future__ import annotations

import struct
import subprocess
from itertools import pairwise

import pytest
from boot_samples import stub
from peers import peer

from kairosbuild.boot import uki
from kairosbuild.core.errors import KbuildError

PARTS = {
    "os_release": b"ID=test\n",
    "cmdline": "quiet root",
    "uname": "6.12",
    "initrd": b"i" * 5000,
    "kernel": b"k" * 9000,
}


def test_every_section_reads_back():
    image = uki.assemble(stub(), **PARTS)
    assert [one.name for one in uki.sections(image)] == [
        ".s0", ".s1", ".osrel", ".cmdline", ".uname", ".initrd", ".linux",
    ]  # fmt: skip
    assert uki.section(image, ".linux") == PARTS["kernel"]
    assert uki.section(image, ".initrd") == PARTS["initrd"]
    assert uki.section(image, ".cmdline") == b"quiet root"


def test_sections_are_aligned_and_do_not_overlap():
    found = uki.sections(uki.assemble(stub(), **PARTS))
    for before, one in pairwise(found):
        assert one.address % 0x1000 == 0
        assert one.offset % 0x200 == 0
        assert one.address >= before.address + before.size
        assert one.offset >= before.offset + before.stored


def test_the_sums_of_the_whole_are_right():
    image = uki.assemble(stub(), **PARTS)
    last = uki.sections(image)[-1]
    size, checksum = struct.unpack_from("<I4xI", image, 0x40 + 24 + 56)
    assert size == -(-(last.address + last.size) // 0x1000) * 0x1000
    assert checksum == 0
    assert struct.unpack_from("<H", image, 0x40 + 24 + 70)[0] & 0x100 == 0, (
        "no NX flag where the kernel has none"
    )
    assert len(image) == last.offset + last.stored


def test_objdump_reads_it(tmp_path):
    (tmp_path / "x.efi").write_bytes(uki.assemble(stub(), **PARTS))
    objdump = peer("objdump", "binutils")
    shown = subprocess.run(
        [objdump, "-h", tmp_path / "x.efi"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split() for line in shown.splitlines() if " .linux " in line]
    assert lines
    assert int(lines[0][2], 16) == 9000


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "bad-stub"),
        (b"MZ" + bytes(200), "bad-stub"),
        (stub()[:-1], "bad-stub"),
        (stub(sections=4, room=0x200), "bad-stub"),
    ],
)
def test_what_is_no_stub_is_refused(bad, reason):
    with pytest.raises(KbuildError) as caught:
        uki.assemble(bad, **PARTS)
    assert caught.value.reason == reason


def test_a_command_line_the_kernel_would_cut_is_refused():
    with pytest.raises(KbuildError) as caught:
        uki.assemble(stub(), **{**PARTS, "cmdline": "x" * 2048})
    assert caught.value.reason == "cmdline-too-long"
