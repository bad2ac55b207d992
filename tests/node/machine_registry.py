"""A registry in memory as a machine sees one: ranges, redirects, tokens, and answers that are changed or cut off."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kairosbuild.node.offer import BOOT, FORM, UKI

TITLE = "org.opencontainers.image.title"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class MachineRegistry:
    """`cut` ends the bodies of blobs after so many bytes, so often; `change` alters what is sent."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.host = ""
        self.cut: list[int] = []
        self.change: Callable[[str, bytes], bytes] = lambda path, data: data
        self.ranges = True
        self.fallback = True
        self.token = ""
        self.login = ""
        self.elsewhere = ""  # where blobs are redirected to
        self.seen: list[tuple[str, str]] = []  # path, Authorization
        self.sent = 0  # bytes of blobs

    def blob(self, data: bytes, media_type: str = "", title: str = "") -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        found = {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
        return {**found, "annotations": {TITLE: title}} if title else found

    def manifest(self, tag: str, document: dict[str, Any]) -> str:
        data = json.dumps({"schemaVersion": 2, **document}).encode()
        self.manifests[digest_of(data)] = self.manifests[tag] = data
        return digest_of(data)

    def publish(self, tag: str, kernel: bytes, config: bytes, forms: dict[str, bytes]) -> tuple[str, str]:
        """An image and its boot artifact; the digests of both manifests."""
        image = self.manifest(tag, {"config": self.blob(config), "layers": []})
        files = [self.blob(kernel, UKI, "os.efi"), *(self.blob(d, FORM, name) for name, d in forms.items())]
        subject = {"mediaType": "", "digest": image, "size": len(self.manifests[image])}
        boot = {"artifactType": BOOT, "config": self.blob(b"{}"), "layers": files, "subject": subject}
        found = self.manifest(f"{tag}-boot", boot)
        if self.fallback:
            listed = [{"digest": found, "artifactType": BOOT}]
            self.manifest(image.replace(":", "-"), {"manifests": listed})
        return image, found


@contextmanager
def serving(state: MachineRegistry) -> Iterator[MachineRegistry]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: MachineRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization", "")
            state.seen.append((self.path, authorization))
            if self.path.startswith("/token"):
                allowed = not state.login or authorization == f"Basic {state.login}"
                self.answer(200 if allowed else 401, json.dumps({"token": state.token}).encode())
            elif state.token and self.path.startswith("/v2/") and authorization != f"Bearer {state.token}":
                challenge = f'Bearer realm="http://{state.host}/token",service="here"'
                self.answer(401, b"{}", {"WWW-Authenticate": challenge})
            elif found := re.fullmatch(r"/(?:v2/os/blobs|moved)/(sha256:.+)", self.path):
                self.blob(found[1])
            elif (found := re.fullmatch(r"/v2/os/manifests/(.+)", self.path)) and found[1] in state.manifests:
                self.answer(200, state.change(self.path, state.manifests[found[1]]))
            elif self.path == "/v2/os/tags/list":
                tags = [one for one in state.manifests if ":" not in one]
                self.answer(200, json.dumps({"tags": tags}).encode())
            else:
                self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}')

        def blob(self, digest: str) -> None:
            if state.elsewhere and self.path.startswith("/v2/"):
                self.answer(307, b"", {"Location": f"{state.elsewhere}/moved/{digest}"})
                return
            data, status = state.change(self.path, state.blobs[digest]), 200
            if state.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                data, status = data[int(asked[1]) : int(asked[2] or len(data)) + 1], 206
            self.answer(status, data, cut=state.cut.pop(0) if state.cut else -1)

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int = -1
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            body = body if cut < 0 else body[:cut]
            if "/blobs/" in self.path and status in (200, 206):
                state.sent += len(body)
            self.wfile.write(body)
            self.close_connection = cut >= 0

        def log_message(self, *_: object) -> None:
            pass

    return Handler
