"""The output heads: from hidden states to the loss of each token, sharded over the vocabulary (SPEC 5)."""

from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from lst_kernels import linear_cross_entropy
from megatron_lst.config.schema import Config
from megatron_lst.model.settings import keep_uninitialised
from megatron_lst.vocabulary import IGNORE


class VocabularyHead(ColumnParallelLinear):
    """An untied linear map onto the vocabulary, and its cross-entropy.

    A module, so that DeepSpeed's ZeRO-3 brings the weight together for it.  The weight's gradient is returned to
    autograd, on a GPU too, where other linear maps add theirs to the float32 `main_grad`: Megatron-core's DDP does.

    Args:
        inputs: width d of the hidden states.
        settings: its `sequence_parallel` says whether hidden states are sharded over positions.
        group: the tensor-parallel group.
    """

    def __init__(self, inputs: int, config: Config, settings: TransformerConfig, group: Any) -> None:
        super().__init__(
            inputs,
            config.vocabulary.padded_size,
            config=settings,
            init_method=keep_uninitialised,
            bias=False,
            tp_group=group,
        )
        self.chunk = config.engine.loss_chunk
        # One way for chunks and for whole logits: a step may have micro-batches of both.
        self.gradient_accumulation_fusion = False

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, 1, d] (a shard of n under sequence parallelism) -> [n, 1, V / ranks], this rank's vocabulary.

        Training asks for losses instead, which need not hold all logits at once.
        """
        return super().forward(hidden)[0]

    def forward(self, hidden: Tensor, labels: Tensor, summed: bool = False) -> Tensor:  # type: ignore[override]
        """Cross-entropy of each position.

        Args:
            hidden: [n, 1, d] (a shard of n under sequence parallelism).
            labels: int [n], IGNORE where nothing is predicted.
            summed: the losses' sum is what will be differentiated: its gradients are found while logits are there.

        Returns:
            float32 [n], the same on every rank of the group; 0 where the label is IGNORE.
        """
        positions = hidden.shape[0] * (self.tp_group.size() if self.sequence_parallel else 1)  # n, over all shards
        if self.chunk == 0 or positions <= self.chunk:
            # They fit, and are kept for the backward pass.
            return _whole_losses(self.logits(hidden), labels)
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.tp_group)  # [n, 1, d]
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        group = self.tp_group if self.tp_group.size() > 1 else None
        return linear_cross_entropy(
            hidden.squeeze(1), self.weight, labels, chunk=self.chunk, ignore_index=IGNORE, group=group, ahead=summed
        )


def _whole_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each position, float32 [n]; 0 where the label is IGNORE. logits [n, 1, V / ranks]."""
    counted = labels != IGNORE
    losses = vocab_parallel_cross_entropy(logits, labels.clamp(min=0).long()[:, None])  # [n, 1]; IGNORE becomes 0
    return losses.squeeze(1) * counted
