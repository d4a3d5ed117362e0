"""No socket opens in the suite: here the block itself is put to the test."""

import socket
import subprocess
import sys
import urllib.request

import pytest


def test_connecting_anywhere_is_refused():
    with pytest.raises(OSError, match="offline"):
        urllib.request.urlopen("http://192.0.2.1/", timeout=1)
    with pytest.raises(OSError, match="offline"):
        socket.socket(socket.AF_INET).connect(("192.0.2.1", 80))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError, match="offline"):
        datagrams.sendto(b"a name to look up", ("192.0.2.1", 53))


def test_child_processes_are_offline_too():
    code = "import socket; socket.socket(socket.AF_INET).connect(('192.0.2.1', 80))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode != 0 and "the test suite is offline" in child.stderr
