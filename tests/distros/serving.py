"""What a test needs around a distribution of its own: an image layout of one layer, and files on loopback."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_OCI = "application/vnd.oci.image"


def layout(folder: Path, layer: bytes, tag: str) -> str:
    """An OCI layout with one image of one layer; how `base: {image: …}` names it."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    packed = put(layer)
    rootfs = {"type": "layers", "diff_ids": [packed["digest"]]}
    config = put(
        json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": {"mediaType": f"{_OCI}.config.v1+json", **config},
        "layers": [{"mediaType": f"{_OCI}.layer.v1.tar", **packed}],
    }
    listed = {
        "mediaType": f"{_OCI}.manifest.v1+json",
        **put(json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci-layout:{folder}:{tag}"


class Served:
    """A server on loopback that has these files, looked up at each request; `faults` by path says how it fails:
    `404` and the like, `cut` (breaks off), `other` (as many bytes, but others), `stall` (nothing after the
    first bytes), `drip` (a byte now and then)."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files, self.asked, self.faults = files, list[str](), dict[str, str]()
        self._closed = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.lstrip("/")
        self.asked.append(path)
        fault, content = self.faults.get(path, ""), self.files.get(path)
        status = int(fault) if fault.isdigit() else 404 if content is None else 200
        content = content if status == 200 and content else b""
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "other":
            content = bytes(byte ^ 1 for byte in content)
        sent = {"cut": len(content) // 2, "stall": 10, "drip": 10}.get(fault, len(content))
        request.wfile.write(content[:sent])
        while fault in ("stall", "drip") and not self._closed.wait(0.2) and sent < len(content):
            sent += fault == "drip"
            with contextlib.suppress(OSError):
                request.wfile.write(content[sent - 1 : sent] if fault == "drip" else b"")
        request.close_connection = fault in ("cut", "stall", "drip")
