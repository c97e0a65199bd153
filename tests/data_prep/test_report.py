"""The page of a preparation: finished, unfinished, and of a folder that is none."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lst_prep.config import PrepConfig
from lst_prep.report import write_report
from megatron_lst.cli.prep import prep_app
from megatron_lst.errors import UserError
from megatron_lst.pages.sound import MOST
from tests.support.reported import IMAGE, SCRIPT, prepared


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    return prepared(tmp_path_factory.mktemp("reported"))


@pytest.fixture
def out(config: PrepConfig, tmp_path: Path) -> Path:
    """A copy of the preparation."""
    return Path(shutil.copytree(config.out, tmp_path / "out"))


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_page_has_everything_of_a_finished_preparation(config: PrepConfig) -> None:
    page = (Path(config.out) / "report.html").read_text()
    assert headings(page) == [
        "Shard sets", "Sources", "speech, librivox", "heldout-speech, librivox", "What was not used", "Configuration",
    ]  # fmt: skip
    assert "Not complete" not in page
    # Three of training, one held out, two that were rejected.
    assert page.count("<audio") == page.count('src="data:audio/ogg;base64,') == 6
    assert len(page) < MOST + 1_000_000
    for what in ("markup_in_transcript", "silent_audio", "codebook_size: 32", "Speaking rate of documents"):
        assert what in page
    # Words carry their times, and so do the patches of both strategies.
    assert len(re.findall(r'<button type="button" class="word" data-begin="[\d.]+"', page)) > 40
    assert len(re.findall(r'class="span (?:word|silence)"', page)) > 50
    assert len(re.findall(r'class="span patch"', page)) > 100


def test_hostile_texts_stay_texts(config: PrepConfig) -> None:
    page = (Path(config.out) / "report.html").read_text()
    assert SCRIPT not in page
    assert IMAGE not in page
    assert "&lt;script&gt;alert" in page
    assert "&#34;&gt;&lt;img" in page
    assert page.count("<script>") == 1  # the page's own


def test_markdown_stays_for_terminals(config: PrepConfig) -> None:
    page = (Path(config.out) / "report.md").read_text()
    assert "## Shard sets" in page
    assert "| silent_audio | 1 |" in page
    assert "report.html" in page
    assert "data:audio" not in page


def test_an_unfinished_preparation_says_what_is_missing(config: PrepConfig, out: Path) -> None:
    (out / "summary.json").unlink()
    shutil.rmtree(out / "work" / "shards")
    shutil.rmtree(out / "speech")
    receipts = sorted((out / "work" / "align" / "receipts").rglob("*.json"))
    receipts[-1].unlink()
    page = write_report(out).read_text()
    assert "Not complete" in page
    assert f"align: {len(receipts) - 1} of {len(receipts)} items are done (`lst prep align`)" in page
    assert "`lst prep units`" not in page
    assert "The shard sets are not joined yet" in page
    assert "Pieces that are aligned so far." in page
    assert "silent_audio" in page
    assert page.count("<audio") >= 3
    assert "Shard sets" not in headings(page)


def test_the_very_beginning_of_a_preparation(config: PrepConfig, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes((Path(config.out) / "plan.json").read_bytes())
    page = write_report(tmp_path).read_text()
    assert "The manifests are not read yet" in page
    assert headings(page)[-1] == "Configuration"


def test_without_recordings_or_work_there_is_no_sound(config: PrepConfig, out: Path) -> None:
    shutil.rmtree(out / "work")
    page = write_report(out).read_text()
    assert "<audio" not in page
    assert "No sound: it is not in shards." in page
    assert '<span class="word">' in page
    assert 'class="span word"' in page


def test_a_recording_that_is_away_is_said(config: PrepConfig, out: Path) -> None:
    entries = out / "work" / "entries.jsonl"
    entries.write_text(entries.read_text().replace(".ogg", ".goo"))  # as long as before: items know their offsets
    page = write_report(out).read_text()
    assert "no sound: " in page
    assert "cannot be read now" in page


def test_a_folder_that_is_no_preparation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}: no preparation and no import \(there is no plan.json\)"):
        write_report(tmp_path)


def test_the_command_says_where_the_page_is(config: PrepConfig, tmp_path: Path) -> None:
    import yaml

    manifest, page = config.manifests[0], Path(config.out) / "report.html"
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump({"out": config.out, "manifests": [manifest]}))
    before = page.stat().st_mtime_ns
    answer = CliRunner().invoke(prep_app, ["report", str(tmp_path / "prep.yaml")])
    assert answer.exit_code == 0
    assert answer.output.strip() == str(page)
    assert page.stat().st_mtime_ns > before
