"""Who sends, receives, views and inherits arrays is killed at random moments; see array_killing.py.

`pytest --kill-rounds=10000` for more of them.
"""

import random

import pytest
from support import run_script

pytest.importorskip("numpy")


@pytest.mark.timeout(7200)
def test_killed_at_random(request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--kill-rounds")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    print(run_script(f"from support.array_killing import run; run({rounds}, {seed})", timeout=60 + rounds).stdout)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_at_random_for_longer() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    print(run_script(f"from support.array_killing import run; run(2000, {seed})", timeout=2000).stdout)
