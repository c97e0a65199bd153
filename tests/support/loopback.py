"""A network namespace that has only loopback, for software that looks for the outside world when it starts."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_NEW_NETWORK, _SET_FLAGS, _UP_AND_RUNNING = 0x40000000, 0x8914, 0x41


@contextmanager
def only_loopback() -> Iterator[None]:
    """Move this thread, and what it starts, into a namespace where 127.0.0.1 is all there is. Skips without root."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_NEW_NETWORK):
            pytest.skip(f"needs a network namespace of its own (root): {os.strerror(ctypes.get_errno())}")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", _UP_AND_RUNNING))
            yield
        finally:
            assert libc.setns(before, _NEW_NETWORK) == 0, "back to the network of before"
    finally:
        os.close(before)
