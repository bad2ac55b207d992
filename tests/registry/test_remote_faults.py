"""A registry that fails or lies: no wrong byte is taken, no retry is vain, no login leaks."""

import base64
import io
import json
import socket
import time
from pathlib import Path

import pytest
from fault_server import FaultServer

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.registry.client import Client
from kairosbuild.registry.reference import parse
from kairosbuild.registry.remote import RemoteTarget
from kairosbuild.registry.retry import Limits
from kairosbuild.registry.target import MANIFEST, Manifest

QUICK = Limits(connect=2, read=2, attempts=3, pause=0.001, longest=5)
DATA = b"some bytes of a layer\n" * 5000
BLOB = of_bytes(DATA)


class Naps(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def remote(server: FaultServer, repository: str = "a/b", *, naps: Naps | None = None) -> RemoteTarget:
    where = parse(f"{server.host}/{repository}")
    client = Client(where.endpoint, limits=QUICK, sleep=naps if naps is not None else Naps())
    return RemoteTarget(where, client)


def opened() -> io.BytesIO:
    return io.BytesIO(DATA)


def holding(server: FaultServer, repository: str = "a/b") -> None:
    server.blobs[repository, BLOB.digest] = DATA


def refused(reason: str, work, *args, **kwargs) -> HostError:
    with pytest.raises(HostError) as caught:
        work(*args, **kwargs)
    assert caught.value.reason == reason, caught.value
    return caught.value


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"change": lambda data: b"X" + data[1:]},
        {"change": lambda data: data + b"more"},
        {"change": lambda data: data[:-1]},
        {"change": lambda data: b""},
        {"headers": {"Content-Length": str(BLOB.size + 5)}},
        {"headers": {"Content-Length": str(BLOB.size - 5)}},
        {"headers": {"Content-Encoding": "gzip"}},
    ],
    ids=["altered", "longer", "shorter", "empty", "announces-more", "announces-less", "encoded"],
)
def test_a_blob_that_is_not_itself_is_refused_at_once(faults: FaultServer, tmp_path: Path, how: dict) -> None:
    holding(faults)
    faults.fault("GET .*/blobs/", times=9, **how)
    refused("registry-lied", remote(faults).get_blob, BLOB, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    assert faults.count("GET") == 1


@pytest.mark.parametrize("how", [{"cut": 1000}, {"cut": 0}, {"reset": True}, {"status": 500}])
def test_what_breaks_off_is_fetched_again(faults: FaultServer, tmp_path: Path, how: dict) -> None:
    holding(faults)
    faults.fault("GET .*/blobs/", times=2, **how)
    remote(faults).get_blob(BLOB, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert faults.count("GET") == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_goes_on_where_it_stopped(faults: FaultServer, tmp_path: Path, ranges: bool) -> None:
    holding(faults)
    faults.ranges = ranges
    faults.fault("GET .*/blobs/", cut=70_000)
    faults.fault("GET .*/blobs/", cut=30_000)
    seen: list[int] = []
    remote(faults).get_blob(BLOB, tmp_path / "x", progress=seen.append)
    assert (tmp_path / "x").read_bytes() == DATA and seen[-1] == BLOB.size
    asked = [s.range for s in faults.seen if "/blobs/" in s.path]
    assert asked == (
        ["", "bytes=70000-", "bytes=100000-"] if ranges else ["", "bytes=70000-", "bytes=30000-"]
    )


@pytest.mark.parametrize(
    "how",
    [
        {"headers": {"Content-Range": "bytes 0-9/110000"}},
        {"headers": {"Content-Range": ""}},
        {"change": lambda data: b"X" + data[1:]},
        {"change": lambda data: data + b"X"},
    ],
)
def test_a_wrong_range_is_refused(faults: FaultServer, tmp_path: Path, how: dict) -> None:
    holding(faults)
    faults.fault("GET .*/blobs/", cut=70_000)
    faults.fault("GET .*/blobs/", times=9, **how)
    refused("registry-lied", remote(faults).get_blob, BLOB, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_that_gets_on_is_not_given_up(faults: FaultServer, tmp_path: Path) -> None:
    data = bytes(10 << 20)
    faults.blobs["a/b", of_bytes(data).digest] = data
    faults.fault("GET .*/blobs/", times=7, cut=(1 << 20) + 1)
    remote(faults).get_blob(of_bytes(data), tmp_path / "x")
    assert faults.count("GET") == 8


def test_what_always_breaks_off_ends(faults: FaultServer, tmp_path: Path) -> None:
    holding(faults)
    faults.fault("GET .*/blobs/", times=99, cut=5000)
    problem = refused("registry-broken-off", remote(faults).get_blob, BLOB, tmp_path / "x")
    assert "tried 3 times" in str(problem)
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_body_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = parse(f"127.0.0.1:{silent.getsockname()[1]}/a")
        limits = Limits(connect=1, read=0.2, attempts=2, pause=0.001)
        target = RemoteTarget(where, Client(where.endpoint, limits=limits))
        refused("registry-broken-off", target.get_blob, BLOB, tmp_path / "x")


def test_what_stalls_in_the_middle_goes_on(faults: FaultServer, tmp_path: Path) -> None:
    holding(faults)
    faults.fault("GET .*/blobs/", cut=70_000, stall=1)
    client = Client(faults.host, limits=Limits(connect=1, read=0.2, attempts=3, pause=0.001))
    target = RemoteTarget(parse(f"{faults.host}/a/b"), client)
    began = time.monotonic()
    target.get_blob(BLOB, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and time.monotonic() - began < 1
    assert faults.count("GET") == 2


def test_an_upload_that_nobody_answers_is_begun_again(faults: FaultServer) -> None:
    faults.fault("PUT", stall=1)
    client = Client(faults.host, limits=Limits(connect=1, read=0.2, attempts=3, pause=0.001))
    assert RemoteTarget(parse(f"{faults.host}/a/b"), client).put_blob(BLOB, opened) == BLOB.size
    assert faults.count("POST") == 2


@pytest.mark.parametrize(
    "how",
    [
        {"change": lambda data: data.replace(b"2", b"3", 1)},
        {"headers": {"Docker-Content-Digest": "sha256:" + "0" * 64}},
        {"body": b"x" * (5 << 20)},
    ],
    ids=["altered", "digest-lie", "huge"],
)
def test_a_manifest_that_is_not_itself_is_refused(faults: FaultServer, how: dict) -> None:
    manifest = put_manifest(faults)
    faults.fault("GET .*/manifests/", times=9, **how)
    refused("registry-lied", remote(faults).get_manifest, manifest.blob.digest)
    assert faults.count("GET") == 1


def test_a_head_that_tells_no_digest_is_followed_by_a_look(faults: FaultServer) -> None:
    manifest = put_manifest(faults)
    faults.fault("HEAD .*/manifests/", headers={"Docker-Content-Digest": ""})
    assert remote(faults).head_manifest("v1") == manifest.blob.digest


def test_a_blob_of_another_size_does_not_count_as_there(faults: FaultServer) -> None:
    holding(faults)
    assert remote(faults).has_blob(BLOB)
    faults.fault("HEAD", headers={"Content-Length": "3"})
    assert not remote(faults).has_blob(BLOB)


# -- writing ----------------------------------------------------------------------------------


def test_an_upload_has_its_length_and_is_one_put(faults: FaultServer) -> None:
    told: list[int] = []
    assert remote(faults).put_blob(BLOB, opened, progress=told.append) == BLOB.size
    assert faults.blobs["a/b", BLOB.digest] == DATA
    assert [(s.method, s.length) for s in faults.seen] == [("POST", 0), ("PUT", BLOB.size)]
    assert told[-1] == BLOB.size


@pytest.mark.parametrize("match", ["POST", "PUT"])
@pytest.mark.parametrize("how", [{"reset": True}, {"status": 500}, {"status": 429}, {"status": 502}])
def test_an_upload_is_begun_again(faults: FaultServer, match: str, how: dict) -> None:
    faults.fault(match, times=2, **how)
    assert remote(faults).put_blob(BLOB, opened) == BLOB.size
    assert faults.blobs["a/b", BLOB.digest] == DATA


@pytest.mark.parametrize("status", [400, 405, 413])
def test_what_will_not_pass_is_not_tried_again(faults: FaultServer, status: int) -> None:
    faults.fault("PUT", times=9, status=status, body=b'{"errors":[{"code":"SIZE_INVALID","message":"no"}]}')
    problem = refused("registry-failed", remote(faults).put_blob, BLOB, opened)
    assert "SIZE_INVALID: no" in str(problem)
    assert faults.count("PUT") == 1


def test_our_own_damage_is_never_sent_whole(faults: FaultServer) -> None:
    for bad in (DATA[:-1] + b"X", DATA + b"X", DATA[:-1], b""):
        refused("blob-corrupt", remote(faults).put_blob, BLOB, lambda bad=bad: io.BytesIO(bad))
    assert faults.blobs == {}


def test_an_unreadable_blob_is_not_the_registrys_fault(faults: FaultServer, tmp_path: Path) -> None:
    refused("blob-unreadable", remote(faults).put_blob, BLOB, (tmp_path / "gone").open)
    assert faults.count("POST") == 1  # whether the PUT got there is a race


def test_a_digest_echoed_wrong_is_refused(faults: FaultServer) -> None:
    faults.fault("PUT", times=9, headers={"Docker-Content-Digest": "sha256:" + "0" * 64})
    refused("registry-lied", remote(faults).put_blob, BLOB, opened)


def test_mounts_what_the_registry_has_elsewhere(faults: FaultServer) -> None:
    holding(faults, "base/os")
    assert remote(faults).put_blob(BLOB, opened, mount_from="base/os") == 0
    assert faults.blobs["a/b", BLOB.digest] == DATA
    assert faults.count("PUT") == 0
    assert remote(faults, "c").put_blob(BLOB, opened, mount_from="not/here") == BLOB.size


def test_the_empty_blob(faults: FaultServer, tmp_path: Path) -> None:
    empty = of_bytes(b"")
    assert remote(faults).put_blob(empty, io.BytesIO) == 0
    remote(faults).get_blob(empty, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b""


# -- when to wait -----------------------------------------------------------------------------


def test_retry_after_is_heeded(faults: FaultServer) -> None:
    naps = Naps()
    faults.fault("HEAD", status=429, headers={"Retry-After": "3"})
    remote(faults, naps=naps).has_blob(BLOB)
    assert len(naps) == 1
    assert 3 <= naps[0] < 4


def test_retry_after_too_far_off_is_said_instead(faults: FaultServer) -> None:
    faults.fault("HEAD", times=9, status=429, headers={"Retry-After": "3600"})
    refused("registry-throttled", remote(faults).has_blob, BLOB)
    assert faults.count("HEAD") == 1


def test_a_dead_registry_is_told_within_seconds() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    target = RemoteTarget(parse(f"127.0.0.1:{port}/a"), Client(f"127.0.0.1:{port}"))
    problem = refused("registry-unreachable", target.has_blob, BLOB)
    assert time.monotonic() - began < 10
    assert f"127.0.0.1:{port}" in str(problem)


def test_a_name_that_resolves_to_nothing() -> None:
    target = RemoteTarget(parse("registry.invalid/a"), Client("registry.invalid"))
    refused("registry-unreachable", target.has_blob, BLOB)


def test_plain_http_is_for_loopback_or_when_said() -> None:
    assert (
        Client("localhost:5000").url(parse("localhost:5000/a"), "x").startswith("http://localhost:5000/v2/a/")
    )
    assert Client("reg.example.com").url(parse("reg.example.com/a"), "x").startswith("https://")
    said = Client("reg.example.com", insecure=True)
    assert said.url(parse("reg.example.com/a"), "x") == "http://reg.example.com/v2/a/x"


# -- who may ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "reason"), [(403, "registry-denied"), (401, "registry-unauthorised")])
def test_refusals_are_told_apart(faults: FaultServer, status: int, reason: str) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"not for you"}]}'
    faults.fault("PUT .*/manifests/", times=9, status=status, body=body)
    problem = refused(reason, remote(faults).put_manifest, Manifest(MANIFEST, b"{}"))
    assert "not for you" in str(problem)
    assert faults.count("PUT") == 1


def test_an_unknown_name_is_told(faults: FaultServer) -> None:
    refused("registry-not-found", remote(faults).get_manifest, "v1")
    assert remote(faults).head_manifest("v1") is None


def login(home: Path, host: str, user: str = "user:secret") -> str:
    encoded = base64.b64encode(user.encode()).decode()
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker/config.json").write_text(json.dumps({"auths": {host: {"auth": encoded}}}))
    return encoded


def test_a_pull_token_never_serves_a_push(no_logins: Path) -> None:
    with FaultServer(tokens=True) as server:
        server.login = login(no_logins, server.host)
        holding(server)
        target = remote(server)
        target.head_manifest("v1")
        target.put_blob(BLOB, opened)
        target.head_manifest("v1")
        target.put_blob(of_bytes(b"2"), lambda: io.BytesIO(b"2"))
        assert server.tokens_given == [
            ("repository:a/b:pull",),
            ("repository:a/b:pull", "repository:a/b:pull,push"),
        ]
        pushes = {s.authorization for s in server.seen if s.method in {"PUT", "POST"} and s.authorization}
        pulls = {s.authorization for s in server.seen if s.method == "HEAD" and s.authorization}
        assert not pushes & pulls


def test_an_expired_token_is_renewed_once(no_logins: Path) -> None:
    with FaultServer(tokens=True) as server:
        target = remote(server)
        target.head_manifest("v1")
        server.expired.add(server.seen[-1].authorization.removeprefix("Bearer "))
        assert target.head_manifest("v1") is None
        assert len(server.tokens_given) == 2


def test_a_token_that_expires_in_an_upload_is_renewed_and_the_body_sent_anew(no_logins: Path) -> None:
    with FaultServer(tokens=True) as server:
        server.login = login(no_logins, server.host)
        target = remote(server)
        target.has_blob(BLOB)  # with the right to push
        begin = target._begin

        def expiring(*words: object) -> str:
            place = begin(*words)
            server.expired.add(server.seen[-1].authorization.removeprefix("Bearer "))
            return place

        target._begin = expiring  # type: ignore[method-assign]
        assert target.put_blob(BLOB, opened) == BLOB.size
        assert server.blobs["a/b", BLOB.digest] == DATA
        assert [s.length for s in server.seen if s.method == "PUT"] == [BLOB.size, BLOB.size]
        assert len(server.tokens_given) == 2


def test_a_mount_asks_for_both_repositories(no_logins: Path) -> None:
    with FaultServer(tokens=True) as server:
        server.login = login(no_logins, server.host)
        remote(server).put_blob(BLOB, opened, mount_from="base/os")
        assert set(server.tokens_given[0]) >= {"repository:a/b:pull,push", "repository:base/os:pull"}


def test_wrong_or_missing_logins_say_what_to_do(no_logins: Path) -> None:
    with FaultServer(tokens=True, login="right") as server:
        problem = refused("registry-unauthorised", remote(server).put_blob, BLOB, opened)
        assert f"podman login {server.host}" in problem.hint
        login(no_logins, server.host, "user:wrong-word")
        problem = refused("registry-unauthorised", remote(server).put_blob, BLOB, opened)
        assert "wrong-word" not in str(problem)


def test_podmans_logins_go_before_dockers_and_by_the_longest_name(no_logins: Path, monkeypatch) -> None:
    with FaultServer(tokens=True) as server:
        login(no_logins, server.host, "other:login")
        file = no_logins / "auth.json"
        right = base64.b64encode(b"a:b").decode()
        wrong = base64.b64encode(b"c:d").decode()
        auths = {server.host: {"auth": wrong}, f"{server.host}/a": {"auth": right}}
        file.write_text(json.dumps({"auths": auths}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
        server.login = right
        assert remote(server).put_blob(BLOB, opened) == BLOB.size


def test_a_broken_login_file_is_named(no_logins: Path) -> None:
    (no_logins / ".docker").mkdir()
    (no_logins / ".docker/config.json").write_text("{")
    with FaultServer(tokens=True) as server:
        problem = refused("credentials-unreadable", remote(server).has_blob, BLOB)
        assert "config.json" in str(problem)


def test_basic_authentication(no_logins: Path) -> None:
    with FaultServer() as server:
        encoded = login(no_logins, server.host)
        server.fault("HEAD", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        holding(server)
        assert remote(server).has_blob(BLOB)
        assert server.seen[-1].authorization == f"Basic {encoded}"


def test_credentials_do_not_follow_a_redirect(no_logins: Path, tmp_path: Path) -> None:
    with FaultServer(tokens=True) as server, FaultServer() as elsewhere:
        server.login = login(no_logins, server.host)
        holding(elsewhere)
        place = f"http://{elsewhere.host}/v2/a/b/blobs/{BLOB.digest}"
        target = remote(server)
        target.head_manifest("v1")  # a token is at hand
        server.fault("GET", status=307, headers={"Location": place})
        target.get_blob(BLOB, tmp_path / "x")
        assert [s.authorization for s in elsewhere.seen] == [""]
        assert server.seen[-1].authorization != ""

        elsewhere.seen.clear()
        upload = f"http://{elsewhere.host}/v2/a/b/blobs/uploads/1?state=a%2Bb"
        server.fault("POST", times=2, status=202, headers={"Location": upload})
        target.put_blob(BLOB, opened)
        assert [s.authorization for s in elsewhere.seen] == [""]


def test_a_signed_address_is_not_told(faults: FaultServer, tmp_path: Path) -> None:
    """Storage behind a registry is reached by addresses that are keys themselves."""
    with FaultServer() as elsewhere:
        holding(elsewhere)
        place = f"http://user:word@{elsewhere.host}/v2/a/b/blobs/{BLOB.digest}?Signature=barley"
        faults.fault("GET", times=99, status=307, headers={"Location": place})
        for how in ({"cut": 5}, {"headers": {"Content-Encoding": "gzip"}}, {"status": 403}, {"reset": True}):
            elsewhere.fault("GET", times=3, **how)
            with pytest.raises(HostError) as caught:
                remote(faults).get_blob(BLOB, tmp_path / "x")
            elsewhere.faults.clear()
            assert "barley" not in str(caught.value) and "word" not in str(caught.value)
            assert elsewhere.host.rpartition(":")[2] in str(caught.value) or how == {"status": 403}


def test_a_challenge_from_elsewhere_gets_no_answer(no_logins: Path, tmp_path: Path) -> None:
    with FaultServer() as server, FaultServer(tokens=True) as elsewhere:
        login(no_logins, elsewhere.host)
        server.fault(
            "GET", times=9, status=302, headers={"Location": f"http://{elsewhere.host}/v2/a/blobs/x"}
        )
        refused("registry-unauthorised", remote(server).get_blob, BLOB, tmp_path / "x")
        assert elsewhere.tokens_given == []


def test_redirects_end(faults: FaultServer, tmp_path: Path) -> None:
    faults.fault("GET", times=99, status=302, headers={"Location": "/v2/around"})
    refused("registry-failed", remote(faults).get_blob, BLOB, tmp_path / "x")
    assert faults.count("GET") < 10


def test_a_redirect_out_of_http_is_refused(faults: FaultServer, tmp_path: Path) -> None:
    faults.fault("GET", status=302, headers={"Location": "file:///etc/passwd"})
    refused("registry-insecure", remote(faults).get_blob, BLOB, tmp_path / "x")


def test_tls_is_not_left(faults: FaultServer) -> None:
    client = Client("reg.example.com")
    with pytest.raises(HostError) as caught:
        client.follow("https://reg.example.com/v2/", "http://reg.example.com/v2/x")
    assert caught.value.reason == "registry-insecure"


def test_netrc_does_not_stand_in(no_logins: Path, faults: FaultServer) -> None:
    (no_logins / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (no_logins / ".netrc").chmod(0o600)
    remote(faults).has_blob(BLOB)
    assert faults.seen[0].authorization == ""


def put_manifest(server: FaultServer) -> Manifest:
    config = of_bytes(b"{}")
    server.blobs["a/b", config.digest] = b"{}"
    named = {"config": {"mediaType": "x", **config.json()}, "layers": []}
    document = {"schemaVersion": 2, "mediaType": MANIFEST, **named}
    manifest = Manifest(MANIFEST, json.dumps(document).encode())
    remote(server).put_manifest(manifest)
    remote(server).tag({"v1": manifest})
    return manifest
