"""Builds the Cython extensions and the reaper, a small C program that ships inside the package."""

import os
import subprocess
import sys
from pathlib import Path

if not sys.platform.startswith("linux"):
    sys.exit("mpipc needs Linux: it is built on System V IPC with SEM_UNDO as Linux implements them.")

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = Path("mpipc/family/src")
CORE_MODULE = "mpipc.family._core"
REAPER = "mpipc-reaper"
COMPILE_ARGS = ["-O2", "-std=gnu11", "-Wall", "-Wno-unused-function"]
LINK_ARGS: list[str] = []

# `make sanitize` builds with what this names, such as address,undefined: see gcc(1), -fsanitize.
if sanitizers := os.environ.get("MPIPC_SANITIZE"):
    LINK_ARGS += [f"-fsanitize={sanitizers}"]
    COMPILE_ARGS += [*LINK_ARGS, "-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


def runs(reaper: Path) -> bool:
    """Or it was made with a newer C library: the one in the source tree is every Python's.

    Without arguments it ends with 2.
    """
    try:
        return subprocess.run([reaper.absolute()], stderr=subprocess.DEVNULL, check=False).returncode == 2
    except OSError:
        return False


def core_sources() -> list[Path]:
    """What the extension and the reaper have in common: all of the C core but the reaper's main program."""
    return [path for path in sorted(CORE.glob("*.c")) if path.name != "reaper.c"]


def core_headers() -> list[Path]:
    return sorted(CORE.glob("*.h"))


class BuildWithReaper(build_ext):
    """build_ext, and then the reaper executable beside the extension that starts it."""

    def run(self) -> None:
        super().run()
        sources = [*core_sources(), CORE / "reaper.c"]
        target = self._reaper_path()
        inputs = [*sources, *core_headers(), Path(__file__)]
        if (
            not self.force
            and target.exists()
            and all(path.stat().st_mtime < target.stat().st_mtime for path in inputs)
            and runs(target)
        ):
            return
        objects = self.compiler.compile(
            [str(path) for path in sources],
            output_dir=str(Path(self.build_temp) / "reaper"),
            include_dirs=[str(CORE)],
            extra_postargs=COMPILE_ARGS,
        )
        # The linker would write into the file of a reaper that is running; a new file leaves that one alone.
        target.unlink(missing_ok=True)
        self.compiler.link_executable(objects, REAPER, output_dir=str(target.parent), extra_postargs=LINK_ARGS)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(self._reaper_path())]

    def _reaper_path(self) -> Path:
        """In the source tree for an editable install or --inplace, in the build directory otherwise."""
        return Path(self.get_ext_fullpath(CORE_MODULE)).with_name(REAPER)


def extensions() -> list[Extension]:
    """One for each .pyx.

    Those above the kernel layer contain the C core, which keeps no state but what it is handed in a struct mp_family:
    the copies do not know of each other, and do not need to.
    """
    found = []
    for source in sorted(Path("mpipc").rglob("*.pyx")):
        name = ".".join(source.with_suffix("").parts)
        sources, include, depends = [source], [], [Path(__file__).name]
        if source.parts[1] != "sysv":
            include = [str(CORE)]
            depends += [str(path) for path in core_headers()]
            sources += core_sources()
        found.append(
            Extension(
                name,
                [str(path) for path in sources],
                include_dirs=include,
                depends=depends,
                extra_compile_args=COMPILE_ARGS,
                extra_link_args=LINK_ARGS,
            )
        )
    return found


setup(
    ext_modules=cythonize(extensions(), language_level=3, compiler_directives={"embedsignature": True}),
    cmdclass={"build_ext": BuildWithReaper},
)
