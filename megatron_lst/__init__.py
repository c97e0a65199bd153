"""megatron-lst: pretraining of the Latent Speech-Text Transformer on Megatron-core.

    import megatron_lst as lst

    config = lst.load_config("configs/demo.yaml", ["training.steps=10"])
    document = lst.ShardSet("data/demo/speech")[0]
    chunk = lst.patch_document(document, config)
    rows = next(lst.RowStream(config)).rows
    with lst.open_engine(config) as engine:
        print(engine.step(rows, lr=1e-4).loss)

These names are the Python API (docs/api.md). Each is imported when it is used first, so that `import megatron_lst`
takes no time and needs no torch.
"""

import importlib
from typing import Any

from megatron_lst import lean_imports

__version__ = "0.1.0"

_API = {
    # configuration
    "Config": "megatron_lst.config",
    "load_config": "megatron_lst.config",
    # data
    "ShardSet": "megatron_lst.documents.shards",
    "Document": "megatron_lst.documents.schema",
    "patch_document": "megatron_lst.data.patches",
    "Chunk": "megatron_lst.patching.row",
    "Row": "megatron_lst.patching.row",
    "RowStream": "megatron_lst.data.stream",
    # accounting
    "parameters": "megatron_lst.flops",
    "row_flops": "megatron_lst.flops",
    # training
    "open_engine": "megatron_lst.engines",
    "Engine": "megatron_lst.engines",
    "StepResult": "megatron_lst.engines",
    # exported models
    "Export": "megatron_lst.inference",
    "load_export": "megatron_lst.inference",
    "generate": "megatron_lst.inference",
    "GenerationSettings": "megatron_lst.inference",
    "load_tokenizer": "lst_prep.tokenizer",
    # conversations
    "Conversation": "megatron_lst.inference",
    "ChatTemplate": "megatron_lst.chat",
    "ChatFormat": "megatron_lst.chat",
    "Speech": "megatron_lst.chat",
    # what is raised
    "LstError": "megatron_lst.errors",
    "UserError": "megatron_lst.errors",
    "DamagedDataError": "megatron_lst.errors",
    "TrainingFault": "megatron_lst.errors",
}
__all__ = ["__version__", *_API]

lean_imports.install()


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"megatron_lst has no {name!r}; its API: {', '.join(_API)}")
    value = getattr(importlib.import_module(_API[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
