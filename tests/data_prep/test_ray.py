"""Items on a real Ray cluster of three nodes, in a network that has only loopback: the same bytes, whoever dies."""

import errno
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lst_prep import pipeline
from lst_prep.config import PrepConfig
from lst_prep.dealing import failed_items
from lst_prep.engine import lock, run_stage
from lst_prep.items import Receipts, Stage, Work
from lst_prep.jobs import Jobs, StageResources
from lst_prep.layout import Layout
from lst_prep.unread import JobFault
from lst_prep.verify import verify_sets
from megatron_lst.config.load import build, merge, parse_overrides, read_yaml
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TOKENIZER
from tests.support.loopback import only_loopback

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
WATCH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""So that a killed node is missed after seconds, not half a minute."""


def start_cluster(nodes: int) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'ray>=2.50,<3'")
    head = {**NODE, "include_dashboard": False, "_system_config": WATCH}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes - 1):
        cluster.add_node(**NODE)
    return cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes with a CPU each; this process is connected."""
    with only_loopback():
        made = start_cluster(3)
        import ray

        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
        ray.shutdown()
        made.shutdown()


def factory(folder: str, behaviour: str) -> Work:
    """Writes one file an item, and a line `item node process`; some misbehave, by name."""
    import ray

    log, node = Path(folder, "log"), ray.get_runtime_context().get_node_id()
    if behaviour == "no model":
        raise UserError("the model is not there")
    if behaviour == "dies loading":
        os.kill(os.getpid(), signal.SIGKILL)

    def work(item: int) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{item} {node} {os.getpid()}\n")
        first = [line.split()[0] for line in log.read_text().splitlines()].count(str(item)) == 1
        if behaviour == "die once" and item == 3 and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "die always" and item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour.startswith("full disk on "):
            full = behaviour.split()[-1]
            if full == node:
                raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
            while full not in log.read_text():  # the items last until that node has one
                time.sleep(0.05)
        if behaviour == "bug" and item == 3:
            raise KeyError("oops")
        if behaviour.startswith("slow "):
            time.sleep(float(behaviour.split()[1]))
        path = Path(folder, f"{item}.txt")
        write_bytes(path, b"x" * item)
        return {"files": {str(path): item}, "square": item * item, "audio_seconds": 30.0}

    return work


def go(folder: Path, behaviour: str = "", items: int = 6, quiet: bool = True, **jobs: Any) -> list[Any]:
    stage = Stage("units", items, factory, (str(folder), behaviour))
    run_stage(stage, folder / "work", "p", Jobs(engine="ray", **{"attempts": 2, **jobs}), quiet=quiet)
    receipts = Receipts(folder / "work", "units", "p")
    return [receipts.read(item)["square"] for item in range(items)]  # type: ignore[index]


def log_of(folder: Path) -> list[list[str]]:
    path = folder / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def squares(items: int) -> list[int]:
    return [item * item for item in range(items)]


def prepared(tmp_path: Path, name: str, *overrides: str) -> PrepConfig:
    """A small part of the demo: 12 pieces, 40 texts."""
    corpus, manifest, texts = ROOT / "data_prep" / "corpus", tmp_path / "manifest.jsonl", tmp_path / "text.jsonl"
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()][::50]
    lines = [json.dumps({**row, "audio": str(corpus / row["audio"])}) for row in rows]
    manifest.write_text("\n".join(lines))
    texts.write_text("\n".join(json.dumps({"text": f"Chapter {n}. It was the {n}th day of rain."}) for n in range(40)))
    given = [
        f"out={tmp_path / name}", f"manifests=[{manifest}]", f"text=[{{name: t, path: {texts}}}]", "jobs.workers=1",
        f"align.pronunciations=[{corpus / 'pronunciations.txt'}]", "units.extractor=mfcc", "units.codebook_size=20",
        "jobs.item_pieces=3", *overrides,
    ]  # fmt: skip
    values = read_yaml(ROOT / "configs" / "prep-demo.yaml")
    return build(PrepConfig, merge(values, parse_overrides(given, PrepConfig)))


def files_of(out: Path) -> dict[str, bytes]:
    """Everything but the reports, which name the folder, and the lock."""
    every = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(("report.", ".lock"))]
    return {str(path.relative_to(out)): path.read_bytes() for path in every}


def test_a_preparation_is_the_local_one_byte_for_byte(tmp_path: Path, cluster: Any) -> None:
    pipeline.run(prepared(tmp_path, "local"), quiet=True)
    pipeline.run(prepared(tmp_path, "ray", "jobs.engine=ray", "jobs.workers=3"), quiet=True)
    local, ray = files_of(tmp_path / "local"), files_of(tmp_path / "ray")
    assert sorted(local) == sorted(ray)
    assert [name for name in local if local[name] != ray[name]] == []
    assert any(name.endswith(".json") and "/units/receipts/" in name for name in local)
    assert "speech/manifest.json" in local and "text/manifest.json" in local


def test_every_node_works_and_progress_says_how_much(
    tmp_path: Path, cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path, "slow 0.3", items=12, quiet=False) == squares(12)
    assert len({node for _, node, _ in log_of(tmp_path)}) == 3
    assert len({process for _, _, process in log_of(tmp_path)}) == 3  # each loaded its model once
    assert sorted(int(item) for item, *_ in log_of(tmp_path)) == list(range(12))
    said = capfd.readouterr().err
    assert "prep units: 12/12, 0.10 h" in said and "x real time" in said
    assert all(f"/{node[:6]}:" in said for _, node, _ in log_of(tmp_path))


@pytest.mark.slow
def test_a_rerun_does_only_what_is_missing(tmp_path: Path, cluster: Any) -> None:
    go(tmp_path)
    (tmp_path / "4.txt").unlink()
    assert go(tmp_path) == squares(6)
    assert [item for item, *_ in log_of(tmp_path)][6:] == ["4"]


def test_handing_out_an_item_costs_milliseconds(tmp_path: Path, cluster: Any) -> None:
    """30 s of audio are a second of work and more: 5 % of it is 50 ms."""
    assert go(tmp_path, items=150) == squares(150)
    times = sorted(path.stat().st_mtime for path in (tmp_path / "work").rglob("receipts/*/*.json"))
    assert (times[-20] - times[20]) / (len(times) - 40) < 0.05


def test_a_killed_worker_costs_its_item_one_attempt(
    tmp_path: Path, cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path, "die once") == squares(6)
    assert [item for item, *_ in log_of(tmp_path)].count("3") == 2
    assert "the worker of item 3 died (attempt 1), on node" in capfd.readouterr().err
    assert list(failed_items(tmp_path / "work")) == []  # it is done since


@pytest.mark.slow
def test_an_item_that_kills_every_worker_is_named_with_its_log(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(JobFault, match=r"items \[3\] died 2 times"):
        go(tmp_path, "die always")
    assert {item for item, *_ in log_of(tmp_path)} == set("012345")
    ((stage, item, what),) = failed_items(tmp_path / "work")
    assert (stage, item) == ("units", 3)
    assert "attempt 1" in what and "attempt 2" in what and "ray logs actor --id" in what
    assert go(tmp_path) == squares(6)


@pytest.mark.slow
def test_a_model_that_does_not_load_is_said_with_the_node(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(UserError, match=r"^node \S+/\w{6}: the model is not there$"):
        go(tmp_path, "no model")
    with pytest.raises(JobFault, match="workers die before they start"):
        go(tmp_path, "dies loading", workers=1)
    assert go(tmp_path) == squares(6)


@pytest.mark.slow
def test_a_full_disk_on_one_node_is_the_users_and_a_bug_has_its_traceback(tmp_path: Path, cluster: Any) -> None:
    node = cluster.head_node.node_id
    with pytest.raises(UserError, match="no space left"):
        go(tmp_path, f"full disk on {node}")
    with pytest.raises(RuntimeError, match=r"(?s)stage units, item 3, node .*KeyError: 'oops'"):
        go(tmp_path, "bug")
    assert go(tmp_path) == squares(6)


@pytest.mark.slow
def test_a_folder_that_a_node_does_not_have_is_refused(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/only/where/the/driver/is")
    with pytest.raises(UserError, match=r"node \S+ has no folder /only/where"):
        go(tmp_path)


def test_what_no_node_has_is_refused(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(UserError, match=r"jobs.resources.units: no node of the cluster has .*GPU: 1"):
        go(tmp_path, resources={"units": StageResources(num_gpus=1.0)})
    with pytest.raises(UserError, match="'unit' is no stage"):
        Jobs(resources={"unit": StageResources()})


def test_verification_says_what_one_process_says(tmp_path: Path, cluster: Any) -> None:
    write_set(tmp_path / "speech", SPEECH_DOCUMENTS, "speech", TOKENIZER, CODEBOOK, size_limit=4096)
    path = tmp_path / "speech" / ShardSet.open(tmp_path / "speech").shard_name(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    alone, said = verify_sets([tmp_path], print, Jobs(workers=1)), list[str]()
    assert verify_sets([tmp_path], said.append, Jobs(engine="ray", workers=2)) == alone and len(alone) == 1
    assert said == [f"{tmp_path / 'speech'}: 1 faults"]
    assert not list((tmp_path / "speech").glob(".verify*"))


def test_two_runs_on_one_output_are_refused(tmp_path: Path, cluster: Any) -> None:
    config = prepared(tmp_path, "ray", "jobs.engine=ray")
    with lock(Layout(config.out).lock), pytest.raises(UserError, match="another preparation works in this folder"):
        pipeline.run(config, quiet=True)


def meanwhile(action: Callable[[], None], when: Callable[[], bool]) -> threading.Thread:
    def wait() -> None:
        while not when():
            time.sleep(0.1)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_without_ray_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'megatron-lst\[ray\]'"):
        go(tmp_path)


@pytest.mark.slow
def test_a_node_is_killed(tmp_path: Path, cluster: Any) -> None:
    lost = next(iter(cluster.worker_nodes))

    def kill() -> None:
        cluster.remove_node(lost, allow_graceful=False)

    thread = meanwhile(kill, lambda: any(node == lost.node_id for _, node, _ in log_of(tmp_path)))
    assert go(tmp_path, "slow 1", items=24, attempts=3) == squares(24)
    thread.join()
    assert len(log_of(tmp_path)) <= 24 + 1  # what was in flight there
