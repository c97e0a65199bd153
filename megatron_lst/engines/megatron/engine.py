"""MegatronEngine: one rank's part of a model under tensor, sequence, pipeline and data parallelism (contract 3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lst.config.schema import Config
from megatron_lst.engines.base import Numbers, StepResult, no_numbers
from megatron_lst.engines.losses import KINDS, loss_sums, step_result
from megatron_lst.engines.microbatches import PackedStep, pack_micro_batch, pack_step
from megatron_lst.initialisation import Initialiser
from megatron_lst.parallel import accelerators
from megatron_lst.parallel import state as parallel
from megatron_lst.parallel.layout import ParallelLayout, check_layout
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.patching.host_batch import HostBatch
from megatron_lst.patching.row import Row


class MegatronEngine:
    """Trains and scores on Megatron-core; see `engines.base.Engine` for the contract of every method.

    Args:
        config: the run.
        layout: of its ranks, where the caller has checked it already; None: checked here.
        fresh: the weights are drawn; False: they are not set yet (`build_engine`).

    Raises:
        UserError: the layout cannot work here, or an explicit accelerator is missing.
    """

    def __init__(self, config: Config, *, layout: ParallelLayout | None = None, fresh: bool = True) -> None:
        layout = layout or check_layout(config, parallel.ranks_of_run())
        for purpose in ("attention", "optimizer", "norm"):
            accelerators.choose(purpose, getattr(config.engine, purpose))
        self._fp8_recipe = accelerators.fp8_recipe(config.engine.fp8, config.engine.fp8_recipe)
        self.config, self.layout = config, layout
        self.state = parallel.start(layout, config.training.seed)
        self.data_rank, self.data_size = self.state.data_rank, layout.data
        self.data_group = self.state.data_group
        self.is_writer, self.device = self.state.rank == 0, self.state.device
        # Megatron-core may be imported only now: on a CPU it is patched first.
        from megatron.core.pipeline_parallel import get_forward_backward_func

        from megatron_lst.engines.freezing import freezable_rows, trunk_parameters
        from megatron_lst.engines.megatron.gradients import gradient_finaliser
        from megatron_lst.engines.megatron.optimizer import Optimizer
        from megatron_lst.engines.megatron.optimizer_state import CoreTensors
        from megatron_lst.engines.sharded_checkpoint import ShardedCheckpoint
        from megatron_lst.model.model import build_chunk
        from megatron_lst.weights import canonical_shapes

        self._shapes = canonical_shapes(config)
        self.split = pipeline_split(config, layout.pipeline, layout.virtual)
        mine = range(self.state.pipeline_rank, layout.pipeline * layout.virtual, layout.pipeline)
        self.chunks = [build_chunk(config, self.state, self.split, chunk) for chunk in mine]
        overlap = config.engine.overlap and layout.data > 1
        self._wrapped = self._wrap(overlap)
        self._freezable = freezable_rows(self.chunks, config, self.state) if config.training.freeze_global_steps else {}
        trunk = trunk_parameters(self.chunks, config)
        self.optimizer = Optimizer(config, self._wrapped, overlap, set(self._freezable), trunk)
        self._tensors = CoreTensors(self.optimizer.core, self.chunks, self.state.data_group)
        self.initialiser = Initialiser(config.model, config.training.seed)
        if fresh:
            self.init_weights()
        settings = self.chunks[0].config
        settings.finalize_model_grads_func = gradient_finaliser(self.state, divide=not self.optimizer.divides)
        settings.no_sync_func = None
        if overlap:
            no_sync = [chunk.no_sync for chunk in self._wrapped]
            settings.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self._gathers_late = overlap and config.engine.distributed_optimizer
        self._run_schedule = get_forward_backward_func()
        self._checkpoints = ShardedCheckpoint(config, self.state, self.chunks, self._tensors)

    def _wrap(self, overlap: bool) -> list[Any]:
        from megatron.core.distributed import DistributedDataParallelConfig

        from megatron_lst.engines.megatron.wrapper import WritingDataParallel

        distributed = self.config.engine.distributed_optimizer
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap and distributed,
            use_distributed_optimizer=distributed,
        )
        # All chunks share one TransformerConfig object: the schedule reads the first one's hooks.
        for chunk in self.chunks[1:]:
            chunk.config = self.chunks[0].config
        return [
            WritingDataParallel(self.chunks[0].config, settings, chunk, disable_bucketing=i > 0)
            for i, chunk in enumerate(self.chunks)
        ]

    def pack(self, rows: Sequence[Row]) -> PackedStep:
        return pack_step(rows, self.config, self.layout)

    def step(
        self, rows: Sequence[Row] | PackedStep, lr: float, *, frozen: bool = False, numbers: Numbers = no_numbers
    ) -> StepResult:
        packed = rows if isinstance(rows, PackedStep) else self.pack(rows)
        for chunk in self._wrapped:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self._schedule(packed.batches, self._training_loss, forward_only=False)
        sums = torch.zeros(2 * KINDS, dtype=torch.float64, device=self.device)
        for report in reports:
            sums += report
        sums = self._summed(sums, numbers())
        if frozen:
            for parameter, leading in self._freezable.items():
                parameter.main_grad[:leading].zero_()  # type: ignore[attr-defined]
        values, norm, updated = self.optimizer.step(lr, sums, frozen)
        return step_result(values, norm, not updated)

    def _summed(self, sums: Tensor, numbers: Sequence[float]) -> Tensor:
        """Loss sums [8] of the last stages and numbers [n] of all ranks, over the global batch: float64 [8 + n]."""
        state = self.state
        told = torch.cat((sums, torch.tensor(list(numbers), dtype=torch.float64, device=self.device)))
        if self.layout.data > 1:
            dist.all_reduce(told, group=state.data_group)
        if self.layout.tensor * self.layout.pipeline > 1:
            if not state.is_last_stage or state.tensor_rank:
                told[: len(sums)] = 0  # of the model's ranks one gives the loss
            dist.all_reduce(told, group=state.model_group)
        return told

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        self._gather_parameters()
        for chunk in self._wrapped:
            chunk.eval()
        results: dict[int, np.ndarray] = {}
        with torch.no_grad():
            for indices, micro_batches in self._scoring_runs(rows):
                packed = [pack_micro_batch(part, self.config, self.layout) for part in micro_batches]
                outputs = self._schedule(packed, self._scoring_loss, forward_only=True)
                found = self._share_scores(outputs, micro_batches)
                results.update((i, s) for i, s in zip(indices, found, strict=False) if i >= 0)
        return [results[i] for i in range(len(rows))]

    def _schedule(self, packed: Sequence[HostBatch], loss: Callable[..., Any], forward_only: bool) -> list[Any]:
        """Run the pipeline over micro-batches of one shape; what `loss` reports, on the last stage, in order."""
        from megatron_lst.model.batch import to_device

        batches = [to_device(part, self.device) for part in packed]

        def forward_step(batches_left: Iterator[Any], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(batches_left)
            return model(batch), lambda output, **options: loss(output, batch, **options)

        iterators = [iter(batches) for _ in self._wrapped]
        return self._run_schedule(
            forward_step_func=forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._wrapped if len(self._wrapped) > 1 else self._wrapped[0],
            num_microbatches=len(batches),
            seq_length=batches[0].rows * batches[0].units,
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _training_loss(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        labels = batch.labels[: losses.shape[0]]
        targets = (labels >= 0).sum().to(torch.int)
        return losses.sum(), targets, loss_sums(losses, labels, self.config.vocabulary)

    def _scoring_loss(self, losses: Tensor, batch: Any, non_loss_data: bool = True) -> Tensor:
        return -losses

    def _scoring_runs(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[list[Row]]]]:
        """Rows in runs of micro-batches of one shape; filler rows (index -1) where the layout asks for a multiple."""
        by_units: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_units.setdefault(row.units, []).append(i)
        interleaved = self.layout.virtual > 1
        for units, indices in by_units.items():
            shards = self.layout.tensor if self.layout.sequence else 1
            together = shards // np.gcd(units, shards)  # rows that a sequence-parallel shard needs at least
            size = max(self.config.training.micro_batch // together, 1) * together
            multiple = size * (self.layout.pipeline if interleaved else 1)
            whole = len(indices) // multiple * multiple
            parts = [(indices[:whole], size)] if whole else []
            rest = indices[whole:]
            if rest:
                if interleaved:
                    target = multiple
                else:
                    size = target = -(-len(rest) // together) * together
                parts.append((rest + [-1] * (target - len(rest)), size))
            for part, width in parts:
                filled = [rows[i] if i >= 0 else rows[indices[-1]] for i in part]
                yield part, [filled[n : n + width] for n in range(0, len(filled), width)]

    def _share_scores(self, outputs: list[Tensor], micro_batches: list[list[Row]]) -> list[np.ndarray]:
        """Scores of every row on all stages, from those that the last stage computed."""
        lengths = [[len(row.tokens) for row in rows] for rows in micro_batches]
        total = sum(map(sum, lengths))
        if self.state.is_last_stage:
            flat = torch.cat([out[: sum(part)] for out, part in zip(outputs, lengths, strict=True)])
        else:
            flat = torch.empty(total, device=self.device)
        self._broadcast_from_last_stage(flat)
        ends = np.cumsum([n for part in lengths for n in part])
        return [part.astype(np.float32) for part in np.split(flat.cpu().numpy(), ends[:-1])]

    def _broadcast_from_last_stage(self, tensor: Tensor) -> None:
        if self.layout.pipeline > 1:
            dist.broadcast(tensor, src=self.state.stage_ranks[-1], group=self.state.pipeline_group)

    def _gather_parameters(self) -> None:
        """Bring the parameters up to date where their gathering is left to the next training step."""
        if self._gathers_late:
            for chunk in self._wrapped:
                chunk.start_param_sync(force_sync=True)

    def save(
        self, folder: Path, *, asynchronous: bool = False, ready: Callable[[], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        self._gather_parameters()
        return self._checkpoints.save(folder, asynchronous, ready)

    def finish_saves(self, *, wait: bool) -> bool:
        return self._checkpoints.finish(wait)

    def seal_save(self) -> Callable[[], dict[str, dict[str, Any]]] | None:
        return self._checkpoints.seal()

    def load(self, folder: Path) -> None:
        from megatron_lst.engines.megatron.gradients import replicated_parameters

        self._gather_parameters()
        self._checkpoints.load(folder)
        if self.state.embedding_group is not None:  # the last stage's copies, from the stage that has read them
            self._tensors.share(
                replicated_parameters(self.chunks), self.state.stage_ranks[0], self.state.embedding_group
            )

    def init_weights(self) -> None:
        from megatron_lst.engines.weights_io import initial_shards

        self._set_weights(initial_shards(self.initialiser, self._shapes, self.state))

    def export_weights(self) -> dict[str, Tensor] | None:
        from megatron_lst.engines.weights_io import collect_weights

        self._tensors.begin()
        return collect_weights(self.chunks, self.config, self.state, self._tensors.fetch)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        from megatron_lst.engines.weights_io import given_shards
        from megatron_lst.weights import check_weights

        check_weights(weights, self._shapes)
        self._gather_parameters()
        self._set_weights(given_shards(weights, self.state))

    def _set_weights(self, shard: Callable[[Any], Tensor]) -> None:
        from megatron_lst.engines.weights_io import set_weights

        set_weights(self.chunks, self.config, shard, self._tensors.master_parts())

    def describe(self) -> dict[str, Any]:
        engine, settings = self.config.engine, self.chunks[0].config
        attention, why = accelerators.choose_attention(
            engine.attention, settings.params_dtype, self.config.model.global_head_size
        )
        return {
            "engine": "megatron",
            "layout": str(self.layout),
            "device": str(self.device),
            "parameters": sum(int(np.prod(shape)) for shape in self._shapes.values()),
            "weights_drawn": self.initialiser.drawn,
            "precision": self.config.training.precision,
            "optimizer": self.optimizer.name,
            "distributed_optimizer": self.config.engine.distributed_optimizer,
            "attention": attention,
            "attention_because": why,
            "norm": accelerators.choose("norm", engine.norm),
            "fp8": f"{self.config.engine.fp8} {self._fp8_recipe}" if self._fp8_recipe else "none",
            "pipeline_split": list(self.split.layers),
            "pipeline_imbalance": round(self.split.imbalance, 4),
        }

    def close(self) -> None:
        parallel.stop(self.state)
