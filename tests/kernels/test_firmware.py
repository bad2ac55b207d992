"""Which firmware is taken: what the modules ask for, links followed, and nothing else."""

import pytest

from kairosbuild.core.errors import InputError
from kairosbuild.kernels.firmware import chosen, wishes

MODULES = {"iwlwifi": ["iwl-7.ucode", "iwl-8.ucode", "iwl-*.pnvm"], "quiet": []}
HAVE = {
    "iwl-8.ucode.xz": "",
    "iwl-a.pnvm": "",
    "iwl-b.pnvm": "",
    "brcm/one.bin": "../cypress/one.bin",
    "cypress/one.bin": "two.bin",
    "cypress/two.bin": "",
    "loop": "loop",
    "out": "../../etc/passwd",
}


def take(word: str) -> list[str]:
    (wish,) = wishes([word], MODULES, "linux")
    return chosen(wish, HAVE)


def test_what_a_module_asks_for_and_is_there() -> None:
    assert take("iwlwifi") == ["iwl-8.ucode.xz", "iwl-a.pnvm", "iwl-b.pnvm"]


def test_files_by_name_and_glob_with_their_links() -> None:
    assert take("brcm/one.bin") == ["brcm/one.bin", "cypress/one.bin", "cypress/two.bin"]
    assert take("cypress/*") == ["cypress/one.bin", "cypress/two.bin"]


def test_links_that_lead_nowhere_end() -> None:
    assert take("loop*") == ["loop"]
    assert take("out*") == ["out"]


BAD = {
    "iwlwif": "firmware-module",
    "quiet": "firmware-module",
    "rtl_nic/rtl8168h-2.fw": "firmware-missing",
}


@pytest.mark.parametrize(("word", "reason"), BAD.items())
def test_what_cannot_be_had(word: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        take(word)
    assert error.value.reason == reason
    assert error.value.hint


def test_a_module_of_which_no_file_is_there() -> None:
    (wish,) = wishes(["iwlwifi"], MODULES, "linux")
    with pytest.raises(InputError) as error:
        chosen(wish, {"other": ""})
    assert error.value.reason == "firmware-missing"
    assert "iwlwifi" in error.value.message
