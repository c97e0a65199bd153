"""What an unknown key was meant to be."""

from pathlib import Path

import pytest

from megatron_lst.config import load_config
from megatron_lst.config.document import sections
from megatron_lst.config.hints import ALIASES
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def test_every_alias_leads_to_a_key_and_is_none() -> None:
    import dataclasses

    keys = {f"{name}.{field.name}" for name, cls in sections(Config) for field in dataclasses.fields(cls)}
    assert set(ALIASES.values()) <= keys
    assert not {key.rpartition(".")[2] for key in keys} & set(ALIASES)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rate=1", "training.learning_rate: unknown key; did you mean 'lr'?"),
        ("training.seq_len=1", "did you mean 'data.units'?"),
        ("learning_rate=1", "did you mean 'training.lr'?"),
        ("model.num-layers=1", "did you mean 'layers'?"),
        ("training.stepz=1", "did you mean 'steps'?"),
        ("engine.cuda_graph_impl=local", "training captures no CUDA graph; a larger training.micro_batch"),
        ("parallel.zzz=1", "known keys: "),
    ],
)
def test_what_was_meant_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(DEMO, [override])
    assert said in str(refused.value)
