"""Only what must be code: the extensions, one directives table, Winsock's library on Windows."""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# HARKEN_TRACE=1 builds for coverage: line tracing on, and each .c beside its .pyx, where Cython's plugin looks for it.
TRACE = os.environ.get("HARKEN_TRACE") == "1"

# Module state and type specs go together: without both, a second interpreter cannot import the modules.
MACROS = [("CYTHON_USE_MODULE_STATE", "1"), ("CYTHON_USE_TYPE_SPECS", "1")]

DIRECTIVES = {
    "language_level": 3,
    "auto_pickle": False,
    "binding": True,
    "boundscheck": False,
    "embedsignature": False,
    "freethreading_compatible": True,
    "initializedcheck": False,
    "linetrace": TRACE,
    "subinterpreters_compatible": "own_gil",
    "wraparound": False,
}

if sys.platform == "win32":
    LIBRARIES, COMPILE_ARGS, LINK_ARGS = ["ws2_32"], ["/O2"], []
else:
    LIBRARIES, COMPILE_ARGS = [], ["-O2", "-fvisibility=hidden", "-fno-plt"]
    LINK_ARGS = ["-Wl,-z,relro,-z,now", "-s"] if sys.platform == "linux" else []

HEADERS = [str(path) for path in sorted(Path("ext/harken").rglob("*.h"))]

EXTENSIONS = [
    Extension(
        f"harken.{path.stem}",
        [path.as_posix()],
        include_dirs=["ext/harken"],
        define_macros=MACROS + ([("CYTHON_TRACE_NOGIL", "1")] if TRACE else []),
        libraries=LIBRARIES,
        extra_compile_args=COMPILE_ARGS,
        extra_link_args=LINK_ARGS,
        depends=HEADERS,
    )
    for path in sorted(Path("ext/harken").glob("*.pyx"))
]

if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            EXTENSIONS,
            include_path=["ext"],
            build_dir=None if TRACE else "build/cython",
            compiler_directives=DIRECTIVES,
        )
    )
