"""The whole training step of a configuration on this machine: rate, MFU, memory, and where the time goes.

    python -m benchmarks.step [CONFIG ...] [--micro-batch 4] [--steps 20] [--document-tokens 1500] [--set key=value]

No training data is needed: rows are random tokens in the paper's mixture (`benchmarks/rows.py`), of a document length
that the output states, since shorter documents look faster.  Before anything is timed a tiny model of the same kind
must score rows as the float64 oracle does, on this device; afterwards the step must have compiled nothing and made no
host sync a micro-batch.  Each configuration becomes one JSON file.  Without a GPU the model is a tiny one: the program
is exercised, the figures say nothing.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measured import on_gpu, write_result
from benchmarks.profile import Profile, kernel_table, module_table, where_time_goes
from benchmarks.rows import synthetic_rows
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.errors import TrainingFault, UserError
from megatron_lst.flops import parameters, row_flops
from megatron_lst.gpu import HIDDEN
from megatron_lst.patching.row import Row
from megatron_lst.planning.devices import find_device, peak_flops

CONFIGS = ("configs/lst-1b.yaml", "configs/base-1b.yaml")
ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 6
TINY = (
    "model.hidden=64", "model.layers=2", "model.heads=4", "model.local_hidden=32", "model.local_heads=4",
    "model.decoder_layers=2", "model.window=16", "model.kv_heads=null", "model.ffn=null", "model.local_ffn=null",
    "data.units=64", "training.precision=fp32",
)  # fmt: skip
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Mean absolute difference to the oracle's log-probabilities, which are about -10."""


def prepare(path: str, overrides: Sequence[str], micro_batch: int, accumulate: int) -> Config:
    """The configuration on one process with static patches, so that the work of a step does not drift."""
    fixed = [
        "parallel.tensor=1", "parallel.pipeline=1", "parallel.virtual=1", "parallel.sequence=false",
        f"training.micro_batch={micro_batch}", f"training.global_batch={micro_batch * accumulate}",
    ]  # fmt: skip
    config = load_config(path, [*([] if on_gpu() else TINY), *fixed, *overrides])
    if config.model.kind == "baseline":
        return config
    return dataclasses.replace(config, patching=dataclasses.replace(config.patching, strategy="static"))


def gate(path: str, overrides: Sequence[str]) -> dict[str, float]:
    """Scores of a tiny model of the same kind against the dense oracle in float64; mean difference by precision.

    Raises:
        TrainingFault: they differ.
    """
    from megatron_lst.reference import ReferenceModel

    found: dict[str, float] = {}
    for precision in ("fp32", "bf16") if on_gpu() else ("fp32",):
        shrunk = [*overrides, *TINY, f"training.precision={precision}"]
        if precision == "fp32":
            shrunk.append("engine.fp8=none")
        config = prepare(path, shrunk, 2, 1)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, init_std=0.1))
        rows = list(islice(synthetic_rows(config, 40), 2))
        engine = build_engine(config)
        try:
            weights = engine.export_weights()
            scores = engine.score(rows)
        finally:
            engine.close()
        oracle = ReferenceModel(config.model, config.vocabulary)
        oracle.load_state_dict({name: w.float().cpu() for name, w in (weights or {}).items()})
        oracle.double()
        differences = [
            np.abs(s - oracle_scores(oracle, row))[row.labels >= 0] for s, row in zip(scores, rows, strict=True)
        ]
        found[precision] = float(np.concatenate(differences).mean())
        if not found[precision] < TOLERANCE[precision]:
            raise TrainingFault(f"{precision} scores are off by {found[precision]:.2e} on average; nothing is timed")
    return found


@torch.no_grad()
def oracle_scores(oracle: torch.nn.Module, row: Row) -> np.ndarray:
    """float64 [N]: log p(label), anything where there is none."""
    labels = torch.as_tensor(row.labels).long().clamp(min=0)
    return torch.log_softmax(oracle(row), -1).gather(1, labels[:, None])[:, 0].numpy()


class Compilations:
    """What torch.compile and Triton compiled since the beginning."""

    def __init__(self) -> None:
        self.triton = 0
        try:
            from triton import knobs
        except ImportError:
            return

        def hook(*_: Any, **__: Any) -> bool:
            self.triton += 1
            return False  # go on and compile

        knobs.runtime.jit_cache_hook = hook

    def count(self) -> dict[str, int]:
        from torch._dynamo.utils import counters

        return {"torch.compile": int(counters["stats"]["unique_graphs"]), "triton": self.triton}


def host_syncs(step: Callable[[], Any]) -> Counter[str]:
    """Places of a step that wait for the device, by source line. Empty on a CPU."""
    found: Counter[str] = Counter()
    if not on_gpu():
        step()
        return found
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            found[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    return found


def timed(step: Callable[[], Any]) -> float:
    """Seconds of a step, the device's work included."""
    if on_gpu():
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_memory() -> float:
    """Bytes: the device's, as PyTorch allocated them; of a CPU the process's."""
    if on_gpu():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def measure(config: Config, steps: int, document_tokens: int) -> dict[str, Any]:
    """Time, sync and compile checks and the profile of one configuration."""
    batch, rate = config.training.global_batch, config.training.lr
    source = synthetic_rows(config, document_tokens)
    compilations = Compilations()
    engine = build_engine(config)
    try:
        if on_gpu():
            torch.cuda.reset_peak_memory_stats()

        def step(rows: list[Row]) -> Any:
            return engine.step(rows, rate)

        for _ in range(WARM_UP if on_gpu() else 1):
            step(list(islice(source, batch)))
        before = compilations.count()
        work = [list(islice(source, batch)) for _ in range(steps)]
        seconds = [timed(lambda rows=rows: step(rows)) for rows in work]  # type: ignore[misc]
        compiled = {name: n - before[name] for name, n in compilations.count().items()}
        memory = peak_memory()
        once_rows, twice_rows, last_rows = (list(islice(source, n * batch)) for n in (1, 2, 1))
        once, twice = host_syncs(lambda: step(once_rows)), host_syncs(lambda: step(twice_rows))
        result = step(last_rows)
        unprofiled = timed(lambda: step(last_rows))
        profile = profiled(engine, lambda: step(last_rows))
        described = engine.describe()
    finally:
        engine.close()
    median = statistics.median(seconds)
    flops = statistics.mean(sum(row_flops(config, row) for row in rows) for rows in work)
    peak = peak_flops(torch.cuda.get_device_name()) if on_gpu() else None
    tokens = statistics.mean(sum(len(row.tokens) for row in rows) for rows in work)
    chunks = [len(row.document_ids) for rows in work for row in rows]
    return {
        "seconds": {"median": median, "fastest": min(seconds), "slowest": max(seconds), "steps": steps},
        "units_per_second": batch * config.data.units / median,
        "tokens_per_second": tokens / median,
        "tokens_per_step": tokens,
        "useful_flops_per_step": flops,
        "mfu": None if peak is None else flops / median / peak,
        "peak_flops": peak,
        "peak_memory_gib": memory / 2**30,
        "loss": result.loss,
        "document_tokens": document_tokens,
        "documents_per_row": statistics.mean(chunks),
        "host_syncs_per_step": dict(once),
        "host_syncs_per_micro_batch": dict(twice - once),
        "compiled_while_timed": compiled,
        "busy": profile.busy / 1000 / unprofiled if on_gpu() and profile.busy else None,
        "modules": profile.modules,
        "kernels": profile.kernels,
        "engine": described,
        "parameters": parameters(config),
    }


def profiled(engine: Any, step: Callable[[], Any]) -> Profile:
    """Where a step's time goes; nothing where the profiler fails, which must not cost what was measured before."""
    try:
        return where_time_goes(engine, step)
    except Exception:
        traceback.print_exc()
        return Profile({}, [], 0.0)


def expected(path: str, config: Config, arguments: argparse.Namespace, device: str) -> dict[str, Any] | None:
    """What `benchmarks.roofline` expects of the same step on `device`, an estimate; None: for no device that it knows,
    for no fp8, for no step of several micro-batches, or it failed, which must not cost what was measured.

    In a process of its own, which sees no GPU: the trace takes torch.distributed's place.
    """
    if find_device(device) is None or arguments.accumulate != 1 or config.engine.fp8 != "none":
        return None
    command = [
        sys.executable, "-m", "benchmarks.roofline", str(Path(path).resolve()), "--json", "--device", device,
        "--micro-batch", str(arguments.micro_batch), "--document-tokens", str(arguments.document_tokens),
        "--set", "parallel.tensor=1", "parallel.pipeline=1", "parallel.sequence=false", *arguments.set,
    ]  # fmt: skip
    try:
        environment = {**os.environ, HIDDEN: ""}
        said = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, cwd=ROOT)
    except subprocess.TimeoutExpired:
        print(f"{path}: no estimate within 180 s", file=sys.stderr)
        return None
    if said.returncode:
        print(f"{path}: no estimate: {said.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def faults(found: dict[str, Any]) -> list[str]:
    """What a step must not do; empty where all is well."""
    said = []
    if found["host_syncs_per_micro_batch"]:
        said.append(f"host syncs in each micro-batch: {found['host_syncs_per_micro_batch']}")
    if any(found["compiled_while_timed"].values()):
        said.append(f"compiled while it was timed: {found['compiled_while_timed']}")
    return said


def report(path: str, config: Config, found: dict[str, Any]) -> str:
    """For people."""
    mfu = "no MFU (this device's peak is not known)" if found["mfu"] is None else f"MFU {100 * found['mfu']:.1f} %"
    syncs = sum(found["host_syncs_per_step"].values())
    busy = "" if found["busy"] is None else f", its kernels run for {100 * found['busy']:.1f} % of it"
    return "\n".join(
        [
            f"{path}: {found['parameters'] / 1e6:.1f} M parameters, {config.training.precision}, "
            f"engine.fp8={config.engine.fp8}, "
            f"{config.training.global_batch} rows of {config.data.units} units in micro-batches of "
            f"{config.training.micro_batch}, documents of {found['document_tokens']} raw tokens",
            f"  {found['units_per_second']:,.0f} units/s, {found['tokens_per_second']:,.0f} tokens/s, {mfu}, "
            f"{1000 * found['seconds']['median']:.1f} ms a step (median of {found['seconds']['steps']}){busy}, "
            f"peak memory {found['peak_memory_gib']:.1f} GiB, {syncs} host syncs a step",
            module_table(found["modules"]),
            kernel_table(found["kernels"]),
        ]
    )


def run(path: str, arguments: argparse.Namespace) -> bool:
    """Gate, measure, print and write one configuration. True when the step behaved."""
    gated = gate(path, arguments.set)
    config = prepare(path, arguments.set, arguments.micro_batch, arguments.accumulate)
    found = measure(config, arguments.steps, arguments.document_tokens)
    print(report(path, config, found))
    found["expected"] = expected(path, config, arguments, torch.cuda.get_device_name()) if on_gpu() else None
    said = faults(found)
    for fault in said:
        print(f"  WRONG: {fault}", file=sys.stderr)
    written = {
        "benchmark": "step", "config": path, "overrides": arguments.set,
        "micro_batch": arguments.micro_batch, "accumulate": arguments.accumulate, "units": config.data.units,
        "oracle_difference": gated, **found, "faults": said,
    }  # fmt: skip
    write_result(Path(arguments.out), f"step-{Path(path).stem}", written)
    return not said


def attempt(path: str, arguments: argparse.Namespace, run: Callable[[str, argparse.Namespace], bool]) -> int:
    """`run` as an exit code. A configuration that fails, by memory or a bug, costs no other one its figures."""
    try:
        return 0 if run(path, arguments) else 1
    except UserError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    except TrainingFault as error:
        print(f"{path}: {error}", file=sys.stderr)
    except Exception:
        print(f"{path}:", file=sys.stderr)
        traceback.print_exc()
    return 1


def main(given: Sequence[str] | None = None, run: Callable[[str, argparse.Namespace], bool] = run) -> int:
    """Measure each configuration by `run`.

    Returns:
        0: measured, and the step behaved; 1: it synced, compiled or failed; 2: the user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=list(CONFIGS), metavar="CONFIG")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument(
        "--accumulate", type=int, default=1, help="micro-batches a step (1: the paper's 128 rows on 32)"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--document-tokens", type=int, default=1500)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configuration")
    parser.add_argument("--out", default="benchmarks/results")
    arguments = parser.parse_args(given)
    if arguments.device == "cpu" and on_gpu():
        print("set CUDA_VISIBLE_DEVICES= (empty) to measure the CPU of a machine with a GPU", file=sys.stderr)
        return 2
    if arguments.device == "cuda" and not on_gpu():
        print("--device cuda: this machine has no CUDA device; nothing was measured", file=sys.stderr)
        return 2
    if not on_gpu():
        print("No GPU here: a tiny model instead, whose figures say nothing about speed.")
    return max(attempt(path, arguments, run) for path in arguments.configs)


if __name__ == "__main__":
    sys.exit(main())
