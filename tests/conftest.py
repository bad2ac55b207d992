"""What holds for the whole suite: in CI a skipped test is a failed one; no property test is on the clock."""

import os
import shutil
import signal
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

# A shell starts what runs in the background with interrupts ignored, and tests send some.
signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).parent))  # tests share peers.py


_FOLDERS: dict[str, set[Path]] = {}
"""Folders that fixtures of many tests made, by fixture: pytest keeps them to the end, and the disk would be full."""


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function" or not hasattr(request.config, "_tmp_path_factory"):
        return (yield)
    base = request.config._tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    try:
        return (yield)
    finally:
        known = set[Path]().union(*_FOLDERS.values())
        _FOLDERS.setdefault(_name(fixturedef), set()).update(set(base.iterdir()) - before - known)


def pytest_fixture_post_finalizer(fixturedef: Any, request: pytest.FixtureRequest) -> None:
    folders = _FOLDERS.pop(_name(fixturedef), set())
    if fixturedef.scope != "session" and not request.session.testsfailed:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _name(fixturedef: Any) -> str:
    return f"{fixturedef.baseid}::{fixturedef.argname}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where it should have run: {report.longrepr}"
    return report
