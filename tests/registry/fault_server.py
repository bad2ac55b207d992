"""A registry in memory that fails as told: enough of the distribution specification, and scripted faults."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from kairosbuild.core.digest import of_bytes

INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Fault:
    """What happens instead of (or to) the answer of requests `METHOD PATH` that match, so many times."""

    match: str
    times: int = 1
    status: int = 0  # answer this, and nothing else
    headers: dict[str, str] = field(default_factory=dict)  # put over the answer's own
    body: bytes | None = None  # the answer's body instead
    reset: bool = False  # RST before anything is answered
    cut: int = -1  # close after so many bytes of the body
    stall: float = 0  # seconds of silence: there where it is cut, else before a request's body is read
    change: Callable[[bytes], bytes] | None = None

    def takes(self, line: str) -> bool:
        if self.times > 0 and re.search(self.match, line):
            self.times -= 1
            return True
        return False


@dataclass
class Seen:
    method: str
    path: str
    authorization: str
    length: int
    range: str = ""


class FaultServer:
    """A registry as the specification 1.1 has it; `referrers` gives it the referrers API.

    `tokens` switches token authentication on; `login` (base64) is what it then wants to push.
    """

    def __init__(self, *, tokens: bool = False, login: str = "") -> None:
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tokens_given: list[tuple[str, ...]] = []
        self.tokens = tokens
        self.login = login
        self.expired: set[str] = set()
        self.realm = ""
        self.ranges = True
        self.referrers = False
        self.parts: list[bytes] = []  # of uploads in several requests
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def fault(self, match: str, **how: object) -> Fault:
        fault = Fault(match, **how)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def count(self, method: str, pattern: str = "") -> int:
        return sum(1 for s in self.seen if s.method == method and re.search(pattern, s.path))

    def tags(self, repository: str) -> set[str]:
        return {name for repo, name in self.manifests if repo == repository and ":" not in name}

    def __enter__(self) -> "FaultServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Connections that we or the client broke off are what this is for."""


def _handler(state: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            url = urlsplit(self.path)
            self.route, self.query = url.path, {k: v[0] for k, v in parse_qs(url.query).items()}
            self.scopes = tuple(parse_qs(url.query).get("scope", ()))
            length = int(self.headers.get("Content-Length") or 0)
            authorization = self.headers.get("Authorization", "")
            state.seen.append(
                Seen(self.command, self.path, authorization, length, self.headers.get("Range", ""))
            )
            line = f"{self.command} {self.path}"
            self.fault = next((f for f in state.faults if f.takes(line)), None)
            if self.fault and self.fault.reset:
                self.rfile.read(min(length, 1000))
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            if self.fault and self.fault.stall and self.fault.cut < 0:
                time.sleep(self.fault.stall)
            self.data = self.read_body(length)
            if len(self.data) < length:  # the client left
                self.close_connection = True
                return
            if self.fault and self.fault.status:
                self.answer(self.fault.status, self.fault.body or b"{}")
            elif self.route == "/token":
                self.token()
            elif self.allowed():
                self.serve()

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

        def allowed(self) -> bool:
            if not state.tokens:
                return True
            match = re.fullmatch(r"/v2/(.+)/(blobs|manifests|tags)/.*", self.route)
            repository = match[1] if match else ""
            need = {f"repository:{repository}:pull,push" if self.command in {"PUT", "POST"} else ""}
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and token not in state.expired:
                held = set(token.split("|"))
                if need == {""} or need <= held:
                    return True
                self.answer(403, b'{"errors":[{"code":"DENIED","message":"token lacks the scope"}]}')
                return False
            realm = state.realm or f"http://{state.host}/token"
            challenge = f'Bearer realm="{realm}",service="test",scope="repository:{repository}:pull"'
            self.answer(401, b"{}", {"WWW-Authenticate": challenge})
            return False

        def token(self) -> None:
            state.tokens_given.append(self.scopes)
            wants_push = any("push" in scope for scope in self.scopes)
            if wants_push and state.login and self.headers.get("Authorization") != f"Basic {state.login}":
                self.answer(401, b"{}")
                return
            number = len(state.tokens_given)
            text = "|".join([*self.scopes, str(number)])
            self.answer(200, json.dumps({"token": text}).encode())

        def serve(self) -> None:
            if match := re.fullmatch(r"/v2/(.+)/blobs/uploads/", self.route):
                self.begin(match[1])
            elif match := re.fullmatch(r"/v2/(.+)/blobs/uploads/1", self.route):
                self.finish_upload(match[1])
            elif match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:.+)", self.route):
                found = state.blobs.get((match[1], match[2]))
                self.give(found, "application/octet-stream")
            elif match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.route):
                self.manifest(match[1], match[2])
            elif state.referrers and (match := re.fullmatch(r"/v2/(.+)/referrers/(sha256:.+)", self.route)):
                self.list_referrers(match[1], match[2])
            elif self.route == "/v2/":
                self.answer(200, b"{}")
            elif match := re.fullmatch(r"/v2/(.+)/tags/list", self.route):
                tags = sorted(state.tags(match[1]))
                self.answer(200, json.dumps({"name": match[1], "tags": tags}).encode())
            else:
                self.answer(404, b'{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}')

        def begin(self, repository: str) -> None:
            source = (self.query.get("from", ""), self.query.get("mount", ""))
            if source in state.blobs:
                state.blobs[repository, source[1]] = state.blobs[source]
                self.answer(201, b"")
            else:
                self.answer(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/1?state=a%2Bb"})

        def finish_upload(self, repository: str) -> None:
            if self.command == "PATCH":
                state.parts.append(
                    state.parts[int(self.query["part"])] + self.data if "part" in self.query else self.data
                )
                place = f"/v2/{repository}/blobs/uploads/1?state=a%2Bb&part={len(state.parts) - 1}"
                self.answer(202, b"", {"Location": place, "Range": f"0-{len(state.parts[-1]) - 1}"})
                return
            if "part" in self.query:
                self.data = state.parts[int(self.query["part"])] + self.data
            digest = self.query["digest"]
            if of_bytes(self.data).digest != digest or self.query.get("state") != "a+b":
                self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"not that"}]}')
                return
            state.blobs[repository, digest] = self.data
            self.answer(201, b"", {"Docker-Content-Digest": digest})

        def manifest(self, repository: str, version: str) -> None:
            if self.command == "DELETE":
                gone = [key for key, (_, data) in state.manifests.items() if of_bytes(data).digest == version]
                for key in gone:
                    if key[0] == repository:
                        del state.manifests[key]
                self.answer(202 if gone else 404, b"")
                return
            if self.command == "PUT":
                document = json.loads(self.data)
                named = [document["config"], *document["layers"]] if "config" in document else []
                listed = document.get("manifests", [])
                if any((repository, d["digest"]) not in state.blobs for d in named) or any(
                    (repository, d["digest"]) not in state.manifests for d in listed
                ):
                    self.answer(400, b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"incomplete"}]}')
                    return
                digest = of_bytes(self.data).digest
                for name in (digest, version):
                    state.manifests[repository, name] = self.headers["Content-Type"], self.data
                headers = {"Docker-Content-Digest": digest}
                if state.referrers and "subject" in document:
                    headers["OCI-Subject"] = document["subject"]["digest"]
                self.answer(201, b"", headers)
                return
            media_type, data = state.manifests.get((repository, version), ("", None))
            self.give(data, media_type)

        def list_referrers(self, repository: str, digest: str) -> None:
            rows = []
            for (held, name), (media_type, data) in sorted(state.manifests.items()):
                document = json.loads(data)
                if held == repository and ":" in name and document.get("subject", {}).get("digest") == digest:
                    row = {"mediaType": media_type, **of_bytes(data).json()}
                    row["artifactType"] = document.get("artifactType") or document["config"]["mediaType"]
                    row["annotations"] = document.get("annotations", {})
                    rows.append(row)
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}
            self.answer(200, json.dumps(index).encode(), {"Content-Type": INDEX})

        def read_body(self, length: int) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(length)
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def give(self, data: bytes | None, media_type: str) -> None:
            if data is None:
                self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}')
                return
            digest = of_bytes(data).digest
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and state.ranges:
                start, end = int(asked[1]), int(asked[2] or len(data) - 1) + 1
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                self.answer(206, data[start:end], headers)
            else:
                self.answer(200, data, headers)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            fault = self.fault or Fault("")
            if fault.change and status in (200, 206):
                body = fault.change(body)
            if fault.body is not None:
                body = fault.body
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {}), **fault.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if fault.cut < 0 else body[: fault.cut])
                time.sleep(fault.stall if fault.cut >= 0 else 0)
            if fault.cut >= 0 or "Content-Length" in fault.headers:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler
