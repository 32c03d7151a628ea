"""The states of a pool's life, and which one may follow which.

    RUNNING -> CLOSED -> QUITTING --------> CONCLUDING -> ENDED
       |          |         |                   ^
       +----------+---------+-> TERMINATING ----+
       |          |         |        |          |
       +----------+---------+--------+-> BROKEN +

_pool/life.pyx has the state of one pool, and the lock under which it changes. Who changes it is said in section 3 of
docs/protocols/pool.md.
"""

from __future__ import annotations

import enum

__all__ = ["AFTER", "ForbiddenTransition", "State"]


class State(enum.Enum):
    """Of a pool; see Life."""

    RUNNING = "running"
    """Tasks are taken on, and workers that have died are replaced."""
    CLOSED = "closed"
    """Nothing more will be asked for. What was is done, by workers that are replaced as before."""
    QUITTING = "quitting"
    """All is done. The workers are told to end, and none is started any more."""
    TERMINATING = "terminating"
    """What is not done is given up: no task is handed out, no result set, no worker started; living ones are ended."""
    BROKEN = "broken"
    """As TERMINATING, by the pool itself, which cannot go on."""
    CONCLUDING = "concluding"
    """The results that nobody will bring are being completed. Whoever asks for something now waits until ENDED."""
    ENDED = "ended"
    """Every result is complete. Whoever asks for something is refused."""


AFTER: dict[State, tuple[State, ...]] = {
    State.RUNNING: (State.CLOSED, State.TERMINATING, State.BROKEN),
    State.CLOSED: (State.QUITTING, State.TERMINATING, State.BROKEN),
    State.QUITTING: (State.TERMINATING, State.BROKEN, State.CONCLUDING),
    State.TERMINATING: (State.BROKEN, State.CONCLUDING),
    State.BROKEN: (State.CONCLUDING,),
    State.CONCLUDING: (State.ENDED,),
    State.ENDED: (),
}
"""The states that may follow each."""


class ForbiddenTransition(RuntimeError):
    """A pool was to get into a state that does not follow the one it is in."""

    def __init__(self, old: State, new: State) -> None:
        super().__init__(f"a pool that is {old.value} cannot become {new.value}")
