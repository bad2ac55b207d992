"""zstd:chunked, read back by a reader of the test's own, after the form that containers/storage has."""

import base64
import io
import json
import struct
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from oci_layers import file, folder, hard, layer_items, link, written

from kairosbuild.core.digest import of_bytes
from kairosbuild.oci import chunked
from kairosbuild.oci.transport import compressor_id, decompress

NOTE = "io.github.containers.zstd-chunked."
BIG = bytes(n * n % 251 for n in range(3 << 20))  # more than one piece


def packed(tmp_path: Path, tar: bytes) -> tuple[bytes, dict[str, str]]:
    (tmp_path / "tar").write_bytes(tar)
    out = io.BytesIO()
    blob, notes = chunked.compress(tmp_path / "tar", out)
    assert blob == of_bytes(out.getvalue())
    return out.getvalue(), notes


def table(data: bytes, notes: dict[str, str]) -> dict:
    """The table of contents, as a client believes it: by the annotations."""
    offset, length, plain, kind = map(int, notes[f"{NOTE}manifest-position"].split(":"))
    toc = data[offset : offset + length]
    assert kind == 1 and f"sha256:{sha256(toc).hexdigest()}" == notes[f"{NOTE}manifest-checksum"]
    text = zstandard.decompress(toc, max_output_size=plain)
    assert len(text) == plain
    return json.loads(text)


def content(data: bytes, entry: dict) -> bytes:
    """A file by its frame alone."""
    if "digest" not in entry:
        return b""
    found = zstandard.ZstdDecompressor().decompress(data[entry["offset"] : entry["endOffset"]])
    assert f"sha256:{sha256(found).hexdigest()}" == entry["digest"]
    return found


def crc64(data: bytes) -> bytes:
    """CRC-64 of ISO 3309, bit by bit."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return (crc ^ ((1 << 64) - 1)).to_bytes(8, "big")


def assembled(data: bytes, notes: dict[str, str], check: int = 5000) -> bytes:
    """The tar, made again from the tar-split and the frames."""
    toc = table(data, notes)
    offset, length, plain = map(int, notes[f"{NOTE}tarsplit-position"].split(":"))
    split = data[offset : offset + length]
    assert toc["tarSplitDigest"] == f"sha256:{sha256(split).hexdigest()}"
    text = zstandard.ZstdDecompressor().decompressobj().decompress(split)
    assert len(text) == plain
    files = {entry["name"]: entry for entry in toc["entries"]}
    made = b""
    for number, line in enumerate(text.splitlines()):
        row = json.loads(line)
        assert row["position"] == number
        if row["type"] == 2:
            made += base64.b64decode(row["payload"])
        elif row.get("size"):
            found = content(data, files[row["name"]])
            assert len(found) == row["size"]
            assert len(found) > check or base64.b64decode(row["payload"]) == crc64(found)
            made += found
        else:
            assert row["payload"] is None
    return made


ITEMS = [
    folder("etc"), file("etc/a", b"hello\n" * 300), file("etc/empty", b""), folder("usr"), folder("usr/bin"),
    file("usr/bin/big", BIG, 0o4755), file("usr/bin/" + "n" * 130, b"long"), hard("usr/bin/same", "etc/a"),
    link("usr/x", "bin"), file("usr/ä", b"2" * 513, xattrs=(("user.a", b"\0\xff"),)),
]  # fmt: skip


def test_it_is_zstd_to_everybody_and_the_tar_comes_again(tmp_path: Path) -> None:
    tar, _ = written(ITEMS)
    data, notes = packed(tmp_path, tar)
    assert decompress(io.BytesIO(data)).read() == tar
    assert assembled(data, notes) == tar
    assert packed(tmp_path, tar) == (data, notes)


def test_the_table_says_what_the_headers_say(tmp_path: Path) -> None:
    data, notes = packed(tmp_path, written(ITEMS)[0])
    entries = {entry["name"]: entry for entry in table(data, notes)["entries"]}
    assert next(iter(entries)) == "etc/" and entries["etc/"]["type"] == "dir"
    assert entries["usr/bin/big"]["mode"] == 0o4755 and entries["usr/bin/big"]["size"] == len(BIG)
    assert (entries["usr/bin/same"]["type"], entries["usr/bin/same"]["linkName"]) == ("hardlink", "etc/a")
    assert (entries["usr/x"]["type"], entries["usr/x"]["linkName"]) == ("symlink", "bin")
    assert entries["usr/ä"]["xattrs"] == {"user.a": base64.b64encode(b"\0\xff").decode()}
    assert entries["etc/a"]["modtime"] == "1970-01-01T00:00:00Z"
    assert "digest" not in entries["etc/empty"] and "offset" not in entries["etc/empty"]


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    """What makes a partial pull worth it: a file is the same frame wherever it stands."""
    one, _ = packed(tmp_path, written([file("a", BIG), file("b", b"1")])[0])
    data, notes = packed(tmp_path, written([file("0", b"new"), file("z", BIG)])[0])
    entry = table(data, notes)["entries"][1]
    assert data[entry["offset"] : entry["endOffset"]] in one


def test_the_footer_leads_there_too(tmp_path: Path) -> None:
    data, notes = packed(tmp_path, written(ITEMS)[0])
    *where, magic = struct.unpack("<7Q8s", data[-64:])
    assert magic == b"GNUlInUx"
    offset, length, plain, kind, *split = where
    assert notes[f"{NOTE}manifest-position"] == f"{offset}:{length}:{plain}:{kind}"
    assert notes[f"{NOTE}tarsplit-position"] == ":".join(map(str, split))


def test_names_that_are_no_text_make_it_plain_zstd(tmp_path: Path) -> None:
    tar, _ = written([file("a\udcff", b"1")])
    data, notes = packed(tmp_path, tar)
    assert notes == {} and decompress(io.BytesIO(data)).read() == tar


@given(items=layer_items())
def test_any_layer_comes_again(tmp_path_factory: pytest.TempPathFactory, items: list) -> None:
    tar, _ = written(items)
    data, notes = packed(tmp_path_factory.mktemp("l"), tar)
    assert decompress(io.BytesIO(data)).read() == tar and assembled(data, notes) == tar


def test_its_record_is_its_own() -> None:
    assert compressor_id("zstd:chunked") != compressor_id("zstd") in compressor_id("zstd:chunked")
