"""A folder belongs to its plan, also to that of an earlier version, and to none before there is anything in it."""

import json
from pathlib import Path

import pytest

from lst_prep.config import PrepConfig, TextSource
from lst_prep.layout import Layout, check_plan, fingerprint_of
from megatron_lst.errors import UserError


def config(folder: Path) -> PrepConfig:
    (folder / "t.jsonl").write_text('{"text": "one"}')
    return PrepConfig(text=(TextSource("t", str(folder / "t.jsonl")),), out=str(folder / "out"))


def test_a_folder_of_an_earlier_version_goes_on_with_an_item_a_file(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    check_plan(layout, config(tmp_path))
    old = json.loads(layout.plan.read_text())
    del old["config"]["item_bytes"], old["config"]["units"]["rate"]
    layout.plan.write_text(json.dumps(old))
    layout.tokenizer.write_text("{}")
    again = config(tmp_path)
    assert check_plan(layout, again) == fingerprint_of(old)
    assert again.jobs.item_bytes == 1
    again.units.rate = 50.0  # the control: what did something else is another plan
    with pytest.raises(UserError, match=r"units\.rate was None, is now 50\.0"):
        check_plan(layout, again)


def test_a_plan_binds_as_soon_as_there_are_items(tmp_path: Path) -> None:
    layout, made = Layout(tmp_path / "out"), config(tmp_path)
    first = check_plan(layout, made)
    made.text_options.max_pieces = 7
    assert check_plan(layout, made) != first
    layout.tokenizer.write_text("{}")
    made.text_options.max_pieces = 8
    with pytest.raises(UserError, match="max_pieces was 7, is now 8"):
        check_plan(layout, made)
