from __future__ import annotations

import gzip
import io
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import InputError
from kairosbuild.oci.transport import compress, compressor_id, decompress

DATA = b"".join(b"line %d\n" % (n * n % 9973) for n in range(300_000))


@pytest.mark.parametrize("method", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "byte", "large"])
def test_a_transport_is_one_and_opens_again(tmp_path: Path, method: str, data: bytes) -> None:
    (tmp_path / "src").write_bytes(data)
    results = []
    for _ in range(2):
        out = io.BytesIO()
        blob = compress(tmp_path / "src", out, method)  # type: ignore[arg-type]
        assert blob == of_bytes(out.getvalue())
        results.append(out.getvalue())
    assert results[0] == results[1]
    assert decompress(io.BytesIO(results[0])).read() == data


def test_gzip_has_no_time_and_zstd_is_one_frame(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(DATA)
    packed = io.BytesIO()
    compress(tmp_path / "src", packed, "gzip")
    assert packed.getvalue()[4:8] == bytes(4) and gzip.decompress(packed.getvalue()) == DATA
    frame = io.BytesIO()
    compress(tmp_path / "src", frame, "zstd")
    assert zstandard.frame_content_size(frame.getvalue()) == len(DATA)
    opened = zstandard.ZstdDecompressor().decompressobj()
    assert opened.decompress(frame.getvalue()) == DATA and opened.eof and not opened.unused_data


def test_the_record_names_library_version_level_and_a_sign() -> None:
    assert re.fullmatch(r"gzip isal-[\d.]+ level-2 [0-9a-f]{12}", compressor_id("gzip"))
    assert re.fullmatch(r"zstd libzstd-[\d.]+ level-3 [0-9a-f]{12}", compressor_id("zstd"))
    assert compressor_id("gzip") == compressor_id("gzip") and compressor_id("none") == "none"


FORMS = {
    "gzip": gzip.compress(DATA),
    "two gzip members": gzip.compress(DATA[:7]) + gzip.compress(DATA[7:]),
    "xz": lzma.compress(DATA),
    "two xz streams": lzma.compress(DATA[:7]) + bytes(8) + lzma.compress(DATA[7:]),
    "zstd": zstandard.compress(DATA),
    "two zstd frames": zstandard.compress(DATA[:7]) + zstandard.compress(DATA[7:]),
    "plain": DATA,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_opens(form: str) -> None:
    class Slow(io.BytesIO):
        """A stream that gives what it likes, as sockets do."""

        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 70_001) if size and size > 0 else size)

    assert decompress(Slow(FORMS[form])).read() == DATA


@pytest.mark.parametrize("form", ["gzip", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_broken_stream_is_refused(form: str, damage: str) -> None:
    data = bytearray(FORMS[form])
    if damage == "cut":
        del data[-20:]
    else:
        data[len(data) // 2] ^= 0xFF
    with pytest.raises(InputError) as error:
        decompress(io.BytesIO(bytes(data))).read()
    assert error.value.reason == "compressed"


def test_a_flipped_zstd_stream_is_refused() -> None:
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(os.urandom(1000) + DATA))
    data[500] ^= 1
    with pytest.raises(InputError) as error:
        decompress(io.BytesIO(bytes(data))).read()
    assert error.value.reason == "compressed"


def test_streams_that_want_gigabytes_of_history_are_refused() -> None:
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=30))
    packer = wide.compressobj()
    data = packer.compress(b"x" * 100) + packer.flush()
    with pytest.raises(InputError) as error:
        decompress(io.BytesIO(data)).read()
    assert error.value.reason == "compressed"


def test_a_bomb_takes_time_but_no_memory(tmp_path: Path) -> None:
    """128 MB of zeros in each form, read in a process of its own."""
    zeros = bytes(1 << 20)
    with (
        gzip.open(tmp_path / "gzip", "wb", compresslevel=1) as one,
        lzma.open(tmp_path / "xz", "wb", preset=0) as two,
    ):
        for _ in range(128):
            one.write(zeros)
            two.write(zeros)
    packer = zstandard.ZstdCompressor().compressobj()
    (tmp_path / "zstd").write_bytes(b"".join(packer.compress(zeros) for _ in range(128)) + packer.flush())
    code = (
        "import sys, re\n"
        "from kairosbuild.oci.transport import decompress\n"
        "for name in sys.argv[1:]:\n"
        "    stream, size = decompress(open(name, 'rb')), 0\n"
        "    while chunk := stream.read(1 << 20): size += len(chunk)\n"
        "    assert size == 128 << 20\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    paths = [str(tmp_path / name) for name in ("gzip", "xz", "zstd")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *paths], check=True, capture_output=True, text=True
    )
    assert int(result.stdout) < 80 << 10  # KiB
