"""Builds the Cython extensions and the reaper, a small C program that ships inside the package."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not sys.platform.startswith("linux"):
    sys.exit("mpipc needs Linux: it is built on System V IPC with SEM_UNDO as Linux implements them.")

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

CORE = Path("mpipc/_core/src")
CORE_MODULE = "mpipc._core.family"
CORE_LIBRARY = "mpipc_core"
REAPER = "mpipc-reaper"
COMPILE_ARGS = ["-O2", "-std=gnu11", "-fvisibility=hidden"]
COMPILE_ARGS += ["-Wall", "-Wno-unused-function", "-Werror=implicit-function-declaration"]
COMPILE_ARGS += ["-iquote", str(CORE)]  # not -I: the core has a semaphore.h, and so has the C library
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


def core_sources() -> list[str]:
    return [str(path) for path in sorted(CORE.glob("*.c")) if path.stem != REAPER]


def core_headers() -> list[str]:
    return [str(path) for path in sorted(CORE.glob("*.h"))]


def stale(source: str, product: str, depends: list[str]) -> bool:
    return not os.path.exists(product) or any(
        os.path.getmtime(path) >= os.path.getmtime(product) for path in [source, *depends, __file__]
    )


@contextlib.contextmanager
def compiling_what_is_stale(compiler: Any) -> Iterator[None]:
    """Both commands compile everything as soon as anything has changed. Here what has not changed since it was compiled
    is left as it is: after a change of the core, only the linker has to see the extensions again."""
    compile_all = compiler.compile

    def compile_stale(
        sources: list[str], output_dir: str, depends: list[str] | None = None, **options: Any
    ) -> list[str]:
        objects = compiler.object_filenames(sources, output_dir=output_dir)
        inputs = [*core_headers(), *(path for path in depends or [] if path.endswith(".pxd"))]
        for source, product in zip(sources, objects, strict=True):
            if stale(source, product, inputs):
                compile_all([source], output_dir=output_dir, **options)
        return objects

    compiler.compile = compile_stale
    try:
        yield
    finally:
        compiler.compile = compile_all


class BuildCore(build_clib):
    def build_libraries(self, libraries: Any) -> None:
        with contextlib.nullcontext() if self.force else compiling_what_is_stale(self.compiler):
            super().build_libraries(libraries)


class BuildAll(build_ext):
    """build_ext, with the C core as a static library before it, and the reaper executable, made of the same, after it.

    The core is compiled once. The linker takes from the library what an extension uses of it: nothing, for those of
    mpipc.sysv. What it takes is a copy, with hidden names; the copies keep no state but what they are handed in a
    struct mp_family, so they do not know of each other, and do not need to.
    """

    def run(self) -> None:
        library = self._library()
        # ar(1) keeps what is in it, also what came from a source that is there no more.
        if library.exists() and set(self._members(library)) != {Path(source).stem + ".o" for source in core_sources()}:
            library.unlink()
        self.run_command("build_clib")
        super().run()
        self._build_reaper()

    def _library(self) -> Path:
        return Path(self.get_finalized_command("build_clib").build_clib, f"lib{CORE_LIBRARY}.a")

    @staticmethod
    def _members(library: Path) -> list[str]:
        return subprocess.run(["ar", "t", library], capture_output=True, text=True, check=True).stdout.split()

    def build_extensions(self) -> None:
        library = self._library()
        for extension in self.extensions:
            if uses_core(extension):
                extension.libraries = [CORE_LIBRARY]
                extension.library_dirs = [str(library.parent)]
                extension.depends += [str(library)]
        with contextlib.nullcontext() if self.force else compiling_what_is_stale(self.compiler):
            super().build_extensions()

    def _build_reaper(self) -> None:
        target, library = self._reaper_path(), self._library()
        source = str(CORE / f"{REAPER}.c")
        if not self.force and not stale(source, str(target), [str(library), *core_headers()]) and runs(target):
            return
        objects = self.compiler.compile(
            [source],
            output_dir=str(Path(self.build_temp) / "reaper"),
            extra_postargs=COMPILE_ARGS,
        )
        # The linker would write into the file of a reaper that is running; a new file leaves that one alone.
        target.unlink(missing_ok=True)
        self.compiler.link_executable(
            objects,
            REAPER,
            output_dir=str(target.parent),
            libraries=[CORE_LIBRARY],
            library_dirs=[str(library.parent)],
            extra_postargs=[*LINK_ARGS, "-pthread"],
        )

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(self._reaper_path())]

    def _reaper_path(self) -> Path:
        """In the source tree for an editable install or --inplace, in the build directory otherwise."""
        return Path(self.get_ext_fullpath(CORE_MODULE)).with_name(REAPER)


def uses_core(extension: Extension) -> bool:
    return not extension.name.startswith("mpipc.sysv.")


def extensions() -> list[Extension]:
    """One for each .pyx."""
    return [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            depends=[*core_headers(), Path(__file__).name],
            extra_compile_args=COMPILE_ARGS,
            extra_link_args=LINK_ARGS,
        )
        for source in sorted(Path("mpipc").rglob("*.pyx"))
    ]


setup(
    ext_modules=cythonize(extensions(), language_level=3, compiler_directives={"embedsignature": True}),
    libraries=[
        (
            CORE_LIBRARY,
            {
                "sources": core_sources(),
                "cflags": COMPILE_ARGS,
                "obj_deps": {"": [*core_headers(), Path(__file__).name]},
            },
        )
    ],
    cmdclass={"build_clib": BuildCore, "build_ext": BuildAll},
)
