"""Names of splits, and paths with `~` and `$VAR`."""

import pytest

from lst_prep.config import PrepConfig
from lst_prep.splits import split_of
from megatron_lst.config.load import build
from megatron_lst.errors import UserError


@pytest.mark.parametrize("name", ["train", "TRAIN", "training", "train-clean-100", "train.other.500", "train_1"])
def test_splits_that_train(name: str) -> None:
    assert split_of(name) == "train"


@pytest.mark.parametrize(
    "name",
    [
        "heldout",
        "held-out",
        "test",
        "Test.Clean",
        "test-other",
        "dev",
        "dev-clean",
        "validation",
        "Validation2",
        "valid",
        "val",
        "eval",
        "evaluation",
        "train_dev",
        "test_train",
    ],
)
def test_splits_that_are_held_out(name: str) -> None:
    assert split_of(name) == "heldout"


@pytest.mark.parametrize(
    "name", ["validated", "other", "latest", "pretrain", "traindev", "", "7", None, 0, True, ["test"]]
)
def test_names_that_say_neither_are_not_guessed(name: object) -> None:
    assert split_of(name) is None


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    text = [{"name": "t", "path": "$DATA/${DATA}x"}]
    config = build(PrepConfig, {"manifests": ["~/m.jsonl"], "text": text, "out": "~/o", "heldout": ["$DATA"]})
    assert (config.manifests, config.text[0].path, config.out) == (("/home/me/m.jsonl",), "/data//datax", "/home/me/o")
    assert config.heldout == ("/data",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "$NO_SUCH/x"}, r"out: '\$NO_SUCH/x': the variable \$NO_SUCH is not set"),
        ({"manifests": ["a", "${NO_SUCH}/x"]}, r"manifests\[1\].*\$\{NO_SUCH\}"),
        ({"text": [{"name": "t", "path": "~nobody-at-all/x"}]}, r"text\[0\].path.*no home folder"),
    ],
)
def test_what_cannot_be_expanded_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(PrepConfig, options)
