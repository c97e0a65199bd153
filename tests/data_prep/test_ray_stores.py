"""Ray and an object store together: nodes read inputs from the store, and send the finished sets to it."""

from pathlib import Path

import pytest

from lst_prep import pipeline, stores
from tests.data_prep.test_ray import start_cluster
from tests.data_prep.test_stores import in_store, on_disk, prepared, results
from tests.support.loopback import only_loopback
from tests.support.object_store import BUCKET, object_store

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def test_nodes_read_from_a_store_and_send_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers get endpoint and credentials from the environment in which their node was started."""
    pipeline.run(prepared(tmp_path / "local", **on_disk(tmp_path)), quiet=True)
    with only_loopback(), object_store(monkeypatch) as store:
        cluster = start_cluster(3)
        import ray

        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        try:
            given = in_store(store) | {"publish": f"s3://{BUCKET}/sets", "jobs.engine": "ray", "jobs.workers": "3"}
            pipeline.run(prepared(tmp_path / "remote", **given), quiet=True)
            sent = {found.path for found in stores.listed(stores.StorePath.of(f"s3://{BUCKET}/sets"), recursive=True)}
        finally:
            ray.shutdown()
            cluster.shutdown()
    local, remote = results(tmp_path / "local"), results(tmp_path / "remote")
    assert sorted(local) == sorted(remote)
    assert [name for name in local if local[name] != remote[name]] == []
    manifests = {name for name in local if name.endswith("/manifest.json")}
    assert {"speech/manifest.json", "text/manifest.json"} <= manifests
    assert {f"{BUCKET}/sets/{name}" for name in manifests} <= sent
