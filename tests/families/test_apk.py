"""Alpine: the contract, by the real apk; and what is Alpine's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from contract import *  # noqa: F403
from contract import Work, rows
from distros.alpine import Alpine, Key
from distros.serving import layout

from kairosbuild.core.errors import HostError
from kairosbuild.sources.apkindex import read_index


@cache
def _key() -> Key:
    """One for all tests, so that they have the same base."""
    return Key()


class SmallAlpine:
    mirror = "alpine"

    def __init__(self) -> None:
        self.alpine = Alpine(key=_key())
        self.alpine.publish("community")
        self.files = self.alpine.files

    def base(self, folder: Path) -> str:
        return layout(folder, self.alpine.base(), "3.23")

    def add(self, name: str, version: str = "1", *, depends: str = "", conflicts: str = "") -> str:
        for old in [path for path in self.alpine.stanzas if f"/{name}-" in path]:
            del self.alpine.stanzas[old]
        needs = " ".join([*depends.split(), *(f"!{one}" for one in conflicts.split())])
        fields = {"D": needs} if needs else {}
        about = {f"usr/share/{name}/about": f"{name} {version}\n".encode()}
        self.alpine.add(name, f"{version}-r0", about, **fields)
        return f"v3.23/main/x86_64/{name}-{version}-r0.apk"

    def publish(self) -> None:
        self.alpine.publish()

    def metadata(self) -> str:
        return "v3.23/main/x86_64/APKINDEX.tar.gz"

    def forge(self) -> None:
        self.alpine.publish(key=Key("stranger.rsa.pub"))

    def strip(self) -> None:
        from distros.alpine import packed

        self.files[self.metadata()] = packed({"APKINDEX": b""}, end=True) + packed(
            {"APKINDEX": b""}, end=True
        )


@pytest.fixture
def distribution() -> SmallAlpine:
    return SmallAlpine()


def test_the_keys_of_the_base_decide(distribution: SmallAlpine, tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.write_bytes(distribution.files["v3.23/community/x86_64/APKINDEX.tar.gz"])
    name, right = distribution.alpine.key.name, distribution.alpine.key.public
    assert read_index(index, {name: right}, "alpine:x") == b""
    for keys in ({}, {"other": right}, {name: Key().public}):
        with pytest.raises(HostError) as caught:
            read_index(index, keys, "alpine:x")
        assert caught.value.reason == "bad-signature"


def test_scripts_run_and_leave_no_date(work: Work) -> None:
    """openrc's files, of the wheel: adduser writes a date that is not the build's."""
    apk = work.distribution
    assert isinstance(apk, SmallAlpine)
    scripts = {
        "pre-install": b"#!/bin/sh\nadduser -S -D -H -h /dev/null -s /sbin/nologin -g some some\nexit 0\n"
    }
    fields = {"P": "some", "V": "1-r0", "A": "noarch", "T": "some", "L": "MIT", "I": "1"}
    apk.files.update(apk.alpine._made(fields, {}, scripts, "", "main"))
    apk.publish()
    work.write("some")
    work.kbuild("lock", "small.yaml")
    assert set(rows(work, "tools")) == {"some"}
    layer = work.layer("tools")
    shadow = next(
        line for line in (layer["etc/shadow"] or b"").decode().splitlines() if line.startswith("some")
    )
    assert int(shadow.split(":")[2]) == 20089, "the epoch's day, not today"
    assert not {"etc/shadow-", "lib/apk/db/lock", "var/log/apk.log"} & set(layer)
    assert b"some\n" in (layer["etc/apk/world"] or b"")
