"""The one counter of parameters and FLOPs: accounting tables, MFU, pipeline split and planner all ask here (SPEC 8).

Only useful work counts: matrix products over real tokens and visible keys.  Padding, masked scores and recomputation
are not useful; norms, softmax and RoPE are not matrix products.

`work` says how many tokens, units and visible pairs a row has (exactly from a row, or expected from a mixture),
`counter` turns that into FLOPs and parameters for each module, `paper` recomputes the published accounting.
"""

from megatron_lst.flops.counter import forward_flops, module_flops, module_parameters, parameters, row_flops
from megatron_lst.flops.work import (
    MixtureStatistics,
    Work,
    expected_work,
    flattened,
    row_speech_seconds,
    row_work,
    speech_second,
)

__all__ = [
    "MixtureStatistics",
    "Work",
    "expected_work",
    "flattened",
    "forward_flops",
    "module_flops",
    "module_parameters",
    "parameters",
    "row_flops",
    "row_speech_seconds",
    "row_work",
    "speech_second",
]
