"""Contradictions are refused with both keys named."""

from pathlib import Path

import pytest

from megatron_lst.config import load_config
from megatron_lst.config.load import build
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError

CONTRADICTIONS = [
    (["model.layers=0"], ["model.layers", "at least 1"]),
    (["checkpoint.every=0"], ["checkpoint.every", "at least 1"]),
    (["evaluation.rows=0"], ["evaluation.rows", "at least 1"]),
    (["evaluation.every=-1"], ["evaluation.every", "at least 0"]),
    (["checkpoint.keep=-1"], ["checkpoint.keep", "at least 0"]),
    (["training.lr=-1"], ["training.lr", "above 0"]),
    (["training.micro_batch=-1"], ["training.micro_batch", "at least 1"]),
    (["model.heads=3"], ["model.heads=3", "2048"]),
    (["model.local_heads=1024"], ["model.local_heads", "even"]),
    (["model.kv_heads=3"], ["model.kv_heads=3", "model.heads=16"]),
    (["model.head_size=63"], ["model.head_size=63", "even"]),
    (["model.no_rope_every=1"], ["model.no_rope_every=1", "no layer with positions"]),
    (
        ["model.rope_scaling.kind=llama3", "model.rope_scaling.low_frequency=4"],
        ["model.rope_scaling.low_frequency=4", "model.rope_scaling.high_frequency=4"],
    ),
    (["model.kind=baseline"], ["patching.strategy=static", "baseline"]),
    (["patching.strategy=bpe"], ["patching.strategy=bpe", "lst"]),
    (["patching.aligned_lag=2"], ["patching.aligned_lag"]),
    (["patching.tau1=10", "patching.tau2=5"], ["patching.tau1=10", "patching.tau2=5"]),
    (["data.tokens=100"], ["data.tokens=100", "data.units=4096"]),
    (["data.streams=48"], ["data.streams=48", "training.global_batch=128"]),
    (["parallel.sequence=true"], ["parallel.sequence", "parallel.tensor"]),
    (["parallel.tensor=3", "training.micro_batch=1"], ["data.units=4096", "parallel.tensor=3"]),
    (["parallel.tensor=512"], ["parallel.tensor=512", "vocabulary.multiple"]),
    (["parallel.virtual=2"], ["parallel.virtual", "parallel.pipeline"]),
    (["engine.name=deepspeed", "parallel.pipeline=2"], ["engine.name=deepspeed", "parallel.pipeline"]),
    (["engine.zero_stage=4"], ["engine.zero_stage"]),
    (["engine.fp8=hybrid", "training.precision=fp32"], ["engine.fp8=hybrid", "training.precision=bf16", "fp32"]),
    (["engine.fp8=e4m3", "engine.name=deepspeed"], ["engine.fp8=e4m3", "engine.name=megatron"]),
    (["training.micro_batch=3"], ["training.global_batch=128", "training.micro_batch=3"]),
    (["training.trunk_lr_ratio=0.1"], ["training.trunk_lr_ratio=0.1", "training.init_from"]),
    (["training.trunk_lr_ratio=0"], ["training.trunk_lr_ratio", "above 0"]),
    (["training.freeze_global_steps=-1"], ["training.freeze_global_steps"]),
    (
        ["training.schedule=wsd", "training.decay_steps=90", "training.steps=100", "training.warmup_steps=20"],
        ["training.decay_steps=90", "training.warmup_steps=20", "training.steps=100"],
    ),
    (["training.decay_steps=90"], ["training.decay_steps=90", "training.schedule=wsd", "cosine"]),
    (["checkpoint.keep_best=true"], ["checkpoint.keep_best", "evaluation.every=0"]),
    (
        [
            "checkpoint.keep_best=true",
            "evaluation.every=300",
            "data.validation=[{name: a, kind: text, shards: [x]}]",
        ],
        ["checkpoint.every=1000", "evaluation.every=300"],
    ),
    (["training.freeze_global_steps=5"], ["training.freeze_global_steps=5", "training.init_from"]),
    (["vocabulary.bos=40000"], ["bos=40000", "32000"]),
]


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS, ids=lambda v: "+".join(v))
def test_a_contradiction_names_its_keys(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("")
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_sound_settings_pass(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("")
    load_config(path, ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2", "parallel.virtual=2"])
    load_config(path, ["model.kind=baseline", "patching.strategy=none"])
    load_config(path, ["patching.tau1=0", "patching.tau2=0"])


def test_a_contradiction_says_where_its_keys_were_set(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("training: {steps: 5}\nmodel:\n  heads: 8\n")
    path = tmp_path / "run.yaml"
    path.write_text("base: below.yaml\nparallel: {sequence: true}\nmodel:\n  kv_heads: 3\n")
    with pytest.raises(UserError) as caught:
        load_config(path, ["model.kind=lst"])
    said = str(caught.value).splitlines()
    assert said[1:] == [
        f"  model.kv_heads: {path}, line 4",
        f"  model.heads: {tmp_path / 'below.yaml'}, line 3",
    ]
    with pytest.raises(UserError) as caught:
        load_config(path, ["model.kv_heads=4"])
    assert str(caught.value).splitlines()[1:] == [f"  parallel.sequence: {path}, line 2", "  parallel.tensor: default"]
    with pytest.raises(UserError) as caught:
        load_config(path, ["model.kv_heads=5"])
    assert "  model.kv_heads: override 'model.kv_heads=5'" in str(caught.value).splitlines()


def test_what_a_section_refuses_itself_says_where_its_keys_were_set(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("vocabulary:\n  bos: 40000\n")
    with pytest.raises(UserError) as caught:
        load_config(path, ["vocabulary.text_size=100"])
    assert str(caught.value).splitlines()[1:] == [
        f"  vocabulary.bos: {path}, line 2",
        "  vocabulary.text_size: override 'vocabulary.text_size=100'",
    ]
    with pytest.raises(UserError) as caught:  # nothing is made up where values do not know
        build(Config, {"vocabulary": {"bos": 40000}})
    assert str(caught.value).splitlines()[1:] == ["  vocabulary.text_size: default"]
