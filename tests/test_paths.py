"""Paths of unix sockets: at each step of a start, a takeover and a close, another process acts on the path, or a signal
handler raises. HARKEN_ROUNDS=100 repeats the random tests a hundred times as often."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import harken
from children import NOBODY, PREAMBLE, interpreter, needs_root, run, running
from harken import _unix
from machine import linux_only, posix_only

if TYPE_CHECKING:
    from poison import Poison

pytest_plugins = ["poison"]
pytestmark = [posix_only, pytest.mark.filterwarnings("ignore:unclosed harken.Socket:ResourceWarning")]

ROUNDS = int(os.environ.get("HARKEN_ROUNDS", "1"))


@pytest.fixture
def path() -> Iterator[str]:
    """A path that is short, in a folder that others can pass through."""
    folder = tempfile.mkdtemp(prefix="hk")
    os.chmod(folder, 0o755)
    yield os.path.join(folder, "a.sock")
    shutil.rmtree(folder)


# What the programs share: they run below the shim, and tell what came of each turn.
STAGE = """
import itertools, shutil, socket, stat
from harken._unix import open_unix
path = {path!r}
home = os.path.dirname(path)

def served(of=socket.AF_UNIX):
    "A server that looks at nothing: as asyncio, gunicorn and the rest."
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(of)
    sock.bind(path)
    sock.listen()
    sock.inode = inode()
    return sock

class socket_with_inode(socket.socket):
    inode = None
socket.socket = socket_with_inode

def inode():
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None

def leave_dead():
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

def reaches(listener):
    "Does who connects to the path come to this one?"
    listener.settimeout(0)
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        try:
            listener.accept()[0].close()
        except OSError:
            return False
        return True

def clear():
    for name in os.listdir(home):
        full = os.path.join(home, name)
        shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else os.unlink(full)

def at(step, act):
    "Acts once, when this many steps of the others are over; answers a list that gets what act() gave."
    count, came = itertools.count(), []
    each_step(lambda: next(count) == step and came.append(act()))
    return came
"""

LACKS = {
    "nothing": "",
    "questions": f"netlink:1+:{errno.EPERM}",
    "modes": f"fchmod:1+:{errno.EINVAL}",
    "renames": f"exchange:1+:{errno.EINVAL},noreplace:1+:{errno.ENOSYS}",
}
lacking = pytest.mark.parametrize("lacks", LACKS.values(), ids=LACKS)


def stage(poison: Poison, path: str, program: str, lacks: str = "") -> dict[str, int]:
    report = poison.run(
        STAGE.replace("{path!r}", repr(path)) + textwrap.dedent(program), poison=lacks, timeout=60 + 60 * ROUNDS
    )
    return report.said


# ---------------------------------------------------------------------------- other servers


@linux_only
class TestOtherServers:
    @lacking
    @pytest.mark.parametrize("rights", ["", "mode=0o640"])
    @pytest.mark.parametrize("there", ["nothing", "a dead one"])
    def test_a_server_that_checks_nothing_never_loses_its_path(
        self, path: str, poison: Poison, lacks: str, rights: str, there: str
    ) -> None:
        """It unlinks and binds between any two of our steps, from open to close."""
        program = f"""
        turns = refused = won = lost = left = 0
        for step in itertools.count():
            clear()
            if {there == "a dead one"}:
                leave_dead()
            came = at(step, served)
            try:
                listener = open_unix(path, {rights})
            except harken.AddressInUseError:
                refused += 1
            else:
                won += 1
                listener.listen()
                listener.close()
            each_step(None)
            if not came:
                break
            turns += 1
            lost += inode() != came[0].inode or not reaches(came[0])
            left += os.listdir(home) != ["a.sock"]
            came[0].close()
        tell(turns=turns, refused=refused, won=won, lost=lost, left=left)
        """
        said = stage(poison, path, program, lacks)
        assert said["turns"] >= 10
        assert said["won"]
        assert said["refused"]
        assert (said["lost"], said["left"]) == (0, 0)

    def test_what_looks_first_and_unlinks_then_takes_it_away(self, path: str, poison: Poison) -> None:
        """The negative control of the test above: as it was done before, without the lock."""
        program = """
        folder = os.open(home, os.O_PATH)

        def start():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                if probe.connect_ex(path) != errno.ECONNREFUSED:
                    return
            os.unlink("a.sock", dir_fd=folder)
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.bind(path)
                except OSError:
                    pass

        turns = lost = 0
        for step in itertools.count():
            clear()
            leave_dead()
            came = at(step, served)
            start()
            each_step(None)
            if not came:
                break
            turns += 1
            lost += inode() != came[0].inode
        tell(turns=turns, lost=lost)
        """
        said = stage(poison, path, program)
        assert said["lost"] >= 2

    @linux_only
    def test_no_path_is_lost_in_many_forced_races(self, path: str, poison: Poison) -> None:
        """Between the knock and the step: each time."""
        program = f"""
        lost = refused = 0
        for turn in range(100 * {ROUNDS}):
            clear()
            leave_dead()
            came = at(8 + turn % 8, served)
            try:
                open_unix(path).close()
            except harken.AddressInUseError:
                refused += 1
            each_step(None)
            lost += inode() != came[0].inode or os.listdir(home) != ["a.sock"]
            came[0].close()
        tell(lost=lost, refused=refused)
        """
        said = stage(poison, path, program)
        assert said["lost"] == 0
        assert said["refused"] > 20 * ROUNDS

    @lacking
    @pytest.mark.parametrize("there", ["nothing", "a dead one"])
    def test_of_two_that_start_at_once_one_wins(self, path: str, poison: Poison, lacks: str, there: str) -> None:
        """The second starts, and is through, between any two steps of the first."""
        program = f"""
        def start():
            try:
                listener = open_unix(path)
                listener.listen()
                return listener
            except harken.AddressInUseError:
                return None

        turns = wrong = left = 0
        winners = [0, 0]
        for step in itertools.count():
            clear()
            if {there == "a dead one"}:
                leave_dead()
            came = at(step, start)
            first = start()
            each_step(None)
            if not came:
                break
            turns += 1
            both = [first, came[0]]
            winners = [many + (one is not None) for many, one in zip(winners, both)]
            winner = [one for one in both if one]
            wrong += len(winner) != 1 or not reaches(winner[0])
            left += os.listdir(home) != ["a.sock"]
            for one in winner:
                one.close()
            left += os.listdir(home) != []
        tell(turns=turns, wrong=wrong, left=left, winners=winners)
        """
        said = stage(poison, path, program, lacks)
        assert said["turns"] >= (4 if there == "nothing" else 10)
        assert min(said["winners"]) > 0  # type: ignore[call-overload]
        assert (said["wrong"], said["left"]) == (0, 0)

    def test_of_three_that_start_at_once_one_wins(self, path: str, poison: Poison) -> None:
        """The third between any two steps of the second, which runs between any two of the first."""
        program = """
        def start():
            try:
                listener = open_unix(path)
                listener.listen()
                return listener
            except harken.AddressInUseError:
                return None

        turns = wrong = left = 0
        for outer in range(60):
            for inner in range(60):
                clear()
                leave_dead()
                counts, came = [0, 0], []
                def turn():
                    depth = len(came)
                    if depth > 1:
                        return
                    counts[depth] += 1
                    if counts[depth] - 1 == (outer, inner)[depth]:
                        came.append(None)
                        place = len(came) - 1
                        each_step.busy = False
                        came[place] = start()
                each_step(turn)
                first = start()
                each_step(None)
                winner = [one for one in [first, *came] if one]
                turns += len(came) == 2
                wrong += len(winner) != 1 or not reaches(winner[0])
                left += os.listdir(home) != ["a.sock"]
                for one in winner:
                    one.close()
                left += os.listdir(home) != []
                if len(came) < 2:
                    break
            if not came:
                break
        tell(turns=turns, wrong=wrong, left=left)
        """
        said = stage(poison, path, program)
        assert said["turns"] >= 100
        assert (said["wrong"], said["left"]) == (0, 0)

    @lacking
    def test_of_takeovers_at_once_the_newest_has_it(self, path: str, poison: Poison, lacks: str) -> None:
        """A second one takes over between any two steps of the first, which is settled, or is given back."""
        program = """
        turns = wrong = left = nobody = 0
        for settles in (True, False):
            for step in itertools.count():
                clear()
                old = served()
                def second():
                    listener = open_unix(path, exclusive=False)
                    listener.listen()
                    return listener
                came = at(step, second)
                first = open_unix(path, exclusive=False)
                if settles:
                    first.listen()
                    each_step(None)
                    owner = [one for one in [first, *came] if reaches(one)]
                    wrong += len(owner) != 1
                    nobody += not owner
                    first.close()
                else:
                    harken.Socket.listen(first)
                    first.entry.publish()
                    first.close()
                    each_step(None)
                    wrong += not reaches(came[0] if came else old)
                    nobody += not any(map(reaches, [old, *came]))
                for one in came:
                    one.close()
                left += os.listdir(home) not in ([], ["a.sock"])
                if not came:
                    break
                turns += 1
        tell(turns=turns, wrong=wrong, left=left, nobody=nobody)
        """
        said = stage(poison, path, program, lacks)
        assert said["turns"] >= 20
        assert (said["nobody"], said["left"]) == (0, 0)
        if lacks != LACKS["renames"]:  # by which the path is missing for a moment: see docs/unix.md
            assert said["wrong"] == 0

    def test_many_processes_that_start_at_once_have_one_winner(self, path: str) -> None:
        program = f"""
            import harken
            tell()
            for line in sys.stdin:
                try:
                    listeners = harken.listen({"unix:" + path!r})
                except harken.AddressInUseError:
                    tell(won=0)
                else:
                    tell(won=os.getpid())
                    sys.stdin.readline()
                    listeners.close() if line == "close\\n" else listeners[0].to_socket().close()
                    tell()
        """
        command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            for _ in range(10)
        ]
        try:
            for child in children:
                child.stdout.readline()  # type: ignore[union-attr]
            for turn in range(30 * ROUNDS):
                word = "close\n" if turn % 3 == 0 else "leave\n"
                for child in children:
                    child.stdin.write(word)  # type: ignore[union-attr]
                won = [json.loads(child.stdout.readline())["won"] for child in children]  # type: ignore[union-attr]
                (winner,) = [child for child, pid in zip(children, won, strict=True) if pid]
                with socket.socket(socket.AF_UNIX) as client:  # type: ignore[attr-defined,unused-ignore]
                    client.connect(path)
                assert os.listdir(os.path.dirname(path)) == ["a.sock"]
                winner.stdin.write("\n")  # type: ignore[union-attr]
                winner.stdout.readline()  # type: ignore[union-attr]
                assert os.listdir(os.path.dirname(path)) == ([] if word == "close\n" else ["a.sock"])
        finally:
            for child in children:
                child.communicate(timeout=50)

    def test_a_process_that_was_killed_in_the_middle_is_not_waited_for_long(self, path: str, poison: Poison) -> None:
        """The one that comes after it has put its own over what it took, finds nobody who takes that away again."""
        program = """
        old = served()
        outer = {}
        def stopped():
            "Changes places with the path, as a start does that is killed before it can look at what it got."
            sock = socket.socket(socket.AF_UNIX)
            os.mkdir(home + "/.harken-stopped")
            sock.bind(home + "/.harken-stopped/a.sock")
            import ctypes
            names = [(home + "/.harken-stopped/a.sock").encode(), path.encode()]
            assert ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], 2) == 0
            return sock
        new = open_unix(path, exclusive=False)
        harken.Socket.listen(new)
        new.entry.publish()
        sock = stopped()
        sock.close()
        new.close()
        tell(back=reaches(old), left=sorted(os.listdir(home)))
        """
        said = stage(poison, path, program)
        assert said["back"]


@linux_only
class TestForks:
    """A process is forked by another thread in the middle of an operation, and the child goes on with what it finds."""

    @pytest.mark.parametrize("operation", ["start", "start over a dead one", "takeover", "close", "close a takeover"])
    def test_a_child_that_is_forked_at_any_step_can_close(self, path: str, poison: Poison, operation: str) -> None:
        """It does not wait for a thread that it does not have, and leaves the parent's path alone."""
        program = """
        import signal
        operation, children = OPERATION, []
        def fork():
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                os.close(canary)
                entry.remove()
                lowest = os.open("/dev/null", os.O_RDONLY)
                entry.settle()
                entry.remove()
                os.fstat(lowest)
                os._exit(0)
            children.append(child)
        canary = os.open("/dev/null", os.O_RDONLY)
        old = served() if "takeover" in operation else leave_dead() if "dead" in operation else None
        listener = harken._unix.new_listener(path)
        entry = listener.entry = harken._paths.Entry(path, path, path)
        if not operation.startswith("close"):
            each_step(fork)
        entry.bind(listener, "takeover" in operation, -1, -1, 0o600)
        harken.Socket.listen(listener)
        entry.publish()
        if operation != "close a takeover":
            entry.settle()
        reached = reaches(listener)
        if operation.startswith("close"):
            each_step(fork)
        listener.close()
        each_step(None)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        tell(reached=reached, children=len(ends), failed=len([end for end in ends if end]),
             left=[name for name in os.listdir(home) if name != "a.sock"],
             back=reaches(old) if operation == "close a takeover" else not os.path.exists(path))
        """
        said = stage(poison, path, program.replace("OPERATION", repr(operation)))
        assert said["children"] >= 2
        assert (said["failed"], said["left"]) == (0, [])
        assert said["reached"]
        assert said["back"]

    def test_a_takeover_that_several_children_finish_is_done_by_one(self, path: str) -> None:
        """`harken.bind` before the fork, listen() in each worker."""
        program = f"""
        import os, harken, socket
        path = {path!r}
        old = socket.socket(socket.AF_UNIX)
        old.bind(path)
        old.listen()
        listeners = harken.bind("unix:" + path, exclusive=False)
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                listeners.listen()
                os._exit(0)
            children.append(child)
        ends = [os.waitpid(child, 0)[1] for child in children]
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        listeners[0].accept()[0].close()
        tell(ends=ends, left=os.listdir(os.path.dirname(path)))
        """
        said = run(textwrap.dedent(program))
        assert said == {"ends": [0, 0, 0], "left": ["a.sock"]}


class TestThreads:
    @pytest.mark.proof
    def test_at_each_line_of_a_takeover_in_a_thread(self, path: str) -> None:
        """There a signal handler does not raise, but another thread, or a trace function, may make the call fail."""
        program = SIGNALS.replace("{path!r}", repr(path)) + textwrap.dedent("""
        import _thread
        files = os.path.dirname(harken.__file__)
        del sys.modules["socket"]  # the module stays; listen() looks each time whether anybody has loaded it by now

        def at(line):
            count, told, over = itertools.count(), [], _thread.allocate_lock()
            def trace(frame, event, argument):
                if not frame.f_code.co_filename.startswith(files):
                    return None
                if event in ("line", "return", "call") and next(count) == line:
                    raise KeyboardInterrupt
                return trace
            def work():
                sys.settrace(trace)
                try:
                    told.append(takeover())
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.settrace(None)
                    over.release()
            over.acquire()
            _thread.start_new_thread(work, ())
            over.acquire()
            return told

        told = dict(interrupted=0, lost=0, left=0)
        for line in itertools.count():
            ours = at(line)
            if ours:
                ours.pop().close()
                break
            gc.collect()
            told["interrupted"] += 1
            told["lost"] += not old_has_it()
            told["left"] += os.listdir(home) != ["a.sock"]
            reset()
        os.unlink(keep)
        tell(**told)
        """)
        said = run(program)
        assert said["interrupted"] >= 30
        assert (said["lost"], said["left"]) == (0, 0)

    def test_a_thread_that_begins_with_listen(self, path: str) -> None:
        """No Python calls it there, so that there is nobody whom a signal handler could keep from the result."""
        program = f"""
        import _thread, sys, time
        import harken
        failed = []
        sys.unraisablehook = failed.append
        harken.listen("unix:{path}?exclusive=0").close()
        sys.modules.pop("threading", None)  # as in a program that knows only _thread
        _thread.start_new_thread(harken.listen, ("unix:{path}?exclusive=0",))
        until = time.monotonic() + 30
        while not os.path.exists({path!r}) and not failed and time.monotonic() < until:
            time.sleep(0.01)
        tell(failed=list(map(str, failed)), path=os.path.exists({path!r}))
        """
        assert run(program) == {"failed": [], "path": True}


# ---------------------------------------------------------------------------- other users


@linux_only
@needs_root
class TestOtherUsers:
    @pytest.mark.parametrize("lock", ["LOCK_SH", "LOCK_EX"])
    def test_a_user_who_can_only_read_the_directory_delays_nobody(self, path: str, lock: str) -> None:
        """With its lock held, which was waited for once."""
        program = f"""
            import fcntl
            become({NOBODY})
            folder = os.open({os.path.dirname(path)!r}, os.O_RDONLY)
            os.chdir({os.path.dirname(path)!r})
            fcntl.flock(folder, fcntl.{lock})
            tell()
            wait()
        """
        with running(program):
            for options in ({}, {"mode": 0o600}, {"owner": NOBODY}):
                with harken.listen(f"unix:{path}", **options) as (old,):  # type: ignore[arg-type]
                    with pytest.raises(harken.AddressInUseError):
                        harken.listen(f"unix:{path}")
                    with harken.listen(f"unix:{path}", exclusive=False) as (new,):
                        old.close()
                        assert stat.S_ISSOCK(os.lstat(path).st_mode)
                        new.to_socket().close()
                harken.listen(f"unix:{path}").close()
                assert os.listdir(os.path.dirname(path)) == []

    def test_no_lock_is_taken_or_asked_for(self, path: str, tmp_path: Path) -> None:
        if shutil.which("strace") is None:
            pytest.skip("strace is not installed")
        trace = tmp_path / "trace"
        program = f"import harken; [harken.listen('unix:{path}', mode=mode).close() for mode in (None, 0o600)]"
        command = ["strace", "-f", "-o", str(trace), "-e", "trace=flock,fcntl,bind", sys.executable, "-c", program]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        if "PTRACE" in ran.stderr:
            pytest.skip("strace may not trace here")
        assert ran.returncode == 0, ran.stderr
        after = trace.read_text().partition("bind(")[2]
        assert after
        assert "flock(" not in after
        assert "LCK" not in after
        assert "LEASE" not in after

    def test_in_a_directory_like_tmp_others_can_do_nothing(self, path: str) -> None:
        os.chmod(os.path.dirname(path), 0o1777)
        program = f"""
            import harken
            harken.preload()
            become({NOBODY})
            tried = []
            for act in (os.unlink, lambda it: os.rename(it, it + "2"), lambda it: os.rename({path + "3"!r}, it)):
                open({path + "3"!r}, "w").close()
                try:
                    act({path!r})
                except PermissionError:
                    tried.append(True)
            os.unlink({path + "3"!r})
            for options in ({{}}, {{"exclusive": False}}):
                try:
                    harken.listen({"unix:" + path!r}, **options)
                except PermissionError as error:
                    tried.append(error.step)
            tell(tried=tried)
        """
        for stale in (False, True):
            with harken.listen(f"unix:{path}", mode=0o600) as (listener,):
                if stale:
                    listener.to_socket().close()
                before = os.lstat(path)
                assert run(program)["tried"] == [True, True, True, "connect", "rename"]
                assert (os.lstat(path), os.listdir(os.path.dirname(path))) == (before, ["a.sock"])

    ATTACKS = """
    victim = home + "/victim"

    def reset():
        clear()
        open(victim, "w").close()
        os.chmod(victim, 0o600)
        os.chown(victim, {nobody}, {nobody})
        if {stale}:
            leave_dead()

    def replace(make):
        "As who owns the directory may: whatever is there now, his own file is."
        for name in os.listdir(home):
            if name != "victim":
                os.rename(os.path.join(home, name), os.path.join(home, ".was-" + name))
            if name.startswith(".harken-") and os.path.isdir(os.path.join(home, ".was-" + name)):
                os.mkdir(os.path.join(home, name))
                os.chown(os.path.join(home, name), {nobody}, {nobody})
                for inner in ("a.sock", "s"):
                    make(victim, os.path.join(home, name, inner))
        if not os.path.lexists(path):
            make(victim, path)

    def changed():
        now = os.stat(victim)
        return (now.st_mode & 0o7777, now.st_uid, now.st_gid) != (0o600, {nobody}, {nobody})
    """

    @lacking
    @pytest.mark.parametrize("stale", [False, True])
    @pytest.mark.parametrize("make", ["os.link", "os.symlink"])
    def test_a_file_put_there_by_the_directorys_owner_never_gets_the_mode(
        self, path: str, poison: Poison, lacks: str, stale: bool, make: str
    ) -> None:
        """Who owns the directory puts a file of his own at the path, and in the place of whatever we make there."""
        program = self.ATTACKS.format(nobody=NOBODY, stale=stale)
        program += f"""
    turns = bad = refused = 0
    for options in ({{"mode": 0o666}}, {{"mode": 0o666, "owner": 1, "group": 1}}, {{"owner": 1}}):
        for step in itertools.count():
            reset()
            came = at(step, lambda: replace({make}) or True)
            try:
                open_unix(path, **options).close()
            except OSError:
                refused += 1
            each_step(None)
            if not came:
                break
            turns += 1
            bad += changed()
    tell(turns=turns, bad=bad, refused=refused)
    """
        said = stage(poison, path, program, lacks)
        assert said["turns"] >= 20
        assert said["refused"]
        assert said["bad"] == 0

    def test_who_changes_what_has_the_name_changes_it(self, path: str, poison: Poison) -> None:
        """The negative control: as it was done before."""
        program = self.ATTACKS.format(nobody=NOBODY, stale=False)
        program += """
    def start():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            folder = os.open(home, os.O_PATH)
            os.stat("a.sock", dir_fd=folder)
            os.close(folder)
            held = os.open(path, os.O_PATH | os.O_NOFOLLOW)
            os.chmod(f"/proc/self/fd/{held}", 0o666)
            os.close(held)

    turns = bad = 0
    for step in itertools.count():
        reset()
        came = at(step, lambda: replace(os.link) or True)
        try:
            start()
        except OSError:
            pass
        each_step(None)
        if not came:
            break
        turns += 1
        bad += changed()
    tell(turns=turns, bad=bad)
    """
        said = stage(poison, path, program)
        assert said["bad"] >= 1

    @pytest.mark.parametrize("means", ["sock_diag", "a private directory"])
    def test_nor_in_a_race_with_one_who_does_nothing_else(self, path: str, poison: Poison, means: str) -> None:
        home = os.path.dirname(path)
        os.chown(home, NOBODY, NOBODY)
        attacker = f"""
            import select
            become({NOBODY})
            os.chdir({home!r})
            open("victim", "w").close()
            os.chmod("victim", 0o600)
            tell()
            count = 0
            while not select.select([sys.stdin], [], [], 0)[0]:
                for _ in range(200):
                    try:
                        os.rename("a.sock", "was")
                        os.link("victim", "a.sock")
                        count += 1
                    except OSError:
                        pass
                    try:
                        os.unlink("a.sock")
                    except OSError:
                        pass
                if count >= 20:
                    open("enough", "w").close()
        """
        with running(attacker):
            said = stage(
                poison,
                path,
                f"""
                bad = ok = 0
                for turn in itertools.count():
                    if turn >= 200 * {ROUNDS} and os.path.exists(home + "/enough"):
                        break
                    try:
                        open_unix(path, mode=0o666).close()
                        ok += 1
                    except OSError:
                        pass
                    bad += os.lstat(home + "/victim").st_mode & 0o777 != 0o600
                tell(bad=bad, ok=ok)
                """,
                "" if means == "sock_diag" else LACKS["questions"],
            )
        assert said["bad"] == 0


# ---------------------------------------------------------------------------- signals


SIGNALS = """
import gc, itertools, signal, socket, sys, warnings
import harken, harken._diagnosis.hints, harken._diagnosis.holders, harken._paths, harken._plan, harken._unix
warnings.simplefilter("ignore")
path = {path!r}
home = os.path.dirname(path)

if os.path.exists(path):
    os.unlink(path)
old = socket.socket(socket.AF_UNIX)
old.bind(path)
old.listen(100)
inode = os.lstat(path).st_ino
keep = os.path.join(os.path.dirname(home), os.path.basename(home) + ".keep")
os.link(path, keep)

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

def reset():
    "The old server has its path, and nothing else is there."
    for name in os.listdir(home):
        full = os.path.join(home, name)
        if os.path.isdir(full):
            for inner in os.listdir(full):
                os.unlink(os.path.join(full, inner))
            os.rmdir(full)
        else:
            os.unlink(full)
    os.link(keep, path)

def old_has_it():
    return os.path.lexists(path) and os.lstat(path).st_ino == inode

def takeover():
    return harken.listen("unix:" + path, exclusive=False)

def takeover_beside_others():
    return harken.listen("127.0.0.1:0", "unix:" + path + "?exclusive=0&mode=0640", "unix:" + path + "2")

def reached(listeners):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0

def judge(listeners, told):
    if listeners is not None:
        told["ours"] += 1
        told["lost"] += not reached(listeners)
        listeners.close()
        reset()
        return
    gc.collect()
    told["lost"] += not old_has_it()
    told["left"] += os.listdir(home) != ["a.sock"]
    reset()
"""


@linux_only
class TestSignals:
    @pytest.mark.proof
    @pytest.mark.parametrize("operation", ["takeover", "takeover_beside_others"])
    def test_at_each_line_of_a_takeover(self, path: str, operation: str) -> None:
        program = SIGNALS.replace("{path!r}", repr(path)) + textwrap.dedent(f"""
        files = os.path.dirname(harken.__file__)
        told = dict(lines=0, ours=0, lost=0, left=0, leaked=0)
        {operation}().close()
        reset()
        gc.collect()
        before = descriptors()
        for line in itertools.count(step=1 if {ROUNDS} > 1 or "{operation}" == "takeover" else 7):
            count = itertools.count()

            def trace(frame, event, argument):
                if not frame.f_code.co_filename.startswith(files):
                    return None
                if event in ("line", "return", "call") and next(count) == line:
                    raise KeyboardInterrupt
                return trace

            listeners, interrupted = None, False
            sys.settrace(trace)
            try:
                listeners = {operation}()
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(None)
            judge(listeners, told)
            del listeners
            gc.collect()
            told["leaked"] += descriptors() != before
            if not interrupted:
                break
            told["lines"] += 1
        os.unlink(keep)
        tell(**told)
        """)
        child = subprocess.run(interpreter(program), capture_output=True, text=True, timeout=240, check=False)
        assert child.returncode == 0, child.stderr
        said = json.loads(child.stdout)
        print(said)
        assert said["lines"] >= 30
        assert (said["lost"], said["left"], said["leaked"]) == (0, 0, 0)

    @pytest.mark.proof
    @pytest.mark.parametrize("there", ["nothing", "a dead one"])
    def test_at_each_line_of_a_start_and_of_a_close(self, path: str, there: str) -> None:
        program = SIGNALS.replace("{path!r}", repr(path)) + textwrap.dedent(f"""
        files = os.path.dirname(harken.__file__)
        told = dict(starts=0, closes=0, wrong=0, leaked=0)

        def prepare():
            for name in os.listdir(home):
                os.unlink(os.path.join(home, name))
            if {there == "a dead one"}:
                with socket.socket(socket.AF_UNIX) as dead:
                    dead.bind(path)

        def interrupted_at(line, function):
            count = itertools.count()
            def trace(frame, event, argument):
                if not frame.f_code.co_filename.startswith(files):
                    return None
                if event in ("line", "return", "call") and next(count) == line:
                    raise KeyboardInterrupt
                return trace
            sys.settrace(trace)
            try:
                return function()
            except KeyboardInterrupt:
                return "interrupted"
            finally:
                sys.settrace(None)

        def start():
            return harken.listen("unix:" + path, mode=0o600)

        prepare()
        start().close()
        before = descriptors()
        for line in itertools.count():
            prepare()
            came = interrupted_at(line, start)
            if came != "interrupted":
                told["wrong"] += not reached(came)
                came.close()
                told["wrong"] += os.listdir(home) != []
                break
            gc.collect()
            told["starts"] += 1
            told["wrong"] += os.listdir(home) not in ([], ["a.sock"][:{int(there == "a dead one")}]) or reached(None)
            told["leaked"] += descriptors() != before
        for line in itertools.count():
            prepare()
            listeners = start()
            came = interrupted_at(line, listeners[0].close)
            listeners.close()
            told["wrong"] += os.listdir(home) != []
            told["leaked"] += descriptors() != before
            if came != "interrupted":
                break
            told["closes"] += 1
        os.unlink(keep)
        tell(**told)
        """)
        said = run(program)
        assert said["starts"] >= 30
        assert said["closes"] >= 3
        assert (said["wrong"], said["leaked"]) == (0, 0)

    @pytest.mark.parametrize("operation", ["takeover", "takeover_beside_others"])
    def test_at_any_moment_of_a_takeover(self, path: str, operation: str) -> None:
        """Real signals, whose handler raises; the moment is drawn from the time that a takeover takes."""
        said = self.storm(path, operation, 100 * ROUNDS)
        assert said["interrupted"] >= 50
        assert (said["lost"], said["left"], said["leaked"]) == (0, 0, 0)

    def test_the_negative_control_a_takeover_settled_too_soon_is_lost(self, path: str) -> None:
        """The negative control: a handler may run when the call has returned, and before its result is stored."""
        too_soon = "harken._paths.settle_soon = lambda entries: [entry.settle() for entry in entries]"
        assert any(self.storm(path, "takeover", 200, too_soon, 0.7, 1.4)["lost"] for _ in range(10))

    def storm(
        self, path: str, operation: str, interrupts: int, first: str = "", since: float = 0, until: float = 1
    ) -> dict[str, int]:
        program = SIGNALS.replace("{path!r}", repr(path)) + textwrap.dedent(f"""
        import random, time
        {first}

        class Alarm(Exception):
            pass

        def handler(number, frame):
            raise Alarm

        signal.signal(signal.SIGALRM, handler)
        told = dict(interrupted=0, ours=0, lost=0, left=0, leaked=0)
        usual = 1
        for _ in range(20):
            begun = time.perf_counter()
            {operation}().close()
            usual = min(usual, time.perf_counter() - begun)
            reset()
        gc.collect()
        before = descriptors()
        for _ in range(50 * {interrupts}):
            if told["interrupted"] >= {interrupts}:
                break
            listeners = None
            try:
                signal.setitimer(signal.ITIMER_REAL, max(random.uniform({since}, {until}) * usual, 1e-6))
                listeners = {operation}()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                told["interrupted"] += listeners is None
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            judge(listeners, told)
            del listeners
            gc.collect()
            told["leaked"] += descriptors() != before
        os.unlink(keep)
        tell(**told)
        """)
        command = interpreter(program)
        child = subprocess.run(command, capture_output=True, text=True, timeout=60 + 60 * ROUNDS, check=False)
        assert child.returncode == 0, child.stderr
        said: dict[str, int] = json.loads(child.stdout)
        print(said)
        return said


def test_may_give_knows_which_chown_succeeds() -> None:
    assert _unix.may_give()
    assert _unix.may_give(os.geteuid(), os.getegid())  # type: ignore[attr-defined,unused-ignore]
    for group in os.getgroups():  # type: ignore[attr-defined,unused-ignore]
        assert _unix.may_give(-1, group)


@needs_root
def test_may_give_knows_which_chown_is_refused() -> None:
    said = run(f"""
        import harken._unix as unix
        before = [unix.may_give(1), unix.may_give(-1, 1)]
        become({NOBODY})
        after = [unix.may_give(1), unix.may_give(-1, 1), unix.may_give(0), unix.may_give({NOBODY}, {NOBODY})]
        tell(root=before, after=after)
    """)
    assert said == {"root": [True, True], "after": [False, False, False, True]}


# ---------------------------------------------------------------------------- the table in docs/unix.md


UVICORN = """
import uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
def config(**options):
    return uvicorn.Config(app, log_level="error", **options)
"""
WITH = "with harken.listen(bind) as (listener,):\n    "
ASYNCIO = """
import asyncio, harken.asyncio
async def main(start):
    server = await start(lambda reader, writer: writer.close())
    async with server:
        await server.serve_forever()
"""
HANDLED = "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
BY_NUMBER = "uvicorn.run(app, fd=listener.fileno(), log_level='error')"
TERM, INT, END = "SIGTERM", "SIGINT", "its end"


@linux_only
@pytest.mark.parametrize(
    ("program", "by", "stays", "needs"),
    [
        ("listeners = harken.listen(bind); wait(); listeners.close()", END, False, ""),
        (WITH + "wait()", END, False, ""),
        (WITH + "wait()", INT, False, ""),
        (WITH + "wait()", TERM, True, ""),
        (HANDLED + WITH + "wait()", TERM, False, ""),
        ("listeners = harken.listen(bind); wait()", END, True, ""),
        ("(sock,) = harken.listen(bind).sockets(); wait(); sock.close()", END, False, ""),
        ("sock = harken.listen(bind)[0].to_socket(); wait(); sock.close()", END, True, ""),
        (ASYNCIO + "asyncio.run(main(lambda serve: harken.asyncio.start_server(serve, bind)))", INT, False, ""),
        (ASYNCIO + "asyncio.run(main(lambda serve: harken.asyncio.start_server(serve, bind)))", TERM, True, ""),
        ("os.execv(sys.executable, [sys.executable, '-m', 'harken', 'serve', bind])", TERM, False, ""),
        (UVICORN + "uvicorn.Server(config(loop='asyncio')).run(harken.listen(bind).sockets())", TERM, False, "uvicorn"),
        (UVICORN + "uvicorn.Server(config(loop='uvloop')).run(harken.listen(bind).sockets())", TERM, True, "uvloop"),
        (UVICORN + WITH + BY_NUMBER, TERM, True, "uvicorn"),
        (UVICORN + WITH + BY_NUMBER, INT, False, "uvicorn"),
        (UVICORN + HANDLED + WITH + BY_NUMBER, TERM, False, "uvicorn"),
    ],
)  # fmt: skip
def test_who_removes_the_path(path: str, program: str, by: str, stays: bool, needs: str) -> None:
    if needs:
        pytest.importorskip(needs)
        pytest.importorskip("uvicorn")
    code = PREAMBLE + f"import harken, signal, time\nbind = {'unix:' + path!r}\n" + program
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    serves = any(one in program for one in ("uvicorn", "asyncio", "serve"))
    with child:
        try:
            until(lambda: child.poll() is not None or is_there(path, answers=serves))
            assert child.poll() is None
            if by == END:
                assert child.stdin is not None
                child.stdin.close()
            else:
                child.send_signal(getattr(signal, by))
            child.wait(30)
        finally:
            child.kill()
    assert os.path.exists(path) == stays


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 40
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_there(path: str, *, answers: bool) -> bool:
    """Is it, and where somebody answers, has he done so? Then he has his signal handlers, too."""
    with socket.socket(socket.AF_UNIX) as client:  # type: ignore[attr-defined,unused-ignore]
        client.settimeout(10)
        try:
            client.connect(path)
        except OSError:
            return False
        try:
            if answers:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                client.recv(1)
        except ConnectionError:
            pass  # closed with what it has not read
    return True
