"""DeepSpeedEngine: the same model under ZeRO 0 to 3, tensor parallel, with optimizer offload (contract 3)."""

import functools
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lst.config.schema import Config
from megatron_lst.engines.base import Numbers, StepResult, no_numbers
from megatron_lst.engines.deepspeed.settings import merged
from megatron_lst.engines.losses import KINDS, loss_sums, step_result
from megatron_lst.engines.microbatches import PackedStep, pack_micro_batch, pack_step
from megatron_lst.errors import UserError
from megatron_lst.initialisation import Initialiser
from megatron_lst.parallel import accelerators
from megatron_lst.parallel import state as parallel
from megatron_lst.parallel.layout import ParallelLayout, check_layout
from megatron_lst.parallel.mpu import ModelParallelUnit
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.patching.row import Row


class DeepSpeedEngine:
    """Trains and scores under DeepSpeed; see `engines.base.Engine` for the contract of every method.

    Losses are those of the Megatron engine: summed over the global batch, divided by its number of targets.  Its
    checkpoints have the same format, every tensor in the shape of a weight, so that a run goes on at another world
    size, tensor-parallel size or ZeRO stage without a conversion.

    Raises:
        UserError: DeepSpeed is not installed, the layout cannot work, or its configuration file contradicts the run's.
    """

    def __init__(self, config: Config, *, layout: ParallelLayout | None = None, fresh: bool = True) -> None:
        layout = layout or check_layout(config, parallel.ranks_of_run())
        settings, self._changes = merged(config, layout.data)
        for purpose in ("attention", "norm"):
            accelerators.choose(purpose, getattr(config.engine, purpose))
        self.config, self.layout = config, layout
        self.state = parallel.start(layout, config.training.seed)
        self.data_rank, self.data_size = self.state.data_rank, layout.data
        self.data_group = self.state.data_group
        self.is_writer, self.device = self.state.rank == 0, self.state.device
        deepspeed = _import_deepspeed()
        from megatron_lst.engines.deepspeed.zero_state import ZeroState
        from megatron_lst.engines.freezing import freezable_rows, trunk_parameters
        from megatron_lst.engines.sharded_checkpoint import ShardedCheckpoint
        from megatron_lst.model.model import build_chunk
        from megatron_lst.weights import canonical_shapes

        self._shapes = canonical_shapes(config)
        self._chunk = build_chunk(config, self.state, pipeline_split(config, 1), 0)
        self._sum_partial_gradients()
        self._freezable = (
            freezable_rows([self._chunk], config, self.state) if config.training.freeze_global_steps else {}
        )
        self._frozen = False
        for parameter, leading in self._freezable.items():
            parameter.register_hook(functools.partial(self._without_frozen, leading))
        self._settings = settings
        self._optimizer = self._adamw(trunk_parameters([self._chunk], config))
        self._engine, *_ = deepspeed.initialize(
            model=self._chunk, optimizer=self._optimizer, config=settings, mpu=ModelParallelUnit(self.state)
        )
        if hasattr(self._engine.optimizer, "check_grad_overflow"):
            self._engine.optimizer.check_grad_overflow = True  # also in fp32: a step that is not finite is skipped
        self._zero = ZeroState(self._engine, self.state.data_group)
        self.initialiser = Initialiser(config.model, config.training.seed)
        if fresh:
            self.init_weights()
        self._checkpoints = ShardedCheckpoint(config, self.state, [self._chunk], self._zero)

    def _adamw(self, trunk: Collection[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW with decay on matrices alone. Passed as an object: by name DeepSpeed would compile its own.

        Args:
            trunk: parameters that learn at `training.trunk_lr_ratio` of the rate.
        """
        training = self.config.training
        found: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
        for parameter in self._chunk.parameters():
            share = training.trunk_lr_ratio if parameter in trunk else 1.0
            found.setdefault((parameter.dim() > 1, parameter in self._freezable, share), []).append(parameter)
        groups = [
            {"params": parameters, "decay": training.weight_decay * is_matrix, "freezable": freezable, "share": share}
            for (is_matrix, freezable, share), parameters in sorted(found.items(), reverse=True)
        ]
        return torch.optim.AdamW(groups, lr=training.lr, betas=(training.beta1, training.beta2), eps=training.eps)

    def _sum_partial_gradients(self) -> None:
        """Weights that each tensor-parallel rank applies to its own part only: their gradients are summed."""
        if self.layout.tensor == 1:
            return
        for name, parameter in self._chunk.named_parameters():
            per_head = name.endswith(("q_layernorm.weight", "k_layernorm.weight"))
            if per_head or getattr(parameter, "sequence_parallel", False):
                parameter.register_hook(self._summed)

    def _without_frozen(self, leading: int, gradient: Tensor) -> Tensor:
        if not self._frozen:
            return gradient
        gradient = gradient.clone()
        gradient[:leading] = 0
        return gradient

    def _summed(self, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=self.state.tensor_group)
        return gradient

    def pack(self, rows: Sequence[Row]) -> PackedStep:
        return pack_step(rows, self.config, self.layout)

    def step(
        self, rows: Sequence[Row] | PackedStep, lr: float, *, frozen: bool = False, numbers: Numbers = no_numbers
    ) -> StepResult:
        from megatron_lst.model.batch import to_device

        engine, vocabulary = self._engine, self.config.vocabulary
        engine.train()
        packed = rows if isinstance(rows, PackedStep) else self.pack(rows)
        batches = [to_device(part, self.device) for part in packed.batches]
        targets = torch.tensor(float(packed.targets), device=self.device)
        dist.all_reduce(targets, group=self.state.data_group)
        # DeepSpeed divides by the micro-batches of a step and by the data-parallel ranks: undo both.
        scale = len(batches) * self.layout.data / targets.clamp(min=1)
        sums = torch.zeros(2 * KINDS, dtype=torch.float64, device=self.device)
        self._frozen = frozen
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["share"]
            group["weight_decay"] = 0.0 if frozen and group["freezable"] else group["decay"]
        norm, updated = float("nan"), False
        for i, batch in enumerate(batches):
            losses = engine(batch)
            sums += loss_sums(losses, batch.labels[: losses.shape[0]], vocabulary)
            engine.backward(losses.sum() * scale)
            if i == len(batches) - 1:
                told = torch.tensor(list(numbers()), dtype=torch.float64, device=self.device)
                sums = torch.cat((sums, told))
                dist.all_reduce(sums, group=self.state.data_group)
                if len(told) and self.layout.tensor > 1:
                    dist.all_reduce(told := sums[2 * KINDS :].clone(), group=self.state.tensor_group)
                    sums[2 * KINDS :] = told
                norm, updated = self._update(bool(torch.isfinite(sums[: 2 * KINDS]).all()))
            else:
                engine.step()
        return step_result(sums.tolist(), norm, not updated)

    def _update(self, loss_is_finite: bool) -> tuple[float, bool]:
        """The optimizer's step at the boundary: (norm before clipping, whether the update took place)."""
        engine = self._engine
        if not self._zero.is_zero:
            norm = self._norm_without_zero()
            finite = loss_is_finite and bool(np.isfinite(norm))
            clip = self.config.training.clip
            shrink = min(1.0, clip / (norm + 1e-6)) if clip and finite else 1.0
            for parameter in self._chunk.parameters():
                if not finite:
                    parameter.grad = None  # AdamW passes over parameters without a gradient
                elif parameter.grad is not None and shrink < 1.0:
                    parameter.grad.mul_(shrink)
            engine.step()
            return norm, finite
        engine.step()
        norm = float(engine.get_global_grad_norm())
        return norm, not engine.optimizer.overflow

    def _norm_without_zero(self) -> float:
        """Norm of the global gradient, each tensor-parallel shard once and each replicated weight once."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for parameter in self._chunk.parameters():
            sharded = getattr(parameter, "tensor_model_parallel", False)
            if parameter.grad is not None and (sharded or self.state.tensor_rank == 0):
                total += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) ** 2
        dist.all_reduce(total, group=self.state.tensor_group)
        return float(total.sqrt())

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        from megatron_lst.model.batch import to_device

        self._engine.eval()
        results = []
        shards = self.layout.tensor if self.layout.sequence else 1
        with torch.no_grad():
            for row in rows:
                copies = int(shards // np.gcd(row.units, shards))
                packed = pack_micro_batch([row] * copies, self.config, self.layout)
                losses = self._engine(to_device(packed, self.device))
                results.append((-losses[: len(row.tokens)]).float().cpu().numpy())
        return results

    def save(
        self, folder: Path, *, asynchronous: bool = False, ready: Callable[[], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        return self._checkpoints.save(folder, asynchronous, ready)

    def finish_saves(self, *, wait: bool) -> bool:
        return self._checkpoints.finish(wait)

    def seal_save(self) -> Callable[[], dict[str, dict[str, Any]]] | None:
        return self._checkpoints.seal()

    def load(self, folder: Path) -> None:
        self._checkpoints.load(folder)

    def init_weights(self) -> None:
        from megatron_lst.engines.weights_io import initial_shards

        self._set_weights(initial_shards(self.initialiser, self._shapes, self.state))

    def export_weights(self) -> dict[str, Tensor] | None:
        from megatron_lst.engines.weights_io import collect_weights

        self._zero.begin()
        return collect_weights([self._chunk], self.config, self.state, self._zero.fetch)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        from megatron_lst.engines.weights_io import given_shards
        from megatron_lst.weights import check_weights

        check_weights(weights, self._shapes)
        self._set_weights(given_shards(weights, self.state))

    def _set_weights(self, shard: Callable[[Any], Tensor]) -> None:
        """Set weights and fp32 masters, one parameter at a time."""
        from megatron_lst.engines.weights_io import local_parameters

        for _, parameter, spec in local_parameters([self._chunk], self.config):
            self._zero.set_weights({parameter: shard(spec).to(parameter.device)})

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "deepspeed",
            "layout": str(self.layout),
            "device": str(self.device),
            "parameters": sum(int(np.prod(shape)) for shape in self._shapes.values()),
            "weights_drawn": self.initialiser.drawn,
            "precision": self.config.training.precision,
            "optimizer": "torch",
            "zero_stage": self.config.engine.zero_stage,
            "deepspeed_config": self._settings,
            "deepspeed_config_changed_by_file": self._changes,
        }

    def close(self) -> None:
        self._engine.destroy()
        parallel.stop(self.state)


def _import_deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(f"engine.name=deepspeed: {error}. Get it: pip install 'megatron-lst[deepspeed]'") from None
    os.environ.setdefault("LOCAL_RANK", "0")  # it asks for what launchers set
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # An optional operator that would be compiled for a minute at start-up and needs a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
