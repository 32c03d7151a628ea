"""The quick part of the tests, which is `make test`, and the slow rest, which is `make test-slow`.

The quick part is to take five minutes on two processors that have nothing else to do (it takes eight), and has every
kind of test in it: each file, each primitive, each start method, a sample of each long list of scenarios. What is not
in it is marked where it stands, by one of

    @pytest.mark.slow                            all of it
    @pytest.mark.slow_with("spawn")              of a parametrised test, what one of these means
    @pytest.mark.slow_but("lock-acquire")        of a parametrised test, what none of these means

What is meant is told by the value of one parameter, or by the whole of what stands in brackets in the test's name.

The last two add `slow` to the tests that they mean, so that `-m slow` and `-m "not slow"` are all there is to know.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "slow: not in `make test`, but in `make test-slow`",
        "slow_with(*ids): slow, if one of these is a parameter, or the id of all",
        "slow_but(*ids): slow, unless one of these is a parameter, or the id of all",
    ):
        config.addinivalue_line("markers", line)


def names(item: pytest.Item, ids: tuple[str, ...]) -> bool:
    """Whether one of them means this test."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and not {callspec.id, *map(str, callspec.params.values())}.isdisjoint(ids)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        meant = any(names(item, mark.args) for mark in item.iter_markers("slow_with"))
        if meant or any(not names(item, mark.args) for mark in item.iter_markers("slow_but")):
            item.add_marker(pytest.mark.slow)
