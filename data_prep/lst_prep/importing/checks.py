"""Codes as a file has them -> codes that are those of the codec, or why they are not."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from lst_prep.importing.config import CheckConfig
from lst_prep.places import AnyPath, beside
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.documents.codec import Codec
from megatron_lst.errors import LstError
from megatron_lst.vocabulary import rate_text

_SHOWN = 60


def codes_of(value: Any, layout: str, codec: Codec, folder: AnyPath, inputs: Inputs) -> np.ndarray:
    """int64 [T, Q], within the codebooks' ranges.

    Args:
        value: nested lists, an array, a string of numbers, or the path of an .npy or .npz file.
        layout: see `ImportSource.layout`.
        folder: what relative paths are relative to, and have to stay in.

    Raises:
        Rejection: bad_tokens, bad_shape, code_out_of_range, unreadable_tokens, outside_corpus.
        CannotRead: the file of the tokens, now.
    """
    codes = _on_two_axes(_array(value, folder, inputs), layout, codec.depth)
    outside = (codes < 0) | (codes >= codec.codebooks)
    if outside.any():
        frame, book = (int(x) for x in np.argwhere(outside)[0])
        raise Rejection(
            "code_out_of_range",
            f"frame {frame}: {int(codes[frame, book])} in codebook {book}, which has {codec.codebooks[book]} entries",
        )
    return codes


def _array(value: Any, folder: AnyPath, inputs: Inputs) -> np.ndarray:
    if isinstance(value, str):
        value = load_array(value, folder, inputs) if value.endswith((".npy", ".npz", ".pt")) else _numbers(value)
    elif isinstance(value, Mapping):
        raise Rejection("bad_tokens", f"expected integers, got keys and values: {', '.join(map(str, value))[:_SHOWN]}")
    try:
        array = np.asarray(value)
    except ValueError:
        raise Rejection("bad_shape", f"frames of different lengths: {_lengths(value)}") from None
    if array.dtype == object or array.dtype.kind in "USV":
        if isinstance(value, list | tuple | np.ndarray) and any(
            isinstance(v, list | tuple | np.ndarray) for v in value
        ):
            raise Rejection("bad_shape", f"frames of different lengths: {_lengths(value)}")
        raise Rejection("bad_tokens", f"expected integers, got {json.dumps(str(value)[:_SHOWN])}")
    if not array.size:
        raise Rejection("bad_tokens", "no tokens")
    if array.dtype.kind not in "iu":
        raise Rejection("bad_tokens", f"expected integers, got an array of {array.dtype}")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise Rejection("code_out_of_range", f"{array.max()}")
    return array.astype(np.int64)


def _lengths(value: Any) -> str:
    found = sorted({len(v) if hasattr(v, "__len__") else 1 for v in value})
    return ", ".join(map(str, found[:5]))


def _numbers(value: str) -> np.ndarray:
    try:
        return np.array([int(word) for word in value.replace(",", " ").split()], np.int64)
    except (ValueError, OverflowError):
        raise Rejection("bad_tokens", f"expected integers, got {json.dumps(value[:_SHOWN])}") from None


def load_array(name: str, folder: AnyPath, inputs: Inputs) -> np.ndarray:
    """The array in a file beside its record; never unpickled.

    Raises:
        Rejection: outside_corpus, or it is no file of numbers.
        CannotRead: not now.
    """
    if name.endswith(".pt"):
        raise Rejection("unreadable_tokens", f"{name}: a torch file may hold code; save the tokens as .npy")
    return array_in(io.BytesIO(inputs.read_bytes(beside(folder, name))), name)


def array_in(file: BinaryIO, name: str, key: str = "") -> np.ndarray:
    """The array in an .npy or .npz in memory.

    Args:
        key: of an .npz, which array; empty: the only one.

    Raises:
        Rejection: unreadable_tokens.
    """
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            names = [key] if key else found.files
            if len(names) != 1 or names[0] not in found.files:
                raise Rejection("unreadable_tokens", f"{name} holds {', '.join(found.files)}; name one of them")
            return np.asarray(found[names[0]])
    except (LstError, Rejection):
        raise
    except (ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise Rejection("unreadable_tokens", f"{name}: {error}") from None


def _on_two_axes(array: np.ndarray, layout: str, depth: int) -> np.ndarray:
    """int [T, Q] of what the layout says the axes are."""
    if array.ndim == 1 and (layout == "flat" or depth == 1):
        if len(array) % depth:
            raise Rejection("bad_shape", f"{len(array)} tokens are not whole frames of {depth}")
        return array.reshape(-1, depth)
    if array.ndim != 2 or layout == "flat":
        expected = {"tq": f"[T, {depth}]", "qt": f"[{depth}, T]", "flat": f"[T x {depth}]"}[layout]
        raise Rejection("bad_shape", f"{list(array.shape)}, expected {expected}")
    axis = 1 if layout == "tq" else 0
    if array.shape[axis] != depth:
        turned = array.shape[1 - axis] == depth
        other = "qt" if layout == "tq" else "tq"
        hint = f"; transposed? then set layout: {other}" if turned else ""
        wanted = f"[T, {depth}]" if layout == "tq" else f"[{depth}, T]"
        raise Rejection("bad_shape", f"{list(array.shape)}, expected {wanted}{hint}")
    return array if layout == "tq" else array.T


def repeat(codes: np.ndarray, durations: Any) -> np.ndarray:
    """Tokens whose repetitions were merged, at full rate: int [T', 1] and T' durations -> int [T, 1]."""
    try:
        times = np.asarray(durations)
    except ValueError:
        times = np.zeros(0)
    if times.dtype.kind not in "iu" or times.shape != (len(codes),) or (times < 1).any():
        raise Rejection("bad_tokens", f"durations: expected {len(codes)} numbers of frames, each at least 1")
    return np.repeat(codes, times, axis=0)


def check_rate(frames: int, seconds: Any, codec: Codec, checks: CheckConfig) -> None:
    """Compare the number of frames with the duration. Raises Rejection: rate_mismatch, bad_record."""
    if seconds is None:
        return
    try:
        duration = float(seconds)
    except (TypeError, ValueError):
        duration = float("nan")
    if not 0 < duration < float("inf"):
        raise Rejection("bad_record", f"seconds is {seconds!r}")
    expected = duration * float(codec.rate)
    if abs(frames - expected) > checks.frames + checks.share * expected:
        raise Rejection(
            "rate_mismatch",
            f"{frames} frames in {duration:g} s are {frames / duration:.4g} a second, {codec.name} has "
            f"{rate_text(codec.rate)}",
        )
