"""What the machine under the tests is and has: asked once, so that the tests read the same everywhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
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

# What qemu-user lacks, and the tests that need it: patterns of their names, with or without what is in brackets.
_TCP_INFO = "TCP_INFO, which tells of a listener's queue"
_SOCK_DIAG = "sock_diag, which tells who has an address and of unix sockets' queues"
EMULATOR_LACKS = {
    _TCP_INFO: [
        "test_a_backlog_that_is_not_granted_is_told_in_one_line",
        "test_a_default_backlog_is_what_the_system_grants",
        "test_a_descriptor_can_be_bound_and_listened_on_later", "test_a_descriptor_can_be_listened_on",
        "test_a_family_that_is_missing_is_left_out", "test_a_free_port_is_free",
        "test_a_long_path_is_free_and_a_long_name_impossible",
        "test_a_longer_queue_can_be_asked_for_and_a_shorter_one_is_not_made",
        "test_a_name_leaves_out_the_family_that_is_missing", "test_a_second_listen_may_lengthen_it",
        "test_a_second_listen_never_shortens_the_queue", "test_a_terminal_gets_figures_that_change_in_place",
        "test_a_wildcard_and_a_name_are_told_address_by_address", "test_binds_that_want_the_same_are_told",
        "test_closing_while_a_batch_is_handed_over_loses_nobody",
        "test_connections_of_a_server_that_has_stopped_are_not_in_the_way",
        "test_listen_does_what_was_told_of_a_path", "test_rcvbuf_is_there_in_time_for_the_handshake",
        "test_several_listeners_take_turns",
        "test_stats_of_a_listener_a_socket_and_a_number_are_the_same", "test_systemd_stands_in_a_bind",
        "test_the_backlog_is_granted_up_to_the_systems_maximum_and_read_back",
        "test_the_backlog_is_one_of_the_options", "test_the_counters_of_tcp_are_told_for_tcp",
        "test_the_queue_is_counted", "test_the_room_for_a_name_is_told_to_the_byte",
        r"test_what_is_only_bound_asks_for_what_bind_was_given_or_the_most\[64-.*",
        "test_what_ends_the_program_comes_through_and_the_others_are_served_later",
        "test_what_was_inherited_is_judged_and_left_alone", "test_which_addresses_are_this_machines",
        "test_who_keeps_the_listener_can_lengthen_the_queue_again", "test_without_a_table_it_is_told_all_the_same",
    ],
    _SOCK_DIAG: [
        "test_a_child_of_ours_that_kept_what_we_closed_is_the_cause",
        "test_a_child_that_outlived_its_parent_is_the_cause",
        "test_a_connection_that_goes_out_from_the_port_is_.*", "test_a_descriptor_that_came_too_late_is_told",
        "test_a_forked_child_is_of_the_group",
        "test_a_group_may_be_(joined|opened_by_one_call)",
        "test_a_group_of_ours_does_not_let_us_into_one_of_others_that_overlaps",
        "test_a_listener_is_told_with_its_process", "test_a_live_listener_is_the_cause",
        "test_a_live_server_is_in_the_way_on_every_system", "test_a_range_goes_on_behind_what_is_held",
        "test_a_range_in_use_is_told", "test_a_range_of_ports_is_every_port_of_it",
        "test_a_second_of_the_same_process_joins", "test_a_second_process_joins_on_purpose_only",
        "test_a_socket_for_ipv6_alone_is_not_told_for_ipv4",
        "test_a_socket_that_does_not_listen_is_in_the_way_by_its_option",
        "test_a_socket_that_parent_and_child_share_is_the_cause",
        r"test_a_step_that_fails_undoes_all_before_it\[(one name|three binds)-listen-1-98-.*",
        "test_a_table_for_a_person", "test_a_unix_socket_is_told_by_its_path",
        "test_a_wildcard_over_an_address_is_the_cause_in_both_directions",
        "test_a_wildcard_stands_for_its_addresses_and_they_for_it", "test_bound_and_later_listening",
        "test_columns_for_a_program", "test_connections_are_told_once_for_a_process",
        "test_connections_that_ended_are_the_cause", "test_it_is_bound_through_its_folder",
        "test_it_is_looked_into_when_it_is_asked_and_once", "test_json_for_a_program",
        "test_names_of_hosts_and_of_services_are_taken", "test_nothing_changes_for_who_is_asked",
        "test_a_held_bind_of_another_user_is_in_the_way",
        "test_connections_that_have_ended_are_in_the_way_by_their_option", "test_only_one_of_two_families_is_taken",
        "test_that_we_listen_ourselves_is_said", "test_the_free_port_of_a_range_is_told",
        "test_the_listeners_on_a_whole_range_are_the_cause",
        "test_the_queue_is_told", "test_the_queue_of_(a_path_is_counted_and_of_no_other|an_abstract_socket_is_counted)",
        "test_what_may_not_be_looked_into_is_(the_cause|taken_all_the_same)",
        "test_who_listens_is_in_the_way_or_not",
        "test_netlink_need_not_be_there", "test_who_else_is_in_the_way_is_told_beside_sockets_of_our_own",
        "test_another_process_on_a_narrower_address_is_told_and_not_the_call",
    ],
    "SO_MARK, SO_INCOMING_CPU, SO_BUSY_POLL, IP_TRANSPARENT, TCP_CONGESTION, or SO_BINDTODEVICE read back": [
        r"test_(it_is_set|what_is_held|the_table_knows)_.*\[(mark|incoming_cpu|busy_poll|transparent)-.*",
        r"test_(it_is_set|what_is_held|the_table_knows)_.*\[(congestion|interface)-.*",
        "test_two_interfaces_never_meet", "test_who_is_on_another_interface_is_in_nobodys_way",
        "test_the_interface_is_shown",
        "test_a_socket_that_is_there_already_is_given_them", "test_all_of_them_at_once_on_a_held_range",
        r"test_an_address_that_is_not_here_can_be_bound\[.*-transparent\]",
        "test_incoming_cpu_takes_what_arrives_there", "test_what_needs_a_privilege_says_which",
        "test_where_nothing_was_inherited_all_of_it_is_set_at_accept",
    ],
    "IPV6_FLOWINFO_SEND": ["test_a_flow_label_is_passed_on"],
}  # fmt: skip


def emulator_lacks(test: str) -> str | None:
    """What the test of this name needs and the emulator lacks."""
    for what, patterns in EMULATOR_LACKS.items():
        if EMULATOR and any(re.fullmatch(rf"({pattern})(\[.*)?", test, re.DOTALL) for pattern in patterns):
            return what
    return None


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
