"""Another user under the keys of a name: see hostile_named.py.

Whatever it does, each call ends, with what was asked for or with an exception that says why, and nobody crashes or
reads what is not there.
"""

from __future__ import annotations

import random
import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import Script
from support.hostile_named import ATTACKS, CANDIDATE, NAME, NEW, PROBES, Segment, key
from support.privileges import NOBODY, can_become

from mpipc.shared_memory import SharedMemory
from mpipc.sysv.listing import shared_memory_segments

ATTACKER, VICTIM = NOBODY, NOBODY - 1

needs_users = pytest.mark.skipif(
    not (can_become(ATTACKER) and can_become(VICTIM)), reason="only root can become two other users"
)

VICTIM_SOURCE = """
    import os, random, resource, struct, sys, time
    from mpipc.shared_memory import ShareableList, SharedMemory

    name, seed, limited = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "enormous"
    random.seed(seed)
    if limited and "MPIPC_SANITIZED" not in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
    seen, slowest = {}, 0.0

    def use(memory):
        assert memory.size == len(memory.buf) == memory.stat().shm_segsz - 4096, memory.size
        if memory.size:
            sum(memory.buf[:: max(memory.size // 64, 1)]), memory.buf[-1]

    def create():
        memory = SharedMemory(name, create=True, size=random.choice([1, 100, 5000]))
        try:
            use(memory)
            memory.buf[0] = 7
            assert memory.buf[0] == 7
        finally:
            memory.close()
            memory.unlink()

    def attach():
        memory = SharedMemory(name, readonly=random.random() < 0.5)
        use(memory)
        memory.close()

    def unlink():
        memory = SharedMemory(name)
        memory.close()
        memory.unlink()

    def share():
        ShareableList(name=name).shm.close()

    calls = [create, attach, unlink, share]
    end = time.monotonic() + 2.5
    rounds = 0
    while time.monotonic() < end or rounds < 8:
        rounds += 1
        call = random.choice(calls) if rounds > 4 else calls[rounds - 1]
        start = time.monotonic()
        try:
            call()
            outcome = "ok"
        except OSError as error:
            outcome = f"{type(error).__name__}: {error.strerror}"
        except (ValueError, MemoryError, struct.error) as error:  # a ShareableList's contents are what they are
            outcome = type(error).__name__
        slowest = max(slowest, time.monotonic() - start)
        seen.setdefault(call.__name__, set()).add(outcome)
    print(repr((slowest, seen)))
"""


@contextmanager
def attacking(attack: str, seed: int) -> Iterator[None]:
    source = "from support import hostile_named; hostile_named.attack()"
    with Script(source, arguments=[attack, str(seed)], user=ATTACKER) as attacker:
        assert attacker.stdout.readline() == "ready\n", attacker.stderr.read()
        yield
        attacker.stdin.close()
        assert attacker.wait(60) == 0, attacker.stderr.read()


@pytest.mark.slow_but("flips")
@needs_users
@pytest.mark.parametrize("attack", ATTACKS)
def test_calls_end_whatever_another_user_does(attack: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    with (
        attacking(attack, seed),
        Script(VICTIM_SOURCE, arguments=[NAME.decode(), str(seed), attack], user=VICTIM) as victim,
    ):
        output, errors = victim.communicate(timeout=90)
        assert victim.returncode == 0, (victim.returncode, errors)
        assert not errors
        slowest, seen = eval(output)
        assert slowest < 30
        if attack in ("candidate", "no_end", "small"):
            assert "ok" in seen["create"] or attack == "small"
        if attack == "nobody_elses":
            assert all("all 16 keys" in text and f"uid {ATTACKER}" in text for text in seen["create"])
        if attack in ("unreadable", "enormous"):
            assert all(text.startswith("FileExistsError") and f"uid {ATTACKER}" in text for text in seen["create"])
        if attack == "unreadable":
            assert all(text.startswith("PermissionError") and f"uid {ATTACKER}" in text for text in seen["attach"])
    assert [segment for segment in shared_memory_segments() if segment.cuid == VICTIM] == []


@needs_users
def test_signal_handlers_run_while_another_user_is_waited_for() -> None:
    """And what they raise, comes out; nothing is left behind."""
    source = """
        import signal, sys
        from mpipc._core import families_of_this_process
        from mpipc.shared_memory import SharedMemory

        class Alarm(Exception): pass
        count = 0
        def handle(*_):
            global count
            count += 1
            if count == 5:
                raise Alarm

        SharedMemory("warm-up", create=True, size=1).unlink()
        before = [family.blocks() for family in families_of_this_process()]
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            SharedMemory(sys.argv[1], create=True, size=100)
        except Alarm:
            print("alarm")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert [family.blocks() for family in families_of_this_process()] == before
    """
    with attacking("candidates_everywhere", 0), Script(source, arguments=[NAME.decode()], user=VICTIM) as victim:
        output, errors = victim.communicate(timeout=60)
        assert (victim.returncode, output) == (0, "alarm\n"), errors
        left = [segment for segment in shared_memory_segments() if segment.cuid == VICTIM and segment.key >> 24 == 0x6E]
        assert left == []


@needs_users
def test_ones_own_is_found_before_anothers() -> None:
    """A candidate of another user, which was passed over, comes to life when the name is taken."""
    attacker_source = """
        import sys
        from support.hostile_named import CANDIDATE, LIVE, Segment
        segment = Segment(0).write(CANDIDATE)
        segment.fill(b"A")
        print("ready", flush=True)
        sys.stdin.readline()
        segment.state = LIVE
        print("alive", flush=True)
        sys.stdin.readline()
        segment.remove()
    """
    victim_source = """
        import sys
        from mpipc.shared_memory import SharedMemory
        memory = SharedMemory(sys.argv[1], create=True, size=100)
        memory.buf[0] = ord("V")
        print("created", flush=True)
        sys.stdin.readline()
        found = SharedMemory(sys.argv[1])
        print(chr(found.buf[0]), flush=True)
        memory.unlink()
        found = SharedMemory(sys.argv[1])
        print(chr(found.buf[0]), flush=True)
    """
    with Script(attacker_source, user=ATTACKER) as attacker:
        assert attacker.stdout.readline() == "ready\n"  # before the victim comes, who would take the key
        with Script(victim_source, arguments=[NAME.decode()], user=VICTIM) as victim:
            assert victim.stdout.readline() == "created\n"
            attacker.stdin.write("\n")
            attacker.stdin.flush()
            assert attacker.stdout.readline() == "alive\n"
            output, errors = victim.communicate("\n", timeout=60)
            assert output == "V\nA\n", errors
            attacker.communicate("\n", timeout=60)


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("who", [pytest.param(ATTACKER, marks=needs_users), None], ids=["another user", "ourselves"])
def test_unlinking_a_forged_segment_takes_down_no_block(ctx: Any, who: int | None) -> None:
    """Not even if it names the family, the block and its serial: a queue's, or another named segment's."""
    from mpipc._core import current

    source = """
        import sys
        from support.hostile_named import LIVE, Segment
        for line in sys.stdin:
            nonce, block, serial = map(int, line.split())
            segment = Segment(0, mode=0o666).write(LIVE, family=nonce, block=block, serial=serial)
            print("ready", flush=True)
            segment.detach()
    """
    # Started before there is anything that it could inherit.
    with Script(source, user=who) as attacker:
        queue = ctx.Queue()
        queue.put("precious")
        victim = SharedMemory("victim", create=True, size=10)
        family = current()
        blocks = [block[0] for block in family.blocks()]
        for block in [*blocks, 1 << 31, (1 << 32) - 1]:
            for serial in range(3):
                attacker.stdin.write(f"{family.nonce} {block} {serial}\n")
                attacker.stdin.flush()
                assert attacker.stdout.readline() == "ready\n", attacker.stderr.read()
                memory = SharedMemory(NAME.decode())
                memory.close()
                memory.unlink()
        attacker.communicate(timeout=60)
        assert [block[0] for block in family.blocks()] == blocks
        assert queue.get(timeout=60) == "precious"
        victim.unlink()
        victim.close()
        assert len(family.blocks()) == len(blocks) - 1
        queue.close()


# --- the same user: a creator that is stopped -------------------------------------------------------------------------


class Alarm(Exception):
    pass


def test_a_stopped_creator_does_not_keep_signal_handlers_from_running() -> None:
    def handle(number: int, frame: types.FrameType | None) -> None:
        raise Alarm

    # Attached twice, as by its creator and by somebody who waits for it: nobody takes it for dead at once.
    rival = Segment(0, mode=0o600).write(CANDIDATE)
    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            SharedMemory(NAME.decode(), create=True, size=100)
        assert rival.state == CANDIDATE
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)  # they do not begin to wait from the start each time
        memory = SharedMemory(NAME.decode(), create=True, size=100)
        assert rival.state != CANDIDATE
        memory.close()
        memory.unlink()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        rival.remove()
        rival.detach()


def test_a_half_made_segment_occupies_a_key_only() -> None:
    rival = Segment(0, mode=0o600).write(NEW)
    memory = SharedMemory(NAME.decode(), create=True, size=100)
    assert memory.stat().shm_perm.key == key(1)
    memory.close()
    memory.unlink()
    rival.remove()
    rival.detach()


def test_all_keys_occupied_by_ourselves() -> None:
    rivals = [Segment(position, mode=0o600) for position in range(PROBES)]
    try:
        with pytest.raises(OSError, match="all 16 keys") as caught:
            SharedMemory(NAME.decode(), create=True, size=100)
        assert "uid" not in str(caught.value)
    finally:
        for rival in rivals:
            rival.remove()
            rival.detach()
