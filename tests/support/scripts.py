"""Scripts run in a fresh interpreter, which find this package and the mpipc under test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from support.places import TESTS, package_folder
from support.privileges import become
from support.process_table import ProcessInfo, descendants, dump_stacks, kill_process, processes


class ScriptTimeout(AssertionError):
    """A script did not end in time; the message has its output so far and the stacks of its processes."""


class Script(subprocess.Popen[str]):
    """A Python program in an interpreter, a session and a directory of its own, with text pipes.

    Leaving the `with` block kills what is left of the session.
    """

    def __init__(
        self,
        source: str,
        *,
        arguments: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        options: Iterable[str] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mpipc-script-")
        folder = Path(self._folder.name)
        path = folder / "script.py"
        path.write_text(textwrap.dedent(source))
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "TMPDIR": str(folder)}
        if user is not None:
            os.chown(folder, user, user)
            environment["HOME"] = str(folder)
        environment.update(env or {})
        # The script is to import the same mpipc as the test, and the test's helpers.
        package = package_folder()
        path_entries = [str(TESTS), str(package.parent) if package else "", environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path_entries))
        super().__init__(
            [sys.executable, *options, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=None if user is None else lambda: become(user),
        )

    def members(self) -> list[ProcessInfo]:
        """Its descendants, and whoever else is in the session that it leads; itself first."""
        everything = processes()
        found = {process.pid: process for process in descendants(self.pid, everything)}
        found.update({pid: process for pid, process in everything.items() if process.session == self.pid})
        return sorted(found.values(), key=lambda process: (process.pid != self.pid, process.pid))

    def kill_session(self) -> None:
        """SIGKILL for the script and for all its processes."""
        for process in self.members():
            kill_process(process)

    def finish(self, input: str | None = None, *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Wait until the script has ended and nobody holds its pipes any more; ScriptTimeout after `timeout` s."""
        try:
            out, err = self.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            stacks = dump_stacks(process.pid for process in self.members())
            self.kill_session()
            out, err = self._output_after_kill()
            raise ScriptTimeout(
                f"script not finished after {timeout:g} s\n"
                f"--- processes\n{stacks}\n--- stdout\n{out}\n--- stderr\n{err}"
            ) from None
        return subprocess.CompletedProcess(self.args, self.returncode, out, err)

    def _output_after_kill(self) -> tuple[str, str]:
        try:
            return self.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            return "", "(the pipes are still held by a process outside the script's session)"

    def __exit__(self, *details: Any) -> None:
        self.kill_session()
        super().__exit__(*details)
        self._folder.cleanup()


def start_script(source: str, **options: Any) -> Script:
    """A script to talk with: `with start_script("...") as script: script.stdout.readline() ... script.finish()`."""
    return Script(source, **options)


def run_script(
    source: str, *, timeout: float = 60.0, check: bool = True, input: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `source` (dedented) as a program in a fresh interpreter and return its result.

    `env` adds to the environment, `arguments` become sys.argv[1:], `options` go to the interpreter. `user` (an id;
    needs `can_become(user)`) runs it as that user without privileges, except for reading files. With `check` a non-zero
    exit is an AssertionError that shows the output.
    """
    with Script(source, **options) as script:
        result = script.finish(input, timeout=timeout)
    if check and result.returncode != 0:
        raise AssertionError(
            f"script ended with {result.returncode}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
        )
    return result
