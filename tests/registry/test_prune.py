"""Retention: what policies keep, what is kept with it, and what goes; and indexes for several platforms."""

import io
import json
import time
from itertools import count

import pytest
from fault_server import FaultServer

from kairosbuild.core import canonical
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.registry import referrers
from kairosbuild.registry.manifests import resolve
from kairosbuild.registry.platforms import combine
from kairosbuild.registry.prune import Policy, Pruned, prune
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.registry.target import EMPTY, INDEX, MANIFEST, Manifest, Target

NUMBERS = count()
NOW = time.time()
DAY = 86_400


@pytest.fixture(params=["registry", "layout", "faults"])
def target(request: pytest.FixtureRequest, tmp_path) -> Target:
    where = f"oci:{tmp_path}/dist"
    if request.param != "layout":
        found = request.getfixturevalue(request.param)
        where = f"{getattr(found, 'host', found)}/prune/n{next(NUMBERS)}"
    return Registries(limits=Limits(connect=2, read=5, attempts=2, pause=0.01)).open(where)[0]


def put(
    target: Target, *tags: str, what: str = "", subject: Manifest | None = None, age: float = 0
) -> Manifest:
    data = (what or tags[0]).encode()
    for one in (b"{}", data):
        target.put_blob(of_bytes(one), lambda one=one: io.BytesIO(one))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - age * DAY if age else 0))
    manifest = Manifest(MANIFEST, canonical.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x",
        "config": {"mediaType": EMPTY, **of_bytes(b"{}").json()},
        "layers": [{"mediaType": "text/plain", **of_bytes(data).json()}],
        "annotations": {"org.opencontainers.image.created": created},
        **({"subject": subject.descriptor()} if subject else {}),
    }))  # fmt: skip
    target.put_manifest(manifest)
    target.tag(dict.fromkeys(tags, manifest))
    return manifest


def names(target: Target) -> set[str]:
    return {tag for tag in target.tags() if target.head_manifest(tag)}


def pruned(target: Target, **policy) -> Pruned:
    before = names(target)
    dry = prune(target, Policy(**policy), now=NOW, dry=True)
    assert names(target) == before, "a dry run removes nothing"
    done = prune(target, Policy(**policy), now=NOW)
    assert done == dry
    assert names(target) == before - set(done.removed)
    return done


def test_the_last_ones_by_version_stay(target: Target) -> None:
    for tag in ("1.8", "1.9", "1.10", "1.11"):
        put(target, tag)
    done = pruned(target, last=2)
    assert done.removed == ("1.8", "1.9") and done.kept == ("1.10", "1.11") and len(done.manifests) == 2


def test_patterns_choose_and_keep(target: Target) -> None:
    for tag in ("nightly-1", "nightly-2", "nightly-3", "v1", "latest"):
        put(target, tag)
    assert pruned(target, only=("nightly-*",), keep=("*-2",), last=1).removed == ("nightly-1",)


def test_ages(target: Target) -> None:
    for age in (1, 20, 40):
        put(target, f"a{age}", age=age)
    put(target, "undated")
    assert pruned(target, newer=30 * DAY).removed == ("a40",), "an age that is not known keeps"


def test_what_a_kept_tag_leads_to_stays(target: Target) -> None:
    image = put(target, "1.0")
    put(target, "1.0-disk", subject=image)
    amd, arm = put(target, "2.0-amd64"), put(target, "2.0-arm64")
    index = Manifest(INDEX, canonical.dumps({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [amd.descriptor(), arm.descriptor()],
    }))  # fmt: skip
    target.put_manifest(index)
    target.tag({"2.0": index})
    same = put(target, "3.0", "3.0-again", what="3")
    done = pruned(target, keep=("1.0-disk", "2.0", "3.0"))
    assert done.removed == () and same.blob.digest not in done.manifests


def test_what_is_said_about_it_goes_with_it_and_with_nothing_else(target: Target) -> None:
    old, new = put(target, "1.0"), put(target, "2.0")
    for image in (old, new):
        file = referrers.File("text/plain", b"signed " + image.data)
        with target.writing():
            referrers.attach(target, image, [referrers.Referrer("application/sig", (file,), "sig")])
    done = pruned(target, keep=("2.0",))
    assert "1.0" in done.removed and "2.0" in done.kept
    assert len(referrers.listed(target, new.blob.digest)) == 1
    assert not [tag for tag in names(target) if old.blob.hex in tag]
    assert not any(new.blob.hex in tag for tag in done.removed)


def test_a_referrer_that_goes_is_taken_off_the_list(registry: str) -> None:
    target, _ = Registries().open(f"{registry}/prune/n{next(NUMBERS)}")
    image = put(target, "1.0")
    disk = put(target, "1.0-disk", subject=image)
    referrers.tell(target, image.blob.digest, [disk])
    assert [one.blob for one in referrers.listed(target, image.blob.digest)] == [disk.blob]
    assert pruned(target, only=("*-disk",), last=0).removed == ("1.0-disk",)
    assert referrers.listed(target, image.blob.digest) == ()


def test_without_a_policy_nothing_goes(faults: FaultServer) -> None:
    target, _ = Registries().open(f"{faults.host}/a")
    with pytest.raises(InputError) as caught:
        prune(target, Policy(only=("*",)), now=NOW)
    assert caught.value.reason == "no-policy" and faults.seen == []


def test_a_registry_that_deletes_nothing_says_so(faults: FaultServer) -> None:
    target, _ = Registries().open(f"{faults.host}/a")
    put(target, "1.0")
    faults.fault("DELETE", times=9, status=405)
    with pytest.raises(HostError) as caught:
        prune(target, Policy(last=0), now=NOW)
    assert caught.value.reason == "registry-no-delete"


# -- platforms --------------------------------------------------------------------------------


def image(target: Target, tag: str, architecture: str) -> Manifest:
    config = json.dumps({"os": "linux", "architecture": architecture}).encode()
    target.put_blob(of_bytes(config), lambda: io.BytesIO(config))
    manifest = Manifest(MANIFEST, canonical.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **of_bytes(config).json()},
    }))  # fmt: skip
    target.put_manifest(manifest)
    target.tag({tag: manifest})
    return manifest


def test_one_tag_for_several_platforms(target: Target) -> None:
    amd, arm = image(target, "1-amd64", "amd64"), image(target, "1-arm64", "arm64")
    made = combine(target, "1", ["1-amd64", "1-arm64"])
    assert made.platforms == {"linux/amd64": amd.blob.digest, "linux/arm64": arm.blob.digest}
    assert resolve(target, "1", "linux/arm64").digest == arm.blob.digest
    assert combine(target, "1", ["1-arm64", "1-amd64"]).digest == made.digest
    for sources, reason in (([], "no-images"), (["1-amd64"] * 2, "same-platform"), (["1"], "not-an-image")):
        with pytest.raises(InputError) as caught:
            combine(target, "2", sources)
        assert caught.value.reason == reason
