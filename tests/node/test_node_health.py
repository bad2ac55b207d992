"""Health checks of a machine under systemd, which a script stands for: how far a start came, and what kept it."""

from pathlib import Path

import pytest

from kairosbuild.node import health
from kairosbuild.node.settings import Health

SYSTEMCTL = """\
#!/bin/sh
case "$*" in
is-system-running) cat {folder}/word ;;
list-jobs*) printf '%s\\n' "1 local-fs.target start waiting" "2 slow.service start running" ;;
list-units*) echo "data.mount loaded failed failed /data" ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What systemd says of the system."""
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setattr(health, "SYSTEMD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "word"


@pytest.mark.parametrize(
    ("said", "complaint", "up"),
    [
        ("running", "", True),
        ("degraded", "", True),
        ("starting", "the system is starting after 0 seconds, not done: slow.service", True),
        ("initializing", "the system is initializing after 0 seconds, not done: slow.service", False),
        ("maintenance", "the system is at a maintenance prompt after 0 seconds, failed: data.mount", False),
        ("", "the system is not answering after 0 seconds, not done: slow.service", True),
    ],
)
def test_what_keeps_a_start_is_named(word: Path, said: str, complaint: str, up: bool) -> None:
    word.write_text(f"{said}\n")
    assert health.wait(Health(timeout=0)) == complaint
    assert health.came_up() == up


def test_a_unit_that_does_not_run_is_the_complaint_of_a_machine_that_is_up(word: Path) -> None:
    word.write_text("running\n")
    asked = Health(("web.service",), ("true", "false"), 0)
    assert health.wait(asked) == "the unit web.service does not run, 'false' fails after 0 seconds"
    assert health.came_up()
