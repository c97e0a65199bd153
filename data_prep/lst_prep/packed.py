"""Packed files, read to their very end: one that breaks off is an EOFError, never a shorter file."""

import bz2
import gzip
import io
import lzma
from typing import IO, Any, BinaryIO, cast

from lst_prep.places import AnyPath

SUFFIXES = (".zst", ".xz", ".gz", ".bz2")


class _Zstd(io.RawIOBase):
    """Every frame of a .zst file, windows of up to 2 GiB (`zstd --long=31`) included.

    zstandard's own stream reader ends without an error where the file does, in the middle of a frame.
    """

    def __init__(self, file: IO[bytes]) -> None:
        from zstandard import ZstdDecompressor

        self._file, self._decompressor = file, ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(1 << 17)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = self._frame.decompress(self._packed)
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def unpacked(file: BinaryIO, path: AnyPath) -> BinaryIO:
    """The unpacked bytes of an open file, by the suffix of its name, in upper or lower case.

    Reads raise EOFError, zlib.error, LZMAError, ZstdError or an OSError without a number where the file is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Zstd(file), 1 << 17))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(file))
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(file))
    return file


def is_damage(error: Exception) -> bool:
    """Whether unpacking (or pyarrow) says so of the bytes; not of a store that is away, not a fault of ours."""
    if isinstance(error, OSError):
        return error.errno is None
    known = isinstance(error, EOFError | lzma.LZMAError | ValueError)
    return known or type(error).__module__.split(".")[0] in ("zlib", "zstandard", "zstd", "pyarrow")
