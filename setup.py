"""Only what must be code: the extensions, one directives table, Winsock's library on Windows, an sdist that repeats."""

import gzip
import os
import sys
import tarfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.sdist import sdist

# HARKEN_TRACE=1 builds for coverage: line tracing on, and each .c beside its .pyx, where Cython's plugin looks for it.
TRACE = os.environ.get("HARKEN_TRACE") == "1"

# Module state and type specs go together: without both, a second interpreter cannot import the modules. Strings are not
# compressed: Cython 3.2 would do it with zlib, which each import would load; 3.3 does it with code of its own, which
# every module would carry and run.
MACROS = [("CYTHON_USE_MODULE_STATE", "1"), ("CYTHON_USE_TYPE_SPECS", "1"), ("CYTHON_COMPRESS_STRINGS", "0")]

DIRECTIVES = {
    "language_level": 3,
    "auto_pickle": False,
    "binding": False,  # CPython calls its own kind of function faster; it has a name, a signature, and can be pickled
    "boundscheck": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "freethreading_compatible": True,
    "initializedcheck": False,
    "linetrace": TRACE,
    "subinterpreters_compatible": "own_gil",
    "wraparound": False,
}

# The same for every module. Frame pointers and unwind tables let perf, gdb and py-spy see through our functions, and
# the symbol table tells their names. -g0: Python's own flags mostly have -g, for debugging information.
if sys.platform == "win32":
    LIBRARIES, COMPILE_ARGS, LINK_ARGS = ["ws2_32"], ["/O2"], []
else:
    LIBRARIES, LINK_ARGS = [], []
    COMPILE_ARGS = ["-O2", "-g0", "-fno-omit-frame-pointer", "-fvisibility=hidden"]
    COMPILE_ARGS += ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]
    COMPILE_ARGS += ["-Wno-unused-function"]  # Cython's, for strings that it would compress
    if sys.platform == "linux":
        LINK_ARGS = ["-Wl,-z,relro,-z,now,-z,noexecstack"]

PARTS = [str(path) for path in sorted(Path("ext/harken").rglob("*")) if path.suffix in {".h", ".pxi"}]


EXTENSIONS = [
    Extension(
        f"harken.{path.stem}",
        [path.as_posix()],
        include_dirs=["ext/harken"],
        define_macros=MACROS + ([("CYTHON_TRACE_NOGIL", "1")] if TRACE else []),
        libraries=LIBRARIES,
        extra_compile_args=COMPILE_ARGS,
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
