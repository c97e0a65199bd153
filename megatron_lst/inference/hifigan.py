"""A HiFi-GAN generator over units, from a checkpoint on disk in the published layout (arXiv 2010.05646, 2104.00355).

    FOLDER/*config.json     as textlesslib, fairseq and speech-resynthesis write it: model_in_dim, num_embeddings,
                            embedding_dim, upsample_rates, upsample_kernel_sizes, upsample_initial_channel, resblock,
                            resblock_kernel_sizes, resblock_dilation_sizes, sampling_rate, code_hop_size; perhaps
                            multispkr, num_speakers, multistyle, num_styles, dur_predictor_params
    FOLDER/*.pt, g_*        {"generator": weights}, read without unpickling code; or generator.safetensors

Only what turns a sequence of units at full rate into samples is here: a duration predictor is passed over, for units
are never merged; checkpoints of several speakers or styles take a number.  Vocoders that want a pitch contour (`f0`) or
an embedding of the speaker's voice (`embedder_params`) as well are refused by name.
"""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.vocabulary import rate_text

SLOPE = 0.1
NEEDED = (
    "model_in_dim", "num_embeddings", "embedding_dim", "upsample_rates", "upsample_kernel_sizes",
    "upsample_initial_channel", "resblock_kernel_sizes", "resblock_dilation_sizes",
)  # fmt: skip


def sampling_rate(config: dict[str, Any]) -> int:
    return int(config.get("sampling_rate", 16000))


def _same(kernel: int, dilation: int = 1) -> int:
    return dilation * (kernel - 1) // 2


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair with a residual."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=_same(kernel, d)) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=_same(kernel)) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(leaky_relu(dilated(leaky_relu(x, SLOPE)), SLOPE))
        return x


class Generator(nn.Module):
    """Embedded units -> samples; names as in published checkpoints."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        channels = config["upsample_initial_channel"]
        self.dict = nn.Embedding(config["num_embeddings"], config["embedding_dim"])
        width = config["embedding_dim"]
        self.spkr = nn.Embedding(config.get("num_speakers", 200), width) if config.get("multispkr") else None
        self.style = nn.Embedding(config.get("num_styles", 100), width) if config.get("multistyle") else None
        self.conv_pre = nn.Conv1d(config["model_in_dim"], channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
                self.resblocks.append(ResidualBlock(channels, size, dilations))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        self.per_stage = len(config["resblock_kernel_sizes"])

    def forward(self, units: Tensor, speaker: int, style: int = 0) -> Tensor:
        """int64 [F] -> [samples]."""
        x = self.dict(units).T[None]
        for table, chosen in ((self.spkr, speaker), (self.style, style)):
            if table is not None:
                x = torch.cat([x, table.weight[chosen][None, :, None].expand(-1, -1, x.shape[-1])], 1)
        x = self.conv_pre(x)
        for stage, up in enumerate(self.ups):
            x = up(leaky_relu(x, SLOPE))
            blocks = self.resblocks[stage * self.per_stage : (stage + 1) * self.per_stage]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return torch.tanh(self.conv_post(leaky_relu(x)))[0, 0]


def merge_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`x.weight_g`, `x.weight_v` -> `x.weight` = g v / |v|, the norm over all but the first axis."""
    merged = {name: value for name, value in weights.items() if not name.endswith(("weight_g", "weight_v"))}
    for name, g in weights.items():
        if name.endswith("weight_g"):
            v = weights[name[:-1] + "v"]
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))
            merged[name[:-2]] = g * v / norm
    return merged


class HifiGanVocoder:
    """A unit vocoder from a folder.

    Args:
        folder: with config.json (or one *config.json) and one checkpoint.
        units: the codebook's size, compared with the checkpoint's; None: not compared.
        speaker, style: for checkpoints of several.
        frame_rate: units a second.

    Raises:
        UserError: files missing, weights of another shape, a vocoder of another codebook size or unit rate, or one that
            needs more than units.
        DamagedDataError: the checkpoint cannot be read.
    """

    def __init__(
        self,
        folder: Path | str,
        units: int | None = None,
        speaker: int = 0,
        style: int = 0,
        device: str = "cpu",
        frame_rate: Fraction = Fraction(25),
    ) -> None:
        folder = Path(folder)
        config = self._config(folder, frame_rate)
        files = sorted(
            p for p in folder.iterdir() if p.suffix in (".pt", ".pth", ".safetensors") or p.name.startswith("g_")
        )
        if len(files) != 1:
            raise UserError(f"vocoder {folder}: expected one checkpoint (*.pt, g_*, *.safetensors), found {len(files)}")
        if units is not None and units != config["num_embeddings"]:
            raise UserError(f"vocoder {folder} has {config['num_embeddings']} units, the model's codebook has {units}")
        generator = Generator(config)
        weights = merge_weight_norm(self._read(files[0]))
        wanted = generator.state_dict()
        weights = {name: value for name, value in weights.items() if not name.startswith("dur_predictor.")}
        wrong = sorted(set(wanted) ^ set(weights))
        wrong += [n for n in wanted if n in weights and wanted[n].shape != weights[n].shape]
        if wrong:
            raise UserError(f"vocoder {folder}: weights that do not fit config.json: {', '.join(wrong[:8])}")
        generator.load_state_dict(weights)
        self.generator = generator.requires_grad_(False).eval().to(device)
        for name, table, number in (("speaker", generator.spkr, speaker), ("style", generator.style, style)):
            if table is not None and not 0 <= number < table.num_embeddings:
                raise UserError(f"vocoder {folder}: {name} {number}, it has {table.num_embeddings}")
        self.rate, self.speaker, self.style, self.device = sampling_rate(config), speaker, style, device

    @staticmethod
    def _config(folder: Path, frame_rate: Fraction) -> dict[str, Any]:
        named = folder / "config.json"
        found = [named] if named.is_file() else sorted(folder.glob("*config.json"))
        if len(found) != 1:
            raise UserError(f"vocoder {folder}: expected config.json, found {len(found)} files named *config.json")
        try:
            config: dict[str, Any] = json.loads(found[0].read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"vocoder {folder}: {found[0].name} cannot be read ({error})") from None
        if missing := [key for key in NEEDED if key not in config]:
            raise UserError(f"vocoder {folder}: {found[0].name} has no {', '.join(missing)}")
        if config.get("f0"):
            raise UserError(f"vocoder {folder} needs a pitch contour beside the units (f0: true)")
        if config.get("embedder_params"):
            raise UserError(f"vocoder {folder} needs an embedding of the speaker's voice (embedder_params)")
        if str(config.get("resblock", "1")) != "1":
            raise UserError(f"vocoder {folder}: resblock {config['resblock']}; only residual blocks of kind 1 are here")
        hop, rate = math.prod(config["upsample_rates"]), sampling_rate(config)
        if hop * frame_rate != rate:
            raise UserError(
                f"vocoder {folder} turns a unit into {hop} samples at {rate} Hz, so it is of {rate / hop:g} units a "
                f"second; the model's units are {rate_text(frame_rate)} a second"
            )
        return config

    @staticmethod
    def _read(path: Path) -> dict[str, Tensor]:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DamagedDataError(f"vocoder {path}: cannot be read as plain tensors ({error})") from None
        weights = loaded.get("generator", loaded) if isinstance(loaded, dict) else loaded
        # Other packages widen what torch takes for harmless: only named tensors pass here.
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise DamagedDataError(f"vocoder {path}: cannot be read as plain tensors: it holds something else")
        return weights

    @torch.inference_mode()
    def __call__(self, units: np.ndarray) -> np.ndarray:
        """int [F] -> float32 samples."""
        if not len(units):
            return np.zeros(0, np.float32)
        ids = torch.as_tensor(np.asarray(units, np.int64), device=self.device)
        return self.generator(ids, self.speaker, self.style).float().cpu().numpy()
