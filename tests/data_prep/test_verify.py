"""`lst prep verify` on several processes: the report of one, in the same order."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from lst_prep import verify
from lst_prep.jobs import Jobs
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TEXT_DOCUMENTS, TOKENIZER

SECRET = "This sentence is held out of everything."


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A preparation's sets of many shards; a held-out sentence in a late document of text, damage in four shards."""
    last = TEXT_DOCUMENTS[-1]
    leak = Document(id="leak", source="text", text=f"Before. {SECRET}", token_ids=last.token_ids[:20])
    write_set(tmp_path / "speech", SPEECH_DOCUMENTS, "speech", TOKENIZER, CODEBOOK, size_limit=4096)
    write_set(tmp_path / "text", [*TEXT_DOCUMENTS, leak], "text", TOKENIZER, size_limit=4096)
    heldout = HeldOut()
    heldout.add(SECRET)
    heldout.save(tmp_path / "heldout.json")
    for name, shards in (("speech", (5, 2)), ("text", (0, 3))):
        for shard in shards:
            path = tmp_path / name / ShardSet.open(tmp_path / name).shard_name(shard)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    return tmp_path


def report(out: Path, workers: int) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return verify.verify_sets([out], said.append, Jobs(workers=workers)), said


@pytest.mark.multiprocess
def test_several_processes_report_what_one_does_in_the_order_of_the_shards(out: Path) -> None:
    alone = report(out, 1)
    assert report(out, 3) == alone
    faults, said = alone
    assert said == [f"{out / 'speech'}: 2 faults", f"{out / 'text'}: 3 faults"]
    where = ["shard.00002", "shard.00005", "shard.00000", "shard.00003", "'leak'"]
    assert [name for name, fault in zip(where, faults, strict=True) if name not in fault] == []


@pytest.mark.multiprocess
def test_a_process_that_is_killed_as_it_starts_is_replaced(out: Path) -> None:
    """And the work is done by other processes."""
    children, killed, ended = set(psutil.Process().children()), list[int](), threading.Event()

    def kill_one() -> None:
        while not ended.is_set() and not killed:
            for process in set(psutil.Process().children()) - children:
                if "spawn_main" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            time.sleep(0.001)

    alone = report(out, 1)
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        assert report(out, 2) == alone
    finally:
        ended.set()
        killer.join()
    assert killed


def test_a_set_that_was_verified_before_is_read_again(out: Path) -> None:
    first = report(out, 1)
    path = out / "speech" / ShardSet.open(out / "speech").shard_name(7)
    path.unlink()
    faults, _ = report(out, 1)
    assert len(faults) == len(first[0]) + 1
    assert "shard.00007" in faults[2]
