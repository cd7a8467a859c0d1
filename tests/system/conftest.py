"""A failed test of a run shows the end of what the run and its roles wrote."""

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        funcargs: dict[str, Any] = getattr(item, "funcargs", {})
        for value in funcargs.values():
            if hasattr(value, "tails"):
                report.sections += [(f"the end of {name}", text) for name, text in value.tails()]
    return report
