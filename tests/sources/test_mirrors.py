from pathlib import Path

import pytest

from kairosbuild.core.errors import InputError
from kairosbuild.sources.mirrors import DEFAULTS, Mirrors, find

DEB822 = """\
# A mirror of the company
Types: deb
URIs: http://mirror.example/debian/
# a comment in between
Suites: bookworm
  bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
ROWS = {
    "nothing": ({}, DEFAULTS),
    "deb822": (
        {"sources.list.d/debian.sources": DEB822},
        {
            "debian": "http://mirror.example/debian",
            "debian-security": "http://mirror.example/debian-security",
        },
    ),
    "one line": (
        {"sources.list": "deb [arch=amd64 signed-by=/x.gpg] https://m.example/d trixie main # a\n"},
        {"debian": "https://m.example/d", "debian-security": DEFAULTS["debian-security"]},
    ),
    "old security suite": (
        {"sources.list": "deb http://s.example/sec bullseye/updates main\n"},
        {"debian": DEFAULTS["debian"], "debian-security": "http://s.example/sec"},
    ),
    "sources only": ({"sources.list": "deb-src http://m.example/d trixie main\n"}, DEFAULTS),
    "commented out": ({"sources.list": "# deb http://m.example/d trixie main\n"}, DEFAULTS),
    "disabled": ({"sources.list.d/x.sources": DEB822.replace("Types", "Enabled: no\nTypes")}, DEFAULTS),
    "another distribution": ({"sources.list": "deb http://u.example/ubuntu noble main\n"}, DEFAULTS),
    "another's component": ({"sources.list": "deb http://d.example/debian bookworm stable\n"}, DEFAULTS),
    "no transport of ours": ({"sources.list": "deb tor+http://m.example/d trixie main\n"}, DEFAULTS),
    "a stranger with Debian's names comes second": (
        {"sources.list": "deb http://z.example/db trixie main\n", "sources.list.d/debian.sources": DEB822},
        {
            "debian": "http://mirror.example/debian",
            "debian-security": "http://mirror.example/debian-security",
        },
    ),
    "a suffix apt does not read": ({"sources.list.d/debian.sources.bak": DEB822}, DEFAULTS),
}


@pytest.mark.parametrize(("files", "expected"), ROWS.values(), ids=ROWS.keys())
def test_mirrors_of_the_machine(tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert find(apt=tmp_path).places == expected


def test_mirror_list_of_a_cloud_image(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# first is best\nhttp://near.example/debian\nhttp://far.example/debian\n")
    (tmp_path / "sources.list").write_text(f"deb mirror+file:{tmp_path}/list trixie main\n")
    assert find(apt=tmp_path).places["debian"] == "http://near.example/debian"


def test_who_says_it_last_is_not_heard(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://apt.example/d trixie main\n")
    settings = [{"debian": "http://user.example/d"}, {"debian": "http://workspace.example/d"}]
    environ = {"KBUILD_MIRROR_DEBIAN": "http://environment.example/d/", "KBUILD_MIRROR_DEBIAN_SECURITY": ""}
    given = {"debian": "http://line.example/d"}
    found = [
        find(given, environ=environ, settings=settings, apt=tmp_path),
        find(environ=environ, settings=settings, apt=tmp_path),
        find(settings=settings, apt=tmp_path),
        find(settings=settings[1:], apt=tmp_path),
        find(apt=tmp_path),
    ]
    hosts = [one.places["debian"].split("/")[2].split(".")[0] for one in found]
    assert hosts == ["line", "environment", "user", "workspace", "apt"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"debain": "http://m.example"}, "mirror-unknown"), ({"debian": "m.example/debian"}, "mirror-address")],
)
def test_what_a_person_wrote_is_checked(tmp_path: Path, given: dict[str, str], reason: str) -> None:
    with pytest.raises(InputError) as error:
        find(given, apt=tmp_path)
    assert error.value.reason == reason
    assert error.value.hint


def test_locating() -> None:
    mirrors = Mirrors({"debian": "http://m.example/d"})
    assert mirrors.locate("debian:pool/x.deb") == "http://m.example/d/pool/x.deb"
    assert mirrors.locate("https://h.example/x") == "https://h.example/x"
    assert not mirrors.serves("oci://h.example/x")
