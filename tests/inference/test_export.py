"""The exported folder: round trip, strictness, damage, and that it needs neither Megatron nor streaming."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference import load_export, write_export
from megatron_lst.patching.row import Chunk, assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=1, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1, queries=3
)
CONFIG = Config(vocabulary=V, model=TINY, patching=PatchingConfig(strategy="curriculum", size=3))
METADATA = {
    "tokenizer": {"fingerprint": "aaaa"}, "codebook": {"fingerprint": "bbbb"}, "step": 7, "commit": "1234abc",
    "licenses": ["CC-BY-4.0"], "data": ["corpus"], "results": "| task | score |",
}  # fmt: skip


def exported(tmp_path: Path, config: Config = CONFIG, **options: object) -> tuple[Path, ReferenceModel]:
    oracle = ReferenceModel(config.model, V)
    folder = write_export(tmp_path / "out", oracle.state_dict(), config, METADATA, **options)  # type: ignore[arg-type]
    return folder, oracle


@pytest.mark.parametrize("options", [{}, {"text_path": "direct", "decoder_input": "embedding"}, {"kind": "baseline"}])
def test_round_trip_gives_the_same_model(tmp_path: Path, options: dict[str, object]) -> None:
    strategy = "none" if options.get("kind") == "baseline" else "static"
    config = replace(
        CONFIG, model=replace(TINY, **options), patching=PatchingConfig(strategy=strategy, size=3)  # type: ignore[arg-type]
    )  # fmt: skip
    folder, oracle = exported(tmp_path, config)
    export = load_export(folder)
    assert (export.config, export.vocabulary, export.patching) == (config.model, V, config.patching)
    assert export.metadata == METADATA
    assert set(export.weights) == set(oracle.state_dict())
    size = export.patch_size
    assert size == (1 if options.get("kind") == "baseline" else 3)
    tokens = np.array([V.bos, V.speech_marker, 25, 26, 27, V.text_marker, 5], np.int32)
    lengths = np.ones(7, np.int32) if size == 1 else np.array([1, 1, 3, 1, 1], np.int32)
    row = assemble_row([Chunk(tokens, lengths, np.zeros(len(lengths), bool))], len(lengths), V)
    with torch.no_grad():
        torch.testing.assert_close(export.model().row_logits(row), oracle(row), rtol=1e-5, atol=1e-6)
    assert export.model(torch.bfloat16).embedding.weight.dtype == torch.bfloat16


def test_the_card_tells_data_licences_fingerprints_commit_and_results(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, dtype="bfloat16")
    card = (folder / "README.md").read_text()
    for part in ("CC-BY-4.0", "corpus", "aaaa", "bbbb", "1234abc", "| task | score |", "bfloat16"):
        assert part in card
    assert load_export(folder).weights["embedding.weight"].dtype == torch.bfloat16


def test_refuses_other_fingerprints(tmp_path: Path) -> None:
    export = load_export(exported(tmp_path)[0])
    export.check_fingerprints("aaaa", None)
    with pytest.raises(UserError, match=r"codebook of fingerprint bbbb, this one has cccc"):
        export.check_fingerprints("aaaa", "cccc")


def test_refuses_wrong_weights_and_used_folders(tmp_path: Path) -> None:
    folder, oracle = exported(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        write_export(folder, oracle.state_dict(), CONFIG)
    weights = oracle.state_dict()
    weights["extra.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match="extra.weight: not of this model"):
        write_export(tmp_path / "other", weights, CONFIG)
    assert not (tmp_path / "other").exists()


def test_names_damage(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DamagedDataError, match="hash"):
        load_export(folder)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedDataError, match=r"model\.safetensors"):
        load_export(folder, verify=False)
    weights.unlink()
    with pytest.raises(DamagedDataError, match="missing"):
        load_export(folder)
    with pytest.raises(UserError, match="not an exported model"):
        load_export(tmp_path)


def test_a_run_folder_is_told_from_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=rf"a run folder, not an exported model \(`lst export {tmp_path} OUT`"):
        load_export(tmp_path)


@pytest.mark.parametrize("trained_here", [False, True])
@pytest.mark.parametrize("device", ["cudaa", "cuda:99"])
def test_a_device_that_is_not_there_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, trained_here: bool
) -> None:
    folder, _ = exported(tmp_path)
    if trained_here and not torch.cuda.is_available():  # what parallel/cpu.py leaves in a process that trained
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, device=None: empty(*size, device="cpu" if device else None))
    with pytest.raises(UserError, match=f"device '{device}' cannot be used"):
        load_export(folder).model(device=device)


def test_refuses_other_formats_and_unknown_keys(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for change, message in (({"format": 1}, "export format 1"), ({"model_type": "llama"}, "model_type is 'llama'")):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=message):
            load_export(folder)
    content["model"]["hiden"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        load_export(folder)


def test_loading_imports_neither_megatron_nor_streaming(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    code = (
        "import sys; from megatron_lst.inference import load_export; "
        f"load_export({str(folder)!r}).model(); "
        "bad = {'megatron', 'streaming', 'deepspeed', 'transformers'} & {m.split('.')[0] for m in sys.modules}; "
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    whole, oracle = exported(tmp_path)
    weights = oracle.state_dict()
    with pytest.raises(UserError, match="shard size 'x': expected one such as 5GB"):
        write_export(tmp_path / "shards", weights, CONFIG, METADATA, shard_size="x")
    folder = write_export(tmp_path / "shards", weights, CONFIG, METADATA, shard_size=4000)
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert all((folder / f).stat().st_size < 4000 + 2000 or len(load_file(folder / f)) == 1 for f in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights)
    assert index["metadata"]["total_size"] == sum(4 * w.numel() for w in weights.values())
    loaded = load_export(folder).weights
    assert all(torch.equal(loaded[name], w) for name, w in load_export(whole).weights.items())
    (folder / files[1]).unlink()
    with pytest.raises(DamagedDataError, match=f"{files[1]} is missing"):
        load_export(folder)


def test_no_file_takes_more_than_a_shard(tmp_path: Path) -> None:
    """A file is put together in memory: its bytes are what writing needs beside the weights."""
    weights = ReferenceModel(TINY, V).state_dict()
    folder = write_export(tmp_path / "out", weights, CONFIG, shard_size=6000)
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    written = [sum(4 * tensor.numel() for tensor in tensors.values()) for tensors in files]
    assert sum(written) == sum(4 * w.numel() for w in weights.values())
    assert max(written) <= 6000
