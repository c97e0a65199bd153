"""One line of metrics.jsonl: what all data-parallel ranks saw and did in a step, gathered on the writer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines.base import StepResult
from megatron_lst.errors import TrainingFault
from megatron_lst.patching.row import Row, batch_hash
from megatron_lst.planning.devices import peak_flops
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.schedule import phase

_COUNTS = (
    "tokens",
    "speech_tokens",
    "text_tokens",
    "aligned",
    "with_speech",
    "clipped_patches",
    "skipped_documents",
    "training_mflops",
)


def job_peak(config: Config, device: torch.device, ranks: int) -> float | None:
    """bf16 FLOPs a second of `ranks` devices like this one; None on a CPU, on a device whose peak is not known, and
    in fp32, where that peak is out of reach."""
    if device.type != "cuda" or config.training.precision != "bf16":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    return None if peak is None else peak * ranks


class StepRecorder:
    """Gathers counts and row hashes, and keeps the running totals of raw tokens by source.

    Comparing the hashes of all ranks that feed the same rows also proves, every step, that model-parallel peers
    trained on the same batch.
    """

    def __init__(self, config: Config, ranks: Ranks, data_rank: int, data_size: int, peak: float | None = None) -> None:
        """
        Args:
            peak: FLOPs a second of all devices together, None where it is not known.
        """
        self._peak = peak
        self._config, self._ranks = config, ranks
        self._data_rank, self._data_size = data_rank, data_size
        self._sources = [source.name for source in config.data.sources]
        self._raw_tokens = np.zeros(len(self._sources), np.int64)

    @property
    def raw_tokens(self) -> dict[str, int]:
        """Tokens of each source so far; right on the writer."""
        return dict(zip(self._sources, (int(n) for n in self._raw_tokens), strict=True))

    def restore(self, raw_tokens: dict[str, int]) -> None:
        self._raw_tokens = np.array([raw_tokens.get(name, 0) for name in self._sources], np.int64)

    def record(
        self, step: int, lr: float, result: StepResult, rows: Sequence[Row], seconds: float
    ) -> dict[str, Any] | None:
        """The step's record on the writer, None elsewhere; collective.

        Args:
            rows: this rank's rows.
            seconds: wall time of the step, data included.

        Raises:
            TrainingFault: model-parallel peers built different rows.
        """
        shares = self._shares(step, rows)
        if shares is None:
            return None
        header = len(_COUNTS) + len(self._sources)
        total = np.sum([values[1 : 1 + header] for values in shares.values()], axis=0)
        counts = dict(zip(_COUNTS, (int(n) for n in total), strict=False))
        self._raw_tokens += total[len(_COUNTS) :]
        pairs = [
            (int(index), int(value) & 0xFFFFFFFFFFFFFFFF)
            for values in shares.values()
            for index, value in zip(*np.split(values[1 + header :], 2), strict=True)
        ]
        units = len(pairs) * self._config.data.units
        flops = counts["training_mflops"] * 1e6
        return {
            "step": step,
            "loss": result.loss,
            "loss_speech": result.loss_speech,
            "loss_text": result.loss_text,
            "loss_marker": result.loss_marker,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "lr_phase": phase(step, self._config.training),
            "rows": len(pairs),
            "units": units,
            "tokens": counts["tokens"],
            "speech_tokens": counts["speech_tokens"],
            "text_tokens": counts["text_tokens"],
            "targets": result.targets,
            "seconds": seconds,
            "units_per_second": units / seconds,
            "mfu": flops / seconds / self._peak if self._peak else None,
            "batch_hash": batch_hash([value for _, value in sorted(pairs)]),
            "aligned_share": counts["aligned"] / counts["with_speech"] if counts["with_speech"] else None,
            "clipped_patches": counts["clipped_patches"],
            "skipped": result.skipped,
            "skipped_documents": counts["skipped_documents"],
            "raw_tokens": self.raw_tokens,
        }

    def _shares(self, step: int, rows: Sequence[Row]) -> dict[int, np.ndarray] | None:
        vocabulary = self._config.vocabulary
        speech = [int(vocabulary.is_speech(r.tokens).sum()) for r in rows]
        padding = [int((r.tokens == vocabulary.pad).sum()) for r in rows]
        lengths = [len(r.tokens) for r in rows]
        counts = [
            sum(lengths),
            sum(speech),
            sum(lengths) - sum(speech) - sum(padding),
            sum(r.statistics.aligned_documents for r in rows),
            sum(r.statistics.speech_documents for r in rows),
            sum(r.statistics.clipped_patches for r in rows),
            sum(r.statistics.skipped_documents for r in rows),
            round(sum(r.statistics.training_flops for r in rows) / 1e6),
            *(sum(r.statistics.tokens_by_source.get(name, 0) for r in rows) for name in self._sources),
        ]
        indices = np.array([r.index for r in rows], np.int64)
        hashes = np.array([r.hash for r in rows], np.uint64).view(np.int64)
        mine = np.concatenate([np.array([self._data_rank, *counts], np.int64), indices, hashes])
        gathered = self._ranks.gather(torch.from_numpy(mine))
        if gathered is None:
            return None
        shares: dict[int, np.ndarray] = {}
        for rank, part in enumerate(gathered):
            values = part.numpy()
            first = shares.setdefault(int(values[0]), values)
            if not np.array_equal(first, values):
                raise TrainingFault(
                    f"step {step}: rank {rank} built other rows than its model-parallel peers of data-parallel rank "
                    f"{int(values[0])}; their shards or their code differ"
                )
        assert len(shares) == self._data_size, "every data-parallel rank reports"
        return shares
