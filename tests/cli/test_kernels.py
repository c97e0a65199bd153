"""`lst kernels tune` with a run's configuration: what is searched, and the file that it leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")
from lst_kernels import backends, tune
from lst_kernels.bench import Setting
from lst_kernels.interval_attention.tiles import TABLE
from megatron_lst.cli.app import app
from megatron_lst.cli.kernels import setting_of
from megatron_lst.config import load_config

TILES = TABLE["sm90", True, 128]


def test_a_rank_of_the_configuration_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Setting, list[str]]] = []

    def search(setting: Setting, tell: Any, names: Any) -> list[tune.Choice]:
        asked.append((setting, list(names)))
        return [tune.Choice(f"bfloat16 {setting.global_head_dim}", TILES, {}, {})]

    def compare(setting: Setting, *_: Any) -> dict[str, dict[str, float]]:
        return {f"bfloat16 {setting.global_head_dim}": {"lst_kernels": 2.0}}

    monkeypatch.setattr(tune, "tune", search)
    monkeypatch.setattr(tune, "compare", compare)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(backends, "triton_version", lambda: "3.6.0")
    file, base = tmp_path / "tiles.json", tmp_path / "base.yaml"
    base.write_text(f"base: {Path('configs/base-1b.yaml').resolve()}\nmodel: {{head_size: 64}}\n")

    def run(*words: str) -> None:
        answer = CliRunner().invoke(app, ["kernels", "tune", *words, "--out", str(file)])
        assert answer.exit_code == 0, answer.output

    run()
    run("configs/lst-70b.yaml", "--document", "700")
    run(str(base), "--document", "9999")
    both = ["local window", "global causal"]
    assert asked[0] == (Setting(), both)
    seventy = Setting(
        rows=1,
        document_tokens=700,
        local_dim=256,
        local_heads=2,
        queries=4,
        global_heads=8,
        global_kv_heads=1,
        global_head_dim=128,
        global_ffn=3584,
        vocabulary=asked[1][0].vocabulary,
    )
    assert asked[1] == (seventy, both)
    assert (asked[2][0].global_head_dim, asked[2][0].document_tokens, asked[2][1]) == (64, 4096, both[1:])
    entry = json.loads(file.read_text())["devices"]["GPU"]
    assert set(entry["tiles"]) == set(entry["attention"]) == {"bfloat16 64", "bfloat16 128"}


def test_the_1b_is_the_default() -> None:
    found = setting_of(load_config("configs/lst-1b.yaml"), 1500)
    assert replace(found, vocabulary=tune.PUBLISHED.vocabulary) == tune.PUBLISHED


def test_what_is_not_searched_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(f"base: {Path('configs/lst-1b.yaml').resolve()}\ntraining: {{precision: fp32}}\n")
    answer = CliRunner().invoke(app, ["kernels", "tune", str(run), "--out", str(tmp_path / "tiles.json")])
    assert "tiles are searched for bf16 alone" in str(answer.exception)
    assert not (tmp_path / "tiles.json").exists()
