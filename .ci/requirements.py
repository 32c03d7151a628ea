"""Prints what pyproject.toml requires, one requirement a line: `requirements build` or the name of an extra.

For installing the dependencies without building the package, which pip alone cannot do.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], name: str) -> Iterator[str]:
    if name == "build":
        yield from project["build-system"]["requires"]
        return
    for requirement in project["project"]["optional-dependencies"][name]:
        # One extra includes another by way of the project itself: "mpipc[test]".
        itself = re.fullmatch(re.escape(project["project"]["name"]) + r"\[(\w+)\]", requirement)
        if itself:
            yield from requirements(project, itself[1])
        else:
            yield requirement


pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
for argument in sys.argv[1:]:
    print(*requirements(pyproject, argument), sep="\n")
