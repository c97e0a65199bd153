"""Ragged-patch operations (pooling, un-pooling, per-patch attention, interval attention) and what a layer needs beside
them: rotary embedding, RMSNorm with its residual, SwiGLU, a chunked cross-entropy and the AdamW update.

Every operation has a folder with a plain PyTorch reference (any device, float64 included), a Triton kernel
pair and a benchmark.  This package needs torch alone; Triton is imported when a CUDA tensor first asks for
it. See the README beside this package for what each operation promises.
"""

from .adamw import adamw
from .add_product import add_product
from .backends import available_backends, choose_backend
from .interval_attention import interval_attention, interval_attention_joint
from .intervals import queries_of_keys
from .linear_cross_entropy import linear_cross_entropy
from .packed_attention import packed_attention
from .patch_attention import patch_attention
from .patch_pool import patch_pool
from .patch_unpool import patch_unpool
from .rms_norm import rms_norm, rms_norm_residual
from .rotary import rotary
from .swiglu import swiglu

__all__ = [
    "adamw",
    "add_product",
    "available_backends",
    "choose_backend",
    "interval_attention",
    "interval_attention_joint",
    "linear_cross_entropy",
    "packed_attention",
    "patch_attention",
    "patch_pool",
    "patch_unpool",
    "queries_of_keys",
    "rms_norm",
    "rms_norm_residual",
    "rotary",
    "swiglu",
]
