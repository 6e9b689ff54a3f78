from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

AF_UNSPEC: int
AF_INET: int
AF_INET6: int
AF_UNIX: int
SOCK_STREAM: int
SOCK_DGRAM: int
IPPROTO_IP: int
IPPROTO_IPV6: int
IPPROTO_TCP: int
IPPROTO_UDP: int
AI_PASSIVE: int
AI_CANONNAME: int
AI_NUMERICHOST: int
AI_NUMERICSERV: int
AI_ADDRCONFIG: int
AI_V4MAPPED: int
AI_ALL: int
SOMAXCONN: int
SHUT_RD: int
SHUT_WR: int
SHUT_RDWR: int
SOL_SOCKET: int
SO_ACCEPTCONN: int
SO_ERROR: int
SO_KEEPALIVE: int
SO_LINGER: int
SO_RCVBUF: int
SO_REUSEADDR: int
SO_SNDBUF: int
SO_TYPE: int
IPV6_V6ONLY: int
TCP_NODELAY: int
UNIX_PATH_ROOM: int
MSG_PEEK: int
MSG_WAITALL: int
AF_VSOCK: int
IPPROTO_MPTCP: int
SYSTEM: str
EXCLUSIVE_IS_A_CHOICE: bool
JOINS_LATE: bool
SETS_BOTH: bool
TAKES_BOTH: bool
HAS_PROC: bool
BUFFER_FACTOR: int
FASTOPEN_EARLY: bool
FASTOPEN_MOST: int
OPTIONS: dict[str, tuple[tuple[int, int], tuple[int, int], bool]]
PASSED: tuple[str, str, set[int]] | None

def of_this_process(made: dict[int, _T], kind: Callable[[], _T]) -> _T: ...
