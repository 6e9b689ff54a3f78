"""One port for several workers. `groups` is the front, `members` what it is made of, `addresses` the kernel's side."""

from .groups import Group, group
from .members import MemberStats, Retired

__all__ = ["Group", "MemberStats", "Retired", "group"]
