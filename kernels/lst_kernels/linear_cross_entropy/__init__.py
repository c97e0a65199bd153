"""linear_cross_entropy: the output projection and its cross-entropy, without ever holding all the logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends import choose_backend
from ..checks import check_floats, reads_values, require

IGNORE = -100


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    reduction: str = "none",
    chunk: int = 2048,
    ignore_index: int = IGNORE,
    backend: str = "auto",
    group: Any = None,
    ahead: bool = False,
) -> Tensor:
    """Cross-entropy of hidden @ weight.T against labels (SPEC 5), `chunk` rows of logits alive at a time.

    hidden: [N, d]; weight: [V, d], the same floating dtype; labels: int32 or int64 [N], `ignore_index` where
    there is no target.  reduction "none": [N] losses, 0 where ignored; "sum": their sum, a scalar; both float32
    (float64 for float64 input).

    The backward pass computes each chunk's logits again.  ahead: the gradients of the losses' sum are found in the
    forward pass, from the logits that are there, and kept ([N, d], and [V, d] in the accumulator's dtype); the backward
    pass only multiplies them.  That is right for "none" too: where what comes back is not the gradient of a sum, with
    one number for all rows, logits are computed again all the same.

    group: a torch.distributed group whose ranks hold equal shards of the vocabulary, in the order of their ranks:
    weight is then this rank's [V / ranks, d], hidden and labels are the same on all.  The losses are those of the
    whole vocabulary (two all-reduces of [c] a chunk of c rows); the gradient of hidden is this shard's part, for
    the caller to add up over the group, as Megatron's `copy_to_tensor_model_parallel_region` does.

    The Triton kernels are the softmax between the two products: logits stay in hidden's dtype, are read once forward,
    and read and overwritten once backward, ahead and without a group by one kernel; the weight's gradient is summed in
    float32 (`add_product`).

    Raises ValueError on wrong input.
    """
    name = "linear_cross_entropy"
    require(
        hidden.dim() == 2 and weight.dim() == 2,
        name,
        "hidden must be [N, d], weight [V, d]",
        hidden=hidden,
        weight=weight,
    )
    require(
        hidden.shape[1] == weight.shape[1],
        name,
        "hidden and weight differ in d",
        hidden=hidden,
        weight=weight,
    )
    require(labels.shape == hidden.shape[:1], name, "labels must be [N]", hidden=hidden, labels=labels)
    require(not labels.is_floating_point(), name, "labels must be integers", labels=labels)
    require(labels.device == hidden.device, name, "labels must be where hidden is", hidden=hidden, labels=labels)
    require(
        reduction in ("none", "sum"),
        name,
        f"reduction must be 'none' or 'sum', not {reduction!r}",
        hidden=hidden,
    )
    require(chunk > 0, name, f"chunk must be positive, not {chunk}", hidden=hidden)
    check_floats(name, hidden=hidden, weight=weight)
    if reads_values(labels) and labels.numel():
        size = weight.shape[0] * (group.size() if group is not None else 1)
        bad = (labels != ignore_index) & ((labels < 0) | (labels >= size))
        require(not bool(bad.any()), name, "a label is outside the vocabulary", weight=weight, labels=labels)
    chosen = choose_backend(name, hidden.device, backend, hidden.dtype)
    from .reference import linear_cross_entropy_reference

    losses = linear_cross_entropy_reference(hidden, weight, labels, ignore_index, chunk, group, chosen, ahead)
    return losses.sum() if reduction == "sum" else losses
