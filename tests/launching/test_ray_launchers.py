"""The examples for Ray: what Kubernetes is given is whole, and the commands in them are ones that `lst` takes."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

from lst_prep.config import PrepConfig
from megatron_lst.config.load import build, parse_overrides

FOLDER = Path(__file__).parents[2] / "launchers" / "ray"


def job() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "rayjob.yaml").read_text()))


def check_command(words: list[str]) -> PrepConfig:
    assert words[:3] == ["lst", "prep", "run"]
    return build(PrepConfig, parse_overrides(words[4:], PrepConfig))


def test_the_job_on_kubernetes_is_whole() -> None:
    found = job()
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    cluster = found["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    config = check_command(shlex.split(found["spec"]["entrypoint"]))
    assert config.jobs.engine == "ray"
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert config.out.startswith(mounts["data"] + "/"), "every node sees the output folder"
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pins = (FOLDER.parents[1] / "requirements" / "constraints.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in pins


def test_the_script_for_slurm_is_bash_and_its_command_is_one(tmp_path: Path) -> None:
    script = FOLDER / "prep.sbatch"
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    (command,) = re.findall(r"lst prep run .*", script.read_text())
    assert check_command(shlex.split(command)).jobs.address == "auto"
