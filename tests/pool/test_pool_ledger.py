"""mpipc._pool.ledger: each task is run by the worker or taken back by the parent, whoever is faster, and never both."""

from __future__ import annotations

import random
from typing import Any

from support import wait_until

import mpipc
from mpipc._core import payload
from mpipc._pool.ledger import Ledger


def test_what_is_claimed_is_not_taken_back() -> None:
    ledger = Ledger()
    assert ledger.started == 0
    assert ledger.start(1)
    assert ledger.started == 1
    assert ledger.revoke(1, 4) == 2  # 1 was begun
    assert [ledger.start(number) for number in (2, 3, 4)] == [False] * 3
    assert ledger.started == 1
    assert ledger.start(5)
    assert ledger.start(6)
    assert ledger.revoke(5, 6) == 7  # too late for both


def test_the_front_of_a_range_is_run() -> None:
    ledger = Ledger()
    assert ledger.revoke(8, 10) == 8
    assert [number for number in range(1, 14) if ledger.start(number)] == [1, 2, 3, 4, 5, 6, 7, 11, 12, 13]


def test_what_is_taken_back_before_the_last_range_is_passed() -> None:
    ledger = Ledger()
    assert ledger.start(1)
    assert ledger.revoke(4, 6) == 4
    assert ledger.revoke(9, 10) == 4  # 7 and 8 too
    assert [number for number in range(2, 13) if ledger.start(number)] == [2, 3, 11, 12]


def test_what_is_given_after_a_range_is_not_taken_back_with_it() -> None:
    """If the worker has answered all before it: the oldest that it has is left to it."""
    ledger = Ledger()
    assert ledger.start(1)
    ledger.finish(1)
    assert ledger.revoke(3, 9) == 3
    assert ledger.revoke(11, 14, oldest=2) == 3  # it has come to nothing behind 1
    assert ledger.start(2)
    ledger.finish(2)
    assert ledger.revoke(16, 18, oldest=15) == 16
    assert ledger.revoke(17, 18, oldest=15) == 16
    assert [number for number in range(3, 22) if ledger.start(number)] == [15, 19, 20, 21]
    assert ledger.revoke(23, 24, oldest=22) == 23  # the range had been passed
    assert ledger.revoke(23, 24, oldest=22) == 23
    assert ledger.revoke(25, 25, oldest=25) == 25  # all it has: 22 was withdrawn
    assert ledger.started == 24
    assert [number for number in range(22, 27) if ledger.start(number)] == [26]


def test_missing_numbers() -> None:
    ledger = Ledger()
    assert ledger.start(3)
    assert ledger.revoke(5, 7) == 5
    assert not ledger.start(6)
    assert ledger.start(9)
    assert ledger.started == 9


def test_a_longer_range_is_another_word() -> None:
    """Or a worker that has looked at the end of the old range could claim what has been taken back since."""
    ledger = Ledger()
    assert ledger.start(5)
    assert ledger.revoke(8, 9) == 8
    word = bytes(payload(ledger.block)[:8])
    assert ledger.revoke(11, 12) == 8
    assert bytes(payload(ledger.block)[:8]) != word
    assert ledger.started == 5


def test_what_is_too_far_ahead_is_not_taken_back() -> None:
    ledger = Ledger()
    assert ledger.start(1)
    assert ledger.revoke(1 << 21, (1 << 21) + 3) == (1 << 21) + 4
    assert ledger.start(1 << 21)
    assert ledger.revoke((1 << 21) + 1, (1 << 21) + 3) == (1 << 21) + 1
    assert not ledger.start((1 << 21) + 1)


def _claim(ledger: Ledger, numbers: Any, claimed: Any) -> None:
    while number := numbers.get():
        if ledger.start(number):
            claimed.put(number)
            ledger.finish(number)
    claimed.put(0)


def test_two_processes_at_once() -> None:
    """The parent sends numbers and takes some back at random, while the other process claims what it receives."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    choose = random.Random(seed)
    context = mpipc.get_context("fork")
    ledger, numbers, claimed = Ledger(), context.Queue(), context.Queue()
    process = context.Process(target=_claim, args=(ledger, numbers, claimed))
    process.start()
    sent = 0
    held: set[int] = set()
    taken: set[int] = set()
    for _ in range(3000):
        for _ in range(choose.randrange(1, 12)):
            sent += 1
            held.add(sent)
            numbers.put(sent)
        if choose.random() < 0.7:
            finished = ledger.finished
            first = choose.randrange(max(sent - 20, 1), sent + 1)
            oldest = min((number for number in held if number > finished), default=0)
            start = ledger.revoke(first, sent, oldest)
            assert start > oldest or first <= oldest
            taken |= {number for number in held if number >= start}
            held = {number for number in held if number < start}
        if choose.random() < 0.05 and held:  # let the other one catch up
            latest = max(held)
            wait_until(lambda latest=latest: ledger.started >= latest)
    numbers.put(0)
    run = list(iter(lambda: claimed.get(timeout=60), 0))
    process.join()
    assert run == sorted(set(run))
    assert taken
    assert run
    assert set(run).isdisjoint(taken)
    assert set(run) | taken == set(range(1, sent + 1))
