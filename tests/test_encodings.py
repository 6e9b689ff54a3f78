"""The command line on an output whose encoding lacks a character, of others' names or of harken's own text."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import harken as package
from children import running
from harken.__main__ import main
from machine import linux_only

ENCODINGS = ["ascii", "latin-1", "cp1252", "koi8-r", "shift_jis", "utf-8", "utf-16-le"]
NAME = "caf\u00e9-\u20ac-\u0416-\u65e5"

# A process with such a name and a long command line, at a port and at a path.
NAMED = """
    import ctypes
    name = {name!r}
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
    sock = socket.create_server(("127.0.0.1", 0))
    other = socket.socket(socket.AF_UNIX)
    other.bind({path!r})
    other.listen()
    tell(port=sock.getsockname()[1])
    wait()
    # {more}
"""


def harken(encoding: str, *arguments: str) -> tuple[int, str, str]:
    """What the command writes where stdout and stderr have this encoding: its exit code and both."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        for stream in streams:
            stream.flush()
    written = [stream.buffer.getvalue().decode(encoding) for stream in streams]  # type: ignore[attr-defined]
    return code, written[0], written[1]


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="harken-") as room:
        yield str(Path(room) / NAME)


@linux_only
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_writes_every_name(encoding: str, path: str) -> None:
    with running(NAMED.format(path=path, name=NAME[:10], more="x" * 300)) as child:
        port = child["port"]
        for arguments, code in [
            (["check", f"127.0.0.1:{port}"], 1),
            (["check", f"unix:{path}"], 1),
            (["check", f"unix:{path}/no/such"], 1),
            (["check", f"{NAME}.invalid:80"], 1),
            (["check", NAME], 2),
            (["who", f"127.0.0.1:{port}"], 0),
            (["who", f"unix:{path}"], 0),
            (["who", f"unix:{path}2"], 1),
            (["who", NAME], 2),
            (["serve", f"127.0.0.1:{port}"], 1),
            (["serve", f"unix:{path}"], 1),
            (["serve", NAME], 2),
            ([NAME], 2),
        ]:
            for json_too in ([], ["--json"]) if len(arguments) > 1 else ([],):
                told, out, trouble = harken(encoding, *arguments, *json_too)
                assert told == code, trouble
                if json_too and arguments[0] != "serve":
                    for line in out.splitlines():
                        json.loads(line)
                assert out or trouble
        written = NAME.encode(encoding, "backslashreplace").decode(encoding)
        assert written in harken(encoding, "who", f"unix:{path}")[1]
        trouble = harken(encoding, "serve", f"127.0.0.1:{port}")[2]
        assert f"pid {child['pid']}" in trouble
        assert "..." in trouble


@linux_only
def test_the_environment_decides_on_the_encoding(path: str) -> None:
    with running(NAMED.format(path=path, name=NAME[:10], more="x" * 300)) as child:
        for command in ("who", "check", "serve"):
            done = subprocess.run(
                [sys.executable, "-m", "harken", command, f"127.0.0.1:{child['port']}"],
                env=os.environ | {"PYTHONIOENCODING": "latin-1:strict"}, capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            assert b"Traceback" not in done.stderr
            assert b"caf\xe9-\\u20ac" in done.stdout + done.stderr


def test_no_message_of_ours_has_a_character_outside_of_ascii() -> None:
    """Strings that end up in errors and in output; docstrings and comments may have what they like."""
    for file in Path(package.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        documents = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                odd = re.findall(r"[^\x00-\x7f\ud800-\udfff]", node.value)
                # Looked for in what people write, and encoded to load a codec.
                other = file.name == "mistakes.py" or node.value == "harken\u00e9"
                assert not odd or other, (file.name, node.value)
