"""``lrexport``: finds the command, loads the configuration, and turns every error into a message and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from lrexport import __version__
from lrexport.cli import configuration, output
from lrexport.cli.help import Command
from lrexport.cli.option_types import PathType
from lrexport.errors import DeviceError, InputError, LrexportError, UsageError, of_system, signal_of
from lrexport.text import nearest
from lrexport.trust import consent

# Command → (module, help line). The help lines are here so that --help imports none of the modules.
COMMANDS = {
    "compress": ("lrexport.cli.compress", "Train in SVD form, prune, fold and fine-tune a network."),
    "train": ("lrexport.cli.train", "Train in SVD form only; compress RUN then continues from it."),
    "onnx": ("lrexport.cli.onnx", "Export a run to ONNX: verified, re-scored, measured."),
    "export": ("lrexport.cli.export", "Write a run's networks for other runtimes: verified, re-scored."),
    "bench": ("lrexport.cli.bench", "Latency of ONNX files on a target, interleaved in one process."),
    "check": ("lrexport.cli.check", "Budgets for CI: size, MACs, latency, accuracy, operators, growth."),
    "sweep": ("lrexport.cli.sweep", "Many compressions: the Pareto front of accuracy and cost."),
    "inspect": ("lrexport.cli.inspect", "A run, a plan or an ONNX file layer by layer, or how two differ."),
    "report": ("lrexport.cli.report", "Report on runs: one self-contained HTML page, Markdown or JSON."),
    "demo": ("lrexport.cli.demo", "Every step on embedded data, in about three minutes."),
}

_MOMENT = 0.01  # seconds, enough for C code to return


class LazyGroup(Command, click.Group):
    """Imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), "command")  # noqa: B009 - typed Any on purpose
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = nearest(args[0], COMMANDS)
            raise click.UsageError(f"{error.message} Did you mean {close[0]}?", ctx) if close else error from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A broken pipe here comes from another process, not from our output, as click would assume."""
        output.print_logs()
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise DeviceError("another process of this run has ended", "See its own message for the reason.") from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()], max(map(len, COMMANDS)))


def _show_version(context: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given and not context.resilient_parsing:
        output.say(f"lrexport, version {__version__}")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    *("-V", "--version"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option(
    "--config",
    "config_file",
    type=PathType(),
    metavar="FILE",
    help="Settings file. [default: lrexport.toml or pyproject.toml]",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, config_file: str | None, debug: bool) -> None:
    """Make convolutional networks smaller and measurably faster, and prove it.

    \b
    lrexport demo
    lrexport compress MODEL --data DATA --macs 0.5 -o RUN
    lrexport onnx RUN
    """
    name = ctx.invoked_subcommand
    if name is not None:
        _check_current_folder()
        _note_unknown_variables(ctx, name)
        configured = configuration.defaults(config_file, lambda: _all_commands(ctx))
        ctx.default_map = {command: said.values for command, said in configured.items()}
        ctx.obj = {command: said.places for command, said in configured.items()}  # for --print-config


def _check_current_folder() -> None:
    """Raise DeviceError if the current folder has been removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise DeviceError(
            f"the current folder no longer exists: {error.strerror}", "Change to a folder that exists."
        ) from error


def _note_unknown_variables(ctx: click.Context, name: str) -> None:
    command = cli.get_command(ctx, name)
    if command is None:
        return
    for variable, near in configuration.unknown_variables(name, command, COMMANDS).items():
        meant = f"; did you mean {near}?" if near else ""
        output.note(f"note: the environment variable {variable} is not an option of {name}{meant}")


def _all_commands(ctx: click.Context) -> dict[str, click.Command]:
    commands = {name: cli.get_command(ctx, name) for name in COMMANDS}
    return {name: command for name, command in commands.items() if command is not None}


def _complete(instruction: str) -> int:
    """Answer a shell's completion function; returns the exit code."""
    from lrexport.cli import completion

    text = completion.answer(cli, instruction)
    if text is None:
        _complain(f"invalid {completion.VARIABLE} {instruction!r}: expected bash_source, zsh_source or fish_source", None)
        return UsageError.exit_code
    output.drawn(f"{text}\n")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run one command line; prints errors to stderr and returns the exit code, which ``--debug`` does not change."""
    debug = "--debug" in arguments or os.environ.get("LREXPORT_DEBUG", "0").lower() not in ("", "0", "false")
    try:
        with consent.session():
            done = cli.main(args=list(arguments), prog_name="lrexport", standalone_mode=False, auto_envvar_prefix="LREXPORT")
    except LrexportError as error:
        if debug:
            output.print_traceback()
        _complain(error.message, error.hint)
        return error.exit_code
    except click.ClickException as error:
        output.usage_problem(error)
        return 2
    except (click.Abort, KeyboardInterrupt):
        _complain("stopped", None)
        return 130
    except SystemExit as error:
        if signal_of(error) is not None:
            raise
        _complain(f"code of the network or its data called sys.exit({error.code!r})", "Remove that call.")
        return InputError.exit_code
    except OSError as error:
        if debug:
            output.print_traceback()
        refused = of_system(error)
        _complain(refused.message, refused.hint)
        return refused.exit_code
    except Exception as error:
        if debug:
            output.print_traceback()
        return _unexpected(error)
    return done if isinstance(done, int) else 0  # the argument of ctx.exit


def _unexpected(error: Exception) -> int:
    """Report an error that nothing else handles: out of memory, or a fault of lrexport; returns the exit code."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        _complain("out of memory", "Try a smaller --batch-size, or --device cpu.")
    elif _process() is not None and "by peer" in str(error):  # gloo: connection closed, or reset, by peer
        _complain("another process of this run has ended", "See its own message for the reason.")
    else:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        _complain(f"unexpected {type(error).__name__}: {first}", "For a traceback, run lrexport --debug …")
    return 4


def _process() -> int | None:
    """The number of this process among several; None if it is the only one. torch is asked only if it is loaded."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    rank: int = distributed.get_rank()
    return rank


def _complain(message: str, hint: str | None) -> None:
    who = f"process {_process()}: " if _process() else ""  # without the first, which reports errors that all share
    output.problem(message, hint, who)


def _terminated(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _send_again(lost: Any) -> None:
    """Send a signal again whose exception was raised where nobody can catch it.

    That happens in Python code called from C, as pydantic does to write a record: the exception would only be printed.
    """
    number = signal_of(lost.exc_value)
    if number is None:
        sys.__unraisablehook__(lost)
        return
    later = threading.Timer(_MOMENT, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


def main() -> NoReturn:
    """Entry point."""
    # Before torch is loaded. Threads that wait by spinning take cores from other processes: beside one busy process a
    # training step then takes up to several times as long. Sleeping threads cost nothing measurable.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _send_again
    try:
        output.prepare()
        instruction = os.environ.get("_LREXPORT_COMPLETE")  # runs at every TAB
        code = _complete(instruction) if instruction else run(sys.argv[1:])
    except DeviceError as error:
        _complain(error.message, error.hint)
        code = error.exit_code
    finally:
        output.finish()
    sys.exit(code)
