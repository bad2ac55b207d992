"""Installing to a disk that is a file: what lies on it is what owners of the formats read back."""

import re
import subprocess
from pathlib import Path

import pytest
from peers import peer
from samples import Image

from kairosbuild.node import gpt, grow, install, uki
from kairosbuild.node.main import main
from kairosbuild.node.problem import Problem

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> install.Medium:
    image, rescue = Image(tmp_path, 3, 2, 1), Image(tmp_path, 2, 1, more="kbuild.recovery")
    folder = tmp_path / "medium"
    (folder / "layers").mkdir(parents=True)
    (folder / "install").mkdir()
    for name, data in {**image.forms, **rescue.forms}.items():
        (folder / "layers" / name).write_bytes(data)
    (folder / "install/os.efi").write_bytes(image.kernel)
    (folder / "install/recovery.efi").write_bytes(rescue.kernel)
    (folder / "install/BOOTX64.EFI").write_bytes(b"loader")
    found = install.medium(place=folder)
    assert found is not None
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"what was here before" * 100_000)
        file.truncate(1024 * MIB)
    return path


def written(disk: Path, source: install.Medium, config: str = "") -> list[gpt.Partition]:
    install.install(disk, source, config, tries=3, say=lambda text: None)
    with disk.open("rb") as file:
        return list(gpt.read(file).partitions)


def taken(disk: Path, partition: gpt.Partition, into: Path) -> Path:
    words = [f"if={disk}", f"of={into}", "bs=1M", f"skip={partition.first // 2048}"]
    count = (partition.last - partition.first + 1) // 2048
    subprocess.run(["dd", *words, f"count={count}", "status=none"], check=True)
    return into


def test_an_installed_disk_is_whole(disk, source, tmp_path):
    partitions = written(disk, source, "#cloud-config\nhostname: x\n")
    assert [one.name for one in partitions] == ["esp", "kbuild-layers", "recovery", "persistent"]
    subprocess.run([peer("sfdisk", "fdisk"), "--verify", disk], check=True, capture_output=True)
    esp = taken(disk, partitions[0], tmp_path / "esp")
    subprocess.run([peer("fsck.vfat", "dosfstools"), "-n", esp], check=True, capture_output=True)
    listing = [peer("mdir", "mtools"), "-b", "-i", esp, "::EFI/Linux"]
    shown = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["::/EFI/Linux/os-1+3.efi", "::/EFI/Linux/recovery.efi"]
    for partition, kernel in ((partitions[1], source.kernel), (partitions[2], source.recovery)):
        image = taken(disk, partition, tmp_path / "fs")
        subprocess.run([peer("e2fsck", "e2fsprogs"), "-fn", image], check=True, capture_output=True)
        for layer in uki.read(kernel).layers:
            dump = [peer("debugfs", "e2fsprogs"), "-R", f"dump {layer.root_hash} {tmp_path}/got", image]
            subprocess.run(dump, check=True, capture_output=True)
            assert (tmp_path / "got").read_bytes() == (source.layers / layer.root_hash).read_bytes()
    state = taken(disk, partitions[3], tmp_path / "fs")
    subprocess.run([peer("e2fsck", "e2fsprogs"), "-fn", state], check=True, capture_output=True)
    dump = [peer("debugfs", "e2fsprogs"), "-R", "cat config.yaml", state]
    assert "hostname: x" in subprocess.run(dump, check=True, capture_output=True, text=True).stdout


def test_until_the_end_the_disk_starts_nothing(disk, source, monkeypatch):
    """Cut off at each sync: only after the last is there a partition table."""

    class PowerCut(BaseException):
        pass

    written(disk, source)  # another system is there, with both of its tables
    real, syncs = install._sync, []
    monkeypatch.setattr(install, "_sync", lambda file: (syncs.append(1), real(file)))
    written(disk, source)
    for limit in range(1, len(syncs)):
        count = []

        def cut(file, limit=limit, count=count):
            real(file)
            count.append(1)
            if len(count) == limit:
                raise PowerCut

        monkeypatch.setattr(install, "_sync", cut)
        with pytest.raises(PowerCut):
            written(disk, source)
        with disk.open("rb") as file, pytest.raises(Problem):
            gpt.read(file)
        copied = disk.read_bytes()[-512:].startswith(b"EFI PART")
        assert copied == (limit in (1, len(syncs) - 1)), "firmware falls back to this copy of the table"
    monkeypatch.setattr(install, "_sync", real)
    assert len(written(disk, source)) == 4


def test_a_disk_too_small_and_a_layer_too_few(disk, source):
    with disk.open("r+b") as file:
        file.truncate(300 * MIB)
    with pytest.raises(Problem) as caught:
        written(disk, source)
    assert caught.value.reason == "disk-too-small"
    next(source.layers.iterdir()).unlink()
    with pytest.raises(Problem) as caught:
        written(disk, source)
    assert caught.value.reason == "layer-missing"


def test_the_last_partition_grows_with_the_disk(disk, source):
    before = written(disk, source)[-1]
    with disk.open("r+b") as file:
        file.truncate(2048 * MIB)
        found = gpt.grow_last(file, before.number)
        assert found is not None and found.first == before.first
        assert (found.last - found.first + 1) // 2048 > 1024
        assert gpt.grow_last(file, before.number) is None, "once is enough"
        assert gpt.grow_last(file, 1) is None, "only the last"
    subprocess.run([peer("sfdisk", "fdisk"), "--verify", disk], check=True, capture_output=True)
    assert grow.PERSISTENT.name == "persistent"


def test_a_folder_without_an_installation_is_no_medium(tmp_path):
    assert install.medium(place=tmp_path) is None
    assert not install.live("quiet", tmp_path)


def test_every_verb_that_is_documented_is_there(capsys):
    documented = (Path(__file__).parents[2] / "docs/node.md").read_text()
    table = documented[documented.index("| verb | does |") :].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?`) \| ", table, re.M)
    verbs = {one for cell in cells for one in re.findall(r"`(\w+)", cell)}
    assert {"install", "upgrade", "rollback", "reset", "extension", "encryption"} <= verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0, verb


def test_installing_wants_a_live_medium(capsys):
    assert main(["install", "--device", "/dev/nothing"]) == 1
    assert "no live system that installs" in capsys.readouterr().err
