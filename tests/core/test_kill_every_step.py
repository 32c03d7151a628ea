"""SIGKILL after every single instruction of every operation of the C core: see native/kill_every_step.c."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.native_programs import CORE, NATIVE, compile_with_core, run_scenario, stepping

SOURCE = NATIVE / "kill_every_step.c"
SCENARIOS = re.findall(r'^    \{"([a-z0-9-]+)", ', SOURCE.read_text(), re.MULTILINE)

pytestmark = stepping


@pytest.fixture(scope="module")
def kill_every_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_with_core(
        SOURCE,
        tmp_path_factory.mktemp("native") / "kill_every_step",
        "-DMP_TICK_NS=3600000000000ll",  # nothing is put right by looking again
        "-DMP_SUSPICION_MS=2",
        "-DMP_BANK=256u",
    )


def test_all_scenarios_are_run_here(kill_every_step: Path) -> None:
    listed = subprocess.run([kill_every_step, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert listed == SCENARIOS


# Those in which what rests on SEM_UNDO is changed, and one of each kind of recovery.
WITHOUT_UNDO = """
    recover found sweep join fork-prepare start arrive transit lock-acquire notify-1-of-2 semaphore-return
    semaphore-return-to-sleeper queue-take-from-both block-drop-with-chunks rw-recover-reader rw-recover-writer
    tie-while-parent-dies tie-recover broadcast-recover-subscriber
""".split()  # noqa: SIM905  (a list of them is longer than what it is for)


@pytest.fixture(scope="module")
def without_undo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a kernel that accepts SEM_UNDO and ignores it."""
    return compile_with_core(
        SOURCE,
        tmp_path_factory.mktemp("native") / "kill_every_step",
        *(
            "-DMP_TICK_NS=3600000000000ll",
            "-DMP_SUSPICION_MS=2",
            "-DMP_BANK=256u",
            "-DUNDO_IGNORED",
            str(NATIVE / "ignore_undo.c"),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("scenario", WITHOUT_UNDO)
def test_killed_after_every_step_without_undo(without_undo: Path, scenario: str) -> None:
    run_scenario(without_undo, scenario)


QUICK = """
    found join arrive fork-prepare recover block-new block-adopt bank-new lock-acquire lock-release-with-waiter
    semaphore-acquire semaphore-return semaphore-signal semaphore-pay cell-enter-and-cancel notify-all event-set
    barrier-enter queue-take queue-wait-in-room queue-task-done queue-send-bounded queue-send-by-spill spill-post
    piece-claim-and-free large-repair named-create access-ask ledger-start ledger-finish-while-condemned times-turn
    memory-take memory-send rw-read rw-write-release-to-both shutdown-sleepers shutdown-with-messages
    tie-while-parent-dies tie-recover
    broadcast-put broadcast-put-to-getters broadcast-get-while-it-is-overtaken broadcast-get-before-a-putter
    broadcast-recover-subscriber
    work-take work-take-returned work-acknowledge-before-joiner work-give-back-to-waiter
""".split()  # noqa: SIM905
"""One or more of everything that is shared."""


@pytest.mark.slow_but(*QUICK)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_after_every_step(kill_every_step: Path, scenario: str) -> None:
    run_scenario(kill_every_step, scenario)


# --- is any change of shared state left out? --------------------------------------------------------------------------

CHANGE = re.compile(
    r"atomic_(?:store|exchange|fetch|compare)\w*\(|\bSTORE\(|\b(?:msgsnd|msgrcv|semop|shmget|msgget|semget)\("
    r"|\b(?:SETVAL|IPC_RMID|IPC_SET|MADV_REMOVE)\b"
)
OF_THIS_PROCESS = re.compile(
    r"&v->(?:streak|patience|longest|asked|arena\b|segments)|&f->(?:looked|recent|recovery_held|space)|&w->"
)
FUNCTION = re.compile(
    r"^(?:static )?(?:inline )?[\w ]+[\w*] \*?(\w+)\([^;{}]*\) \{(.*?)(?:^\}|\}$)", re.DOTALL | re.MULTILINE
)

ELSEWHERE = {
    "the parent's side: when it dies, so do its workers": "mp_ledger_revoke mp_ledger_end mp_ledger_condemn",
    "of a process that has become another program (test_family)": "mp_family_forget_exec mp_slot_cancel_undo",
    "the reaper's own, which dies with it (test_family, test_liveness)": """
        take_presence mp_reaper_become mp_undo_try was_never_undone keep_what_is_in_transit mp_transit_keep
        """,
    "one word, which says when, before a process is started: the next one is started a tick later (test_family)": """
        mp_launch_reaper
        """,
    "rivals for a name, in every order of their system calls (test_named_schedules)": "forget mp_named_discard",
    "only after a failure that cannot be had here, or of damage (test_queues_corrupt, test_members)": """
        mp_slot_void mp_slot_count_out damaged cut grant_a_byte
        """,
    "of the one who comes too late: piece-claim-first-beside-another, memory-new-first-beside-another": """
        disown_segment take_down_space
        """,
    "a thread that takes nothing, and a hint of who it is of (test_queues)": """
        mp_watch_start mp_watch_run mp_watch_look_again
        """,
}
"""Functions that change shared state, and are not called in any scenario's operation: why that is so."""


def functions_that_change_shared_state() -> set[str]:
    found = set()
    for path in sorted(CORE.glob("*.[ch]")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        for name, body in FUNCTION.findall(text):
            if any(CHANGE.search(line) and not OF_THIS_PROCESS.search(line) for line in body.splitlines()):
                found.add(name)
    return found


def test_no_change_of_shared_state_is_missing(tmp_path: Path) -> None:
    """Every function of the core that changes what processes share is killed in the middle, or stands in ELSEWHERE."""
    program = compile_with_core(
        SOURCE,
        tmp_path / "covered",
        *("-O0", "-no-pie", "-finstrument-functions", "-DCOVERED", "-w"),
        *("-DMP_TICK_NS=3600000000000ll", "-DMP_SUSPICION_MS=2", "-DMP_BANK=256u"),
    )
    symbols = {}
    for line in subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.splitlines():
        address, _, name = line.rpartition(" ")
        symbols[address.split(" ")[0].lstrip("0")] = name
    called = set()
    for scenario in SCENARIOS:
        result = subprocess.run([program, scenario], capture_output=True, text=True, timeout=60)
        if "Operation not permitted" in result.stderr and "ptrace" in result.stderr:
            pytest.skip("ptrace(2) is not permitted here")
        assert result.returncode == 0, result.stderr
        called |= {symbols.get(address.removeprefix("0x").lstrip("0"), "") for address in result.stdout.split()}
    changing = functions_that_change_shared_state()
    assert {"mp_lock_try", "mp_spill_pop", "mp_barrier_end", "look_at"} <= changing, "they are found at all"
    elsewhere = {name for names in ELSEWHERE.values() for name in names.split()}
    assert sorted(changing - called - elsewhere) == []
    assert sorted(elsewhere & called) == [], "they are killed here"
    assert sorted(elsewhere - changing) == [], "they are no longer there"
