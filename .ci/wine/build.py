"""Builds the Windows side on the host: `build.py SOURCE CACHE PYTHON LIB INCLUDE COMPILER` prints the folder of a
Windows virtual environment.

PYTHON is its version, with a t when it has no GIL and -32 when it is for x86; LIB and INCLUDE, the standard library and
the headers of that version; COMPILER, the command of a Python of that version on this machine, for bytecode.

What it makes lies in CACHE under a hash of what it was made from, is made once and never changed:
  python/    CPython for Windows: genuine DLLs, the host's standard library and headers
  packages/  the tests' dependencies for Windows
  module/    one compiled extension module
  tree/      the virtual environment: the package as it would be installed, a way to the dependencies, and tests/*.c as
             DLLs in its folder tests
"""

import contextlib
import functools
import hashlib
import importlib.resources
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler.Errors import CompileError

HERE = Path(__file__).resolve().parent
SOURCE, CACHE = map(Path, sys.argv[1:3])
PYTHON, LIB, INCLUDE, COMPILER = sys.argv[3:]
X86 = PYTHON.endswith("-32")
VERSION = PYTHON.removesuffix("-32").removesuffix("t")
NO_GIL = PYTHON.removesuffix("-32") != VERSION
XY = PYTHON.removesuffix("-32").replace(".", "")  # with the t
PLATFORM = "win32" if X86 else "win_amd64"

# The wheel carries, to be shipped with games, the files of python.org's CPython for Windows.
DLLS = "panda3d==1.10.16"
FOR_WINDOWS = [f"--platform={PLATFORM}", f"--python-version={VERSION}", "--only-binary=:all:"]
if NO_GIL:
    FOR_WINDOWS.append(f"--abi=cp{XY}")

# Of the host's standard library: what is not for Windows, what Python does without.
NOT_COPIED = ["site-packages", "dist-packages", "lib-dynload", "config-*", "_sysconfigdata*", "sitecustomize.py"]
NOT_COPIED += ["__pycache__", "test", "tests", "idlelib", "ensurepip", "turtledemo"]

MINGW = "i686-w64-mingw32" if X86 else "x86_64-w64-mingw32"
GCC = f"{MINGW}-gcc"
CFLAGS = ["-O2", "-Wall", "-Wextra", "-D__STDC_NO_THREADS__"]  # mingw-w64 has no threads.h, but does not say so
if NO_GIL:
    CFLAGS.append("-DPy_GIL_DISABLED=1")  # which one pyconfig.h cannot know for both
LIBRARIES = ["-lws2_32", "-lmswsock"]  # setup.py names those of the system that it runs on


def say(message):
    print(f"wine: {message}", file=sys.stderr)


def run(*command, **options):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **options)


def pip(*arguments):
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments, stdout=sys.stderr)


def windows_path(path):
    return "Z:" + str(path).replace("/", "\\")


def cached(kind, name, make, *made_from):
    """The folder that make(folder) has filled, now or earlier, from what made_from tells."""
    key = repr((Path(__file__).read_bytes(), sys.version, sys.argv[3:], made_from))
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = CACHE / kind / f"{name}-{key}"
    complete = folder / "complete"
    if not complete.exists():
        say(f"making {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        complete.touch()
    os.utime(folder)  # its use, for the deletion of what is unused
    return folder


def precompile(folder):
    # Not by its exit status: some packages carry files that are no Python.
    command = [*shlex.split(COMPILER), "-m", "compileall", "-qq", "--invalidation-mode=unchecked-hash", folder]
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def make_python(folder):
    wheels = folder / "wheels"
    pip("download", "--no-deps", *FOR_WINDOWS, f"--dest={wheels}", DLLS)
    with zipfile.ZipFile(*wheels.iterdir()) as wheel:
        for member in wheel.infolist():
            part, _, name = member.filename.rpartition("/")
            # api-ms-*: Wine has its own. _wmi: kills the process, as Wine lacks what it calls; the standard library
            # does without it. The wheels have the modules for both kinds of DLL, whichever they have.
            fits = not name.endswith(".pyd") or bool(re.search(r"\.cp\d+t-", name)) == NO_GIL
            if part == "deploy_libs" and not name.startswith(("api-ms-", "_wmi")) and fits:
                # As in python.org's installation: beside python.exe what it needs itself, the rest in DLLs.
                place = folder if name.lower().startswith(("python", "vcruntime")) else folder / "DLLs"
                place.mkdir(exist_ok=True)
                (place / name).write_bytes(wheel.read(member))
    shutil.rmtree(wheels)

    shutil.copytree(LIB, folder / "Lib", ignore=shutil.ignore_patterns(*NOT_COPIED))
    precompile(folder / "Lib")

    shutil.copytree(INCLUDE, folder / "Include", ignore=shutil.ignore_patterns("pyconfig*.h"))
    shutil.copy(HERE.parent / "pyconfig.h", folder / "Include")
    (folder / "Include" / "Windows.h").write_text("#include <windows.h>\n")  # Cython writes it so; case matters here
    run(f"{MINGW}-windres", HERE / "python.rc", folder / "manifest.o")
    program = [GCC, *CFLAGS, "-Werror", "-municode", "-s"]
    run(*program, HERE / "python.c", folder / "manifest.o", folder / f"python{XY}.dll", "-o", folder / "python.exe")
    if X86:
        make_stable_abi(folder)
    run(*program, HERE / "console.c", "-o", folder / "console.exe")


def make_stable_abi(folder):
    """python3.dll, for modules of the stable ABI (hypothesis for x86 is one): all that it has is in pythonXY.dll."""
    told = subprocess.run(
        [f"{MINGW}-objdump", "-p", folder / f"python{XY}.dll"], check=True, capture_output=True, text=True
    ).stdout
    names = sorted(set(re.findall(r"^\s+\[ *\d+\] .*?(\w+)$", told, re.MULTILINE)))
    lines = [f"{name} = python{XY}.{name}" for name in names if name.startswith(("Py", "_Py"))]
    (folder / "python3.def").write_text("LIBRARY python3.dll\nEXPORTS\n" + "\n".join(lines) + "\n")
    run(GCC, "-shared", "-nostdlib", "-Wl,--entry=0", folder / "python3.def", "-o", folder / "python3.dll")


def make_packages(folder, requirements):
    # pip asks the conditions of dependencies of the host: what pytest needs on Windows only is named here.
    command = ["install", "--upgrade", f"--target={folder}", *FOR_WINDOWS]
    try:
        pip(*command, *requirements, "colorama")
    except subprocess.CalledProcessError:
        say("without trustme: what it needs is compiled, and not for this Python")
        pip(*command, *(name for name in requirements if name != "trustme"), "colorama")
    precompile(folder)


def make_module(folder, extension, directives, python):
    with contextlib.redirect_stdout(sys.stderr):
        try:
            (cythonized,) = cythonize(
                [extension], quiet=True, include_path=["ext"], build_dir=folder / "c", compiler_directives=directives
            )
        except CompileError:
            sys.exit(f"wine: Cython could not compile {extension.name}")
    # Cython copies the headers next to the C file. Moved away from them it finds ours, and warnings name those.
    c_files = [Path(source) for source in cythonized.sources]
    c_files = [file.rename(folder / file.name) if folder in file.parents else file for file in c_files]
    shutil.rmtree(folder / "c")

    macros = [f"-D{macro}={value}" for macro, value in extension.define_macros]
    includes = [f"-I{include}" for include in [*extension.include_dirs, python / "Include"]]
    objects = []
    for c_file in c_files:
        objects.append(folder / (c_file.stem + ".o"))
        command = [GCC, *CFLAGS, *macros, *includes, "-c", c_file, "-o", objects[-1]]
        compiled = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        # Cython's code may cause warnings, ours may not.
        messages = re.split(r"\n(?=\S+:\d+:\d+: warning)", compiled.stderr)
        ours = [message for message in messages if message.startswith("ext/")]
        if compiled.returncode or ours:
            sys.exit(compiled.stderr if compiled.returncode else "\n".join([*ours, "wine: such warnings are errors"]))
    run(GCC, "-shared", "-static-libgcc", "-s", *objects, python / f"python{XY}.dll", *LIBRARIES,
        "-o", folder / f"{extension.name.rpartition('.')[2]}.cp{XY}-{PLATFORM}.pyd")  # fmt: skip
    for leftover in [*folder.glob("*.o"), *folder.glob("*.c")]:
        leftover.unlink()


def module(shared, directives, python, compiler, extension):
    sources = [Path(source).read_bytes() for source in extension.sources]
    return cached(
        "module", extension.name,
        lambda new: make_module(new, extension, directives, python),
        vars(extension), sources, shared, directives, python, compiler,
    )  # fmt: skip


def make_tree(folder, package, files, modules, helpers, project, python, packages):
    site = folder / "Lib" / "site-packages"
    for file, content in files:
        target = site / package / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for module in modules:
        shutil.copy(*module.glob("*.pyd"), site / package)
    precompile(site)

    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (site / "packages.pth").write_text(windows_path(packages) + "\n")

    # The layout that `python -m venv` makes on Windows, so that -I, -E and an empty environment change nothing.
    scripts = folder / "Scripts"
    scripts.mkdir()
    for program in python.glob("*.exe"):
        shutil.copy(program, scripts)
    for dll in python.glob("*.dll"):
        (scripts / dll.name).symlink_to(dll)
    for name, entry in project["scripts"].items():
        module, function = entry.split(":")
        starter = "cli-32.exe" if X86 else "cli-64.exe"
        shutil.copy(importlib.resources.files("setuptools") / starter, scripts / f"{name}.exe")
        script = f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        (scripts / f"{name}-script.py").write_text(f"#!{windows_path(scripts / 'python.exe')}\n{script}")
    (folder / "pyvenv.cfg").write_text(f"home = {windows_path(python)}\ninclude-system-site-packages = false\n")

    for helper, _ in helpers:
        dll = folder / "tests" / Path(helper).with_suffix(".dll")
        dll.parent.mkdir(exist_ok=True)
        run(GCC, *CFLAGS, "-Werror", "-shared", "-static-libgcc", Path("tests", helper), *LIBRARIES, "-o", dll)


def contents(folder, *patterns):
    files = {file for pattern in patterns for file in Path(folder).rglob(pattern)}
    return [(str(file.relative_to(folder)), file.read_bytes()) for file in sorted(files)]


def main():
    os.chdir(SOURCE)
    os.environ.pop("HARKEN_TRACE", None)
    os.environ["LC_ALL"] = "C"  # the warnings are read, below
    settings = runpy.run_path("setup.py", run_name="build_settings")
    extensions, directives = settings["EXTENSIONS"], settings["DIRECTIVES"]
    project = tomllib.loads(Path("pyproject.toml").read_text())
    (package,) = [path for path in Path("src").iterdir() if path.suffix != ".egg-info"]

    compiler = subprocess.run([GCC, "-v"], check=True, capture_output=True).stderr
    python = cached("python", PYTHON, make_python, DLLS, contents(HERE, "*.c", "*.rc"), contents(HERE.parent, "*.h"))
    requirements = project["dependency-groups"]["test"]
    packages = cached("packages", PYTHON, lambda new: make_packages(new, requirements), requirements)

    # Beside its own .pyx a module may be made from any other file: headers, and the .pxd files of what it cimports.
    shared = contents("ext", "*.pxd", "*.pxi", "*.h", "*.c")

    with ProcessPoolExecutor() as pool:  # processes: Cython is not made for threads
        modules = list(pool.map(functools.partial(module, shared, directives, python, compiler), extensions))

    files = contents(package, "*.py", *project["tool"]["setuptools"]["package-data"][package.name])
    parts = package.name, files, modules, contents("tests", "witness.c"), project["project"], python, packages
    print(cached("tree", PYTHON, lambda new: make_tree(new, *parts), *parts))


if __name__ == "__main__":
    main()
