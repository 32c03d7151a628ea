"""Producers and consumers killed at random moments; see queue_killing.py.

`pytest --kill-rounds=10000` for more of them.
"""

import random

import pytest
from support import run_script


@pytest.mark.slow_with("joinable", "priority")
@pytest.mark.parametrize("kind", ["unbounded", "bounded", "joinable", "priority"])
@pytest.mark.timeout(3600)
def test_killed_at_random(kind: str, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--kill-rounds")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = f"""
        from support.queue_killing import run
        run({rounds // 4}, {seed}, ({kind!r},))
        """
    print(run_script(source, timeout=60 + rounds).stdout)
