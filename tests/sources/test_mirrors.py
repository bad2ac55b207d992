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
    "another distribution": ({"sources.list": "deb http://u.example/mint wilma main\n"}, DEFAULTS),
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
    assert find(etc=etc(tmp_path, {f"apt/{name}": text for name, text in files.items()})).places == {
        **DEFAULTS,
        **expected,
    }


def etc(folder: Path, files: dict[str, str]) -> Path:
    """An /etc of these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


OTHERS = {
    "ubuntu": (
        {"apt/sources.list": "deb http://m.example/ubuntu noble main universe\ndeb http://s.example/ubuntu noble-security main\n"},
        {"ubuntu": "http://m.example/ubuntu", "ubuntu-security": "http://s.example/ubuntu"},
    ),
    "ubuntu of another architecture": (
        {"apt/sources.list": "deb http://m.example/ubuntu-ports jammy main\n"},
        {"ubuntu-ports": "http://m.example/ubuntu-ports"},
    ),
    "dnf": (
        {
            "yum.repos.d/fedora.repo": "[fedora]\nbaseurl=http://m.example/pub/fedora/linux/releases/$releasever/Everything/$basearch/os/\nmetalink=https://x\n",
            "yum.repos.d/updates.repo": "[updates]\nenabled=1\nbaseurl=http://u.example/fedora/linux/updates/${releasever}/Everything/$basearch/\n",
        },
        {
            "fedora": "http://m.example/pub/fedora/linux/releases",
            "fedora-updates": "http://u.example/fedora/linux/updates",
        },
    ),
    "a repository that is off": (
        {"yum.repos.d/a.repo": "[a]\nenabled=0\nbaseurl=http://m.example/almalinux/$releasever/BaseOS/x86_64/os/\n"},
        {},
    ),
    "a metalink is no mirror": ({"yum.repos.d/a.repo": "[fedora]\nmetalink=https://m.example/x\n"}, {}),
    "dnf's variables": (
        {
            "yum.repos.d/rocky.repo": "[baseos]\nbaseurl=http://m.example/$contentdir/$releasever/BaseOS/$basearch/os/\n",
            "dnf/vars/contentdir": "pub/rocky\n",
        },
        {"rocky": "http://m.example/pub/rocky"},
    ),
    "almalinux": (
        {"yum.repos.d/alma.repo": "[baseos]\nbaseurl=https://m.example/almalinux/$releasever/BaseOS/$basearch/os/\n"},
        {"almalinux": "https://m.example/almalinux"},
    ),
    "zypper": (
        {"zypp/repos.d/oss.repo": "[oss]\nbaseurl=http://m.example/opensuse/tumbleweed/repo/oss/\n"},
        {"opensuse": "http://m.example/opensuse"},
    ),
    "zypper of Leap": (
        {"zypp/repos.d/oss.repo": "[oss]\nbaseurl=http://m.example/distribution/leap/$releasever/repo/oss\n"},
        {"opensuse": "http://m.example"},
    ),
    "apk": (
        {"apk/repositories": "#http://no.example/alpine/v3.22/main\n@edge http://m.example/alpine/edge/main\n/srv/packages\n"},
        {"alpine": "http://m.example/alpine"},
    ),
    "apk from a folder": ({"apk/repositories": "/srv/alpine/v3.22/main\n"}, {}),
    "pacman": (
        {"pacman.d/mirrorlist": "## Nowhere\n#Server = https://no.example/$repo/os/$arch\nServer = https://m.example/archlinux/$repo/os/$arch\n"},
        {"arch": "https://m.example/archlinux"},
    ),
    "a file of nonsense": ({"yum.repos.d/a.repo": "what is this\n", "apk/repositories": "\0"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), OTHERS.values(), ids=OTHERS.keys())
def test_mirrors_of_other_machines(tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    assert find(etc=etc(tmp_path, files)).places == {**DEFAULTS, **expected}


def test_every_public_default_is_told_apart() -> None:
    found = Mirrors()
    assert len(set(DEFAULTS.values())) == len(DEFAULTS)
    for name, at in DEFAULTS.items():
        assert found.serves(f"{name}:x")
        assert found.located(f"{name}:x") == (f"{at}/x",)
    assert {name for name in DEFAULTS if found.of_apt(f"{name}:x")} == {
        "debian", "debian-security", "ubuntu", "ubuntu-security", "ubuntu-ports"
    }  # fmt: skip


def test_mirror_list_of_a_cloud_image(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# first is best\nhttp://near.example/debian\nhttp://far.example/debian\n")
    etc(tmp_path, {"apt/sources.list": f"deb mirror+file:{tmp_path}/list trixie main\n"})
    assert find(etc=tmp_path).places["debian"] == "http://near.example/debian"


def test_who_says_it_last_is_not_heard(tmp_path: Path) -> None:
    etc(tmp_path, {"apt/sources.list": "deb http://apt.example/d trixie main\n"})
    settings = [{"debian": "http://user.example/d"}, {"debian": "http://workspace.example/d"}]
    environ = {"KBUILD_MIRROR_DEBIAN": "http://environment.example/d/", "KBUILD_MIRROR_DEBIAN_SECURITY": ""}
    given = {"debian": "http://line.example/d"}
    found = [
        find(given, environ=environ, settings=settings, etc=tmp_path),
        find(environ=environ, settings=settings, etc=tmp_path),
        find(settings=settings, etc=tmp_path),
        find(settings=settings[1:], etc=tmp_path),
        find(etc=tmp_path),
    ]
    hosts = [one.places["debian"].split("/")[2].split(".")[0] for one in found]
    assert hosts == ["line", "environment", "user", "workspace", "apt"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"debain": "http://m.example"}, "mirror-unknown"), ({"debian": "m.example/debian"}, "mirror-address")],
)
def test_what_a_person_wrote_is_checked(tmp_path: Path, given: dict[str, str], reason: str) -> None:
    with pytest.raises(InputError) as error:
        find(given, etc=tmp_path)
    assert error.value.reason == reason
    assert error.value.hint


def test_locating() -> None:
    mirrors = Mirrors({"debian": "http://m.example/d"})
    assert mirrors.located("debian:pool/x.deb")[0] == "http://m.example/d/pool/x.deb"
    assert mirrors.located("https://h.example/x")[0] == "https://h.example/x"
    assert not mirrors.serves("oci://h.example/x")


def test_several_mirrors_are_asked_in_order() -> None:
    found = find({"debian": "http://a.example/debian/  https://b.example/d"}, environ={})
    assert found.located("debian:pool/x") == ("http://a.example/debian/pool/x", "https://b.example/d/pool/x")
    with pytest.raises(InputError) as error:
        find({"debian": "http://a.example ftp://b.example"}, environ={})
    assert error.value.reason == "mirror-address"
