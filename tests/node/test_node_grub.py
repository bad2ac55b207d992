"""A machine that GRUB starts: the same entries, whose tries GRUB counts in its own environment."""

from pathlib import Path

import pytest
from samples import Image, healthy, installed, started, upgraded

from kairosbuild.boot import grub
from kairosbuild.core.errors import KbuildError
from kairosbuild.node import assess, places
from kairosbuild.node.machine import Machine
from kairosbuild.node.main import status
from kairosbuild.node.problem import Problem


@pytest.fixture
def here(tmp_path: Path, images: tuple[Image, Image]) -> Machine:
    installed(tmp_path / "m", images[0], bios=True)
    return healthy(tmp_path / "m", images[0])


def environment(here: Machine) -> dict[str, str]:
    return grub.variables((here.esp / grub.ENVIRONMENT).read_bytes())


def described(here: Machine) -> list[str]:
    return sorted(one.stem for one in (here.esp / grub.ENTRIES).glob("*.cfg"))


def test_what_is_kept_gets_its_tries_back(here, images, registry, tmp_path):
    assert environment(here) == {}
    upgraded(here, registry)
    assert described(here) == ["os-1", "os-2"]
    now = started(tmp_path / "m", *images)
    assert environment(now) == {"used_os_2": "x"}
    assert (now.running().left, now.running().done) == (2, 1)
    assess.begin(now)
    assess.bless(now)
    assert environment(now) == {}
    assert [one.path.name for one in now.entries.all()] == ["os-2+5.efi", "os-1+5.efi"]
    assert assess.rollback(now).label == "os-3"
    assert described(now) == ["os-2", "os-3"]
    assert healthy(tmp_path / "m", *images).cmdline == images[0].cmdline


def test_three_failed_tries_fall_back_and_leave_nothing_behind(here, images, registry, tmp_path):
    upgraded(here, registry)
    for _ in range(3):
        assert started(tmp_path / "m", *images).cmdline == images[1].cmdline
    now = healthy(tmp_path / "m", *images)
    assert now.cmdline == images[0].cmdline
    assert status(now)["failed"][0]["image"] == images[1].id
    assert (described(now), environment(now)) == (["os-1"], {})
    with pytest.raises(Problem):
        upgraded(now, registry)
    assert upgraded(now, registry, again=True).entry.label == "os-2"
    assert healthy(tmp_path / "m", *images).cmdline == images[1].cmdline


def test_tries_that_an_entry_of_the_same_name_had_used_are_not_counted(here, images, registry, tmp_path):
    (here.esp / grub.ENVIRONMENT).write_bytes(grub.environment({"used_os_2": "xxx", "used_other": "x"}))
    assert upgraded(here, registry).entry.left == 3
    assert environment(here) == {"used_other": "x"}


def test_an_environment_that_cannot_be_read_counts_nothing(here):
    (here.esp / grub.ENVIRONMENT).write_bytes(b"\0" * 1024)
    assert here.running().left == 5


def test_grub_starts_recovery_once(here, tmp_path):
    places.start_once("recovery", here.entries.grub, tmp_path / "no/firmware")
    assert environment(here) == {"once": "recovery"}
    assert (here.esp / grub.ENVIRONMENT).stat().st_size == 1024


def test_words_that_grub_would_read_are_quoted():
    said = grub.described("os-1", (513, 1024), (512, 2048), "it's a$b").decode()
    assert said.splitlines() == [
        "set used=used_os_1",
        "set linux=2+2",
        "set initrd=4+1",
        "set arguments='it'\\''s a$b'",
    ]
    with pytest.raises(KbuildError) as caught:
        grub.described("os-1", (512, 100), (512, 1024), "")
    assert caught.value.reason == "bad-stub"
