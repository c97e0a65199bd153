"""MP3 without a header that counts its frames: libsndfile estimates the length from the first frames, and stops there.

Such a stream gets a header (a Xing frame) that promises more than it can hold, so that decoding ends where the audio
does. A header that counts less than the file holds (files laid end to end) is replaced in the same way.
"""

import io
from dataclasses import dataclass
from typing import Any

_BITRATES = {  # kbit/s of layer III by (is it MPEG 1)
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_HEAD = 1 << 16
_MORE = 1.02
"""A file this much larger than its header says holds more than the header counts; tags are some kB."""


@dataclass(frozen=True)
class _Frame:
    """One frame header of layer III: its four bytes, bytes in the stream, bytes of its side information."""

    header: bytes
    size: int
    side: int


def _frame(head: bytes, at: int) -> _Frame | None:
    four = head[at : at + 4]
    if len(four) < 4 or four[0] != 0xFF or four[1] & 0xE0 != 0xE0 or (four[1] >> 1) & 3 != 1:
        return None
    version, index, rate = (four[1] >> 3) & 3, four[2] >> 4, (four[2] >> 2) & 3
    if version == 1 or rate == 3 or index in (0, 15):
        return None
    first = version == 3
    bits = _BITRATES[first][index] * 1000
    size = (144 if first else 72) * bits // _RATES[version][rate] + ((four[2] >> 1) & 1)
    mono = four[3] >> 6 == 3
    return _Frame(four, size, (17 if mono else 32) if first else (9 if mono else 17))


def _first_frame(head: bytes) -> int | None:
    """Where the first frame begins that another one follows."""
    at = 0
    while head[at : at + 3] == b"ID3" and len(head) >= at + 10:
        size = head[at + 6] << 21 | head[at + 7] << 14 | head[at + 8] << 7 | head[at + 9]
        at += 10 + size
    for place in range(at, len(head) - 4):
        frame = _frame(head, place)
        if frame and (place + frame.size >= len(head) or _frame(head, place + frame.size)):
            return place
    return None


def _promise(frame: _Frame, size: int) -> bytes:
    """A Xing frame like `frame` that promises more frames than `size` bytes can hold."""
    first = frame.header[1] >> 3 & 3 == 3
    head = bytearray(frame.header)
    head[1] |= 1  # no checksum
    head[2] = (9 if first else 8) << 4 | head[2] & 0x0C  # 128 or 64 kbit/s, not padded
    made = _frame(bytes(head), 0)
    assert made is not None, "a header that was one stays one"
    body = bytes(made.side) + b"Xing" + (3).to_bytes(4, "big")
    body += min(size // 24 + 100, 2**31 - 1).to_bytes(4, "big") + min(size + made.size, 2**32 - 1).to_bytes(4, "big")
    return bytes(head) + body + bytes(made.size - 4 - len(body))


def with_honest_length(file: Any) -> "Prefixed | None":
    """The stream with a header that promises enough; None: it is no MP3, or its own header counts all of it.

    Args:
        file: binary, seekable; left at its beginning.
    """
    head, size = file.read(_HEAD), file.seek(0, io.SEEK_END)
    if head[:3] == b"ID3":  # a picture may be larger than what was read
        skip = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) if len(head) >= 10 else 0
        file.seek(skip)
        head, begin = file.read(_HEAD), skip
    else:
        begin = 0
    file.seek(0)
    if head[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"RF64"):
        return None
    at = _first_frame(head)
    if at is None:
        return None
    frame = _frame(head, at)
    assert frame is not None, "found a moment ago"
    tag = at + 4 + frame.side
    if head[tag : tag + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(head[tag + 4 : tag + 8], "big")
        if flags & 1:
            counted = int.from_bytes(head[tag + 12 : tag + 16], "big") if flags & 2 else size
            if size - begin - at <= counted * _MORE + _HEAD:
                return None
        at += frame.size
    elif head[at + 36 : at + 40] == b"VBRI":
        return None
    return Prefixed(_promise(frame, size - begin - at), file, begin + at)


class Prefixed(io.RawIOBase):
    """Some bytes, then a file from `begin` on."""

    def __init__(self, prefix: bytes, file: Any, begin: int) -> None:
        self._prefix, self._file, self._begin = prefix, file, begin
        self._end = len(prefix) + file.seek(0, io.SEEK_END) - begin
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max({io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence] + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if self._at < len(self._prefix):
            part = self._prefix[self._at : self._at + len(view)]
            view[: len(part)] = part
            count = len(part)
        else:
            self._file.seek(self._begin + self._at - len(self._prefix))
            count = int(self._file.readinto(view))
        self._at += count
        return count
