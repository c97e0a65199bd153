"""Benchmarks and GPU tests, one after the other, each in a process of its own: what fails or hangs costs no other one.

    python -m benchmarks.parts [PART ...] [--minutes 9.5] [--out FOLDER] [--wheels FOLDER]

Each part's output is shown and kept as FOLDER/PART.log, its figures as JSON beside it, and how the parts ended in
FOLDER/summary.json, which is written anew after each of them, as are FOLDER/first-light.json and first-light.md, which
say everything on one page. Runs with whatever Python and packages it is called with, installed or not; what it lacks
may lie in a folder of wheels.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.first_light import write_page
from benchmarks.measured import on_gpu
from benchmarks.wheels import unpacked
from megatron_lst.errors import UserError
from megatron_lst.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "--durations=5", "-p", "no:cacheprovider")
LIMIT = 540.0
"""Seconds that one part may take."""
NOTHING_DONE = 2
"""Exit code of a part for which there is nothing to do on this machine."""


@dataclass(frozen=True)
class Command:
    """What `python` is called with, and what it shows; `writes`: it takes --out; `gpu`: it would say "ok" without."""

    arguments: tuple[str, ...]
    shows: str
    writes: bool = False
    gpu: bool = False


PARTS = {
    "doctor": Command(("-m", "megatron_lst", "doctor"), "what is installed here"),
    "kernel-tests": Command((*PYTEST, "tests/kernels/test_gpu.py"), "the kernels are right, in every dtype", gpu=True),
    "engine-tests": Command(
        (*PYTEST, "tests/engines/test_gpu.py"), "training is right, and resumes bit by bit", gpu=True,
    ),
    "generation-tests": Command(
        (*PYTEST, "tests/inference/test_fixed.py", "tests/benchmarks/test_step.py"),
        "captured decoding is right", gpu=True,
    ),
    "kernels": Command(("-m", "megatron_lst", "kernels", "bench"), "the kernels beside their peers", writes=True),
    "step": Command(("-m", "benchmarks.step"), "the 1B step and its baseline's", writes=True),
    "step-direct": Command(
        ("-m", "benchmarks.step", "configs/lst-1b.yaml", "--set", "model.text_path=direct"),
        "the 1B step with text_path=direct", writes=True,
    ),
    "step-7b": Command(
        ("-m", "benchmarks.step", "configs/lst-7b.yaml", "--steps", "10",
         "--set", "model.layers=16", "training.recompute=selective"),
        "half of the 7B", writes=True,
    ),
    "generation": Command(("-m", "benchmarks.generation"), "generation in both forms", writes=True),
    "data": Command(("benchmarks/data.py",), "the data stream"),
}  # fmt: skip


@dataclass
class Ended:
    """How a part ended. exit_code: None where it ran out of time or was not started; seconds: that it took."""

    shows: str
    exit_code: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.exit_code is None:
            return f"out of time after {self.seconds:.0f} s" if self.seconds else "not started: no time left"
        said = {0: "ok", NOTHING_DONE: "nothing done"}.get(self.exit_code, f"exit code {self.exit_code}")
        return f"{said}, {self.seconds:.0f} s"


def run(part: Command, log: Path, out: Path, seconds: float, packages: Path | None = None) -> Ended:
    """One part, its output on the terminal and in `log`; ended with its children after `seconds`.

    Args:
        packages: a folder of packages that this Python lacks.
    """
    command = [sys.executable, *part.arguments, *(["--out", str(out)] if part.writes else [])]
    here = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "data_prep"), os.environ.get("PYTHONPATH")]
    here += [str(packages)] if packages else []
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, here))}
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, errors="replace", start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        late = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
        code = process.wait()
        late.cancel()
    spent = time.monotonic() - began
    return Ended(part.shows, None if code == -signal.SIGKILL and spent >= seconds else code, spent)


def main(
    given: Sequence[str] | None = None,
    parts: Mapping[str, Command] = PARTS,
    limit: float = LIMIT,
    has_gpu: Callable[[], bool] = on_gpu,
) -> int:
    """0: every part ended well, or said that there is nothing for it to do here; 1: one did not;
    2: no such part, or a GPU that cannot be used.

    Args:
        limit: seconds that one part may take.
        has_gpu: whether parts that need a GPU can run.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(parts), metavar="PART", help=", ".join(parts))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="that all parts together may take")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels: those that this Python lacks go on the path")
    arguments = parser.parse_args(given)
    unknown = [name for name in arguments.parts if name not in parts]
    if unknown:
        print(f"no part {', '.join(unknown)}; there are: {', '.join(parts)}", file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * arguments.minutes
    ended: dict[str, Ended] = {}
    began, page = time.time(), out
    try:
        gpu = has_gpu()
        packages = unpacked(arguments.wheels) if arguments.wheels else None
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for name in arguments.parts:
        part, left = parts[name], until - time.monotonic()
        print(f"== {name}: {part.shows}", flush=True)
        if part.gpu and not gpu:
            print("needs a CUDA device")
            ended[name] = Ended(part.shows, NOTHING_DONE)
        else:
            ended[name] = (
                run(part, out / f"{name}.log", out, min(left, limit), packages) if left > 1 else Ended(part.shows)
            )
        write_text(out / "summary.json", json.dumps({n: asdict(e) for n, e in ended.items()}, indent=1) + "\n")
        page = write_page(out, began)
    print(f"all on one page: {page}")
    print("\n".join(f"{name:18}{parts[name].shows:48}{end}" for name, end in ended.items()))
    return int(any(end.exit_code not in (0, NOTHING_DONE) for end in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
