"""Generation on this machine: an LST beside its unpatched baseline, at several batch sizes.

    python -m benchmarks.generation [LST BASELINE] [--batch 1 8 64] [--prompt 100] [--tokens 250] [--set key=value]

Speech to speech with random weights in bfloat16, in fixed shapes and in ragged decoding.  Before anything is timed, a
tiny model on this device must continue prompts as the same model in float64 on the CPU does, in both forms.  Without a
GPU the models are tiny ones: the program is exercised, the figures say nothing.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import on_gpu, write_result
from benchmarks.step import TINY
from megatron_lst.config.load import load_config
from megatron_lst.errors import LstError, TrainingFault
from megatron_lst.evaluation.speed import Speed, measure, random_model, table
from megatron_lst.inference import GenerationSettings, generate
from megatron_lst.patching.chunks import prompt_tokens, speech_span

FORMS = {"fixed": True, "ragged": False}


def gate(path: str, overrides: Sequence[str]) -> float:
    """Largest difference of a token's log-probability to the float64 CPU model's, where both say the same tokens.

    Raises:
        TrainingFault: a form that says something else.
    """
    config = load_config(path, [*TINY, *overrides])
    exact = random_model(config, "cpu", torch.float64)
    weights = {name: weight.float() for name, weight in exact.state_dict().items()}
    device = torch.device("cuda" if on_gpu() else "cpu")
    model = type(exact).from_weights(
        exact.config, exact.vocabulary, {n: w.to(device) for n, w in weights.items()}, exact.patch_size
    )
    v = exact.vocabulary
    prompts = [prompt_tokens([speech_span(range(n))], v) for n in (3, 6)]
    settings = GenerationSettings(max_tokens=24, min_tokens=24, modality="speech", log_probabilities=True)
    right, _ = generate(exact, prompts, replace(settings, fixed_shapes=False))
    worst = 0.0
    for name, fixed in FORMS.items():
        found, _ = generate(model, prompts, replace(settings, fixed_shapes=fixed))
        for a, b in zip(found, right, strict=True):
            if a.tokens != b.tokens:
                raise TrainingFault(f"{path}, {name}, on {device}: says {a.tokens}, the float64 model {b.tokens}")
            worst = max(worst, *(abs(x - y) for x, y in zip(a.log_probabilities, b.log_probabilities, strict=True)))
    if worst > 1e-3:
        raise TrainingFault(f"{path} on {device}: log-probabilities differ by {worst:.1e} from the float64 model's")
    return worst


def main(given: Sequence[str] | None = None, measure: Callable[..., Speed] = measure) -> int:
    """0: measured; 1: the gate failed, or a size did, which costs no other one; 2: the user's mistake.

    Args:
        measure: times one size.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/lst-1b.yaml", "configs/base-1b.yaml"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, nargs="+", default=[100], help="units of each prompt")
    parser.add_argument("--tokens", type=int, default=250, help="units of each response")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of both configurations")
    parser.add_argument("--out", default="benchmarks/results")
    arguments = parser.parse_args(given)
    if len(arguments.configs) != 2:
        print("give two configurations, an LST and its baseline, or none", file=sys.stderr)
        return 2
    device, tiny = ("cuda", []) if on_gpu() else ("cpu", list(TINY))
    if not on_gpu():
        print("No GPU here: tiny models instead, whose figures say nothing about speed.")
    try:
        differences = {path: gate(path, arguments.set) for path in arguments.configs}
        configs = [load_config(path, [*tiny, *arguments.set]) for path in arguments.configs]
        models = [random_model(config, device, torch.bfloat16) for config in configs]
        runs: list[dict[str, Any]] = []
        failed = False
        for prompt, batch, (form, fixed) in product(arguments.prompt, arguments.batch, FORMS.items()):
            print(f"\n{batch} prompts of {prompt} units, {arguments.tokens} units each, bfloat16, {form} decoding")
            try:
                found = [measure(model, prompt, arguments.tokens, batch, fixed_shapes=fixed) for model in models]
            except RuntimeError as error:  # of CUDA, most of all for memory: the other sizes are still worth having
                print(error, file=sys.stderr)
                failed = True
                continue
            print(table(*found))
            lst, baseline = (asdict(speed) for speed in found)
            runs.append({"batch": batch, "prompt": prompt, "decoding": form, "lst": lst, "baseline": baseline})
    except TrainingFault as error:
        print(error, file=sys.stderr)
        return 1
    except LstError as error:
        print(error, file=sys.stderr)
        return 2
    result = {"benchmark": "generation", "configs": arguments.configs, "overrides": arguments.set}
    result |= {"tokens": arguments.tokens, "difference_to_float64": differences, "runs": runs}
    write_result(Path(arguments.out), f"generation-{Path(arguments.configs[0]).stem}", result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
