"""Mistakes that people make: each is a real command line, and gets exit code 2 and a sentence with the cure."""

import dataclasses
import shlex
import shutil
import sys
import tomllib
import wave
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from lst_prep.chat.config import ChatConfig
from lst_prep.config import PrepConfig
from lst_prep.importing.config import ImportConfig
from megatron_lst.cli.app import main
from megatron_lst.config.hints import TOP_KEYS
from megatron_lst.config.schema import Config
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import EXTRAS
from megatron_lst.inference import write_export
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TOKENIZER
from tests.support.tokenizers import character_tokenizer
from tests.support.toy import initial_weights, toy_config
from tests.training.tiny import write_run

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 420
"""Characters of a message: who reads more than that has not been told what to do."""
MOST_COMMAS = 20
"""A list of all keys is no cure."""


@dataclass(frozen=True)
class Mistake:
    """One command line and what its message says.

    Attributes:
        command: what follows `lst`; the folder that it runs in is `world`'s.
        says: words of the message, in any order.
        files: written first.
        without: a package that is not installed.
        anew: what of ours imported it at its top, and is imported anew.
    """

    command: str
    says: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    without: str = ""
    anew: str = ""


def over(text: str) -> dict[str, str]:
    """A configuration that lies over the right one."""
    return {"mine.yaml": f"base: config.yaml\n{text}\n"}


def source(shards: str) -> dict[str, str]:
    """A run on other shards."""
    found = f"{{name: s, kind: interleaved, shards: [{shards}], weight: 1}}"
    return over(f"run: {{dir: other-run}}\ndata: {{sources: [{found}]}}")


def prep_files(manifest: str, more: str = "") -> dict[str, str]:
    """A preparation of one line of a manifest, with more keys."""
    keys = (
        "out: out\ntokenizer: letters.json\nmanifests: [manifest.jsonl]\naudio: {min_seconds: 0.1}\n"
        "units: {codebook_size: 4}\nalign: {flite: false}\njobs: {workers: 1}\nreading: {attempts: 1}\n"
    )
    return {"prep.yaml": keys + more, "manifest.jsonl": f"{manifest}\n"}


GOOD = '{"id": "a", "audio": "audio/a.wav", "text": "a good day"}'
OTHER_RUN = "run.dir=other-run"

MISTAKES = {
    # The words of the command line.
    "a command that is not there": Mistake("trian config.yaml", ("'trian'", "'train'")),
    "a stage that is not there": Mistake("prep runn prep.yaml", ("'runn'", "'run'")),
    "no configuration": Mistake("train", ("lst train: CONFIG is missing", "write lst train CONFIG")),
    "no output folder": Mistake("export run", ("OUT is missing", "lst export RUN OUT")),
    "a key as an option": Mistake("train config.yaml --lr 1e-3", ("no option --lr", "training.lr=VALUE")),
    "a dotted key as an option": Mistake("train config.yaml --training.lr=1e-3", ("training.lr=VALUE",)),
    "an option with a slip": Mistake("plan config.yaml --node 3", ("--node", "--nodes")),
    "no machine": Mistake("plan config.yaml --nodes 0", ("--nodes", "greater than or equal to 1")),
    "a key and its value apart": Mistake("train config.yaml training.steps 10", ("'training.steps'", "key=value")),
    # Files of a configuration.
    "a configuration that is not there": Mistake("train confg.yaml", ("confg.yaml", "did you mean config.yaml?")),
    "a run instead of its configuration": Mistake("train run", ("it is a folder", "did you mean run/config.yaml?")),
    "a base that is not there": Mistake(
        "train mine.yaml", ("nope.yaml", "the base of", "mine.yaml"), {"mine.yaml": "base: nope.yaml\n"}
    ),
    "a tab": Mistake(
        "train mine.yaml", ("mine.yaml, line 2", "a tab; indent with spaces"), {"mine.yaml": "run:\n\tdir: x"}
    ),
    "YAML that breaks off": Mistake(
        "train mine.yaml", ("mine.yaml, line", "not valid YAML"), {"mine.yaml": "run: {dir: x\n"}
    ),
    "a preparation given to train": Mistake(
        "train prep.yaml", ("out", "`lst prep run`", "`lst train`"), prep_files("")
    ),
    "a run given to prep": Mistake("prep run config.yaml", ("`lst train`", "`lst prep run`")),
    "an empty configuration": Mistake("train mine.yaml", ("data.sources", "kind: interleaved"), {"mine.yaml": ""}),
    "a configuration for docker": Mistake("launch docker nope.yaml", ("nope.yaml", "there is no such file")),
    "a configuration for SLURM": Mistake("launch slurm nope.yaml", ("nope.yaml", "there is no such file")),
    # Keys and values.
    "learning_rate": Mistake(
        "train mine.yaml", ("mine.yaml, line 2", "did you mean 'lr'?"), over("training: {learning_rate: 1e-3}")
    ),
    "learning_rate at the top": Mistake(
        "train mine.yaml", ("did you mean 'training.lr'?",), over("learning_rate: 1e-3")
    ),
    "a key without its section": Mistake("train config.yaml steps=10", ("did you mean 'training.steps'?",)),
    "a key in another section": Mistake(
        "train mine.yaml", ("training.layers", "did you mean 'model.layers'?"), over("training: {layers: 3}")
    ),
    "a key with a slip": Mistake("config show mine.yaml", ("did you mean 'hidden'?",), over("model: {hiden: 64}")),
    "a key that nothing is like": Mistake("train config.yaml training.zzz=1", ("`lst config keys run` lists",)),
    "a word for a number": Mistake(
        "train mine.yaml", ("line 2", "expected a number", "'fast'"), over("training: {lr: fast}")
    ),
    "one for a list": Mistake(
        "train mine.yaml",
        ("shards: expected a list",),
        over("data: {sources: [{name: s, kind: interleaved, shards: sets/speech, weight: 1}]}"),
    ),
    "a choice with a slip": Mistake("train config.yaml patching.strategy=align", ("did you mean 'aligned'?",)),
    "a key twice": Mistake(
        "train mine.yaml", ("mine.yaml, line 2", "'lr' stands there twice"), over("training: {lr: 1, lr: 2}")
    ),
    "a batch that cannot be divided": Mistake(
        "train config.yaml training.global_batch=3", ("training.global_batch=3", "must divide")
    ),
    "two ranks, and one is here": Mistake("train config.yaml parallel.tensor=2", ("parallel.tensor", "torchrun")),
    "an accelerator that is not known": Mistake("plan config.yaml --device h1000", ("did you mean h100?",)),
    # Shards.
    "no shards": Mistake("train mine.yaml", ("nowhere", "there is no such folder"), source("nowhere")),
    "shards that did not finish": Mistake(
        "train mine.yaml", ("no manifest.json", "did not finish", "run the same command again"), source("unfinished")
    ),
    "prep's folder as shards": Mistake("train mine.yaml", ("sets/speech", "sets/text"), source("sets")),
    "a file as shards": Mistake("train mine.yaml", ("a file; a shard set is a folder",), source("config.yaml")),
    "text as speech": Mistake("train mine.yaml", ("sets/text", "kind"), source("sets/text")),
    "two codebooks": Mistake(
        "train mine.yaml", ("fingerprint another", "prepare them with the same one"), source("sets/speech, other")
    ),
    "another size of codebook": Mistake(
        f"train config.yaml vocabulary.speech_size=30 {OTHER_RUN}",
        ("speech_size=20", "vocabulary.speech_size=30", "set it"),
    ),
    # Preparation.
    "keys of another manifest": Mistake(
        "prep run prep.yaml",
        ("manifest.jsonl:1", "'audio_filepath'", "called audio"),
        prep_files('{"id": "a", "audio_filepath": "audio/a.wav", "text": "x"}'),
    ),
    "a broken line": Mistake(
        "prep run prep.yaml", ("manifest.jsonl:1", "not JSON"), prep_files('{"id": "a", "audio": "audio/a.wav')
    ),
    "no audio": Mistake(
        "prep run prep.yaml",
        ("audio/none.wav", "No such file", "give-up"),
        prep_files(GOOD.replace("a.wav", "none.wav")),
    ),
    "audio outside the manifest's folder": Mistake(
        "prep run prep.yaml",
        ("manifest.jsonl:1", "not under", "audio.root"),
        prep_files(GOOD.replace("audio/", "../audio/")),
    ),
    "no manifest": Mistake("prep run prep.yaml manifests=[none.jsonl]", ("none.jsonl", "No such file"), prep_files("")),
    "nothing to prepare": Mistake("prep run prep.yaml manifests=[]", ("name `manifests` or `text`",), prep_files("")),
    "another text key": Mistake(
        "prep run prep.yaml manifests=[]",
        ("lines.jsonl:1", "no string 'text'", "it has content", "text_key"),
        prep_files("", "text: [{name: t, path: lines.jsonl}]\n") | {"lines.jsonl": '{"content": "hello there"}\n'},
    ),
    "no text": Mistake(
        "prep run prep.yaml manifests=[]",
        ("'t'", "none/*.txt"),
        prep_files("", "text: [{name: t, path: none/*.txt}]\n"),
    ),
    "no tokenizer": Mistake("prep run prep.yaml tokenizer=nope", ("nope: no such file",), prep_files(GOOD)),
    "an extractor that is not there": Mistake(
        "prep run prep.yaml units.extractor=wav2vec", ("'wav2vec'", "mfcc, whisper, hubert"), prep_files(GOOD)
    ),
    "no codebook": Mistake("prep run prep.yaml units.codebook=none.npz", ("none.npz",), prep_files(GOOD)),
    "a stage too early": Mistake("prep units prep.yaml", ("run `lst prep manifest`",), prep_files(GOOD)),
    "a file with --from folder": Mistake(
        "prep manifest audio/a.wav --from folder --out m.jsonl", ("audio/a.wav: a file", "--from folder", ": audio")
    ),
    "a corpus that is not known": Mistake("prep manifest audio --from foldr --out m.jsonl", ("'foldr'", "folder")),
    "--from without --out": Mistake("prep manifest audio --from folder", ("--out",)),
    "a folder without audio": Mistake("prep manifest sets --from folder --out m.jsonl", ("no audio", ".flac")),
    # Runs and exports.
    "no run": Mistake("checkpoint list nowhere", ("nowhere", "not a run folder")),
    "no checkpoint": Mistake("checkpoint keep run 7", ("no complete checkpoint", "checkpoint.every")),
    "no run to report": Mistake("report nowhere", ("nowhere", "not a run folder")),
    "a run to generate from": Mistake("generate run --text hi", ("a run folder", "`lst export run OUT`")),
    "no prompt": Mistake("generate export", ("--text, --audio or --units",)),
    "no recording": Mistake("generate export --audio none.wav", ("none.wav", "no such file")),
    "another tokenizer": Mistake(
        "generate export --text hi --tokenizer letters.json", ("was trained with", "fingerprint tok")
    ),
    "a code that the codebook does not have": Mistake("generate export --units '1 99'", ("code 99", "[0, 50)")),
    "sound is no modality": Mistake("generate export --to sound --units 1", ("'sound'", "speech, text or any")),
    "no such device": Mistake("generate export --units 1 --device gpu", ("'gpu'", "cpu or cuda")),
    # Evaluation.
    "nothing to evaluate": Mistake("eval nowhere", ("nowhere", "there is no such folder")),
    "nothing to evaluate on": Mistake("eval export", ("--task", "--documents")),
    "no held-out shards": Mistake("eval export --documents nowhere", ("nowhere", "there is no such folder")),
    "few documents": Mistake(
        "eval export --documents few --units 128 --direction S->S",
        ("two held-out speech documents", "--prompt-words (20)"),
    ),
    "a direction with a slip": Mistake("eval export --documents few --direction S-S", ("S->S, T->T, S->T, T->S",)),
    "the wrong codebook": Mistake(
        "eval export --documents other", ("codebook is another", "expected code", "prepare it")
    ),
    "a benchmark that is not known": Mistake("eval prepare hellaswagg x y", ("'hellaswagg'", "hellaswag")),
    "no results": Mistake("eval compare a b", ("a: no results", "runs/demo/eval")),
    # Packages that are not installed.
    "train without Megatron": Mistake(
        f"train config.yaml {OTHER_RUN}",
        ("megatron-core", "pip install 'megatron-lst[train]'"),
        without="megatron",
        anew="megatron_lst.engines.megatron",
    ),
    "prep without soundfile": Mistake(
        "prep run prep.yaml",
        ("soundfile", "pip install 'megatron-lst[prep]'"),
        prep_files(GOOD),
        without="soundfile",
        anew="lst_prep",
    ),
    "a picture without matplotlib": Mistake(
        "data inspect config.yaml", ("matplotlib", "pip install 'megatron-lst[train]'"), without="matplotlib"
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, its shards, an untrained run, an export, recordings with texts, a tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    write_run(folder)
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text((folder / "config.yaml").read_text())
    config = toy_config(patching__size=4)
    metadata = {"tokenizer": {"fingerprint": "tok", "name": "toy"}, "codebook": {"fingerprint": "code"}}
    write_export(folder / "export", initial_weights(config), config, metadata)
    write_set(folder / "few", SPEECH_DOCUMENTS[:1], "speech", TOKENIZER, CODEBOOK)
    write_set(folder / "other", SPEECH_DOCUMENTS[:2], "speech", TOKENIZER, Codec("x", (20,), fingerprint="another"))
    (folder / "unfinished" / "part-00000").mkdir(parents=True)
    (folder / "audio").mkdir()
    for name in "ab":
        with wave.open(str(folder / "audio" / f"{name}.wav"), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16000)
            noise = np.random.default_rng(0).normal(0, 3000, 16000)
            out.writeframes(noise.astype("<i2").tobytes())
        (folder / "audio" / f"{name}.txt").write_text("a good day")
    character_tokenizer(folder / "letters.json", "abcdefghijklmnopqrstuvwxyz")
    return folder


def lst(
    mistake: Mistake, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code of the command line, and what it wrote to stderr."""
    monkeypatch.chdir(world)
    shutil.rmtree("out", ignore_errors=True)
    for name, content in mistake.files.items():
        Path(name).write_text(content)
    if mistake.without:
        for name in [n for n in sys.modules if n.partition(".")[0] == mistake.without]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, mistake.without, None)
        for name in [n for n in sys.modules if mistake.anew and n.startswith(mistake.anew)]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", ["lst", *shlex.split(mistake.command)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_says_the_cure(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake = MISTAKES[name]
    code, said = lst(mistake, world, monkeypatch, capsys)
    assert code == 2, said
    message = said[said.index("error: ") :]
    assert all(words in message for words in mistake.says), message
    assert "Traceback" not in said
    assert len(message) <= LONGEST, message
    assert message.count(", ") < MOST_COMMAS, message


def test_there_are_fifty_of_them() -> None:
    assert len(MISTAKES) >= 50


def test_no_folder_is_made_of_a_mistake(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lst(MISTAKES["nothing to evaluate"], world, monkeypatch, capsys)
    assert not (world / "nowhere").exists()


def test_what_is_right_is_no_mistake(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: the commands that the mistakes are made of are right without them."""
    good = (
        Mistake("config show config.yaml", ()),
        Mistake("prep manifest audio --from folder --out m.jsonl", ()),
        Mistake("prep manifest prep.yaml", (), prep_files(GOOD)),
        Mistake("eval export --documents few --units 128", ()),
        Mistake("generate export --units '1 2' --max-tokens 4 --to speech", ()),
    )
    for command in good:
        code, said = lst(command, world, monkeypatch, capsys)
        assert code == 0, f"{command.command}: {said}"


def test_every_extra_of_a_missing_package_is_declared() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.values():
        names = {Requirement(line).name for line in extras[extra]}
        assert package in names, f"{package} is not in the extra {extra}"


def test_the_top_keys_of_every_configuration_are_known() -> None:
    classes = {
        "lst train": Config,
        "lst prep run": PrepConfig,
        "lst prep import": ImportConfig,
        "lst prep chat": ChatConfig,
    }
    seen: set[str] = set()
    for command, cls in classes.items():
        found = {field.name for field in dataclasses.fields(cls)}
        assert found - seen == set(TOP_KEYS[command].split()) - seen, command
        seen |= found
