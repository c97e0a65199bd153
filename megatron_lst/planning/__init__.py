"""What a run will need before it starts: memory of a layout, time and cost of a step, layouts ranked (`lst plan`).

`devices` is a table of accelerators, `memory` adds up bytes for each pipeline stage, `speed` estimates a step,
`search` tries layouts.  Memory of weights, gradients and optimizer is arithmetic; activations and time are estimates
and are called so wherever they are shown.
"""

from megatron_lst.planning.devices import Device, find_device, peak_flops
from megatron_lst.planning.memory import Memory, stage_memory
from megatron_lst.planning.search import Cluster, LayoutPlan, evaluate, search
from megatron_lst.planning.speed import StepTime, step_time

__all__ = [
    "Cluster",
    "Device",
    "LayoutPlan",
    "Memory",
    "StepTime",
    "evaluate",
    "find_device",
    "peak_flops",
    "search",
    "stage_memory",
    "step_time",
]
