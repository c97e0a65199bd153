"""Sound files that break off, or hold more than their header says: libsndfile takes what there is, and says nothing."""

import io
from typing import Any

_STREAMED = 0x7F000000
"""Data sizes from here on, and 0, are those of programs that wrote to a pipe and knew none."""


def fault(file: Any) -> str | None:
    """What speaks against taking the file for whole; None: nothing, or it is of a kind without such a mark.

    Args:
        file: binary, seekable; left at its beginning.
    """
    try:
        head = file.read(12)
        size = file.seek(0, io.SEEK_END)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return _riff(file, size)
        if head[:4] == b"OggS":
            return _ogg(file, size)
        return None
    finally:
        file.seek(0)


def _riff(file: Any, size: int) -> str | None:
    at = 12
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name != b"data":
            at += 8 + length + (length & 1)
            continue
        if length == 0 or length >= _STREAMED:
            return None
        end = at + 8 + length
        if end > size:
            return f"breaks off: its header says {length:,} bytes of sound, it has {size - at - 8:,}"
        file.seek(end + (length & 1))
        rest = file.read(8)
        if len(rest) == 8 and rest.strip(b"\0") and not all(0x20 <= byte < 0x7F for byte in rest[:4]):
            return f"its header says {length:,} bytes of sound, and {size - end:,} more follow that are no chunk"
        return None
    return None


def _ogg(file: Any, size: int) -> str | None:
    """An Ogg stream's last page is marked; pages are at most 65,307 bytes long."""
    file.seek(max(size - 65_400, 0))
    tail = file.read()
    at = tail.rfind(b"OggS\0")
    if at >= 0 and at + 5 < len(tail) and not tail[at + 5] & 4:
        return "breaks off: its last Ogg page is not marked as the last"
    return None
