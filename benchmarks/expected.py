"""What a step is expected to take: bytes as operators move them, at rates that kernels reach, launches counted.

`benchmarks.roofline` prints it beside the bound of the data sheet.  Every input stands in a table here, with its
source.  **All of it is an estimate**: rates are those that others have published or a guess, and no kernel of this
repository has run on a GPU.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lst_kernels.interval_attention.tiles import Tile, tiles_for, turns_in_place
from megatron_lst.model.batch import Batch
from megatron_lst.planning.devices import Device
from megatron_lst.simulation.trace import Operation


class Input(NamedTuple):
    """One number that the estimate rests on, and where it is from."""

    value: float
    meaning: str
    source: str


INPUTS = {
    "products": Input(
        0.657,
        "share of the dense peak in matrix products: 650 TFLOP/s on an H100",
        "the best shapes reach 790 (MAMF search, S. Bekman, Machine Learning Engineering); a whole step less",
    ),
    "elementwise": Input(
        0.836,
        "share of the memory's bandwidth in kernels that read and write once: 2.8 TB/s on an H100, 4.0 on an H200",
        "what copies reach on both; for norms and SwiGLU a guess",
    ),
    "clock": Input(0.85, "clock under load over the peak's, in attention: 1.55 of 1.83 GHz", "a guess"),
    "gap": Input(2e-6, "seconds from one kernel to the next, the host being ahead", "launch, ramp and tail; a guess"),
    "idle": Input(
        1.5e-3,
        "seconds a step in which the device waits for the host, where norm and sums are read before the update",
        "a guess; rows are laid out (2.5 ms on one core of a busy CPU) during the update",
    ),
    "idle ahead": Input(
        0.2e-3, "the same where the update by `lst_kernels` is launched before anything is read", "a guess"
    ),
    "forward tiles": Input(0.75, "share of the peak in attention's products, forward", "a guess; see `rates` below"),
    "backward tiles": Input(0.6, "the same backward, where tiles are smaller", "a guess; see `rates` below"),
    "exponential": Input(
        256, "time of one, in FLOPs of the tensor cores", "16 a clock and SM beside 4096 FLOPs (CUDA's guide, Hopper)"
    ),
    "instruction": Input(
        32, "time of another instruction on one value, in the same", "128 a clock and SM (CUDA's guide, Hopper)"
    ),
    "masked score": Input(
        9, "such instructions a score under a mask", "scale, mask (4), maximum, difference, sum, rounding"
    ),
    "plain score": Input(5, "such instructions a score without", "the same without the mask"),
}
"""All that is assumed, beside the passes of AS_EXECUTED. By it attention's forward pass runs at 355 TFLOP/s on an H100
with heads of 128 and at 250 with heads of 64, every tile masked; Triton's published ones lie between 200 and 400."""


def _input(name: str) -> float:
    return INPUTS[name].value


GAP, IDLE, IDLE_AHEAD = _input("gap"), _input("idle"), _input("idle ahead")
PRODUCTS, ELEMENTWISE = _input("products"), _input("elementwise")


@dataclass(frozen=True)
class Executed:
    """How an operator of the trace is executed.

    Attributes:
        passes: bytes moved over bytes counted, which are each tensor once.
        launches: kernels.
        why: for people.
    """

    passes: float = 1.0
    launches: float = 1
    why: str = ""


AS_EXECUTED = {
    "aten.empty": Executed(0, 0, why="allocates"),
    "aten.new_empty": Executed(0, 0, why="allocates"),
    "aten.logsumexp": Executed(6, 9, why="eager: maximum, difference, exponential and sum pass one by one"),
    "aten.scatter_add": Executed(0.001, 1, why="touches one value a row"),
    "aten.select_backward": Executed(1.5, 2, why="zeros, then a copy"),
    "aten.index_put": Executed(1.5, 6, why="a copy, then a sort of the index and one pass over rows"),
    "aten.embedding_dense_backward": Executed(1, 8, why="a sort of the tokens and one pass over rows"),
    "lst_kernels.interval_attention_backward": Executed(1, 2, why="by queries, then by keys"),
    "lst_kernels.packed_attention_backward": Executed(1, 2, why="as above"),
    "lst_kernels.rms_norm_backward": Executed(1.03, 2, why="the weight's partial sums are written, then added up"),
    "lst_kernels.interval_attention_joint_backward": Executed(1, 2, why="as above"),
    "lst_kernels.patch_unpool_backward": Executed(1, 7, why="tokens sorted by patch"),
}  # fmt: skip
"""By the beginning of an operator's name, the longest that fits; others move each tensor once, in one kernel. From the
sources of PyTorch and of the kernels here."""


def executed(name: str) -> Executed:
    """See AS_EXECUTED."""
    fitting = [key for key in AS_EXECUTED if name.startswith(key)]
    return AS_EXECUTED[max(fitting, key=len)] if fitting else Executed()


@dataclass(frozen=True)
class Update:
    """Bytes a parameter, and launches, of what follows the backward passes and is not traced; launches for 1.5e9
    parameters in some 230 tensors."""

    bytes: float
    launches: int


NORM = Update(4, 80)
"""Every gradient is read, many tensors together, at most 320 parts of 65,536 values a launch."""
TORCH_ADAMW = Update(32 + 6, 320)
"""Gradient, master and two moments are read, all written: dividing, PyTorch's keeps the quotient. Then the master is
read and the bf16 weight written, one tensor after the other. The update by `lst_kernels` is traced."""


@dataclass(frozen=True)
class Pairs:
    """Scores that the tiles of one attention compute, a head: all, and those of tiles that need a mask."""

    all: float
    masked: float


def tile_pairs(start: np.ndarray, end: np.ndarray, keys: int, rows: int, columns: int, masked_alone: bool) -> Pairs:
    """Scores of tiles of `rows` queries by `columns` keys over the intervals [start, end); see `interval_attention`.

    Args:
        masked_alone: only tiles that an interval cuts are masked; otherwise all are.
    """
    first = np.arange(0, len(start), rows)
    last = np.minimum(first + rows, len(start)) - 1
    low, high = start[first] // columns * columns, np.minimum(np.maximum.reduceat(end, first), keys)
    tiles = -(-np.maximum(high - low, 0) // columns)
    every = float(tiles.sum() * rows * columns)
    if not masked_alone:
        return Pairs(every, every)
    begin, stop = -(-start[last] // columns) * columns, np.minimum.reduceat(end, first) // columns * columns
    whole = np.clip((stop - begin) // columns, 0, tiles)
    return Pairs(every, every - float(whole.sum() * rows * columns))


def attention_shape(op: Operation) -> tuple[int, int, int, int]:
    """Queries, keys, heads of queries, and their size, of an attention."""
    if "packed" not in op.name:
        keys = op.shapes[2 if "backward" in op.name else 1]  # a gradient stands before queries and keys
        return op.shapes[0][0], keys[0], *op.shapes[0][-2:]
    (tokens, groups, width), (_, half) = op.shapes[1:3] if "backward" in op.name else op.shapes[:2]
    return tokens, tokens, groups * (width // (2 * half) - 2), 2 * half


def turned_bytes(op: Operation) -> int:
    """Bytes of the rotary embedding's own kernel in a packed attention: what it turns is read and written; else 0.

    Where attention's kernels turn queries and gradients themselves, it turns keys, forward.
    """
    if "packed" not in op.name:
        return 0
    size, backward = attention_shape(op)[3], "backward" in op.name
    tokens, groups, width = op.shapes[1 if backward else 0]
    turned = width - size
    if turns_in_place(size):
        turned = 0 if backward else size
    return (2 * 2 * groups * turned + 2 * 4 * size // 2) * tokens if turned else 0


def attention_seconds(op: Operation, batch: Batch, device: Device) -> float:
    """Seconds of one call of interval_attention, forward or backward, by the scores that its tiles compute."""
    queries, keys, heads, size = attention_shape(op)
    start, end = mask_of(batch, queries, keys)
    tiles = tiles_for("sm90", torch.bfloat16, size)
    peak = device.peak * _input("clock")

    def seconds(tile: Tile, products: int, share: float, masked_alone: bool = True) -> float:
        pairs = tile_pairs(start, end, keys, tile.BM, tile.BN, masked_alone)
        instructions = _input("masked score") * pairs.masked + _input("plain score") * (pairs.all - pairs.masked)
        other = _input("exponential") * pairs.all + _input("instruction") * instructions
        return heads * (2 * products * size / share * pairs.all + other) / peak

    if "backward" not in op.name:
        return seconds(tiles.forward, 2, _input("forward tiles"))
    share = _input("backward tiles")
    return seconds(tiles.dq, 3, share) + seconds(tiles.dkdv, 4, share)


def mask_of(batch: Batch, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of the attention over so many queries and keys."""
    for mask, count in (
        (batch.unit_mask, batch.rows * batch.units),
        (batch.encoder_mask, len(batch.encoder_position)),
        (batch.decoder_mask, len(batch.decoder_position)),
    ):
        if mask is not None and mask.shape[1] == queries and count == keys:
            return mask[0].numpy(), mask[1].numpy()
    return batch.cross_mask[0].numpy(), batch.cross_mask[1].numpy()
