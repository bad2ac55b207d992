"""A small Debian archive: made and signed here, served on loopback by a server that can misbehave."""

import gzip
import hashlib
import io
import lzma
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pysequoia
import zstandard

Files = Mapping[str, bytes | str | None]
"""Path → content, a link's target, or None for a folder."""


def make_tar(files: Files, *, hardlinks: Mapping[str, str] | None = None, mode: int = 0o644) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(f"./{path}")
            info.mode, info.mtime = mode, 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        for path, target in (hardlinks or {}).items():
            info = tarfile.TarInfo(f"./{path}")
            info.type, info.linkname, info.mode = tarfile.LNKTYPE, f"./{target}", mode
            tar.addfile(info)
    return out.getvalue()


def make_deb(control: str, data: bytes, method: str = "xz") -> bytes:
    packed = {
        "xz": lzma.compress,
        "zst": zstandard.ZstdCompressor().compress,
        "": bytes,
    }[method](data)
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(make_tar({"control": control.encode()})),
        f"data.tar.{method}".rstrip("."): packed,
    }
    out = [b"!<arch>\n"]
    for name, content in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{0o100644:<8o}{len(content):<10}`\n"
        out += [head.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(out)


class Key:
    """A key that signs, and the keyring that has it."""

    def __init__(self) -> None:
        self._secret = pysequoia.Tsk.generate(user_id="Test archive <archive@example.org>")

    def sign(self, text: bytes) -> bytes:
        return bytes(pysequoia.sign(self._secret.signer(), text, mode=pysequoia.SignatureMode.CLEAR))

    def keyring(self, path: Path) -> Path:
        path.write_bytes(bytes(self._secret.extract_certificate()))
        return path


@dataclass
class Archive:
    """Files by their path on the mirror. `add` packages, `publish`, and serve."""

    key: Key = field(default_factory=Key)
    files: dict[str, bytes] = field(default_factory=dict)
    paragraphs: list[str] = field(default_factory=list)

    def add(self, name: str, version: str = "1", *, files: Files | None = None, **fields: str) -> bytes:
        architecture = fields.pop("Architecture", "amd64")
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
        control += "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in fields.items())
        deb = make_deb(control, make_tar(files or {f"usr/share/{name}/about": name.encode()}))
        where = f"pool/main/{name[0]}/{name}/{name}_{version.partition(':')[2] or version}_{architecture}.deb"
        self.files[where] = deb
        sha = hashlib.sha256(deb).hexdigest()
        self.paragraphs.append(f"{control}Filename: {where}\nSize: {len(deb)}\nSHA256: {sha}\n")
        return deb

    def publish(
        self, suite: str = "trixie", *, codename: str = "", component: str = "main", contents: str = ""
    ) -> None:
        index = "\n".join(self.paragraphs).encode()
        packed = lzma.compress(index)
        sha = hashlib.sha256(packed).hexdigest()
        folder = f"{component}/binary-amd64"
        self.files[f"dists/{suite}/{folder}/by-hash/SHA256/{sha}"] = packed
        text = (
            f"Origin: Debian\nSuite: {suite}\nCodename: {codename or suite}\n"
            f"Date: Sat, 12 Sep 2026 07:55:41 UTC\nSHA256:\n {sha} {len(packed)} {folder}/Packages.xz\n"
        )
        if contents:
            listed = gzip.compress(contents.encode(), mtime=0)
            where, sha = f"{component}/Contents-all.gz", hashlib.sha256(listed).hexdigest()
            self.files[f"dists/{suite}/{where}"] = listed
            text += f" {sha} {len(listed)} {where}\n"
        self.files[f"dists/{suite}/InRelease"] = self.key.sign(text.encode())


class Server:
    """Serves files; `faults` by path says how it fails, `asked` counts requests."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, list[str]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/debian"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.removeprefix("/debian/"))
        self.asked.append(path)
        faults = self.faults.get(path, [])
        fault = faults.pop(0) if len(faults) > 1 else (faults[0] if faults else "")
        content = self.files.get(path)
        if fault.isdigit() or content is None:
            request.send_response(int(fault) if fault.isdigit() else 404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if fault == "other":
            content = bytes(len(content))
        elif fault == "longer":
            content += bytes(5000)
        elif fault == "short":
            content = content[:-1]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        if fault == "cut":
            request.close_connection = True

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
