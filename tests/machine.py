"""What the machine under the tests is and has: asked once, so that the tests read the same everywhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys

import pytest

WINDOWS = sys.platform == "win32"
LINUX = sys.platform == "linux"


def _wine_version() -> str | None:
    if not WINDOWS:
        return None
    try:
        function = ctypes.WinDLL("ntdll").wine_get_version  # type: ignore[attr-defined,unused-ignore]
    except AttributeError:
        return None
    function.restype = ctypes.c_char_p
    return str(function().decode())


def _can_bind(family: int, host: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


WINE = _wine_version()
EMULATOR = os.environ.get("HARKEN_EMULATOR", "")
"""What runs this Python for another processor: "qemu-user", or nothing. Told, not asked: it hides itself."""

# What qemu-user lacks, and the tests that need it.
EMULATOR_LACKS = {
    "TCP_INFO, which tells of a listener's queue": [
        "test_a_descriptor_can_be_bound_and_listened_on_later", "test_a_descriptor_can_be_listened_on",
        "test_a_second_listen_may_lengthen_it", "test_a_second_listen_never_shortens_the_queue",
        "test_a_terminal_gets_figures_that_change_in_place",
        "test_stats_of_a_listener_a_socket_and_a_number_are_the_same", "test_systemd_stands_in_a_bind",
        "test_the_backlog_is_granted_up_to_the_systems_maximum_and_read_back", "test_the_queue_is_counted",
    ],
    "sock_diag; and /proc/net is in the order of bytes of the machine below": [
        "test_a_child_of_ours_that_kept_what_we_closed_is_the_cause",
        "test_a_child_that_outlived_its_parent_is_the_cause",
        "test_a_connection_that_goes_out_from_the_port_is_the_cause", "test_a_live_listener_is_the_cause",
        "test_a_listener_is_told_with_its_process", "test_a_range_of_ports_is_every_port_of_it",
        "test_a_socket_for_ipv6_alone_is_not_told_for_ipv4", "test_a_socket_that_parent_and_child_share_is_the_cause",
        *(
            f"test_a_step_that_fails_undoes_all_before_it[{binds}-listen-1-98-OSError-{which}]"
            for binds in ("one name", "three binds")
            for which in (1, 2, 3)
        ),
        "test_a_table_for_a_person",
        "test_a_unix_socket_is_told_by_its_path", "test_a_wildcard_over_an_address_is_the_cause_in_both_directions",
        "test_a_wildcard_stands_for_its_addresses_and_they_for_it", "test_columns_for_a_program",
        "test_connections_are_told_once_for_a_process", "test_connections_that_ended_are_the_cause",
        "test_it_is_looked_into_when_it_is_asked_and_once", "test_json_for_a_program",
        "test_names_of_hosts_and_of_services_are_taken",
        "test_that_we_listen_ourselves_is_said", "test_the_listeners_on_a_whole_range_are_the_cause",
        "test_what_may_not_be_looked_into_is_the_cause",
    ],
    "IPV6_FLOWINFO_SEND": ["test_a_flow_label_is_passed_on"],
}  # fmt: skip
HAS_IPV6 = _can_bind(socket.AF_INET6, "::1")
LOOPBACKS = ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])]

needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")
posix_only = pytest.mark.skipif(WINDOWS, reason="BSD sockets only")
windows_only = pytest.mark.skipif(not WINDOWS, reason="Winsock only")
linux_only = pytest.mark.skipif(not LINUX, reason="Linux only")


def wine_lacks(what: str) -> pytest.MarkDecorator:
    """The test holds on Windows; Wine differs, as ``what`` says. The end of the run counts these."""
    return pytest.mark.xfail(bool(WINE), reason=f"Wine lacks: {what}", strict=True)


def open_sockets() -> set[str]:
    """The sockets, eventfds and pipes of this process, as Linux names them; elsewhere it cannot be told."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{number}")
                if target.startswith(("socket:", "pipe:")) or "eventfd" in target:
                    found.add(f"{number} {target}")
    return found


def bind_text(host: str, port: int = 0) -> str:
    """A host and a port as a bind."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
