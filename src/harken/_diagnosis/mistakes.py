"""Texts that people write instead of a bind, and what they mean.

Imported when a bind is refused. This module does not decide what a bind is: `_bind` has refused the text already, and
this only finds a better message. The form that the message shows is parsed first, so that it is valid.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from .. import _bind
from .._resolve import normal_host

_SHORT = 300  # what people write by hand or paste; the rules below need not be fast


def meant(text: str) -> str:
    """What is wrong with a text that is not a bind, and the right form; empty if nothing more is known than the place
    at which parsing failed."""
    if len(text) > _SHORT:
        return ""
    bare = text.strip()
    if bare != text and bare:
        return f"there is white space around it: write {bare}" if _bind.reads(bare) else meant(bare)
    for rule in _RULES:
        told = rule(text)
        if told:
            return told
    return ""


def instead(bind: object) -> str:
    """For a value that is neither text nor a number: the text to write instead, after a semicolon."""
    right = "" if isinstance(bind, type) else _as_text(bind)
    return f"; {right}" if right else ""


def _as_text(bind: object) -> str:
    if bind is None:
        return "every address is written ':8080'"
    if isinstance(bind, (bool, bytes, bytearray)):
        return f"write {bytes(bind[:_SHORT]).decode()!r}" if not isinstance(bind, bool) else ""
    if isinstance(bind, float):
        return f"write {int(bind)}" if bind.is_integer() and 0 <= bind <= 65535 else ""
    if isinstance(bind, os.PathLike):
        path = os.fsdecode(os.fspath(bind)).replace(os.sep, "/")  # Windows takes both, and a backslash has to be quoted
        return f"write {_bind.unix_url(path)!r}"
    if isinstance(bind, tuple) and len(bind) in (2, 4) and isinstance(bind[1], int):
        return f"write {str(_bind.Bind.of(bind[0], bind[1])).removeprefix('tcp://')!r}"
    if isinstance(bind, (tuple, list, set, frozenset)) or (isinstance(bind, Iterable) and not isinstance(bind, dict)):
        return "pass several binds as separate arguments, as in listen(*binds)"
    if hasattr(bind, "detach") and hasattr(bind, "fileno"):
        return "an existing socket is passed to harken.adopt()"
    number: Any = bind
    if hasattr(number, "__index__"):
        return f"write {number.__index__()}"
    if hasattr(bind, "is_multicast"):  # of the module ipaddress
        return f"write {f'[{bind}]:8080' if ':' in str(bind) else f'{bind}:8080'!r}"
    return ""


def _why_not(text: str) -> str:
    try:
        _bind.Bind(text)
    except ValueError as error:
        return str(error).rpartition(f"{text!r}")[2].lstrip(":, ")
    return ""


def _write(*forms: str, why: str = "") -> str:
    """The first of the forms that is a valid bind."""
    for form in forms:
        if _bind.reads(form):
            return f"{why}: write {form}" if why else f"write {form}"
    return ""


# ---------------------------------------------------------------------------- what was to be filled in

_UNFILLED = re.compile(r"\$\{[^}]*\}?|\$\([^)]*\)*|\$\w+|%[sdri](?!\w)|%[A-Za-z_]\w*%|\{\{.*?\}\}|\{[^}]*\}|<[\w -]+>")
_NOBODY = r"None|null|undefined|nil|nan|NaN|True|False|true|false"


def _unfilled(text: str) -> str:
    place = text.partition("?")[0]
    found = _UNFILLED.search(place)
    if not found or (place.startswith("unix:") and found[0][0] != "$"):
        return ""
    name = found[0]
    if name.startswith("$"):
        return (
            f"{name} has not been replaced by its value: a shell does that, outside of single quotes; systemd in"
            " ExecStart= only, and Docker not in the JSON form of CMD"
        )
    if name.startswith(("{{", "<")):
        return f"{name} has not been replaced by its value"
    if len(name) == 2 and name[0] == "%":
        return f"{name} has not been replaced by its value: are the values missing, behind a % or in format()?"
    if name.startswith("%"):
        return f"{name} has not been replaced by its value: Windows' command line does that, and no other shell"
    return f"{name} has not been replaced by its value: is the f missing in front of the string?"


def _nobody(text: str) -> str:
    found = re.fullmatch(rf"(?:\w+://)?(?:({_NOBODY})(?::.*)?|.*:({_NOBODY}))", text.partition("?")[0])
    if not found:
        return ""
    what = found[1] or found[2]
    return (
        f"{what!r} was written where a value is missing: without a host a bind is written :8080, and port 0 lets"
        " the system choose"
    )


# ---------------------------------------------------------------------------- a line of a configuration


def _directive(text: str) -> str:
    """Directives of nginx and Apache (listen 80;), HAProxy and Redis (bind *:80), systemd."""
    found = re.fullmatch(r"(listen|bind|ListenStream|Listen)[ \t]*[ \t=][ \t]*([^\s;]+)(?:[ \t][^;]*)?;?", text)
    if not found:
        return ""
    place = f"unix:{found[2]}" if found[2].startswith("/") else found[2]
    return _write(
        place, f"{place}:8080", why=f"{found[1]} is a directive of a configuration file, and a bind is its value"
    )


def _prefix(text: str) -> str:
    """A range of addresses instead of one."""
    found = re.fullmatch(r"\[?([0-9A-Fa-f.:]+)/(\d{1,3})\]?(?::(\w+))?", text)
    host = normal_host(found[1]) if found else None
    if found is None or host is None or int(found[2]) > (128 if ":" in host else 32):
        return ""
    host = f"[{host}]" if ":" in host else host
    return _write(f"{host}:{found[3] or 8080}", why="a bind is one address of this machine, without a prefix length")


# ---------------------------------------------------------------------------- more than one


def _several(text: str) -> str:
    if text.startswith(("unix:", "systemd:")) or "?" in text:
        return ""
    parts = [part for part in re.split(r"[,;|\s]+", text) if part]
    if len(parts) < 2:
        return _write(*parts, why="there is an extra comma") if parts and parts[0] != text else ""
    close = re.sub(r"\s*:\s*", ":", text)
    if close != text and _bind.reads(close):
        return _write(close, why="there is white space in it")
    found = re.fullmatch(r"-{1,2}[a-z-]+[= ](.+)", text)
    if found:
        return _write(found[1], why="that is a command-line option, and a bind is its value")
    if re.fullmatch(r"\d{1,2}[, ]\d{3}", text):
        return f"a port has digits only: write {''.join(parts)}"
    if len(parts) == 2 and re.fullmatch(r"[^:]+|\[.*\]", parts[0]) and parts[1].isdigit():
        together = _write(":".join(parts), why="host and port have a colon between them")
        if together:
            return together
    good = [_bind.reads(part) for part in parts[:8]]
    if all(good):
        shown = ", ".join(map(repr, parts[:8])) + (", ..." if len(parts) > 8 else "")
        line = " ".join(parts[:8]) + (" ..." if len(parts) > 8 else "")
        return f"pass several binds as separate arguments, as in listen({shown}), on the command line {line}"
    if any(good) and not re.search(r"\s", text):
        wrong = parts[good.index(False)]
        return f"pass several binds as separate arguments; {wrong!r} is not a bind: {_why_not(wrong)}"
    if _bind.reads(parts[0]) and re.search(r"\s", text):
        return f"{parts[0]} is followed by {' '.join(parts[1:])!r}: options are written {parts[0]}?backlog=64&nodelay=0"
    return ""


def _docker(text: str) -> str:
    two = "these are two ports, as for Docker's -p, and a bind has one: write"
    found = re.fullmatch(r"(\[[^]]*\]|[^:]*):(\d+):(\d+)(?:/\w+)?", text)
    if found and found[1] not in _bind.SCHEMES:
        return f"{two} {found[1]}:{found[2]}, or in the container {found[3]}"
    found = re.fullmatch(r"(\d+):(\d+)(?:/\w+)?", text)
    if found and 0 < int(found[1][:9]) <= 65535:
        return f"{two} {found[1]}, or in the container {found[2]}"
    found = re.fullmatch(r"(.*?)(\d+)/(tcp|udp)", text)
    if found and found[3] == "tcp":
        return _write(f"{found[1]}{found[2]}", why="a bind is TCP unless it says otherwise")
    return _UDP if found else ""


# ---------------------------------------------------------------------------- the ways of others

_UDP = "harken accepts connections, and UDP has none: a bind is TCP, MPTCP, a unix socket or a vsock"
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443, "ftp": 21, "smtp": 25, "redis": 6379, "grpc": 50051}
_FILES = ("file", "unix+http", "http+unix", "uds", "ipc", "local")
_NO_TCP = ("udp", "udp4", "udp6", "quic", "quic4", "quic6", "dtls", "sctp")


def _schemes(text: str) -> str:
    found = re.fullmatch(r"([A-Za-z][\w+.-]*)://(.*)", text, re.DOTALL)
    if not found:
        return ""
    scheme, rest = found[1].lower(), found[2]
    if scheme in _NO_TCP:
        return _UDP
    if scheme in _bind.SCHEMES:
        if scheme != found[1]:
            return _write(f"{scheme}://{rest}", f"{scheme}:{rest}", why="a scheme is written in lower case")
        if scheme.startswith(("tcp", "mptcp")) and "/" in rest.partition("?")[0]:
            host = rest.strip("/").partition("/")[0]
            return _write(f"{scheme}://{host}", why="a bind has no path")
        return ""
    if scheme in _FILES:
        path = rest.partition("/")[0] if rest[:3].upper() == "%2F" else rest
        try:
            return _write(_bind.Bind(f"unix:{path}").url, why="a unix socket has the scheme unix")
        except ValueError:
            return ""
    place = re.split(r"[/?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    tls = ", nor TLS" if scheme in ("https", "wss", "ssl", "tls") else ""
    return _write(
        place, f"{place}:{_PORTS.get(scheme, 8080)}", f"[{place}]:{_PORTS.get(scheme, 8080)}",
        why=f"a bind does not name the protocol above TCP{tls}",
    )  # fmt: skip


def _urls(text: str) -> str:
    """Parts of a URL, without its scheme."""
    found = re.fullmatch(r"([^/#]*:\d+)[/#].*", text)
    if found and "://" not in text:
        return _write(found[1], why="a bind has no path")
    found = re.fullmatch(r"\[([^]:]*)\]:(.*)", text)
    if found:
        return _write(f"{found[1]}:{found[2]}", why="only an IPv6 address is written in brackets")
    found = re.fullmatch(r"\[([^]]*)\](%[^:]+):(.*)", text)
    if found:
        return _write(f"[{found[1]}{found[2]}]:{found[3]}", why="the scope belongs in the brackets")
    found = re.fullmatch(r"(?:-{0,2})(?:port|bind|listen|address|addr|ListenStream)=(.+)", text, re.IGNORECASE)
    if found:
        value = f"unix:{found[1]}" if found[1].startswith("/") else found[1]
        return _write(value, why="a bind is the value alone")
    if text.startswith("+:"):
        return _write(f"*{text[1:]}", why="every address is *")
    found = re.fullmatch(r"(.*)\\[nrt]+", text)
    return _write(found[1], why="it ends with a backslash") if found else ""


def _haproxy(text: str) -> str:
    found = re.fullmatch(r"([a-z]+[46]?|stream\+\w+)@(.*)", text)
    if not found:
        return ""
    kind, rest = found[1].removeprefix("stream+"), found[2]
    ipv6 = rest.rpartition(":")
    bracketed = f"[{ipv6[0]}]:{ipv6[2]}" if normal_host(ipv6[0]) and ":" in ipv6[0] else rest
    if kind == "abns":
        return (
            f"HAProxy's abns@ pads the name with NULs to the end of the address, which is written in full then; its"
            f" abnsz@{rest} is unix:@{rest}"
        )
    forms = {
        "fd": f"fd://{rest}", "unix": f"unix:{rest}", "abnsz": f"unix:@{rest}", "ipv4": f"tcp4://{rest}",
        "ipv6": f"tcp6://{bracketed}", "tcp": f"tcp://{bracketed}", "tcp4": f"tcp4://{rest}",
        "tcp6": f"tcp6://{bracketed}", "mptcp": f"mptcp://{bracketed}", "mptcp4": f"mptcp://{rest}",
        "mptcp6": f"mptcp://{bracketed}",
    }  # fmt: skip
    if kind in _NO_TCP:
        return _UDP
    return _write(forms[kind], why="that is how HAProxy writes it") if kind in forms else ""


def _colons(text: str) -> str:
    """Words before a colon: Twisted's endpoints, the addresses of milters and of socat."""
    word, _, rest = text.partition(":")
    word = word.lower()
    if not rest.startswith("//") and (word in ("ssl", "tls") or (word in ("tcp", "tcp4", "tcp6") and "=" in rest)):
        split = re.split(r"(?<!\\):", rest)
        fields: dict[str, str] = {}
        for field in split:
            name, equals, value = field.partition("=")
            if equals:
                fields[name] = value
        port = fields.get("port", next((field for field in split if field.isdigit()), "8080"))
        host = fields.get("interface", "").replace("\\", "")
        if not host and "interface" in fields:  # an IPv6 address without the backslashes; never every address instead
            return ""
        host = f"[{host}]" if ":" in host else host
        tls = ", and TLS is for the server" if word in ("ssl", "tls") else ""
        return _write(f"{host}:{port}", f"{host}:8080", why=f"that is how Twisted writes an endpoint{tls}")
    if word in ("udp", "udp4", "udp6"):
        return _UDP
    if word in ("http", "https"):
        return _write(f":{rest}", why="a bind does not name the protocol above TCP")
    if word in _bind.SCHEMES and not text.startswith(word):
        return _write(f"{word}:{rest}", f"{word}://{rest}", why="a scheme is written in lower case")
    if word in ("inet", "inet4", "inet6"):
        port, _, host = rest.partition("@")
        scheme = {"inet": "", "inet4": "tcp4://", "inet6": "tcp6://"}[word]
        forms = (f"{host}:{port}", f"[{host}]:{port}") if host else (rest, f":{rest}", f"{rest}:8080")
        return _write(*(scheme + form for form in forms), why="a TCP bind has no 'inet'")
    if word == "local":
        return _write(f"unix:{rest}", why="a unix socket has the scheme unix")
    if word in ("tcp-listen", "tcp4-listen", "tcp6-listen"):
        return _write(f":{rest.partition(',')[0]}", why="that is how socat writes it")
    if word in ("tcp", "tcp4", "tcp6", "mptcp") and rest.startswith("/") and not rest.startswith("//"):
        return _write(f"{word}://{rest[1:]}", why="a slash is missing")
    return ""


# ---------------------------------------------------------------------------- paths


def _paths(text: str) -> str:
    if text.startswith("\\\\"):
        return "named pipes of Windows are not sockets: a bind is TCP, as in 127.0.0.1:8080"
    path = text.partition(":")[2].removeprefix("//") if text.startswith("unix:") else text
    if path.startswith("~"):
        full = os.path.expanduser(path.partition("?")[0])
        return (
            f"a shell replaces ~, and not in the middle of a word: write {_bind.unix_url(full)}"
            if full != path.partition("?")[0]
            else f"only a shell replaces ~; a file of that name is written unix:./{path}"
        )
    place = path.partition("?")[0]
    found = re.fullmatch(r"unix/+(.+)|(/.+):\d+", place)
    if found and text is path:
        return _write(
            f"unix:/{found[1]}" if found[1] else f"unix:{found[2]}", why="a unix socket is a path, without a port"
        )
    found = re.fullmatch(r"([^/:]+)/(\d+)", place)
    if found:
        return _write(f"{found[1]}:{found[2]}", why="host and port have a colon between them")
    if text is path and (place.endswith((".sock", ".socket")) or ("/" in place and ":" not in place)):
        return _write(f"unix:{text}", why="a unix socket has its scheme in front")
    return ""


# ---------------------------------------------------------------------------- digits and marks


def _numbers(text: str) -> str:
    host, colon, port = text.rpartition(":")
    front = host + colon
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|0[oO][0-7]{1,8}|0[bB][01]{1,32}", port):
        return _write(f"{front}{int(port, 0)}", why="a port is written in decimal digits")
    if re.fullmatch(r"\d{1,5}\.0*", port) and not front:
        return _write(port.partition(".")[0], why="a port is a whole number")
    if port == "*" and front and (host in ("", "*") or _bind.reads(f"{host}:0")):
        return _write(f"{front}0", why="a port is a number, and 0 lets the system choose")
    if "." in host and "%" in host and normal_host(host.partition("%")[0]):
        address, _, zone = host.partition("%")
        return _write(f"{address}:{port}?interface={zone}", why="only IPv6 has scopes; an option takes the interface")
    if re.fullmatch(r"\+?\d[\d_ ]*", port) and not port.isdigit():
        return _write(front + re.sub(r"\D", "", port), why="a port has digits only")
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", port)
    if found and int(found[1]) > int(found[2]):
        return _write(f"{front}{int(found[2])}-{int(found[1])}", why=f"a range goes up; this is {port}")
    if text.endswith(":") and len(text) > 1:
        return _write(text.rstrip(":"), why="there is an extra colon at the end")
    return ""


def _marks(text: str) -> str:
    if len(text) > 2 and text[0] in "'\"`\u201c\u2018\u00ab" and text[-1] in "'\"`\u201d\u2019\u00bb":
        return _write(text[1:-1], why="there are quotation marks around it")
    unseen = [one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Zs") and one not in " \0"]
    plain = unicodedata.normalize("NFKC", "".join(one for one in text if one not in unseen))
    plain = "".join(str(unicodedata.decimal(one, one)) for one in plain)
    if plain == text or not _bind.reads(plain):
        return ""
    if unseen:
        return f"there is an invisible character in it, U+{ord(unseen[0]):04X}: write {plain}"
    odd = next(one for one in text if not one.isascii())
    return f"{odd!r} ({unicodedata.name(odd, '?')}) only looks like a character of a bind: write {plain}"


_RULES = (
    _unfilled, _nobody, _directive, _prefix, _colons, _several, _docker, _schemes, _urls, _haproxy, _paths, _numbers,
    _marks,
)  # fmt: skip
