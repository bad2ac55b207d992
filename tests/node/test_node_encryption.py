"""What a machine says of its encryption where there is none; where there is, machines in QEMU say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kairosbuild.node import encryption, grow
from kairosbuild.node.main import main
from kairosbuild.node.problem import Problem


def test_nothing_is_encrypted_where_nothing_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encryption, "_PERSISTENT", tmp_path)
    (tmp_path / encryption.KEY).write_text("left behind")
    assert encryption.state(tmp_path) == {"encrypted": False, "device": "", "recovery_key": ""}
    assert main(["encryption", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["encrypted"]
    assert main(["encryption", "--forget"]) == 1
    assert "no recovery key is kept here" in capsys.readouterr().err


def test_the_partition_below_a_mapped_device_is_found(tmp_path: Path) -> None:
    (tmp_path / "vda4").mkdir()
    (tmp_path / "vda4/partition").write_text("4\n")
    assert grow.partition_below(tmp_path / "vda4") == tmp_path / "vda4"
    (tmp_path / "dm-0/slaves").mkdir(parents=True)
    with pytest.raises(Problem) as caught:
        grow.partition_below(tmp_path / "dm-0")
    assert caught.value.reason == "no-partition"
