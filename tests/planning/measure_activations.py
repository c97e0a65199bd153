"""Prints the bytes that one rank's real model keeps for its backward pass. Run as a program by test_memory.py.

Attention is replaced by a function that keeps what a fused kernel keeps: q, k, v and its output.
"""

import json
import sys

import numpy as np
import torch

from lst_kernels import rotary
from lst_kernels.packed_attention.reference import heads_of
from megatron_lst.config.load import build
from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.patching.row import Chunk, assemble_row


class FusedAttention(torch.autograd.Function):
    """Keeps q, k, v, output; computes nothing of use."""

    @staticmethod
    def forward(ctx, q, k, v):  # type: ignore[no-untyped-def]
        out = q * 1.0
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        _, k, v, _ = ctx.saved_tensors
        return grad * 1.0, torch.zeros_like(k), torch.zeros_like(v)


def main() -> None:
    values = json.loads(sys.argv[1])
    config = build(Config, values)
    engine = build_engine(config)
    from megatron_lst.model import cross_attention, layers

    def fused(q, k, v, *_, **__):  # type: ignore[no-untyped-def]
        return FusedAttention.apply(q, k, v)

    def packed(qkv, cos, sin, start, end, size, **_):  # type: ignore[no-untyped-def]
        query, key, value = heads_of(qkv, size)
        return fused(rotary(query, cos, sin), rotary(key, cos, sin), value)

    layers.packed_attention = packed
    cross_attention.interval_attention_joint = lambda q, kv, *_, **__: fused(q, kv[:, 0], kv[:, 1])
    layers.interval_attention = cross_attention.interval_attention = fused
    cross_attention.patch_attention = fused
    vocabulary, units = config.vocabulary, config.data.units
    speech = np.full((units - 2) * 4, vocabulary.text_size, np.int32)
    tokens = np.concatenate([[vocabulary.bos, vocabulary.speech_marker], speech]).astype(np.int32)
    lengths = np.array([1, 1] + [4] * (units - 2), np.int32)
    row = assemble_row([Chunk(tokens, lengths, np.zeros(units, bool))], units, vocabulary)
    chunk = engine.chunks[0]
    parameters = {p.untyped_storage().data_ptr() for p in chunk.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    from tests.support.single import make_batch

    batch = make_batch([row] * config.training.micro_batch, config, engine.device)
    keep_alive = []

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        keep_alive.append(tensor)  # so that no address is used twice
        return pack(tensor)

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        units_in = torch.zeros(batch.rows * batch.units, 1, config.model.hidden, requires_grad=True)
        chunk.run_global(units_in, batch)
        trunk = sum(kept.values())
        kept.clear()
        chunk(batch)
    print(
        json.dumps(
            {
                "global": trunk,
                "all": sum(kept.values()),
                "tokens": int(batch.labels.shape[0]),
                "parameters": sum(p.numel() for p in chunk.parameters()),
            }
        )
    )
    engine.close()


if __name__ == "__main__":
    main()
