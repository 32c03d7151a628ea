"""cancel(): a job is withdrawn, wherever its tasks are.

    in the backlog                 taken out
    in a worker's window, before   taken back, as for another worker that has nothing to do; the tasks of other jobs
    it was begun                   that come back with them go to the front of the backlog
    running                        condemned, as for a timeout: its result will not be sent, the worker is killed and
                                   replaced; what it has not begun goes to others
    run, and its result on its     nobody waits for it any more
    way

The job itself is completed by the result thread, as always, with CancelledError.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpipc._pool.receiver import Receiver
    from mpipc._pool.schedule import Schedule

__all__ = ["WHOLE", "cancel", "cancelled_error"]

WHOLE = -1
"""In the place of a task's index: what is set concerns the job as a whole."""


def cancelled_error() -> Exception:
    """The error of what was cancelled. Its module, which imports logging, is loaded when somebody has cancelled."""
    from concurrent.futures import CancelledError

    return CancelledError()


def cancel(schedule: Schedule, receiver: Receiver, job: Any) -> bool:
    """Have a job end with CancelledError. False if it is complete already; True: that is what get() will raise."""
    if not job._give_up():
        return False
    with schedule.lock:
        schedule.backlog.remove({work for work in schedule.backlog.waiting if work.job is job})
        for worker in list(schedule.members.values()):
            numbers = [number for number, task in worker.window.items() if task.job is job]
            waiting = [number for number in numbers if number > worker.ledger.started]
            if waiting:
                for task in reversed(worker.take_back_from(waiting[0])):
                    if task.job is not job:
                        schedule.put_back(task)
            # Not what it is about to begin: that it had begun it was seen above, or it could not be taken back.
            number = worker.ledger.started
            running = number in numbers and number in worker.window and worker.ledger.running_for is not None
            if running and not worker.condemned and worker.ledger.condemn(number):
                worker.condemned = number
                with contextlib.suppress(OSError):  # not permitted: this process has changed its user id since
                    worker.process.kill()
            schedule.refresh(worker)
    receiver.fail(job, WHOLE, cancelled_error())
    schedule.dispatch()
    return True
