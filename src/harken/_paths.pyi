from typing import final

from ._socket import Socket

@final
class Entry:
    shown: str

    def __init__(self, shown: str, path: str, absolute: str) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def pending(self) -> bool: ...
    def bind(
        self,
        listener: Socket,
        takes_over: bool = False,
        uid: int = -1,
        gid: int = -1,
        mode: int = -1,
        fresh: bool = False,
    ) -> None: ...
    def publish(self) -> None: ...
    def settle(self) -> None: ...
    def remove(self) -> None: ...

def settle_soon(entries: list[Entry]) -> None: ...
