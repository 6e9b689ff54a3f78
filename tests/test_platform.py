"""The platform room on its own, in C, and the line around it: platforms differ in there and nowhere else."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import LINUX, linux_only, posix_only

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
EXT = TREE / "ext" / "harken"
ROOM = EXT / "platform"

pytestmark = pytest.mark.skipif(not ROOM.is_dir(), reason="the sources are not beside the tests")

STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-I", str(EXT)]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
MINGW = shutil.which("x86_64-w64-mingw32-gcc")
WINE = shutil.which("wine")
# Other processors, the first big-endian: Debian's cross compiler, and qemu-user, which runs what it makes.
OTHERS = [
    pytest.param(
        f"{machine}-linux-gnu",
        marks=pytest.mark.skipif(
            not (shutil.which(f"{machine}-linux-gnu-gcc") and shutil.which(f"qemu-{machine}-static")),
            reason=f"there is no {machine}-linux-gnu-gcc or no qemu-{machine}-static",
        ),
    )
    for machine in ("s390x", "aarch64")
]

# Linux, made to look like a system that harken does not know, without accept4() and eventfd(): on_other.h.
OLDER_SYSTEM = """
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#undef SOCK_CLOEXEC
#undef SOCK_NONBLOCK
#undef __linux__
#define LINUX_IN_DISGUISE
"""


# Systems with a kqueue, which tests/kqueue stands in for on Linux.
KQUEUE = ["-DHARKEN_KQUEUE", "-I", str(HERE / "kqueue"), "-include", "sys/event.h"]


def build(compiler: str, source: str, program: Path, *flags: str) -> Path:
    command = [compiler, *STRICT, *flags, str(HERE / source), "-o", str(program)]
    if "mingw" in compiler:
        command.append("-lws2_32")
    else:
        command += ["-D_GNU_SOURCE", "-pthread"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if "-fsanitize" in "".join(flags) and re.search(r"cannot find .*[alut]+san|unsupported option", built.stderr):
        pytest.skip("this compiler has no sanitizers")
    assert (built.returncode, built.stderr) == (0, "")
    return program


def output(*command: str | Path, **environment: str) -> list[str]:
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def last_line(*command: str | Path, **environment: str) -> str:
    return output(*command, **environment)[-1]


@posix_only
@pytest.mark.skipif(not COMPILERS, reason="there is neither gcc nor clang")
class TestOnThisSystem:
    @pytest.mark.parametrize("compiler", COMPILERS)
    @pytest.mark.parametrize("optimised", ["-O0", "-O2"])
    def test_the_contract_is_kept(self, compiler: str, optimised: str, tmp_path: Path) -> None:
        assert last_line(build(compiler, "flow.c", tmp_path / "flow", optimised)) == "ok"

    @pytest.mark.proof
    @pytest.mark.parametrize("compiler", COMPILERS)
    def test_no_undefined_behaviour_and_no_leak(self, compiler: str, tmp_path: Path) -> None:
        flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        assert last_line(build(compiler, "flow.c", tmp_path / "flow", *flags)) == "ok"

    @pytest.mark.parametrize("compiler", COMPILERS)
    @pytest.mark.parametrize("optimised", ["-O0", pytest.param("-O2", marks=pytest.mark.proof)])
    @pytest.mark.parametrize("program", ["engine.c", "admission.c"])
    def test_the_engines_keep_their_contract(self, compiler: str, program: str, optimised: str, tmp_path: Path) -> None:
        assert last_line(build(compiler, program, tmp_path / "engine", optimised)) == "ok"

    @pytest.mark.proof
    @pytest.mark.parametrize("compiler", COMPILERS)
    @pytest.mark.parametrize("program", ["engine.c", "admission.c"])
    def test_the_engines_keep_their_contract_under_sanitizers(
        self, compiler: str, program: str, tmp_path: Path
    ) -> None:
        flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        assert last_line(build(compiler, program, tmp_path / "sanitized", *flags)) == "ok"

    @linux_only
    @pytest.mark.proof
    @pytest.mark.parametrize("compiler", COMPILERS)
    @pytest.mark.parametrize("source", ["engine.c", "admission.c"])
    def test_no_data_race_in_the_engines(self, compiler: str, source: str, tmp_path: Path) -> None:
        program = build(compiler, source, tmp_path / "engine", "-g", "-O1", "-fsanitize=thread")
        try:
            assert last_line(program, TSAN_OPTIONS="halt_on_error=1") == "ok"
        except AssertionError as error:
            if "unexpected memory mapping" in str(error):
                pytest.skip("this kernel spreads memory more than the sanitizer knows")
            raise

    @pytest.mark.parametrize("compiler", COMPILERS)
    @pytest.mark.parametrize("optimised", ["-O0", pytest.param("-O2", marks=pytest.mark.proof)])
    def test_the_engines_take_the_same_batches(self, compiler: str, optimised: str, tmp_path: Path) -> None:
        self.run_engines(build(compiler, "batches.c", tmp_path / "batches", optimised))

    @pytest.mark.proof
    @pytest.mark.parametrize("compiler", COMPILERS)
    def test_no_undefined_behaviour_and_no_leak_in_the_engines(self, compiler: str, tmp_path: Path) -> None:
        flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        self.run_engines(build(compiler, "batches.c", tmp_path / "batches", *flags))

    def run_engines(self, program: Path) -> None:
        said = output(program)
        assert said[-1] == "ok"
        assert "accept" in said
        # A kernel that has io_uring may forbid it, but not do it in another way than we think.
        release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
        if LINUX and release >= (6, 15):
            assert "no io_uring here: Operation not supported" not in said

    @linux_only
    @pytest.mark.proof
    @pytest.mark.parametrize("compiler", COMPILERS)
    @pytest.mark.parametrize("program", ["engine.c", "batches.c", "admission.c"])
    @pytest.mark.parametrize(
        "system",
        [[], ["-DKQUEUE_WITHOUT_USER"], ["-include", "older.h"], ["-DKQUEUE_EARLY=4000000"]],
        ids=["FreeBSD", "without user events", "macOS", "early timers"],
    )
    def test_the_engine_of_macos_and_the_bsds(
        self, compiler: str, program: str, system: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "older.h").write_text(OLDER_SYSTEM)
        flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", str(tmp_path)]
        built = build(compiler, program, tmp_path / "program", *flags, *KQUEUE, *system)
        ran = subprocess.run([built], capture_output=True, text=True, timeout=50, check=False)
        assert ran.stdout.splitlines()[-1:] == ["ok"], ran.stderr
        assert "kqueue" in ran.stdout + ran.stderr

    @linux_only
    def test_the_contract_is_kept_without_accept4_and_eventfd(self, tmp_path: Path) -> None:
        (tmp_path / "older.h").write_text(OLDER_SYSTEM)
        program = build(COMPILERS[0], "flow.c", tmp_path / "flow", "-include", str(tmp_path / "older.h"))
        assert last_line(program) == "ok"
        assert not {"accept4", "eventfd"} & symbols(program)
        assert {"accept4", "eventfd"} <= symbols(build(COMPILERS[0], "flow.c", tmp_path / "flow"))


@posix_only
@pytest.mark.parametrize("triplet", OTHERS)
def test_the_contract_is_kept_on_other_processors(triplet: str, tmp_path: Path) -> None:
    program = build(f"{triplet}-gcc", "flow.c", tmp_path / "flow", "-O2")
    emulator = f"qemu-{triplet.partition('-')[0]}-static"
    assert last_line(emulator, "-L", f"/usr/{triplet}", program) == "ok"


SYSTEMS = [path.name for path in sorted(ROOM.glob("on_*.h")) if path.name != "on_posix.h"]


def functions(header: str) -> set[str]:
    """Those that are defined in a header of the room, and in what it includes of the room."""
    text = (ROOM / header).read_text("utf-8")
    found = set(re.findall(r"^static inline [\w ]+?\**(net_\w+)\([^;{]*\{", text, re.MULTILINE))
    for included in re.findall(r'^#include "platform/(.+)"', text, re.MULTILINE):
        if header != "net.h" and included != "net.h":
            found |= functions(included)
    return found


def test_the_contract_is_exercised_whole() -> None:
    exercised = set(re.findall(r"\bnet_\w+", (HERE / "flow.c").read_text(encoding="utf-8")))
    everywhere = set.intersection(*map(functions, SYSTEMS))
    contract = functions("net.h") | everywhere
    assert len(everywhere) > 30
    assert contract - exercised == set()


def symbols(program: Path) -> set[str]:
    """The names that a program imports, as far as this test asks."""
    content = program.read_bytes()
    return {name for name in ("accept4", "eventfd") if re.search(rb"\0" + name.encode() + rb"[\0@]", content)}


@posix_only
@pytest.mark.proof
@pytest.mark.skipif(not MINGW, reason="there is no x86_64-w64-mingw32-gcc")
class TestWinsock:
    @pytest.fixture
    def programs(self, tmp_path: Path) -> list[Path]:
        fakes = ["-DWINSOCK_API_LINKAGE=", "-DWSAStartup=fake_start", "-DWSACleanup=fake_cleanup"]
        compiler = str(MINGW)
        return [
            build(compiler, "flow.c", tmp_path / "flow.exe"),
            build(compiler, "startup.c", tmp_path / "startup.exe", *fakes),
            build(compiler, "engine.c", tmp_path / "engine.exe"),
            build(compiler, "acceptex.c", tmp_path / "acceptex.exe"),
            build(compiler, "admission.c", tmp_path / "admission.exe"),
        ]

    @pytest.fixture
    def wine(self) -> Iterator[dict[str, str]]:
        """A Wine of its own, which is too large to be left behind in tmp_path."""
        folder = Path(tempfile.mkdtemp(prefix="harken-wine-"))
        settings = {"WINEPREFIX": str(folder), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml="}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = os.environ | settings
        # Wine's services start here: started by a later command they would hold its output open.
        subprocess.run([str(WINE), "wineboot", "-i"], env=environment, timeout=100, check=False, **quiet)
        yield settings
        subprocess.run(["wineserver", "-k"], env=environment, timeout=20, check=False, **quiet)
        shutil.rmtree(folder, ignore_errors=True)

    def test_it_compiles_without_a_warning(self, programs: list[Path]) -> None:
        assert all(program.stat().st_size for program in programs)

    @pytest.mark.skipif(not WINE, reason="there is no wine")
    @pytest.mark.timeout(200)
    def test_the_contract_is_kept_and_the_lifecycle_paired(self, programs: list[Path], wine: dict[str, str]) -> None:
        for program in programs:
            assert last_line(str(WINE), program, **wine) == "ok"


# ---------------------------------------------------------------------- the line


def sources(*suffixes: str) -> list[Path]:
    """The files of ext and src outside the room."""
    found = [
        path
        for folder in (EXT, TREE / "src" / "harken")
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes and ROOM not in path.parents
    ]
    assert found
    return found


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.name for path in paths])


ALL = sources(".pyx", ".pxd", ".pxi", ".py", ".pyi") if ROOM.is_dir() else []
COMPILED = [path for path in ALL if path.suffix in {".pyx", ".pxd", ".pxi"}]


@named(ALL)
def test_nothing_outside_the_room_asks_where_it_runs(path: Path) -> None:
    asks = re.compile(r"#if |#ifn?def|_WIN32|\bwin32\b|sys\.platform|os\.name|platform\.system")
    found = [line for line in path.read_text(encoding="utf-8").splitlines() if asks.search(line)]
    assert found == []


@named(COMPILED)
def test_c_names_come_in_by_one_door(path: Path) -> None:
    externs = len(re.findall(r"^\s*cdef extern", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert (externs > 0) == (path.name == "_platform.pxd")


def test_no_header_shadows_one_of_the_system() -> None:
    names = {path.name for path in EXT.rglob("*.h")}
    assert names >= {"net.h", "on_posix.h", "on_windows.h"}
    assert not names & {"windows.h", "winsock.h", "winsock2.h", "socket.h", "sockets.h", "errno.h", "poll.h", "netdb.h"}
    assert all(ROOM in path.parents for path in EXT.rglob("*.h"))


def test_the_room_is_one_contract_and_one_file_a_platform() -> None:
    contract = (ROOM / "net.h").read_text(encoding="utf-8")
    promised = {name for line in contract.splitlines() for name in re.findall(r"^ \*   (.+?)  +", line)}
    promised = {name.rstrip("*") for names in promised for name in re.split(r",\s*", names) if name.startswith("net_")}
    assert len(promised) > 15
    assert {"on_bsd.h", "on_darwin.h", "on_linux.h", "on_other.h", "on_windows.h"} == set(SYSTEMS)
    for file in SYSTEMS:
        defined = functions("net.h") | functions(file)
        missing = {name for name in promised if not any(have.startswith(name) for have in defined)}
        assert missing <= {"net_options"}, file
        assert (ROOM / file).read_text("utf-8").count("net_options[] = {") == 1


def test_which_system_it_is_is_asked_where_a_file_is_chosen() -> None:
    """And in the BSDs' own file, where their C functions differ in a type, and of Python's."""
    asks = re.compile(r"__linux__|_WIN32\b|__APPLE__|__\w+BSD__|__DragonFly__")
    asking = {str(path.relative_to(ROOM)) for path in ROOM.rglob("*.h") if asks.search(path.read_text("utf-8"))}
    choosing = {"net.h", "paths.h", "steering.h", "engines/engine.h"}
    assert {name.replace(os.sep, "/") for name in asking} == choosing | {
        "on_bsd.h",
        "engines/kqueue.h",
        "cpython/raise.h",
    }


@pytest.mark.parametrize("call", ["getaddrinfo", "freeaddrinfo", "bind", "listen"])
def test_the_compiled_modules_name_the_calls(call: str) -> None:
    named_in = [path.name for path in ALL if path.suffix == ".pyx" and f"c.{call}(" in path.read_text(encoding="utf-8")]
    assert named_in != []


def test_the_errors_of_the_system_are_read_in_the_room_only() -> None:
    reads = re.compile(r"\berrno\s*[.(]|WSAGetLastError|GetLastError")
    assert [path.name for path in COMPILED if reads.search(path.read_text("utf-8"))] == []


def test_a_wheel_is_tested_with_all_that_the_tests_read() -> None:
    """cibuildwheel gives them these folders, and nothing else of the tree."""
    settings = tomllib.loads((TREE / "pyproject.toml").read_text("utf-8"))["tool"]["cibuildwheel"]
    read = {
        name
        for test in HERE.glob("*.py")
        for name in re.findall(r'(?:TREE|parent\.parent) / "([\w.]+)"', test.read_text("utf-8"))
    }
    assert read >= {"benchmarks", "docs", "examples", "ext", "src"}
    assert read <= set(settings["test-sources"])
