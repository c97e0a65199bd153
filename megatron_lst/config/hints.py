"""What an unknown key was meant to be: the names of other frameworks, then the nearest name that there is."""

import difflib
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


def hint(key: str, prefix: str, known: Iterable[str], aliases: bool = True) -> str:
    """What to write instead of `prefix` + `key`.

    Args:
        prefix: of the mapping in which it stands, such as `training.`; empty at the top.
        known: the keys of that mapping.
        aliases: whether the names of other frameworks mean something here.
    """
    known = sorted(known)
    meant = ALIASES.get(str(key).lower().replace("-", "_")) if aliases else None
    if meant is not None and (not prefix or prefix in ("training.", "model.", "data.", "parallel.", "checkpoint.")):
        return f"did you mean {meant.removeprefix(prefix)!r}?"
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
