"""Configurations: what is accepted, what is told of what is not, and what applying one does to a root."""

import json
from pathlib import Path

import jsonschema
import pytest
from peers import peer

from kairosbuild.node import config, sources
from kairosbuild.node.apply import Applier
from kairosbuild.node.problem import Problem

GOOD = """\
#cloud-config
hostname: node1
users:
  - name: kairos
    passwd: $6$salt$hash
    admin: true
    shell: /bin/sh
    ssh_authorized_keys: [ssh-ed25519 AAAA me]
write_files:
  - {path: /etc/motd, permissions: 0600, content: "hello\\n"}
  - {path: /etc/b64, encoding: b64, content: aGk=}
stages:
  boot:
    - name: some
      files: [{path: /opt/x, content: x, permissions: "0755"}]
      directories: [{path: /srv/data, permissions: 0700}]
      environment: {EDITOR: vi}
      sysctl: {kernel.test: 1}
      commands: [echo boot]
    - {if: "false", commands: [echo never]}
    - {only_os: fedora, commands: [echo never]}
  network:
    - commands: [echo network]
runcmd: [echo once]
install: {auto: true, device: /dev/vda, reboot: true}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(Problem) as caught:
        config.read(text, "c.yaml")
    assert caught.value.reason == "bad-config"
    return caught.value.message.splitlines()


def test_words_stay_words_and_modes_modes():
    found = config.read("#cloud-config\nusers: [{name: no, passwd: 010}]\n")
    assert found == {"users": [{"name": "no", "passwd": "010"}]}


def test_every_problem_is_told_with_its_place():
    told = problems(
        "#cloud-config\nuser: 1\nusers: [{nam: x}]\nhostname: a\nhostname: b\ninstall: {auto: maybe}\n"
    )
    assert told == [
        "c.yaml:2:1: user is unknown; did you mean 'users'?",
        "c.yaml:3:10: users[0].nam is unknown; did you mean 'name'?",
        "c.yaml:3:9: users[0].name is missing",
        "c.yaml:5:1: hostname stands there twice",
        "c.yaml:6:17: install.auto is true or false, not 'maybe'",
    ]


@pytest.mark.parametrize("key", sorted(config.UNSUPPORTED))
def test_keys_of_others_say_what_to_do_instead(key):
    (told,) = problems(f"#cloud-config\n{key}: x\n")
    assert "is not understood here" in told


@pytest.mark.parametrize(
    "text",
    ["hostname: x\n", "#cloud-config\n[1]\n", "#cloud-config\na: [\n", "#cloud-config\nwrite_files: [{path: x}]\n",
     "#cloud-config\nstages: {boots: []}\n", "#cloud-config\nusers: {name: x}\n"],
)  # fmt: skip
def test_what_is_no_configuration(text):
    assert problems(text)


def test_the_published_schema_agrees(tmp_path):
    schema = config.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(config.read(GOOD), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"user": 1}, schema)
    published = Path(__file__).parents[2] / "schema/cloud-config.schema.json"
    assert json.loads(published.read_text()) == schema, (
        "kbuild-node config schema > schema/cloud-config.schema.json"
    )


def test_several_are_one():
    assert config.merged([{"runcmd": ["a"], "hostname": "x"}, {"runcmd": ["b"], "hostname": "y"}]) == {
        "runcmd": ["a", "b"],
        "hostname": "y",
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\nsudo:x:27:\n",
        "etc/shadow": "root:*:1:0:99999:7:::\n",
        "etc/os-release": "ID=debian\n",
        "etc/skel/.profile": "umask 022\n",
        "proc/sys/kernel/test": "0",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "etc/shadow").chmod(0o640)
    return tmp_path


def applied(root: Path, text: str) -> tuple[Applier, list[str]]:
    ran: list[str] = []

    def run(command: str) -> int:
        ran.append(command)
        return int(command in ("false", "echo bad"))

    applier = Applier(root, run)
    applier.early(config.read(text))
    applier.late(config.read(text), first=True)
    return applier, ran


def test_what_two_configurations_say_is_done_once():
    once = {"runcmd": ["a", "a"], "users": [{"name": "x"}]}
    assert config.merged([once, {"runcmd": ["b"], "users": [{"name": "x"}]}]) == {
        **once,
        "runcmd": ["a", "a", "b"],
    }


def test_an_installed_machine_keeps_what_was_told_and_not_what_its_image_brings():
    own = sources.Source(str(sources.EMBEDDED), "#cloud-config\nhostname: image\n")
    drive, argument = (
        sources.Source("drive", GOOD),
        sources.Source("argument", "#cloud-config\nbootcmd: [echo é😀]\n"),
    )
    assert sources.kept([]) == sources.kept([own]) == ""
    assert sources.kept([own, drive]) == GOOD, "as it was written"
    assert config.read(sources.kept([own, drive, argument])) == {**config.read(GOOD), "bootcmd": ["echo é😀"]}


def test_drives_are_those_that_the_initrd_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, place = tmp_path / "config-drives", tmp_path / "run"
    monkeypatch.setattr(sources, "DRIVES", found)
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path / "none")
    monkeypatch.setattr(sources, "OWN", ())
    monkeypatch.setattr(sources.machine, "RUN", place)
    assert list(sources.sources()) == []
    place.mkdir()

    def mount(*words: str) -> str:
        if words[0] == "mount":
            Path(words[-1], "user-data").write_text(f"#cloud-config\ntimezone: {words[-2]}\n")
        return ""

    monkeypatch.setattr(sources.machine, "run", mount)
    found.write_text("/dev/vdb\n/dev/sr0\n")
    told = {one.name: config.read(one.text)["timezone"] for one in sources.sources()}
    assert told == {"/dev/vdb:user-data": "/dev/vdb", "/dev/sr0:user-data": "/dev/sr0"}
    assert list(place.iterdir()) == []


def test_a_configuration_is_put_into_effect_and_again_changes_nothing(root):
    applier, ran = applied(root, GOOD)
    assert applier.problems == []
    assert ran == ["hostname node1", "echo boot", "false", "echo network", "echo once"]
    assert (root / "etc/hostname").read_text() == "node1\n"
    assert "kairos:x:1000:1000::/home/kairos:/bin/sh" in (root / "etc/passwd").read_text()
    assert "kairos:$6$salt$hash:" in (root / "etc/shadow").read_text()
    assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert "sudo:x:27:kairos" in (root / "etc/group").read_text()
    keys = root / "home/kairos/.ssh/authorized_keys"
    assert keys.read_text() == "ssh-ed25519 AAAA me\n"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert (root / "home/kairos/.profile").exists()
    assert (root / "etc/motd").stat().st_mode & 0o777 == 0o600
    assert (root / "etc/b64").read_text() == "hi"
    assert (root / "opt/x").stat().st_mode & 0o777 == 0o755
    assert (root / "srv/data").stat().st_mode & 0o777 == 0o700
    assert (root / "etc/environment").read_text() == 'EDITOR="vi"\n'
    assert (root / "proc/sys/kernel/test").read_text() == "1"
    before = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    applied(root, GOOD)
    assert {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_one_steps_failure_stops_no_other(root):
    text = (
        "#cloud-config\nwrite_files: [{path: /../x, content: x}, {path: /etc/y, content: y}]\n"
        "runcmd: [echo bad, echo good]\ntimezone: No/Where\n"
    )
    applier, ran = applied(root, text)
    assert len(applier.problems) == 3
    assert (root / "etc/y").read_text() == "y"
    assert not (root.parent / "x").exists()
    assert ran == ["echo bad", "echo good"]


def test_a_plain_password_is_hashed(root):
    peer("openssl")
    applied(root, "#cloud-config\nusers: [{name: me, passwd: secret}]\n")
    line = next(one for one in (root / "etc/shadow").read_text().splitlines() if one.startswith("me:"))
    assert line.split(":")[1].startswith("$6$")
    assert "secret" not in line
