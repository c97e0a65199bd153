"""Rows from the process that builds them to others on the same machine: written into memory once, mapped by all.

The rows of a step lie end to end in a memory file without a name (memfd), whose descriptor goes through a local socket
without a name in any folder. So nothing has to be cleaned up: the kernel frees both with their last holder, however
the processes end, and the end of one side is seen at once by the other.
"""

import json
import mmap
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_lst import errors
from megatron_lst.errors import PeerLost
from megatron_lst.patching.row import Row
from megatron_lst.patching.serialisation import row_to_bytes, rows_from_bytes

MESSAGE_BYTES = 1 << 16
"""The longest message: numbers, or the text of an error."""


def can_share() -> bool:
    """Whether this system has what it takes (Linux)."""
    return hasattr(os, "memfd_create") and hasattr(socket, "SO_PEERCRED")


class RowPublisher:
    """The side that has rows. Each message is JSON: {"bytes": n, ...} with a descriptor, or {"error": [type, text]}.

    Attributes:
        address: by which processes of this machine and user find it.
    """

    def __init__(self) -> None:
        self.address = f"lst-rows-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a message is received whole
        self._listener.bind(f"\0{self.address}")  # the zero: a name of the kernel, not of a file
        self._listener.listen(1024)
        self._peers: list[socket.socket] = []

    def accept(self, count: int, seconds: float) -> None:
        """Wait for so many subscribers.

        Raises:
            PeerLost: fewer came in so many seconds.
        """
        self._listener.settimeout(seconds)
        try:
            while len(self._peers) < count:
                peer, _ = self._listener.accept()
                if _owner(peer)[1] == os.getuid():
                    peer.settimeout(None)
                    self._peers.append(peer)
                else:
                    peer.close()
        except TimeoutError:
            raise PeerLost(
                f"{count} processes of this machine take their rows from this one (pid {os.getpid()}); "
                f"{len(self._peers)} of them came within {seconds:g} s"
            ) from None
        self._listener.close()

    def send(self, rows: Sequence[Row], **about: float) -> list[Row]:
        """Give rows to every subscriber.

        Args:
            about: numbers that go with them.

        Returns:
            The same rows, as views of the memory that all share.

        Raises:
            PeerLost: a subscriber has ended.
        """
        parts = [row_to_bytes(row) for row in rows]  # uint8 [n] each
        total = sum(map(len, parts))
        descriptor = os.memfd_create("lst-rows")
        try:
            os.ftruncate(descriptor, total)
            memory = np.frombuffer(mmap.mmap(descriptor, total), np.uint8)
            np.concatenate(parts, out=memory)
            self._tell({"bytes": total, **about}, [descriptor])
        finally:
            os.close(descriptor)  # whoever has mapped it keeps it
        return rows_from_bytes(memory)

    def fail(self, error: BaseException) -> None:
        """Say why no more rows come; who has ended is passed over."""
        room = MESSAGE_BYTES // 8  # a character takes up to 6 bytes as JSON
        try:
            self._tell({"error": [type(error).__name__, str(error)[:room]]})
        except PeerLost:
            return

    def _tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        data, lost = json.dumps(message).encode(), []
        for peer in self._peers:
            try:
                socket.send_fds(peer, [data], list(descriptors))
            except OSError:
                lost.append(_owner(peer)[0])
        if lost:
            raise PeerLost(f"process {lost[0]} of this machine, which takes its rows from this one, has ended")

    def close(self) -> None:
        for held in (self._listener, *self._peers):
            held.close()


class RowSubscriber:
    """The side that takes rows.

    Args:
        address: of the publisher.
        builder: how people call it, such as "rank 0".

    Raises:
        PeerLost: nobody of this user listens there.
    """

    def __init__(self, address: str, builder: str, seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(f"\0{address}")
        except OSError as error:
            raise PeerLost(f"{builder}, which builds this process's rows, cannot be reached: {error}") from None
        process, user = _owner(self._socket)
        self._builder = f"{builder} (pid {process})"
        if user != os.getuid():
            raise PeerLost(f"{self._builder} belongs to user {user}: no rows are taken from it")
        self._socket.settimeout(None)

    def receive(self) -> tuple[list[Row], dict[str, float]]:
        """The next step's rows, views of memory that cannot be written, and the numbers that came with them.

        There is no limit of time: a builder that waits for its data says so itself after `data.stall_seconds`.

        Raises:
            PeerLost: the builder has ended.
            LstError, RuntimeError: what went wrong in it.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
        except OSError:
            data, descriptors = b"", []
        if not data:
            raise PeerLost(f"{self._builder}, which builds this process's rows, has ended")
        message = json.loads(data)
        if "error" in message:
            name, text = message["error"]
            raise errors.of_name(name, text, f"{self._builder}, which builds this process's rows, failed: {name}")
        (descriptor,) = descriptors
        try:
            memory = mmap.mmap(descriptor, message.pop("bytes"), prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return rows_from_bytes(np.frombuffer(memory, np.uint8)), message

    def close(self) -> None:
        self._socket.close()


def _owner(peer: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a local socket, as the kernel knows them."""
    process, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user
