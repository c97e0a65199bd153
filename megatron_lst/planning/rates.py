"""What accelerators reach of their data sheets in training: a few numbers, the same for every size and layout.

They are estimates. They were set for all published runs of `tests/planning/published.py` together, for none by itself,
and within what is known of each:

- products, 0.62 of the peak: large bf16 products of an H100 at its 700 W, hour after hour;
- narrower products, less by width / (width + 200): a tile fills and drains its pipeline once for each inner dimension;
- attention, 0.30 forward and 0.24 backward: FlashAttention-2 reaches 0.35 of an H100 (Shah et al. 2024, abstract);
- memory, 0.75 of the data sheet: 2.5 of 3.35 TB/s in elementwise kernels;
- links 0.75 and network 0.85: what NCCL leaves of NVLink and of the adapters;
- 2 us between two kernels, 20 us of the host to launch one: a micro-batch of few rows may wait for the host.
"""

import math
from dataclasses import dataclass

from megatron_lst.planning.devices import Device

PRODUCTS = 0.62
ATTENTION_FORWARD, ATTENTION_BACKWARD = 0.30, 0.24
MEMORY = 0.75
LINK, NETWORK = 0.75, 0.85
FILL = 200.0
"""Steps of the inner dimension that a tile loses."""
BACKWARD_PRODUCTS = 2.5
"""Attention: five products backward for two forward."""
GAP, HOST = 2e-6, 20e-6
"""Seconds from one kernel to the next on the device, and of the host to launch one, autograd included."""
LAYER_OPERATORS = 40
"""Kernels of a layer, both ways; a local layer with its cross-attention has twice as many (`benchmarks.roofline`)."""
UPDATE_BYTES = 28.0
"""AdamW for one parameter: gradient, master weight and two moments read, three of them and the bf16 weight written."""


@dataclass(frozen=True)
class Elementwise:
    """Elements that a layer moves for each position beside its products, in widths d and SwiGLU widths f.

    Norms, residuals, rotary embedding, activation, gradients' sums; read and written.

    Attributes:
        forward, backward: (widths d, widths f).
        logit: bytes for each logit, forward and backward.
    """

    forward: tuple[float, float]
    backward: tuple[float, float]
    logit: float


FUSED = Elementwise((10.0, 3.0), (16.0, 6.0), 14.0)
"""Norm, activation and loss are one kernel each, as here and under torch.compile."""
EAGER = Elementwise((18.0, 5.0), (30.0, 9.0), 30.0)
"""PyTorch's operators one by one: what published runs without torch.compile are compared with."""


@dataclass(frozen=True)
class Rates:
    """What one accelerator reaches.

    Attributes:
        products: share of the peak in large matrix products.
        elementwise: what is moved beside them.
    """

    device: Device
    products: float = PRODUCTS
    elementwise: Elementwise = FUSED

    def product(self, flops: float, inner: float) -> float:
        """Seconds of matrix products with that inner dimension."""
        return flops / (self.device.peak * self.products * inner / (inner + FILL))

    def attention(self, forward_flops: float, *, backward: bool) -> float:
        """Seconds of attention's own products (scores and values) of visible pairs, one way."""
        scale = self.device.peak * self.products / PRODUCTS
        if backward:
            return BACKWARD_PRODUCTS * forward_flops / (scale * ATTENTION_BACKWARD)
        return forward_flops / (scale * ATTENTION_FORWARD)

    def move(self, count: float) -> float:
        """Seconds that so many bytes take through the accelerator's memory."""
        return count / (self.device.bandwidth * MEMORY)

    def wire(self, members: int, per_node: int, network: float, apart: int = 1) -> float:
        """Bytes/s that each member of a group sends in a ring.

        Rings cross nodes over all adapters of a node, so a group with several members there shares their bandwidth.

        Args:
            members: of the group.
            per_node: accelerators of a node.
            network: bytes/s of one accelerator's adapter.
            apart: distance in ranks between neighbours of the group: 1 for tensor parallelism, its size for data
                parallelism.
        """
        link = self.device.link * LINK or network * NETWORK
        if (members - 1) * apart < per_node:
            return link
        here = max(1, math.floor(per_node / apart))
        return min(link, here * network * NETWORK)
