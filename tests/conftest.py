"""What holds for the whole suite: in CI a skipped test is a failed one; no property test is on the clock."""

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, which others may be using, and nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# What this machine's user downloaded before must not decide a test; tests of that name a folder of their own.
os.environ["KBUILD_DOWNLOADS"] = ""

sys.path.insert(0, str(Path(__file__).parent))  # tests share peers.py


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where it should have run: {report.longrepr}"
    return report
