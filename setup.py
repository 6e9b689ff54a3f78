"""Only what must be code: the extensions, one directives table, Winsock's library on Windows, an sdist that repeats."""

import gzip
import os
import sys
import sysconfig
import tarfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.sdist import sdist

# HARKEN_TRACE=1 builds for coverage: line tracing on, and each .c beside its .pyx, where Cython's plugin looks for it.
TRACE = os.environ.get("HARKEN_TRACE") == "1"

# Module state and type specs go together: without both, a second interpreter cannot import the modules. A wheel is
# compressed as a whole, and better than Cython does it for the strings of each module.
MACROS = [("CYTHON_USE_MODULE_STATE", "1"), ("CYTHON_USE_TYPE_SPECS", "1"), ("CYTHON_COMPRESS_STRINGS", "0")]

DIRECTIVES = {
    "language_level": 3,
    "auto_pickle": False,
    "binding": False,  # functions as CPython's own are, for a tenth of the wheel; signatures too
    "boundscheck": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "freethreading_compatible": True,
    "initializedcheck": False,
    "linetrace": TRACE,
    "optimize.unpack_method_calls": False,  # CPython's own way is as fast, and smaller
    "subinterpreters_compatible": "own_gil",
    "wraparound": False,
}

# Small first: the system calls take ten times as long as our code around them. But numeric addresses ask the system
# nothing, so _resolve is fast, where there is room for it: without a GIL all code is larger. Clang inlines much, unless
# told twice.
FAST = set() if sysconfig.get_config_var("Py_GIL_DISABLED") else {"_resolve"}
NO_SHORT_CUTS = [("CYTHON_USE_PYLONG_INTERNALS", "0"), ("CYTHON_USE_UNICODE_INTERNALS", "0")]
CLANG = sys.platform == "darwin" or "zig" in os.environ.get("CC", "")

if sys.platform == "win32":
    LIBRARIES, COMPILE_ARGS, LINK_ARGS = ["ws2_32"], [], []
else:
    LIBRARIES, COMPILE_ARGS = [], ["-fvisibility=hidden", "-fno-plt"]
    # Nothing unwinds these stacks but a debugger: a tenth of the size.
    COMPILE_ARGS += ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]
    COMPILE_ARGS += ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]
    COMPILE_ARGS += ["-Wno-unused-function"]  # Cython's, for strings that it would compress
    LINK_ARGS = {
        "linux": ["-Wl,-z,relro,-z,now,-z,noexecstack", "-s"],
        "darwin": ["-Wl,-dead_strip", "-Wl,-x"],
    }.get(sys.platform, [])


def optimised(module):
    if sys.platform == "win32":
        return ["/O2" if module in FAST else "/O1"]
    if module in FAST:
        return ["-O2"]
    return ["-Os"] + (["-Xclang", "-Oz"] if CLANG else [])


PARTS = [str(path) for path in sorted(Path("ext/harken").rglob("*")) if path.suffix in {".h", ".pxi"}]


EXTENSIONS = [
    Extension(
        f"harken.{path.stem}",
        [path.as_posix()],
        include_dirs=["ext/harken"],
        define_macros=MACROS
        + ([] if path.stem in FAST else NO_SHORT_CUTS)
        + ([("CYTHON_TRACE_NOGIL", "1")] if TRACE else []),
        libraries=LIBRARIES,
        extra_compile_args=COMPILE_ARGS + optimised(path.stem),
        extra_link_args=LINK_ARGS,
        depends=PARTS,
    )
    for path in sorted(Path("ext/harken").glob("*.pyx"))
]


class ReproducibleSdist(sdist):
    """With SOURCE_DATE_EPOCH the same files give the same bytes: its time, and nobody's name, group and umask."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if format != "gztar" or epoch is None or root_dir is not None:
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def anybodys(entry):
            entry.mtime = int(epoch)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        archive = f"{base_name}.tar.gz"
        with (
            open(archive, "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            tar.add(base_dir, filter=anybodys)
        return archive


if __name__ == "__main__":
    setup(
        cmdclass={"sdist": ReproducibleSdist},
        ext_modules=cythonize(
            EXTENSIONS,
            include_path=["ext"],
            build_dir=None if TRACE else "build/cython",
            compiler_directives=DIRECTIVES,
        ),
    )
