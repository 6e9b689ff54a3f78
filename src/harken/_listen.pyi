from collections.abc import Callable
from typing import Literal

from ._bind import Bind
from ._listener import Listener, Listeners
from ._plan import Plan
from ._socket import Socket
from ._types import Address

def bind(
    *binds: str | int | Bind,
    # <options signature>: written by .ci/options
    backlog: int | None = None,
    reuse_port: bool | Literal["join"] | None = None,
    ipv6_only: bool | None = None,
    exclusive: bool | None = None,
    nodelay: bool | None = None,
    keepalive: bool | None = None,
    keepalive_idle: int | None = None,
    keepalive_interval: int | None = None,
    keepalive_count: int | None = None,
    user_timeout: int | None = None,
    defer_accept: int | None = None,
    fastopen: int | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    freebind: bool | None = None,
    transparent: bool | None = None,
    interface: str | None = None,
    mark: int | None = None,
    tos: int | None = None,
    ttl: int | None = None,
    mss: int | None = None,
    congestion: str | None = None,
    priority: int | None = None,
    incoming_cpu: int | None = None,
    busy_poll: int | None = None,
    inheritable: bool | None = None,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    configure: Callable[[Socket, Address], object] | None = None,
    # </options>
) -> Listeners: ...
def listen(
    *binds: str | int | Bind,
    # <options signature>: written by .ci/options
    backlog: int | None = None,
    reuse_port: bool | Literal["join"] | None = None,
    ipv6_only: bool | None = None,
    exclusive: bool | None = None,
    nodelay: bool | None = None,
    keepalive: bool | None = None,
    keepalive_idle: int | None = None,
    keepalive_interval: int | None = None,
    keepalive_count: int | None = None,
    user_timeout: int | None = None,
    defer_accept: int | None = None,
    fastopen: int | None = None,
    rcvbuf: int | None = None,
    sndbuf: int | None = None,
    freebind: bool | None = None,
    transparent: bool | None = None,
    interface: str | None = None,
    mark: int | None = None,
    tos: int | None = None,
    ttl: int | None = None,
    mss: int | None = None,
    congestion: str | None = None,
    priority: int | None = None,
    incoming_cpu: int | None = None,
    busy_poll: int | None = None,
    inheritable: bool | None = None,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    configure: Callable[[Socket, Address], object] | None = None,
    # </options>
) -> Listeners: ...
def try_out(
    bind: Bind, plan: Plan, family: int, port: int | str | None
) -> tuple[list[tuple[Address, Listener | None, str | None, OSError | None, bool]], OSError | None]: ...
