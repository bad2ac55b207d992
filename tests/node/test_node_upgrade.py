"""Upgrades of machines made of folders: what is fetched, what is refused, and what any interruption leaves."""

import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from samples import Image, healthy, machine, offered, started, upgraded

from kairosbuild.boot import verity as boot_verity
from kairosbuild.node import assess, durable, state, upgrade, watchdog
from kairosbuild.node.main import status, told
from kairosbuild.node.problem import Problem
from kairosbuild.node.verity import is_intact


def test_only_the_missing_layer_is_fetched_and_the_entry_comes_last(here, images, registry, tmp_path):
    _, second = images
    registry.sent = 0
    done = upgraded(here, registry)
    assert done.new
    assert registry.sent == done.fetched
    assert 0 <= done.fetched - len(next(iter(second.forms.values()))) < len(second.kernel) + 8192
    assert [one.path.name for one in here.entries.all()] == ["os-2+3.efi", "os-1+5.efi"]
    assert here.layers.damaged(done.entry.kernel.layers) == []
    known = status(here)
    assert (known["running"]["entry"], known["next"]["entry"]) == ("os-1", "os-2")
    assert known["fallback"]["entry"] == "os-1"
    assert known["next"]["image"] == second.id
    assert known["next"]["manifest"].startswith("sha256:")


def test_a_healthy_start_keeps_the_new_image_and_its_fallback(here, images, registry, tmp_path):
    upgraded(here, registry)
    now = healthy(tmp_path / "m", *images)
    assert now.cmdline == images[1].cmdline
    known = status(now, verify=True)
    assert known["running"]["blessed"]
    assert known["running"]["damaged"] == []
    assert known["fallback"]["entry"] == "os-1"
    assert [one.path.name for one in now.entries.all()] == ["os-2+5.efi", "os-1+5.efi"]


def test_a_third_image_replaces_the_fallback_and_its_layer_is_collected(here, images, registry, tmp_path):
    third = Image(tmp_path, 5, 2, 1)
    registry.publish("c", third.kernel, third.config, third.forms)
    upgraded(here, registry)
    now = healthy(tmp_path / "m", *images)
    upgraded(now, registry, "c")
    now = healthy(tmp_path / "m", *images, third)
    assert [one.label for one in now.entries.all()] == ["os-3", "os-2"]
    there = {one.name for one in now.disk.iterdir() if len(one.name) == 64}
    assert there == {*images[1].forms, *third.forms}


def test_rollback_starts_the_one_before_and_can_be_taken_back(here, images, registry, tmp_path):
    upgraded(here, registry)
    now = healthy(tmp_path / "m", *images)
    assert assess.rollback(now).label == "os-3"
    now = healthy(tmp_path / "m", *images)
    assert now.cmdline == images[0].cmdline
    assert status(now)["fallback"]["image"] == images[1].id
    assert assess.rollback(now).label == "os-4"
    assert healthy(tmp_path / "m", *images).cmdline == images[1].cmdline


def test_rollback_before_the_restart_cancels_an_upgrade(here, images, registry, tmp_path):
    upgraded(here, registry)
    assert assess.rollback(here).kernel.image == images[0].id
    assert healthy(tmp_path / "m", *images).cmdline == images[0].cmdline


def test_there_is_nothing_to_roll_back_to_on_a_new_machine(here):
    with pytest.raises(Problem) as caught:
        assess.rollback(here)
    assert caught.value.reason == "no-fallback"


def test_three_failed_tries_fall_back_say_why_and_are_remembered(here, images, registry, tmp_path):
    upgraded(here, registry)
    for _ in range(3):
        assert started(tmp_path / "m", *images).cmdline == images[1].cmdline
    now = healthy(tmp_path / "m", *images)
    assert now.cmdline == images[0].cmdline
    (failed,) = status(now)["failed"]
    assert failed["image"] == images[1].id
    assert "never came as far" in failed["why"]
    assert failed["reference"] == f"{registry.host}/os:b"
    assert [one.label for one in now.entries.all()] == ["os-1"]
    with pytest.raises(Problem) as caught:
        upgraded(now, registry)
    assert caught.value.reason == "failed-before"
    assert upgraded(now, registry, again=True).new
    assert healthy(tmp_path / "m", *images).cmdline == images[1].cmdline
    assert status(machine(tmp_path / "m", images[1]))["failed"] == []


def test_what_a_health_check_said_is_the_reason(here, images, registry, tmp_path):
    upgraded(here, registry)
    for _ in range(3):
        trial = started(tmp_path / "m", *images)
        assess.begin(trial)
        assert assess.complain(trial, "the unit web.service does not run")
    now = healthy(tmp_path / "m", *images)
    assert status(now)["failed"][0]["why"] == "the unit web.service does not run"


def test_an_unhealthy_start_of_an_image_that_worked_does_not_restart_it(here, images, tmp_path):
    now = started(tmp_path / "m", *images)
    assert not assess.complain(now, "the network is down")
    assert now.running().left == assess.TRIES_BLESSED


def test_one_that_never_comes_up_is_given_away_though_it_worked_before(here, images, registry, tmp_path):
    """Waiting at a prompt for somebody, as systemd's emergency mode does."""
    upgraded(here, registry)
    healthy(tmp_path / "m", *images)
    for _ in range(assess.TRIES_BLESSED):
        trial = started(tmp_path / "m", *images)
        assert trial.cmdline == images[1].cmdline
        assess.begin(trial)
        assert assess.complain(trial, "the system is at a maintenance prompt, failed: data.mount", up=False)
    now = healthy(tmp_path / "m", *images)
    assert now.cmdline == images[0].cmdline
    assert status(now)["failed"][0]["why"] == "the system is at a maintenance prompt, failed: data.mount"


def test_a_hang_after_the_start_is_told_from_a_panic_before_it(here, images, registry, tmp_path):
    upgraded(here, registry)
    for _ in range(3):
        assess.begin(started(tmp_path / "m", *images))
    now = healthy(tmp_path / "m", *images)
    assert "went down or hung" in status(now)["failed"][0]["why"]


def test_what_the_initrd_left_is_the_reason(here, images, registry, tmp_path):
    upgraded(here, registry)
    for _ in range(3):
        started(tmp_path / "m", *images)
    layers = images[1].cmdline.split()[0].partition("=")[2]
    (here.disk / state.FAILURE).write_text(f"{layers}\nlayer xyz is not on /dev/vda2\n")
    now = healthy(tmp_path / "m", *images)
    assert status(now)["failed"][0]["why"] == "layer xyz is not on /dev/vda2"
    assert not (here.disk / state.FAILURE).exists()


def test_an_image_that_worked_runs_out_of_tries_too_and_is_repaired(here, images, registry, tmp_path):
    """A layer of B is damaged after it was kept: five tries, then A; the repair brings the layer anew."""
    upgraded(here, registry)
    now = healthy(tmp_path / "m", *images)
    damaged = now.disk / next(iter(images[1].forms))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    for _ in range(assess.TRIES_BLESSED):
        started(tmp_path / "m", *images)
    now = healthy(tmp_path / "m", *images)
    assert now.cmdline == images[0].cmdline
    assert [one.label for one in now.entries.all()] == ["os-1", "os-2"]
    repository, offer = offered(registry, "b")
    repaired = upgrade.repair(now, offer, repository, say=lambda text: None)
    assert [one.root_hash for one in repaired] == [damaged.name]
    assert healthy(tmp_path / "m", *images).cmdline == images[1].cmdline


def test_recovery_is_last_and_never_collected(here, images, registry, tmp_path):
    rescue = Image(tmp_path, 9, more="kbuild.recovery")
    (here.entries.folder / "recovery.efi").write_bytes(rescue.kernel)
    upgraded(here, registry)
    now = healthy(tmp_path / "m", *images)
    assert [one.label for one in now.entries.all()] == ["os-2", "os-1", "recovery"]
    assert status(now)["recovery"]["entry"] == "recovery"
    seen = status(machine(tmp_path / "m", rescue))
    assert seen["running"]["entry"] == "recovery"
    assert [line.rpartition(", ")[2] for line in told(seen).splitlines()] == [
        "last resort",
        "kept",
        "kept",
        "last resort",
    ]
    for _ in range(assess.TRIES_BLESSED):
        started(tmp_path / "m", *images)
        started(tmp_path / "m", *images)
    assert started(tmp_path / "m", *images, rescue).recovery


def test_recovery_repairs_a_machine_that_was_never_healthy(images, registry, tmp_path):
    from samples import installed

    folder = tmp_path / "new"
    installed(folder, images[0])
    rescue = Image(tmp_path, 9, more="kbuild.recovery")
    here = machine(folder, images[0])
    (here.entries.folder / "recovery.efi").write_bytes(rescue.kernel)
    base = here.disk / list(images[0].forms)[-1]
    base.unlink()
    for _ in range(assess.TRIES):
        started(folder, images[0], rescue)
    here = started(folder, images[0], rescue)
    assert here.recovery
    (failure,) = assess.begin(here)
    assert failure.why == f"layer {base.name} is damaged or gone"
    repository, offer = offered(registry, "a")
    assert [one.root_hash for one in upgrade.repair(here, offer, repository, say=lambda text: None)] == [
        base.name
    ]
    assert healthy(folder, images[0], rescue).cmdline == images[0].cmdline


def test_the_image_that_runs_already_costs_nothing(here, registry):
    registry.sent = 0
    done = upgraded(here, registry, "a")
    assert not done.new
    assert registry.sent <= len(here.running().path.read_bytes()) + 8192
    assert [one.label for one in here.entries.all()] == ["os-1"]


def test_root_hashes_are_those_of_the_builder(tmp_path):
    for size in (1, 4096, 4096 * 128 + 5, 4096 * 129, 4096 * 128 * 3 + 1):
        path = tmp_path / "layer"
        path.write_bytes(os.urandom(size))
        found = boot_verity.append(path, uuid.UUID(int=1))
        assert is_intact(path, found.root_hash, found.hash_offset)
        with path.open("r+b") as file:
            byte = file.read(1)
            file.seek(0)
            file.write(bytes([byte[0] ^ 1]))
        assert not is_intact(path, found.root_hash, found.hash_offset)


# -- refusals ------------------------------------------------------------------------------------


def untouched(here) -> dict[str, bytes]:
    files = [*here.entries.folder.iterdir(), *(one for one in here.disk.iterdir() if len(one.name) == 64)]
    return {str(one): one.read_bytes() for one in files}


def refused(here, registry, reason: str, tag: str = "b") -> None:
    before = untouched(here)
    with pytest.raises(Problem) as caught:
        upgraded(here, registry, tag)
    assert caught.value.reason == reason, caught.value
    assert untouched(here) == before


@pytest.mark.parametrize(("at", "reason"), [(0, "registry-lied"), (-1, "wrong-layer")], ids=["data", "list"])
def test_a_blob_that_was_tampered_with(here, images, registry, at, reason):
    def change(path: str, data: bytes) -> bytes:
        if "/blobs/" not in path or len(data) < 50_000:
            return data
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    registry.change = change
    refused(here, registry, reason)


def test_a_manifest_that_was_tampered_with(here, images, registry):
    """What a referrer names by digest is replaced; a tag's own manifest leads to the wrong digest."""
    registry.change = lambda path, data: data + b" " if "/manifests/sha256:" in path else data
    refused(here, registry, "registry-lied")


def test_another_images_kernel(here, images, registry, tmp_path):
    other = Image(tmp_path, 6, 1)
    registry.publish("b", images[1].kernel, other.config, images[1].forms)
    refused(here, registry, "wrong-image")


def test_a_layer_under_a_wrong_name(here, images, registry):
    forms = dict(images[1].forms)
    first, second, *_ = forms
    forms[first] = forms[second]
    registry.publish("b", images[1].kernel, images[1].config, forms)
    refused(here, registry, "wrong-layer")


def test_a_layer_that_was_not_published(here, images, registry):
    forms = dict(list(images[1].forms.items())[1:])
    registry.publish("b", images[1].kernel, images[1].config, forms)
    refused(here, registry, "boot-incomplete")


def test_an_image_without_boot_forms(here, registry):
    registry.manifest("plain", {"config": registry.blob(b"plain"), "layers": []})
    refused(here, registry, "not-bootable", "plain")


def test_a_disk_is_no_image(here, registry):
    document = {"artifactType": "application/vnd.kairosbuild.disk.v1", "config": registry.blob(b"{}")}
    registry.manifest("disk", {**document, "layers": []})
    refused(here, registry, "not-bootable", "disk")


def test_a_tag_that_is_not_there(here, registry):
    refused(here, registry, "registry-not-found", "nothing")


def test_a_registry_that_stops_half_way(here, images, registry):
    registry.cut = [1000] * 100
    registry.ranges = False
    refused(here, registry, "registry-broken-off")


def test_a_full_disk_and_a_full_esp(here, registry, monkeypatch):
    real = os.statvfs

    class Full:
        def __init__(self, place: object) -> None:
            self._found = real(place)
            self.f_frsize, self.f_bavail = 4096, 100

    monkeypatch.setattr(os, "statvfs", Full)
    refused(here, registry, "disk-full")
    monkeypatch.setattr(os, "statvfs", lambda place: Full(place) if "esp" in str(place) else real(place))
    with pytest.raises(Problem) as caught:
        upgraded(here, registry)
    assert caught.value.reason == "esp-full"


def test_two_at_once(here, registry):
    with here.changing():
        refused(here, registry, "busy")


# -- interruptions -------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Nothing that runs may catch this."""


def operations(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Count what reaches the disk for good, and cut the power before the one of this number."""
    count = [0]
    for owner, name in (
        (Path, "replace"),
        (Path, "unlink"),
        (durable, "sync"),
        (Path, "rename"),
        (Path, "mkdir"),
    ):
        real = getattr(owner, name)

        def counted(*given, real=real, **named):
            count[0] += 1
            if count[0] == limit:
                raise PowerCut
            return real(*given, **named)

        monkeypatch.setattr(owner, name, counted)
    return count


@pytest.mark.parametrize("bios", [False, True])
def test_a_power_cut_at_each_step_leaves_a_machine_that_starts_and_upgrades(
    images, registry, tmp_path, monkeypatch, bios
):
    from samples import installed

    with monkeypatch.context() as patch:
        installed(tmp_path / "whole", images[0], bios=bios)
        here = healthy(tmp_path / "whole", images[0])
        count = operations(patch, 0)
        upgraded(here, registry)
        steps = count[0]
    assert steps >= 10
    outcomes = set()
    for step in range(1, steps + 1):
        folder = tmp_path / f"m{step}"
        installed(folder, images[0], bios=bios)
        here = healthy(folder, images[0])
        with monkeypatch.context() as patch, pytest.raises(PowerCut):
            operations(patch, step)
            upgraded(here, registry)
        now = started(folder, *images)
        assert now.layers.damaged(now.running().kernel.layers) == []
        outcomes.add(now.cmdline)
        assess.begin(now)
        assess.bless(now)
        upgraded(now, registry)
        assert healthy(folder, *images).cmdline == images[1].cmdline
    assert outcomes == {one.cmdline for one in images}, "it was cut before and after the entry"


@pytest.mark.parametrize("bios", [False, True])
def test_a_power_cut_at_each_step_of_keeping_and_of_rolling_back(
    images, registry, tmp_path, monkeypatch, bios
):
    from samples import installed

    def until(folder: Path, what, step: int) -> bool:
        installed(folder, images[0], bios=bios)
        upgraded(healthy(folder, *images), registry)
        now = started(folder, *images)
        assess.begin(now)
        if what is assess.rollback:
            assess.bless(now)
        with monkeypatch.context() as patch:
            operations(patch, step)
            try:
                what(now)
            except PowerCut:
                return False
        return True

    for what in (assess.bless, assess.rollback):
        for step in range(1, 100):
            folder = tmp_path / f"{what.__name__}{step}"
            done = until(folder, what, step)
            now = healthy(folder, *images)
            assert now.layers.damaged(now.running().kernel.layers) == []
            assert status(now)["running"]["blessed"]
            if done:
                break
        assert step > 5


def test_a_fetch_that_was_cut_off_goes_on_where_it_stopped(here, images, registry, monkeypatch):
    monkeypatch.setattr("kairosbuild.node.delta._MOST", 50)  # blocks of a request
    with monkeypatch.context() as patch:
        patch.setattr("kairosbuild.node.registry._ATTEMPTS", 1)
        patch.setattr("kairosbuild.node.delta.fetch_kernel", lambda *given: False)
        registry.cut = [10**9] * 4 + [1000]  # the kernel, the list of blocks, two runs, and half of the third
        with pytest.raises(Problem):
            upgraded(here, registry)
    registry.sent = 0
    upgraded(here, registry)
    layer = len(next(iter(images[1].forms.values())))
    assert registry.sent < layer - 90 * 4096


def test_of_a_layer_that_changed_a_little_little_is_fetched(here, registry, images, tmp_path):
    """The same content moved by some blocks, with a few new ones: as erofs has it when a package changed."""
    old = (here.disk / here.running().kernel.layers[0].root_hash).read_bytes()
    data = old[: here.running().kernel.layers[0].hash_offset]
    path = tmp_path / "changed"
    path.write_bytes(os.urandom(3 * 4096) + data[: 100 * 4096] + os.urandom(4096) + data[101 * 4096 :])
    sealed = boot_verity.append(path, uuid.UUID(int=7))
    image = Image(tmp_path, 2, 1)
    image.forms[sealed.root_hash] = path.read_bytes()
    image.kernel = rebuilt(image, f"kbuild.layers={sealed.root_hash}:{sealed.hash_offset},")
    registry.publish("c", image.kernel, image.config, image.forms)
    registry.sent = 0
    upgraded(here, registry, "c")
    assert registry.sent < 60_000 + 2 * 8192, (
        "the list of blocks, four blocks and their neighbours, a boot entry"
    )
    assert is_intact(here.disk / sealed.root_hash, sealed.root_hash, sealed.hash_offset)


def test_a_registry_without_ranges_serves_too(here, images, registry):
    registry.ranges = False
    assert upgraded(here, registry).new
    assert here.layers.damaged(here.entries.all()[0].kernel.layers) == []


def rebuilt(image: Image, layers: str) -> bytes:
    from boot_samples import stub

    from kairosbuild.boot import uki

    return uki.assemble(
        stub(room=0x800),
        os_release=f"ID=linux\nKBUILD_IMAGE={image.id}\n".encode(),
        cmdline=image.cmdline.replace("kbuild.layers=", layers, 1),
        uname="6",
        initrd=b"initrd",
        kernel=b"kernel " * 1000,
    )


def test_a_watchdog_that_nobody_feeds_is_stopped(tmp_path):
    device = tmp_path / "watchdog0"
    assert not watchdog.stop_unfed(str(device))
    assert not device.exists()
    device.touch()
    assert watchdog.stop_unfed(str(device))
    assert device.read_bytes() == b"V"


@pytest.mark.parametrize(("left", "ended"), [("120", b"V\n"), ("0", b"")])
def test_what_feeds_it_under_openrc_stops_it_when_told_to_end_and_only_then(tmp_path, left, ended):
    device, script = tmp_path / "watchdog0", tmp_path / "feed"
    text = (Path(watchdog.__file__).parent / "files/feed-watchdog.sh").read_text()
    script.write_text(text.replace("/dev/watchdog0", str(device)).replace("left=120", f"left={left}"))
    with subprocess.Popen(["sh", script]) as feeding:
        while left != "0" and not (device.exists() and device.read_bytes()):
            time.sleep(0.01)
        feeding.terminate() if left != "0" else feeding.wait()
    assert device.read_bytes().lstrip() == ended
