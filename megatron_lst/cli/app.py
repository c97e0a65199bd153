"""`lst`: one program for everything. Commands import what they need when they run, so that `--help` is quick."""

import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from megatron_lst import __version__
from megatron_lst.cli.configuration import config_app
from megatron_lst.cli.data import data_app
from megatron_lst.cli.demo import demo
from megatron_lst.cli.doctor import doctor
from megatron_lst.cli.evaluate import eval_app
from megatron_lst.cli.export import export
from megatron_lst.cli.flops import flops
from megatron_lst.cli.generate import generate
from megatron_lst.cli.init import init
from megatron_lst.cli.kernels import kernels_app
from megatron_lst.cli.launch import launch_app
from megatron_lst.cli.plan import plan
from megatron_lst.cli.prep import prep_app
from megatron_lst.cli.runs import checkpoint_app, report
from megatron_lst.cli.usage import USAGE_ERROR, exit_code, sentence
from megatron_lst.cli.warm_start import warm_start
from megatron_lst.errors import LstError, of_missing_module
from megatron_lst.terminal import unfailing_output

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,  # lst --install-completion
    pretty_exceptions_enable=False,
    help=f"megatron-lst {__version__}: pretrain the Latent Speech-Text Transformer.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"megatron-lst {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version, and nothing else")
    ] = False,
) -> None:
    pass


CONFIG = Annotated[str, typer.Argument(help="A YAML file, such as configs/demo.yaml")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key=value, such as parallel.tensor=2")]


@app.command()
def train(
    config: CONFIG,
    overrides: OVERRIDES = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do all that comes before the first step, and stop")
    ] = False,
) -> None:
    """Train, alone or under torchrun or srun. Goes on from the newest checkpoint in run.dir."""
    from megatron_lst.config import load_config
    from megatron_lst.training.dry_run import dry_run as rehearse
    from megatron_lst.training.trainer import train as run

    settings = load_config(config, overrides or ())
    with unfailing_output():
        if dry_run:
            lines = rehearse(settings)
            if os.environ.get("RANK", "0") == "0":
                print(*lines, f"ready: {settings.run.dir}; no step was done, nothing was written there", sep="\n")
            return
        end = run(settings)
        if os.environ.get("RANK", "0") == "0":
            state = f"saved on {end.signal.name}; the same command goes on from there" if end.signal else "finished"
            print(f"{state}: {settings.run.dir}, step {end.step}")


for command in (demo, init, report, generate, export, warm_start, flops, plan, doctor):
    app.command()(command)
GROUPS = {
    "config": config_app,
    "prep": prep_app,
    "data": data_app,
    "eval": eval_app,
    "checkpoint": checkpoint_app,
    "kernels": kernels_app,
    "launch": launch_app,
}
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command line; errors that people can mend are one message and an exit code, no traceback."""
    # Other packages' notes to their own developers would bury ours; `python -W default -m megatron_lst` shows them.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        code = app(standalone_mode=False, prog_name="lst")
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is on the screen
            sys.exit(exit_code(error))
        _end(sentence(error), exit_code(error))
    except ModuleNotFoundError as error:
        missing = of_missing_module(error)
        if missing is None:
            raise
        _end(str(missing), missing.exit_code)
    except LstError as error:
        _end(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end("", 130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _end(said: str, code: int) -> NoReturn:
    with unfailing_output():  # the exit code says what happened, also where nobody reads
        print(f"error: {said}" if said else "interrupted", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
