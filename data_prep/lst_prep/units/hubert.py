"""HuBERT features (transformers HubertModel), at the rate that its strides give.

The documented preset is `slprl/mhubert-base-25hz`: layer 11, 500 clusters, the waveform padded by 40 samples on each
side, which gives that model one frame for every 640 samples.

Batches hold pieces of equal length only: the first convolution's group norm runs over time, so zero-padded neighbours
would change most units. Long audio is cut in its quietest places; at each cut, the lengths are multiples of a frame.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lst_prep.audio import RATE
from lst_prep.config import UnitsConfig
from lst_prep.devices import choose_device, choose_dtype, model_fingerprint
from lst_prep.pieces import equal_length_batches, quiet_cuts
from megatron_lst.errors import UserError
from megatron_lst.vocabulary import rate_text

PUBLISHED_LAYER = 11
"""Of the published 25 Hz model."""


class HubertExtractor:
    """One loaded model. See `Extractor`.

    Raises:
        UserError: the model cannot be loaded, has too few layers, or does not give units.rate frames a second.
    """

    name = "hubert"

    def __init__(self, config: UnitsConfig) -> None:
        import torch
        from transformers import HubertModel

        try:
            model = HubertModel.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            raise UserError(f"units.model {config.model!r}: cannot be loaded as a HuBERT model ({error})") from error
        layers, layer = model.config.num_hidden_layers, PUBLISHED_LAYER if config.layer is None else config.layer
        if not 0 <= layer <= layers:
            raise UserError(f"units.layer {layer}: the model has hidden layers 0..{layers}")
        stride = int(np.prod(model.config.conv_stride))
        if stride != config.frame_samples:
            raise UserError(
                f"units.model {config.model!r}: one frame every {stride} samples ({RATE / stride:g} Hz); units.rate is "
                f"{rate_text(config.hertz)} Hz, one frame every {config.frame_samples} samples"
            )
        self.rate, self._stride = config.hertz, stride
        self._config = config
        self.dim = int(model.config.hidden_size)
        weights = model_fingerprint(model)
        self.fingerprint = hashlib.sha256(
            f"hubert {weights} layer {layer} padding {config.padding}".encode()
        ).hexdigest()[:16]
        self.settings = {"layer": layer, "padding": config.padding, "piece_seconds": config.piece_seconds}
        model.encoder.layers = model.encoder.layers[: max(layer, 1)]  # the rest would be computed in vain
        self._device = choose_device(config.device)
        self._dtype = choose_dtype(config.precision, self._device)
        self._model = model.eval().to(self._device, self._dtype)
        self._layer, self._padding = layer, config.padding
        self._budget, self._longest = int(config.batch_seconds * RATE), config.piece_seconds
        self._torch = torch

    @property
    def exact(self) -> bool:
        """Whether this is fp32, the precision that the codebook's makers used."""
        return self._dtype == self._torch.float32

    def positions(self, frames: int) -> None:
        """Its positions are relative, by a convolution."""

    def features(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [N] each -> float32 [F, dim] each, F = N // stride up to the model's own rounding at the ends."""
        parts: list[np.ndarray] = []
        owners: list[int] = []
        for owner, piece in enumerate(pieces):
            cuts = quiet_cuts(piece, self._longest, self._stride)
            for begin, end in zip(cuts, cuts[1:], strict=False):
                parts.append(piece[begin:end])
                owners.append(owner)
        found: list[np.ndarray | None] = [None] * len(parts)
        for members in equal_length_batches([len(part) for part in parts], self._budget):
            for index, features in zip(members, self._run([parts[i] for i in members]), strict=True):
                found[index] = features
        out: list[list[np.ndarray]] = [[] for _ in pieces]
        for owner, features in zip(owners, found, strict=True):
            assert features is not None
            out[owner].append(features)
        return [np.concatenate(f) if f else np.zeros((0, self.dim), np.float32) for f in out]

    def _run(self, batch: list[np.ndarray]) -> np.ndarray:
        """Equal lengths [N] each -> float32 [B, N // stride, dim]."""
        torch = self._torch
        frames = len(batch[0]) // self._stride
        if not frames:
            return np.zeros((len(batch), 0, self.dim), np.float32)
        waves = torch.from_numpy(np.stack(batch)).to(self._device)
        waves = torch.nn.functional.pad(waves, (self._padding, self._padding)).to(self._dtype)
        with torch.inference_mode():
            states = self._model(waves, output_hidden_states=True).hidden_states[self._layer]
        states = states.float().cpu().numpy()
        if states.shape[1] < frames:  # a model whose padding is off by some samples loses a frame at the end
            states = np.concatenate([states, np.repeat(states[:, -1:], frames - states.shape[1], axis=1)], axis=1)
        return np.asarray(states[:, :frames], np.float32)

    def in_fp32(self) -> "HubertExtractor":
        """The same model in fp32."""
        return HubertExtractor(replace(self._config, precision="fp32"))
