"""The process in which one contestant of one case lives: `python lane.py CASE CONTESTANT`.

Each has a fresh one, so that the imports, threads and garbage of one implementation do not disturb another. It stays
for all the turns: what is measured is the steady state. run.py tells it on standard input how often to do the
operation, a number a line, and gets a line of JSON for each; an empty line or the end of the input ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn


def main(key: str, contestant: str, modules: list[str]) -> None:
    # Answers have a descriptor of their own: what a contestant prints does not belong among them.
    with os.fdopen(os.dup(1), "w") as answers:
        os.set_inheritable(answers.fileno(), False)
        os.dup2(2, 1)

        def answer(**fields: Any) -> None:
            answers.write(json.dumps(fields) + "\n")
            answers.flush()

        try:
            operation = find(key, contestant, modules)()
        except ModuleNotFoundError as error:
            answer(missing=str(error))
            return
        except Exception as error:
            answer(error=describe(error))
            return
        answer(step=operation.step)
        while line := sys.stdin.readline().strip():
            count = int(line)
            try:
                begin = time.perf_counter_ns()
                value = operation.run(count)
                end = time.perf_counter_ns()
            except Exception as error:
                answer(error=describe(error))
                return
            answer(value=end - begin if value is None else value)
        operation.close()


def find(key: str, contestant: str, modules: list[str]) -> Any:
    from cases import CASES

    sys.path[:0] = {str(Path(module).parent) for module in modules}
    for module in modules:
        importlib.import_module(Path(module).stem)
    return CASES[key].contestants[contestant]


def describe(error: BaseException) -> str:
    traceback.print_exc()
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def terminated(signum: int, frame: Any) -> NoReturn:
    """SIGTERM, from run.py when the time for a turn is over, ends the process as an exception does: what the raw
    packages have created in the kernel is removed on the way."""
    raise SystemExit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    # The workers of pools are ended by SIGTERM, and are to die of it as they would in any program.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
