"""What an update of a lock changes, in words."""

from dataclasses import replace

from kairosbuild.cli.lockdiff import changes
from kairosbuild.recipe.lockfile import LockEntry, LockFile, Pin

D = [f"sha256:{number:064x}" for number in range(10)]


def packages(*rows: tuple[str, str, str], **more: object) -> LockEntry:
    data = {"packages": [{"name": n, "version": v, "arch": a, "digest": D[0]} for n, v, a in rows], **more}
    return LockEntry(D[1], data, tuple(Pin(f"debian:pool/{n}_{v}.deb", D[2], 1) for n, v, _ in rows))


def told(before: dict[str, LockEntry], after: dict[str, LockEntry], **tools: LockEntry) -> list[str]:
    found = changes(LockFile(before, {}), LockFile(after, tools))
    return [f"{change.node}: {' '.join(change.line().split())}" for change in found]


def test_packages_go_up_and_down_come_and_leave() -> None:
    before = packages(("a", "1.9", "amd64"), ("b", "2:1", "all"), ("c", "1", "all"), ("e", "1~rc1", "all"))
    after = packages(("a", "1.10", "amd64"), ("b", "1:9", "all"), ("d", "1", "all"), ("e", "1", "all"))
    assert told({"n": before}, {"n": after}) == [
        "n: up package a 1.9 → 1.10",
        "n: down package b 2:1 → 1:9",
        "n: removed package c 1",
        "n: added package d 1",
        "n: up package e 1~rc1 → 1",
    ]


def test_the_same_version_of_other_bytes_is_told() -> None:
    before = packages(("a", "1", "all"))
    row = {**before.data["packages"][0], "digest": D[5]}
    assert told({"n": before}, {"n": replace(before, data={"packages": [row]})}) == [
        "n: changed package a 1 → 1"
    ]


def test_two_architectures_of_a_package_are_two() -> None:
    before = packages(("a", "1", "amd64"), ("a", "1", "i386"))
    after = packages(("a", "2", "amd64"), ("a", "1", "i386"))
    assert told({"n": before}, {"n": after}) == ["n: up package a:amd64 1 → 2"]


def test_images_and_files() -> None:
    image = LockEntry(D[1], {"manifest": D[3]}, (Pin(f"oci://quay.io/f/f@{D[4]}", D[4], 1),))
    other = replace(image, data={"manifest": D[5]})
    file = LockEntry(D[1], {}, (Pin("https://example.com/x", D[6], 1),))
    assert told({"base": image, "f": file}, {"base": other, "f": replace(file, materials=())}) == [
        f"base: changed image quay.io/f/f {D[3][:19]} → {D[5][:19]}",
        f"f: removed file https://example.com/x {D[6][:19]}",
    ]
    docker = LockEntry(D[1], {"images": {"docker.io/x:1": {"layers": [1]}}})
    changed = replace(docker, data={"images": {"docker.io/x:1": {"layers": [2]}}})
    assert len(told({"d": docker}, {"d": changed})) == 1


def test_whole_entries_are_told_in_a_line() -> None:
    entry = packages(("a", "1", "all"), ("b", "1", "all"))
    assert told({}, {"n": entry}, apt=packages(("apt", "3", "amd64"))) == [
        "n: added node n 2 packages",
        "tools:apt: added node tools:apt 1 package",
    ]
    assert told({"n": entry}, {}) == ["n: removed node n 2 packages"]


def test_what_only_the_resolver_minds_is_one_word() -> None:
    entry = packages(("a", "1", "all"))
    assert told({"n": entry}, {"n": replace(entry, checksum=D[9])}) == ["n: changed lock details"]
    assert told({"n": entry}, {"n": entry}) == []
