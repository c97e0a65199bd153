"""`import megatron_lst.hf`, then `AutoModelForCausalLM.from_pretrained(EXPORT)` works; neither Megatron nor streaming.

The classes wrap the inference model: forward gives logits of static patches, `generate` is the project's own loop with
its caches (one global step a patch).  Training is the engines'; gradients do not flow through here.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from megatron_lst.config.load import build, to_plain
from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.export import MODEL_TYPE
from megatron_lst.inference.generation import GenerationSettings
from megatron_lst.inference.generation import generate as generate_tokens
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

    def __init__(self, config: LatentSpeechTextConfig) -> None:
        super().__init__(config)
        inner = LatentSpeechTextModel(config.lst_model, config.lst_vocabulary, config.patch_size)
        # The parts are this module's own, so that names in checkpoints have no prefix; `inner` only borrows them.
        for name, child in inner.named_children():
            self.add_module(name, child)
        object.__setattr__(self, "inner", inner)
        self.post_init()

    inner: LatentSpeechTextModel

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Exports hold every weight; a model made from a bare configuration gets N(0, init_std)."""
        std = self.config.lst_model.init_std
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and parameter.dim() == 2:
                parameter.data.normal_(0.0, std)
            elif name == "weight":
                parameter.data.fill_(1.0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits of every position, maps computed by static patching of each sequence.

        Args:
            input_ids: int64 [B, T], each sequence one document that begins with BOS or a marker.
            attention_mask: [B, T], 0 on padding, on either side; None: no padding.
            labels: [B, T], -100 ignored; compared with the logits one position before, as everywhere in transformers.

        Returns:
            logits [B, T, V], zero on padding; loss where labels are given.
        """
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        counters = self.inner.counters(len(input_ids))
        parts = [c.add(ids[k].tolist()) for c, ids, k in zip(counters, input_ids.cpu(), keep.cpu(), strict=True)]
        outputs = self.inner.advance(parts, Cache(self.inner.config, len(parts), one_call=True))
        flat = outputs.logits(np.arange(outputs.count)).clone()  # no inference tensor leaves this method
        logits = torch.zeros(*input_ids.shape, flat.shape[-1], dtype=flat.dtype, device=flat.device)
        logits[keep.to(flat.device)] = flat
        loss = None
        if labels is not None:
            wide = logits[:, :-1].double() if logits.dtype == torch.float64 else logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(wide.flatten(0, 1), labels[:, 1:].flatten().to(flat.device))
        return CausalLMOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 250,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        modality: str = "any",
        seed: int = 0,
        **unknown: Any,
    ) -> Tensor:
        """Prompt and continuation, int64 [B, T + longest response], padded on the right with PAD after EOS.

        Args:
            modality: what may be sampled beside EOS: `speech`, `text` or `any`.

        Raises:
            UserError: an option that this loop does not have (beams, penalties, ...), or a prompt that it refuses.
        """
        if unknown:
            raise UserError(f"generate: no option {', '.join(sorted(unknown))}; see megatron_lst.inference.generate")
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        prompts = [ids[k].tolist() for ids, k in zip(input_ids.cpu(), keep.cpu(), strict=True)]
        settings = GenerationSettings(
            max_tokens=max_new_tokens,
            min_tokens=min_new_tokens,
            modality=modality,  # type: ignore[arg-type]
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        results, _ = generate_tokens(self.inner, prompts, settings)
        vocabulary = self.inner.vocabulary
        ended = [r.tokens + [vocabulary.eos] * (r.finish == "eos") for r in results]
        longest = max(len(tokens) for tokens in ended)
        tail = [tokens + [vocabulary.pad] * (longest - len(tokens)) for tokens in ended]
        return torch.cat([input_ids, torch.tensor(tail, dtype=torch.int64, device=input_ids.device)], 1)


AutoConfig.register(MODEL_TYPE, LatentSpeechTextConfig)
AutoModelForCausalLM.register(LatentSpeechTextConfig, LatentSpeechTextForCausalLM)
