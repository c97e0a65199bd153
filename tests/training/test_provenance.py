"""What a run's ids mean: recorded at its first start, binding later, compared with an export to start from."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.documents.writing import write_set
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference import load_export, write_export
from megatron_lst.inference.export import claim_folder
from megatron_lst.reference import ReferenceModel
from megatron_lst.training import provenance, trainer
from megatron_lst.training.init_from import check_export
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TEXT_DOCUMENTS, TOKENIZER, on_disk

RECORDED = {"tokenizer": {"fingerprint": "tok"}, "codebook": {"fingerprint": "code"}}


def sets_of(folder: Path, **changes: Any) -> dict[str, Path]:
    """Shard sets like the toy ones, of another tokenizer or codebook."""
    tokenizer = dataclasses.replace(TOKENIZER, fingerprint=changes.get("tokenizer", "tok"))
    codebook = dataclasses.replace(CODEBOOK, fingerprint=changes.get("codebook", "code"))
    write_set(folder / "speech", SPEECH_DOCUMENTS, "speech", tokenizer, codebook)
    write_set(folder / "text", TEXT_DOCUMENTS, "text", tokenizer)
    return {"speech": folder / "speech", "text": folder / "text"}


def test_the_first_start_records_what_the_ids_mean(tiny) -> None:
    config = tiny(training__steps=1)
    trainer.train(config)
    recorded = provenance.read(Path(config.run.dir))
    assert recorded is not None
    assert recorded["tokenizer"]["fingerprint"] == "tok"
    assert recorded["codebook"]["fingerprint"] == "code"
    assert recorded["data"] == ["speech", "text"]
    said = (Path(config.run.dir) / "events.log").read_text()
    assert "the tokenizer tok is not at hand; `lst export --tokenizer` takes its file" in said
    (Path(config.run.dir) / "provenance" / "provenance.json").write_text("{")
    with pytest.raises(DamagedDataError, match=r"provenance\.json: not readable"):
        provenance.read(Path(config.run.dir))


@pytest.mark.parametrize("what", ["tokenizer", "codebook"])
def test_a_run_does_not_go_on_with_other_ids(tiny, tmp_path: Path, what: str) -> None:
    config = tiny(training__steps=1)
    trainer.train(config)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=2))
    swapped = sets_of(tmp_path / "new", **{what: "another"})
    for source in config.data.sources:  # at the same place, as when a preparation is done again
        place = Path(source.shards[0])
        shutil.copytree(place, tmp_path / "old" / source.name)
    begun = True
    moved = on_disk(longer, swapped)
    with pytest.raises(UserError, match=f"began with the {what} of fingerprint .*, its shards now have another"):
        provenance.record(moved, begun, lambda kind, message: None)
    provenance.record(longer, begun, lambda kind, message: None)  # the same shards: it goes on
    # Before its first step nothing binds: a corrected configuration is recorded.
    provenance.record(moved, False, lambda kind, message: None)
    assert provenance.read(Path(config.run.dir))[what]["fingerprint"] == "another"  # type: ignore[index]


def test_sources_of_two_tokenizers_are_refused(tiny, tmp_path: Path) -> None:
    other = sets_of(tmp_path / "other", tokenizer="another")
    config = tiny()
    sources = (config.data.sources[0], dataclasses.replace(config.data.sources[1], shards=(str(other["text"]),)))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(UserError, match="source 'text': made with the tokenizer of fingerprint another"):
        provenance.describe_sources(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__heads": 1}, "model.heads: 1 here, 2 in the export"),
        ({"model__kv_heads": 1}, "model.kv_heads: 1 here, None in the export"),
        ({"model__local_heads": 1}, "model.local_heads: 1 here, 2 in the export"),
        ({"model__rope_theta": 100.0}, r"model.rope_theta: 100.0 here, 500000.0 in the export"),
        ({"model__window": 16}, "model.window: 16 here, 32 in the export"),
        ({"model__norm_eps": 1e-6}, "model.norm_eps"),
        ({"model__double_residual": True}, "model.double_residual: True here, False in the export"),
        ({"model__decoder_window_units": 8}, "model.decoder_window_units: 8 here, 1 in the export"),
        ({"model__pooling": "mean"}, "model.pooling: 'mean' here, 'max' in the export"),
        ({"vocabulary__bos": 3}, "vocabulary.bos: 3 here, 1 in the export"),
        ({"vocabulary__text_size": 99, "vocabulary__speech_size": 21}, "vocabulary.text_size: 99 here, 100"),
        ({"patching__size": 2}, "patching.size: 2 here, 4 in the export"),
    ],
)
def test_an_export_of_another_model_is_refused_by_key(
    tiny, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = tiny()
    export = write_export(tmp_path / "export", ReferenceModel(base.model, base.vocabulary).state_dict(), base, RECORDED)
    same = {"training__init_from": str(export), "training__seed": 9, "model__init_std": 0.5, "data__units": 96}
    assert check_export(tiny(**same), RECORDED) == []
    config = tiny(**same, **changes)
    with pytest.raises(UserError, match=message):
        check_export(config, RECORDED)
    keys = tuple(key.replace("__", ".") for key in changes)
    meant = dataclasses.replace(config, training=dataclasses.replace(config.training, init_may_differ=keys))
    assert any("differs on purpose" in line for line in check_export(meant, RECORDED))


@pytest.mark.parametrize("what", ["tokenizer", "codebook"])
def test_an_export_of_other_ids_is_refused(tiny, tmp_path: Path, what: str) -> None:
    base = tiny()
    weights = ReferenceModel(base.model, base.vocabulary).state_dict()
    other = {**RECORDED, what: {"fingerprint": "another"}}
    config = tiny(training__init_from=str(write_export(tmp_path / "export", weights, base, other)))
    with pytest.raises(UserError, match=rf"{what}: '(tok|code)' here, 'another' in the export"):
        check_export(config, RECORDED)
    # What a warm start knows: the language model's tokenizer in each of its files.
    files = {"tokenizers": {"tokenizer.json": "tok2", "tokenizer.model": "tok"}}
    config = tiny(training__init_from=str(write_export(tmp_path / "warm", weights, base, files)))
    assert ["codebook" in line for line in check_export(config, RECORDED)] == [True]
    with pytest.raises(UserError, match="tokenizer: 'third' here, 'tok2' in the export"):
        check_export(config, {**RECORDED, "tokenizer": {"fingerprint": "third"}})


def test_only_keys_that_are_compared_may_be_named(tiny, tmp_path: Path) -> None:
    base = tiny()
    export = write_export(tmp_path / "export", ReferenceModel(base.model, base.vocabulary).state_dict(), base, RECORDED)
    config = tiny(training__init_from=str(export), training__init_may_differ=["model.rope_thetta"])
    with pytest.raises(UserError, match=r"init_may_differ: model\.rope_thetta is not compared"):
        check_export(config, RECORDED)


def test_a_run_refuses_before_it_builds_anything(tiny, tmp_path: Path) -> None:
    base = tiny()
    export = write_export(tmp_path / "export", ReferenceModel(base.model, base.vocabulary).state_dict(), base, RECORDED)
    other = tiny("other", training__init_from=str(export), model__heads=1)
    with pytest.raises(UserError, match="model.heads: 1 here, 2 in the export"):
        trainer.train(other, build=lambda config, **_: pytest.fail("built an engine"))


def test_files_are_found_by_fingerprint_and_kept(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer through the preparation's receipt, the codebook beside its shards; wrong ones are passed over."""
    np = pytest.importorskip("numpy")
    pytest.importorskip("mistral_common")
    from lst_prep.tokenizer import load_tokenizer
    from lst_prep.units import Codebook

    real = load_tokenizer("mistral-v1")
    book = Codebook(np.zeros((20, 39), np.float32), "mfcc", "x")
    folder = tmp_path / "sets"
    sets_of(folder)
    near = [folder / "speech", folder / "text"]
    info, units = {"fingerprint": real.info.fingerprint, "name": "gone.model"}, {"fingerprint": book.fingerprint}
    assert provenance.find_tokenizer(info, near) is None
    assert provenance.find_codebook(units, near) is None
    Codebook(np.ones((20, 39), np.float32), "mfcc", "x").save(folder / "speech" / "codebook.safetensors")
    book.save(folder / "codebook.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps({"spec": "mistral-v1", "path": "/nowhere"}))
    assert provenance.find_tokenizer(info, near) == Path(real.path)
    assert provenance.find_codebook(units, near) == folder / "codebook.safetensors"
    with pytest.raises(UserError, match="the run was trained with"):
        provenance.find_codebook(units, near, str(folder / "speech" / "codebook.safetensors"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claim_folder(tmp_path / "export")
    with pytest.raises(UserError, match="cannot be made"):
        claim_folder(tmp_path / "file" / "export")


def test_an_export_remembers_its_rows(tiny, tmp_path: Path) -> None:
    base = tiny()
    export = write_export(tmp_path / "export", ReferenceModel(base.model, base.vocabulary).state_dict(), base)
    assert load_export(export, weights=False).units == base.data.units
    content = json.loads((export / "config.json").read_text())
    content.pop("units")  # as older versions wrote it
    (export / "config.json").write_text(json.dumps(content))
    assert load_export(export).units is None
