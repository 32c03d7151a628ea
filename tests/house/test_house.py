"""The layers of docs/architecture.md: imports go downwards, in Python, Cython and C, and nowhere in a circle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mpipc"
CORE = PACKAGE / "_core" / "src"

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here")

LAYERS = """
    sysv exceptions _stdlib.standard _stdlib.start_method _stdlib.proxies _stdlib.preload _stdlib.subclasses
        _stdlib.private _stdlib.picklers _stdlib.by_pickler _stdlib.also _stdlib.likeness _stdlib.shut_down
        _stdlib.tying _stdlib.given
    _core
    _sync _memory _queue
    _stdlib.parcel _stdlib.fork_server
    _pool
    synchronize queues broadcast work_queue heap sharedctypes shared_memory arrays pool executor managers dummy
    connection forkserver popen_fork popen_forkserver popen_spawn_posix process reduction resource_sharer
        resource_tracker spawn util
    context
    _stdlib.install
    __init__ __main__ cli joblib log torch
"""
"""Each line may use those above it, and what stands in it. A line that begins further to the right goes on with the one
before."""

CORE_LAYERS = """
    outcome.h base.h layout.h family.h ledger.h times.h
    futex
    threads access
    processes sets waits
    banks liveness
    holders slots.h
    slots
    segment fork objects bells kinds.h records ties
    blocks
    lock event semaphore cells
    barrier rwlock broadcast
    rooms named
    queue_view.h
    space
    pieces
    chunks.h trim jobs
    carriers memory
    spill
    queue.h queue_inside.h
    queue send receive shutdown work
    watch kinds
    guests
    recovery
    sweep
    reaper
    launch
    tick mpipc-reaper
    core.h
"""


def layers(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    level = -1
    for line in text.strip("\n").splitlines():
        if not line.startswith(" " * 5):
            level += 1
        found.update(dict.fromkeys(line.split(), level))
    return found


def level_of(module: str, known: dict[str, int]) -> int:
    """Of a module's name without `mpipc.`."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in known:
            return known[".".join(parts[:length])]
    raise AssertionError(f"{module} has no place in the house: give it one in LAYERS, and in docs/architecture.md")


def modules() -> dict[str, Path]:
    """By name without `mpipc.`."""
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")]):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        if path.suffix == ".pxd":
            name += ".pxd"
        found[name] = path
    return found


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of_python(path: Path) -> set[str]:
    found = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if is_for_types(node):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = path.parent.relative_to(ROOT).parts
            base = ".".join([*here[: len(here) + 1 - node.level], *([node.module] if node.module else [])])
            module = base if node.level else node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


IMPORT = re.compile(r"^\s*from (mpipc[\w.]*) c?import \(?\s*([\w, ]+)", re.MULTILINE)


def imports_of_cython(path: Path) -> set[str]:
    found = IMPORT.findall(path.read_text())
    return {f"{module}.{name.strip().split(' ')[0]}" for module, names in found for name in names.split(",") if name}


def graph() -> dict[str, set[str]]:
    """Which modules of the package each one imports, by names without `mpipc.`; what is for type checkers is not."""
    known = modules()
    names = {name.removesuffix(".pxd"): name for name in known}  # a .pxd alone, else what it belongs to
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for target in imports_of_python(path) if path.suffix == ".py" else imports_of_cython(path):
            parts = target.split(".")
            if parts[0] != "mpipc":
                continue
            while len(parts) > 1 and ".".join(parts[1:]) not in names:
                parts.pop()
            targets.add(names.get(".".join(parts[1:]), "__init__"))
        found[name] = targets - {name}
    return found


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, if there is one."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := walk(target, [*way, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := walk(name, []):
            return found
    return []


def test_imports_go_downwards() -> None:
    known = layers(LAYERS)
    upwards = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in sorted(targets)
        if level_of(target, known) > level_of(name, known)
    ]
    assert upwards == []


def test_no_imports_in_a_circle() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"], "it would be found"
    found = graph()
    # When there is an error to be explained, the kernel is asked, by the calls that raise errors.
    found["sysv.errors"].remove("sysv._explain")
    assert circle_in(found) == []


def test_the_graph_is_seen() -> None:
    found = graph()
    assert "_core.family" in found["_sync.primitives"], "cimports"
    assert "pool" in found["managers"]
    assert "_stdlib.parcel" in found["popen_spawn_posix"]
    assert "queues" in found["context"], "in functions"
    assert "pool" not in found["queues"]


def test_c_files_include_downwards() -> None:
    known = layers(CORE_LAYERS)

    def level(name: str) -> int:
        return known[name] if name in known else known[name.rpartition(".")[0]]

    upwards = []
    for path in sorted(CORE.glob("*.[ch]")):
        for target in re.findall(r'^#include "([\w-]+\.h)"', path.read_text(), re.MULTILINE):
            own = target == f"{path.stem}.h"
            beside = path.name in known and known[path.name] == known.get(target)  # headers that stand in one line
            if level(target) > level(path.name) or (level(target) == level(path.name) and not own and not beside):
                upwards.append(f"{path.name} includes {target}")
    assert upwards == []


def test_every_c_file_has_a_header() -> None:
    """But for a main program, and the parts of the queue."""
    without = {path.stem for path in CORE.glob("*.c")} - {path.stem for path in CORE.glob("*.h")}
    assert without == {"mpipc-reaper", "send", "receive", "shutdown"}


def test_only_faces_stand_at_the_door() -> None:
    """In mpipc/ itself: multiprocessing's names, their stubs, and rooms."""
    private = [path.name for path in PACKAGE.glob("_*") if path.is_file() and not path.name.startswith("__")]
    assert [name for name in private if not name.endswith((".so", ".c"))] == []


def test_no_module_is_too_long() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for suffix in ("*.py", "*.pyx", "src/*.c", "src/*.h")
        for path in PACKAGE.rglob(suffix)
    }
    assert {name: count for name, count in lines.items() if count > 600} == {}


def functions_of_python(path: Path) -> dict[str, int]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)]
    return {f"{path.relative_to(ROOT)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1 for node in found}


def functions_of_c(path: Path) -> dict[str, int]:
    found = re.finditer(r"^\w[^\n;]*\) \{\n.*?^\}", path.read_text(), re.MULTILINE | re.DOTALL)
    return {f"{path.relative_to(ROOT)}: {each.group(0).partition('(')[0]}": each.group(0).count("\n") for each in found}


def test_no_function_is_too_long() -> None:
    lengths: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        lengths |= functions_of_python(path)
    for path in CORE.glob("*.c"):
        lengths |= functions_of_c(path)
    assert len(lengths) > 500
    assert {name: lines for name, lines in lengths.items() if lines > 80} == {}
