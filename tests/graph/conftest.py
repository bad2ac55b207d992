"""`--bless` accepts the code of the kinds as it is."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="accept the kinds' code under their versions")
