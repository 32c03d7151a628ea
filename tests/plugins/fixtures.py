"""Start methods, contexts and pools; options of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import START_METHODS


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each of multiprocessing's start methods in turn."""
    return str(request.param)


@pytest.fixture
def ctx(start_method: str) -> Any:
    """`mpipc.get_context(...)` for each start method in turn."""
    import mpipc

    return mpipc.get_context(start_method)


@pytest.fixture
def pool(ctx: Any) -> Iterator[Any]:
    """A pool of one worker, so that a call meets what the one before left; closed and joined afterwards."""
    made = ctx.Pool(1)
    try:
        yield made
    finally:
        made.close()
        made.join()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-rounds",
        type=int,
        default=200,
        help="rounds of killing in test_queues_killed.py and test_arrays_killed.py (default: 200)",
    )
