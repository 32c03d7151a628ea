"""Builds the Cython extensions and the reaper, a small C program that ships inside the package."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if not sys.platform.startswith("linux"):
    sys.exit("mpipc needs Linux: it is built on System V IPC with SEM_UNDO as Linux implements them.")

from Cython.Build import cythonize

CORE = Path("mpipc/family/src")
CORE_SOURCES = ["family.c", "recovery.c", "launch.c"]
COMPILE_ARGS = ["-O2", "-std=gnu11", "-Wall", "-Wno-unused-function"]


class BuildWithReaper(build_ext):
    """build_ext, and then the reaper executable beside the extension that starts it."""

    def run(self) -> None:
        super().run()
        package = Path(self.get_ext_fullpath("mpipc.family._core")).parent
        objects = self.compiler.compile(
            [str(CORE / name) for name in (*CORE_SOURCES, "reaper.c")],
            output_dir=str(Path(self.build_temp) / "reaper"),
            include_dirs=[str(CORE)],
            extra_postargs=COMPILE_ARGS,
        )
        self.compiler.link_executable(objects, "mpipc-reaper", output_dir=str(package))

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.get_ext_fullpath("mpipc.family._core")).parent / "mpipc-reaper")]


def extensions() -> list[Extension]:
    found = []
    for source in sorted(Path("mpipc").rglob("*.pyx")):
        name = ".".join(source.with_suffix("").parts)
        sources, include, depends = [str(source)], [], []
        if (CORE / "family.h").exists() and source.parts[1] != "sysv":
            include = [str(CORE)]
            depends = [str(path) for path in sorted(CORE.glob("*.h"))]
            if name == "mpipc.family._core":
                sources += [str(CORE / file) for file in CORE_SOURCES]
        found.append(Extension(name, sources, include_dirs=include, depends=depends, extra_compile_args=COMPILE_ARGS))
    return found


setup(
    ext_modules=cythonize(extensions(), language_level=3, compiler_directives={"embedsignature": True}),
    cmdclass={"build_ext": BuildWithReaper},
)
