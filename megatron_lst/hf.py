"""`import megatron_lst.hf`, then `AutoModelForCausalLM.from_pretrained(EXPORT)` works; neither Megatron nor streaming.

The classes wrap the inference model: forward gives logits of static patches, `generate` is the project's own loop with
its caches (one global step a patch).  Training is the engines'; gradients do not flow through here.
"""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from megatron_lst.config.load import build, to_plain
from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.files import write_text
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.export import DEFAULT_NEW_TOKENS, MODEL_TYPE, hash_weights
from megatron_lst.inference.generation import Generated, GenerationSettings, Timing, stream
from megatron_lst.inference.model import LatentSpeechTextModel
from megatron_lst.vocabulary import Vocabulary


class LatentSpeechTextConfig(PretrainedConfig):
    """config.json of an exported model; `lst_model` and `lst_vocabulary` are its typed parts."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        vocabulary: dict[str, Any] | None = None,
        patch_size: int = 4,
        **others: Any,
    ) -> None:
        self.model = model if model is not None else to_plain(ModelConfig())
        self.vocabulary = vocabulary if vocabulary is not None else to_plain(Vocabulary())
        self.patch_size = patch_size
        others.pop("weights_xxh3_64", None)  # of files that `save_pretrained` would write anew
        super().__init__(**others)

    @property
    def lst_model(self) -> ModelConfig:
        return build(ModelConfig, self.model, "model")

    @property
    def lst_vocabulary(self) -> Vocabulary:
        return build(Vocabulary, self.vocabulary, "vocabulary")


class LatentSpeechTextForCausalLM(PreTrainedModel):
    """An exported LST or baseline in transformers, under the same weight names."""

    config_class = LatentSpeechTextConfig
    base_model_prefix = ""
    _no_split_modules = ["LatentSpeechTextForCausalLM"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: LatentSpeechTextConfig) -> None:
        super().__init__(config)
        inner = LatentSpeechTextModel(config.lst_model, config.lst_vocabulary, config.patch_size)
        # The parts are this module's own, so that names in checkpoints have no prefix; `inner` only borrows them.
        for name, child in inner.named_children():
            self.add_module(name, child)
        object.__setattr__(self, "inner", inner)
        v = config.lst_vocabulary
        self.generation_config = GenerationConfig(  # an export's own file replaces it
            max_new_tokens=DEFAULT_NEW_TOKENS, bos_token_id=v.bos, eos_token_id=v.eos, pad_token_id=v.pad
        )
        self.post_init()

    inner: LatentSpeechTextModel

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Exports hold every weight; a model made from a bare configuration gets N(0, init_std)."""
        std = self.config.lst_model.init_std
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and parameter.dim() == 2:
                parameter.data.normal_(0.0, std)
            else:
                parameter.data.fill_(1.0 if name == "weight" else 0.0)

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As everywhere in transformers; the whole model lies on one device.

        Raises:
            UserError: a `device_map` that spreads it over several devices, or leaves parts on a disk.
        """
        where = options.get("device_map")
        _one_device(where, where.values() if isinstance(where, dict) else ())
        try:
            loaded = super().from_pretrained(*arguments, **options)
        except Exception as error:
            if where is not None and "disk" in str(error):
                _one_device(where, ["disk"])
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _one_device(where, (getattr(model, "hf_device_map", None) or {}).values())
        return loaded

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """As everywhere in transformers; `load_export` reads the folder, and checks the weights' hashes."""
        folder = Path(save_directory)
        before = {path: path.stat().st_mtime_ns for path in folder.glob("model*.safetensors*")}
        super().save_pretrained(save_directory, *arguments, **options)
        path = folder / "config.json"
        if not options.get("is_main_process", True) or not list(folder.glob("model*.safetensors")):
            return
        for old, written in before.items():  # transformers leaves some that it did not write anew, and reads them
            if old.exists() and old.stat().st_mtime_ns == written:
                old.unlink()
        for name in (hashes := hash_weights(folder)):
            (folder / name).chmod(path.stat().st_mode)  # safetensors writes 0600
        write_text(path, json.dumps({**json.loads(path.read_text()), "weights_xxh3_64": hashes}, indent=2) + "\n")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits of every position, maps computed by static patching of each sequence.

        Args:
            input_ids: int64 [B, T], each sequence one document that begins with BOS or a marker.
            attention_mask: [B, T], 0 on padding, on either side; None: no padding.
            labels: [B, T], -100 ignored; compared with the logits one position before, as everywhere in transformers.
            logits_to_keep: so many last positions, or these; 0: all.
            return_dict: False gives a tuple.
            use_cache: taken, and of no effect: the caches are those of `generate`.

        Returns:
            logits [B, T, V], zero on padding; loss where labels are given.

        Raises:
            UserError: an argument that this model does not have, ids of another shape or outside the vocabulary.
        """
        if given := sorted(name for name, value in others.items() if value is not None and value is not False):
            raise UserError(f"forward: {', '.join(given)}: not supported by this model")
        ids, keep = _checked(input_ids, attention_mask, self.inner.vocabulary)
        counters = self.inner.counters(len(ids))
        parts = [c.add(row[k].tolist()) for c, row, k in zip(counters, ids.cpu(), keep.cpu(), strict=True)]
        outputs = self.inner.advance(parts, Cache(self.inner.config, len(parts), one_call=True))
        flat = outputs.logits(np.arange(outputs.count)).clone()  # no inference tensor leaves this method
        logits = torch.zeros(*ids.shape, flat.shape[-1], dtype=flat.dtype, device=flat.device)
        logits[keep.to(flat.device)] = flat
        loss = None
        if labels is not None:
            wide = logits[:, :-1].double() if logits.dtype == torch.float64 else logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(wide.flatten(0, 1), labels[:, 1:].flatten().to(flat.device))
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        elif logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        result = CausalLMOutput(loss=loss, logits=logits)  # type: ignore[arg-type]
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        modality: str = "any",
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        """Prompt and continuation, int64 [B x num_return_sequences, T + longest response], padded on the right with
        PAD after EOS.

        Args:
            input_ids: [B, T] (also called `inputs`); None begins with BOS.
            attention_mask: [B, T], 0 on padding, on either side; None: PAD is padding.
            generation_config: default: the export's own; `options` go over it.
            streamer: gets the prompt and each token; for one prompt.
            modality: what may be sampled beside EOS: `speech`, `text` or `any`.
            seed: of sampling.
            options: max_new_tokens or max_length, min_new_tokens or min_length, do_sample, temperature, top_p, top_k,
                num_return_sequences, pad_token_id. Any other has its neutral value or is refused.

        Raises:
            UserError: an option that this loop does not have (beams, penalties, ...), or a prompt that it refuses.
        """
        v = self.inner.vocabulary
        ids = options.pop("inputs", None) if input_ids is None else input_ids
        if ids is None:
            ids = torch.full((1, 1), v.bos, dtype=torch.int64, device=self.device)
        if attention_mask is None and isinstance(ids, Tensor) and (ids == v.pad).any():
            attention_mask = ids != v.pad
        ids, keep = _checked(ids, attention_mask, v)
        config = _merged(generation_config or self.generation_config or GenerationConfig(), options, v)
        prompts = [row[k].tolist() for row, k in zip(ids.cpu(), keep.cpu(), strict=True)]
        copies = config.num_return_sequences or 1
        if copies > 1 and not config.do_sample:
            raise UserError(f"generate: num_return_sequences={copies} needs do_sample=True: greedy answers are alike")
        if streamer is not None and len(prompts) * copies > 1:
            raise UserError("generate: a streamer takes one prompt at a time")
        if "top_k" not in options and config.top_k == GenerationConfig().top_k:
            config.top_k = 0  # transformers' own default is 50; here everything is kept where nothing is asked for
        settings = _settings(config, ids.shape[1], modality, seed)
        results: list[Generated] = []
        steps = stream(self.inner, [p for p in prompts for _ in range(copies)], settings, results, Timing())
        if streamer is not None:
            streamer.put(ids.cpu())
        for emitted in steps:
            if streamer is not None and emitted:
                streamer.put(torch.tensor(list(emitted.values())))
        if streamer is not None:
            streamer.end()
        pad = v.pad if config.pad_token_id is None else config.pad_token_id
        ended = [r.tokens + [v.eos] * (r.finish == "eos") for r in results]
        longest = max(len(tokens) for tokens in ended)
        tail = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens in ended], dtype=torch.int64)
        return torch.cat([ids.repeat_interleave(copies, 0), tail.to(ids.device)], 1)


HANDLED = {
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "do_sample", "temperature", "top_p", "top_k",
    "num_return_sequences", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache",
}  # fmt: skip
"""Options of transformers' GenerationConfig that `generate` has; `use_cache` changes no result."""


def _one_device(asked: Any, places: Iterable[Any]) -> None:
    found = sorted(set(map(str, places)))
    if len(found) > 1 or "disk" in found:
        raise UserError(
            f"device_map={asked!r} spreads the model over {', '.join(found)}; it runs on one device: name it, such as "
            "device_map={'': 'cuda:0'}, or store the weights in bfloat16"
        )


def _checked(ids: Any, mask: Tensor | None, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """(int64 ids [B, T], bool [B, T]: no padding). Raises UserError: not that."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
        what = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else repr(ids)[:60]
        raise UserError(f"input_ids: expected whole numbers [batch, tokens], at least one of each, got {what}")
    keep = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if keep.shape != ids.shape:
        raise UserError(f"attention_mask {list(keep.shape)} does not fit input_ids {list(ids.shape)}")
    outside = keep & ((ids < 0) | (ids >= vocabulary.used_size)).to(keep.device)
    if outside.any():
        row, place = (int(x) for x in outside.nonzero()[0])
        raise UserError(
            f"input_ids[{row}, {place}]={int(ids[row, place])}: outside the vocabulary of {vocabulary.used_size}"
        )
    if not keep.any(1).all():
        raise UserError(f"attention_mask: row {int((~keep.any(1)).nonzero()[0])} is padding alone")
    return ids.long(), keep


def _merged(config: GenerationConfig, options: dict[str, Any], vocabulary: Vocabulary) -> GenerationConfig:
    """The configuration with the options of a call over it. Raises UserError: one that `generate` does not have."""
    merged = copy.deepcopy(config)
    if "max_length" in options and "max_new_tokens" not in options:
        merged.max_new_tokens = None
    try:
        unknown = merged.update(**options)
    except ValueError as error:  # what transformers itself refuses
        raise UserError(f"generate: {str(error).splitlines()[0]}") from None
    neutral = GenerationConfig().to_dict()
    refused = {name: value for name, value in unknown.items() if value is not None}
    refused |= {
        name: value
        for name, value in merged.to_dict().items()
        if name not in HANDLED and name in neutral and value not in (neutral[name], None, *NEUTRAL.get(name, ()))
    }
    for name, own in (("eos_token_id", vocabulary.eos), ("bos_token_id", vocabulary.bos)):
        value = getattr(merged, name)
        if value is not None and value not in (own, [own]):
            refused[name] = value
    if refused:
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(refused.items()))
        raise UserError(f"generate: {listed}: this model's loop does not have it; see megatron_lst.inference.generate")
    return merged


NEUTRAL = {
    "num_beams": (1,), "num_beam_groups": (1,), "repetition_penalty": (1,), "length_penalty": (1,), "typical_p": (1,),
    "encoder_repetition_penalty": (1,), "diversity_penalty": (0,), "no_repeat_ngram_size": (0,), "epsilon_cutoff": (0,),
    "eta_cutoff": (0,), "encoder_no_repeat_ngram_size": (0,), "early_stopping": (False,), "output_scores": (False,),
    "output_logits": (False,), "output_attentions": (False,), "output_hidden_states": (False,),
    "return_dict_in_generate": (False,), "renormalize_logits": (False,), "remove_invalid_values": (False,),
    "guidance_scale": (1,), "token_healing": (False,), "low_memory": (False,),
}  # fmt: skip
"""Values that ask for nothing; transformers 5 has None for some where 4 has these."""


def _settings(config: GenerationConfig, prompt: int, modality: str, seed: int) -> GenerationSettings:
    """What the decoding loop takes. `prompt`: tokens of the prompts, padding included, as transformers counts."""
    most = config.max_new_tokens
    if most is None:
        most = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - prompt
        if most < 1:
            raise UserError(f"generate: max_length={config.max_length} leaves no room behind {prompt} prompt tokens")
    least = config.min_new_tokens
    if least is None:
        least = max(0, (config.min_length or 0) - prompt)
    return GenerationSettings(
        max_tokens=most,
        min_tokens=least,
        modality=modality,  # type: ignore[arg-type]
        temperature=(1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        seed=seed,
    )


AutoConfig.register(MODEL_TYPE, LatentSpeechTextConfig)
AutoModelForCausalLM.register(LatentSpeechTextConfig, LatentSpeechTextForCausalLM)
