"""What an unknown key was meant to be: the names of other frameworks, then the nearest name that there is."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable

ALIASES = {
    "learning_rate": "training.lr",
    "max_lr": "training.lr",
    "min_lr": "training.min_lr_ratio",
    "warmup": "training.warmup_steps",
    "warmup_iters": "training.warmup_steps",
    "max_steps": "training.steps",
    "train_iters": "training.steps",
    "num_steps": "training.steps",
    "batch_size": "training.global_batch",
    "global_batch_size": "training.global_batch",
    "micro_batch_size": "training.micro_batch",
    "per_device_train_batch_size": "training.micro_batch",
    "gradient_clipping": "training.clip",
    "clip_grad": "training.clip",
    "max_grad_norm": "training.clip",
    "dtype": "training.precision",
    "bf16": "training.precision",
    "activation_checkpointing": "training.recompute",
    "gradient_checkpointing": "training.recompute",
    "seq_len": "data.units",
    "seq_length": "data.units",
    "max_seq_len": "data.units",
    "sequence_length": "data.units",
    "num_workers": "data.workers",
    "train_data": "data.sources",
    "datasets": "data.sources",
    "hidden_size": "model.hidden",
    "d_model": "model.hidden",
    "num_layers": "model.layers",
    "num_hidden_layers": "model.layers",
    "num_heads": "model.heads",
    "num_attention_heads": "model.heads",
    "num_key_value_heads": "model.kv_heads",
    "num_query_groups": "model.kv_heads",
    "intermediate_size": "model.ffn",
    "ffn_hidden_size": "model.ffn",
    "patch_size": "patching.size",
    "vocab_size": "vocabulary.text_size",
    "tensor_parallel": "parallel.tensor",
    "tensor_model_parallel_size": "parallel.tensor",
    "tp": "parallel.tensor",
    "pipeline_parallel": "parallel.pipeline",
    "pipeline_model_parallel_size": "parallel.pipeline",
    "pp": "parallel.pipeline",
    "sequence_parallel": "parallel.sequence",
    "save_interval": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "output_dir": "run.dir",
    "save_dir": "run.dir",
    "zero": "engine.zero_stage",
}
"""Names that other frameworks have for keys of a run."""

_GRAPHS = "training captures no CUDA graph; a larger training.micro_batch takes the host's time out of the way"
ABSENT = dict.fromkeys(
    ("cuda_graph", "cuda_graphs", "enable_cuda_graph", "external_cuda_graph", "cuda_graph_impl", "cuda_graph_scope"),
    _GRAPHS,
)
"""Options of other frameworks that have no key here, and what does instead."""

TOP_KEYS = {
    "lst train": "checkpoint data engine evaluation model parallel patching run training vocabulary",
    "lst prep run": "align attributions audio cutting give_up heldout jobs language languages manifests out publish "
    "reading seed shards text text_options tokenizer units warn_lost warn_pieces",
    "lst prep import": "checks codec sources",
    "lst prep chat": "chunk_words codebook codec device end_of_turn on_bad row sources spans template units_model",
}
"""The keys at the top of each command's configuration, for a file that is given to another command."""
MOST_LISTED = 12
"""Keys that a message lists; more are in the pages that `lst config keys` writes."""


def dotted(name: str) -> str | None:
    """`training.lr` for `lr` or `learning_rate`: the one key of a run that this may mean; None: none, or several."""
    from megatron_lst.config.schema import Config

    word = name.rpartition(".")[2].lower().replace("-", "_")
    if word in ALIASES:
        return ALIASES[word]
    sections = typing.get_type_hints(Config)
    found = [f"{place}.{word}" for place, cls in sections.items() if word in {f.name for f in dataclasses.fields(cls)}]
    return found[0] if len(found) == 1 else None


def hint(key: str, prefix: str, known: Iterable[str], of_run: bool = True) -> str:
    """What to write instead of `prefix` + `key`.

    Args:
        prefix: of the mapping in which it stands, such as `training.`; empty at the top.
        known: the keys of that mapping.
        of_run: the mapping is of a run's configuration, where other frameworks' names and other sections' keys mean
            something.
    """
    known, key = sorted(known), str(key)
    meant = dotted(key) if of_run and prefix.count(".") <= 1 else None
    if meant is not None:
        return f"did you mean {meant.removeprefix(prefix)!r}?"
    if of_run and (instead := ABSENT.get(key.rpartition(".")[2].lower().replace("-", "_"))):
        return instead
    if not prefix:
        own = max(TOP_KEYS, key=lambda command: len(set(TOP_KEYS[command].split()) & set(known)))
        others = [command for command, keys in TOP_KEYS.items() if key in keys.split() and command != own]
        if others:
            return f"it is a key of a configuration for `{others[0]}`, and this one is for `{own}`"
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {close[0]!r}?"
    if len(known) <= MOST_LISTED:
        return f"known keys: {', '.join(known)}"
    return f"`lst config keys {'run' if of_run else 'prep'}` lists the {len(known)} that there are"
