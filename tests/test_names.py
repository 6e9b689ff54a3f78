"""What tools get from the public names: dir(), help(), signatures, type hints, pickle."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import rlcompleter
import subprocess
import sys
import typing
from typing import Any

import pytest
from wire import CHILD_ENVIRONMENT

import harken
import harken.asyncio

NUMBERS = {name for name in harken.__all__ if isinstance(getattr(harken, name), int)}
NAMES = [(harken, name) for name in harken.__all__ if name not in NUMBERS]
NAMES += [(harken.asyncio, name) for name in harken.asyncio.__all__]
each_name = pytest.mark.parametrize(
    ("module", "name"), NAMES, ids=[f"{module.__name__}.{name}" for module, name in NAMES]
)


def methods(kind: type) -> list[tuple[str, Any]]:
    """The public methods and properties that harken wrote, as functions."""
    found = []
    for name in dir(kind):
        member = inspect.getattr_static(kind, name)
        function = getattr(member, "fget", getattr(member, "__func__", getattr(member, "function", member)))
        if not name.startswith("_") and "harken" in str(getattr(function, "__module__", "")):
            found.append((name, function))
    return found


def test_dir_has_each_public_name_and_no_other() -> None:
    shown = {name for name in dir(harken) if not name.startswith("__")}
    assert shown == {*harken.__all__, "asyncio", "workers"}
    assert "TYPE_CHECKING" not in dir(harken)
    assert len(NAMES) > 20
    code = "import harken; shown = dir(harken); assert 'Options' in shown and 'holders' in shown, shown"
    subprocess.run([sys.executable, "-c", code], env=CHILD_ENVIRONMENT, check=True)  # before anything was loaded


@pytest.mark.parametrize("name", ["Options", "holders", "Holder", "listen", "ListenError", "Acceptor", "asyncio"])
def test_a_shell_completes_it(name: str) -> None:
    completed = rlcompleter.Completer({"harken": harken})
    text, n, found = f"harken.{name[:-1]}", 0, []
    while (match := completed.complete(text, n)) is not None:
        found.append(match.rstrip("()"))
        n += 1
    assert f"harken.{name}" in found


@each_name
def test_it_has_its_name_module_and_docstring(module: Any, name: str) -> None:
    value = getattr(module, name)
    assert value.__name__ == name
    assert value.__qualname__.rpartition(".")[2] == name
    assert value.__module__.startswith("harken")
    assert value.__doc__
    assert "--" not in value.__doc__[:200]  # the line behind a signature
    assert getattr(sys.modules[value.__module__], name) is value


@each_name
def test_it_can_be_pickled(module: Any, name: str) -> None:
    value = getattr(module, name)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(value, protocol)) is value


def test_functions_can_be_sent_to_another_process(tmp_path: Any) -> None:
    functions = [harken.listen, harken.bind, harken.getaddrinfo, harken.adopt, harken.stats]
    path = tmp_path / "functions"
    path.write_bytes(pickle.dumps(functions))
    code = f"import pickle; print(len(pickle.load(open({str(path)!r}, 'rb'))[0]('127.0.0.1:0')))"
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert child.stdout == "1\n"


def own_methods() -> list[Any]:
    found = []
    for module, name in NAMES:
        kind = getattr(module, name)
        for member in dir(kind) if isinstance(kind, type) else []:
            owner = next(one for one in kind.__mro__ if member in vars(one))
            if not member.startswith("_") and "harken" in owner.__module__ and callable(getattr(kind, member)):
                found.append(pytest.param(kind, owner, member, id=f"{name}.{member}"))
    return found


@pytest.mark.parametrize(("kind", "owner", "name"), own_methods())
def test_a_method_has_its_name_and_can_be_pickled(kind: type, owner: type, name: str) -> None:
    method = getattr(kind, name)
    assert method.__name__ == name
    assert method.__qualname__ == f"{owner.__name__}.{name}"
    assert method.__doc__
    assert "self" not in inspect.signature(method).parameters or not inspect.ismethod(method)
    assert pickle.loads(pickle.dumps(method)) == method


def test_dir_of_asyncio_has_its_public_names_and_no_other() -> None:
    assert {name for name in dir(harken.asyncio) if not name.startswith("__")} == set(harken.asyncio.__all__)


def test_asyncio_needs_no_import_of_its_own() -> None:
    code = "import harken; print(harken.asyncio.start_server.__module__, harken.asyncio.start_server.__qualname__)"
    child = subprocess.run(
        [sys.executable, "-c", code], env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert child.stdout == "harken.asyncio start_server\n"


def test_reprs_say_what_it_is_and_in_which_state() -> None:
    with harken.listen("127.0.0.1:0") as listeners:
        url, (listener,) = listeners[0].url, listeners
        assert repr(listeners) == f"<harken.Listeners {url}>"
        assert repr(listener) == f"<harken.Listener {url}>"
        with listeners.acceptor() as acceptor:
            assert repr(acceptor) == f"<harken.Acceptor {acceptor.stats().engine}, 1 listener, 0 open>"
        assert repr(acceptor) == "<harken.Acceptor closed, 0 open>"
    assert (repr(listeners), repr(listener)) == ("<harken.Listeners closed>", "<harken.Listener closed>")
    with harken.getaddrinfo("127.0.0.1", 80, type=harken.SOCK_STREAM) as addresses:
        assert repr(addresses) == f"<AddrInfo [{addresses[0]!r}]>"
    assert repr(addresses) == "<AddrInfo, closed>"
    with harken.Socket(harken.AF_INET, harken.SOCK_STREAM, 0) as sock:
        assert repr(sock).startswith(f"<harken.Socket fd={sock.fileno()}, family=2, type=1, proto=")
    assert repr(sock) == "<harken.Socket, closed>"
    assert repr(harken.Bind(":8080?ttl=5")) == "Bind(':8080?ttl=5')"
    assert repr(harken.Options(ttl=5, reuse_port="join")) == "Options(reuse_port='join', ttl=5)"
    assert eval(repr(harken.Options(ttl=5)), {"Options": harken.Options}) == harken.Options(ttl=5)


@each_name
def test_it_has_a_signature(module: Any, name: str) -> None:
    value = getattr(module, name)
    assert str(inspect.signature(value)).startswith("(")
    if isinstance(value, type):
        for method, function in methods(value):
            assert inspect.signature(function), method


def test_signatures_are_those_that_the_calls_take() -> None:
    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(harken.Socket) == names(harken.Listener) == ["family", "type", "proto", "fileno"]
    assert names(harken.Acceptor) == ["listeners", "batch", "limit", "on_overload", "engine"]
    assert names(harken.Acceptor) == ["listeners", *names(harken.Listeners.acceptor)[1:]]
    assert names(harken.listen) == names(harken.bind) == ["binds", *names(harken.Options)]
    assert names(harken.getaddrinfo) == ["host", "port", "family", "type", "proto", "flags"]
    with harken.Socket(family=harken.AF_INET, type=harken.SOCK_STREAM, proto=0, fileno=None) as sock:
        assert sock.fileno() >= 0


@each_name
def test_its_type_hints_can_be_resolved(module: Any, name: str) -> None:
    value = getattr(module, name)
    typing.get_type_hints(value)
    if isinstance(value, type):
        for method, function in methods(value):
            if inspect.isfunction(function):
                hints = typing.get_type_hints(function)
                assert "return" in hints or method == "__init__", method


def test_the_type_hints_are_right() -> None:
    assert typing.get_type_hints(harken.AddressInUseError.holders.fget)["return"] == list[harken.Holder]  # type: ignore[attr-defined]
    assert typing.get_type_hints(harken.Listeners.acceptor)["return"] is harken.Acceptor
    assert typing.get_type_hints(harken.Bind.of)["return"] is typing.Self
    assert typing.get_type_hints(harken.ListenError)["option"] == tuple[str, object] | None


def test_help_shows_what_each_option_is() -> None:
    told = pydoc.plain(pydoc.render_doc(harken.Options))
    for name in inspect.signature(harken.Options).parameters:
        assert f" |  {name}\n |      " in told, name
    assert " |      TCP_DEFER_ACCEPT (Linux): seconds for which" in told
    options = harken.Options(backlog=5)  # which are still what they are
    assert (options.backlog, options.nodelay) == (5, None)
    assert not hasattr(options, "__dict__")
    assert pickle.loads(pickle.dumps(options)) == options


def test_help_can_be_had_of_all() -> None:
    assert "harken: from a name to accepted connections" in pydoc.render_doc(harken)
    for module, name in NAMES:
        assert name in pydoc.render_doc(getattr(module, name))


def test_import_loads_none_of_it() -> None:
    code = "import sys; before = set(sys.modules); import harken; harken.listen('127.0.0.1:0').close(); "
    code += "print(sorted({'typing', 'types', 'socket', 'inspect', 'functools', 're'} & (set(sys.modules) - before)))"
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert child.stdout == "[]\n"
