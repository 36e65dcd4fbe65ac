"""``--recipe`` and ``--print-config``.

Option > environment > recipe named by one of these > [tool.lrexport] > recipe named there > default.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lrexport.artifacts.toml_files import read_settings
from lrexport.cli import output
from lrexport.cli.configuration import OF_ONE_CALL, Defaults, names_code, not_in_files, recipe_defaults
from lrexport.cli.goal_options import compress_config, given_goal, nearest_goals
from lrexport.cli.help import MODEL_AND_DATA, OUTPUT, Command, Decorated, section, stacked
from lrexport.cli.option_types import RecipeType, SizeType
from lrexport.config import recipes
from lrexport.config.compression import CompressConfig
from lrexport.config.goals import GOAL_OPTIONS, Latency
from lrexport.text import toml_text, visible

TAKERS = ("compress", "train")  # the commands with --recipe
# In a context's meta: the recipe in use, and the place of each value.
RECIPE, _PLACES = "lrexport.recipe", "lrexport.places"


class RecipeCommand(Command):
    """A command with the options of :func:`recipe_options`, which are not passed to its function."""

    def invoke(self, ctx: click.Context) -> Any:
        """Print the configuration, or run the command."""
        ctx.params.pop("recipe")
        if ctx.params.pop("print_config"):
            output.document("\n".join(_config_lines(ctx)))
            return None
        return super().invoke(ctx)


def recipe_options() -> Callable[[Decorated], Decorated]:
    """``--recipe`` and ``--print-config`` of a :class:`RecipeCommand`."""
    text = f"Options from a recipe: {', '.join(recipes.names())}, or a TOML file."
    printing = click.option("--print-config", is_flag=True, help="Print the options that would be used, as a recipe.")
    return stacked(
        section(
            MODEL_AND_DATA,
            click.option("--recipe", type=RecipeType(), metavar="NAME|FILE", is_eager=True, callback=_follow, help=text),
        ),
        section(OUTPUT, rare=(printing,)),
    )


def recipe_config(model: str, recipe: str) -> CompressConfig:
    """The configuration of ``lrexport compress MODEL --recipe RECIPE`` without other files and the environment."""
    context = _command("compress").make_context("compress", [model, "--recipe", recipe])
    with context.scope():
        return compress_config({name: value for name, value in context.params.items() if name not in OF_ONE_CALL})


def _command(name: str) -> click.Command:
    command = getattr(importlib.import_module(f"lrexport.cli.{name}"), "command")  # noqa: B009 - typed Any on purpose
    assert isinstance(command, click.Command)
    return command


def _follow(context: click.Context, parameter: click.Parameter, recipe: str | None) -> str | None:
    """Add the recipe to the defaults, above or below those of files, before other options are read."""
    of_files = Defaults(dict(context.default_map or {}), dict((context.obj or {}).get(context.command.name, {})))
    context.meta[_PLACES] = {name: f"file {place}" for name, place in of_files.places.items()}
    if recipe is None:
        return None
    settings = read_settings(str(recipes.find(recipe)))
    of_recipe = recipe_defaults(settings, context.command, map(_command, TAKERS))
    of_recipe = replace(of_recipe, places=dict.fromkeys(of_recipe.places, f"recipe {recipe}"))
    of_files = replace(of_files, places=context.meta[_PLACES])
    named_in_file = context.get_parameter_source("recipe") is ParameterSource.DEFAULT_MAP
    both = _merged(of_recipe, of_files) if named_in_file else _merged(of_files, of_recipe)
    context.default_map, context.meta[_PLACES], context.meta[RECIPE] = both.values, both.places, recipe
    return recipe


def _merged(below: Defaults, above: Defaults) -> Defaults:
    """Both; ``above`` wins, and a goal in it hides all goals in ``below``."""
    hidden = set(GOAL_OPTIONS) if above.values.keys() & set(GOAL_OPTIONS) else set()
    kept = {name: value for name, value in below.values.items() if name not in hidden}
    return Defaults({**kept, **above.values}, {**below.places, **above.places})


def _config_lines(context: click.Context) -> Iterator[str]:
    """TOML of all options that affect the result, each with the source of its value."""
    given_goal(dict(context.params))  # raises UsageError for two goals
    goals = nearest_goals({name: context.params[name] for name in GOAL_OPTIONS if name in context.params})
    yield visible(f"# lrexport {context.command.name} {context.params['model']}")
    for option in context.command.params:
        name = option.name or ""
        if not isinstance(option, click.Option) or name in OF_ONE_CALL:
            continue
        key = next(flag[2:] for flag in option.opts if flag.startswith("--"))
        value = context.params[name]
        if value is None or (name in GOAL_OPTIONS and name not in goals):
            yield f"# {key} is not set"
        else:
            comment = "# " if name in not_in_files() or names_code(name, str(value)) else ""  # not allowed in recipes
            yield f"{comment}{key} = {_toml(value, option.type)}  # {visible(_origin(context, option))}"


def _origin(context: click.Context, option: click.Option) -> str:
    source, name = context.get_parameter_source(option.name or ""), option.name or ""
    if source is ParameterSource.COMMANDLINE:
        return "option"
    if source is ParameterSource.ENVIRONMENT:
        return f"environment {context.auto_envvar_prefix}_{name.upper()}"
    if source is ParameterSource.DEFAULT_MAP:
        return str(context.meta[_PLACES][name])
    return "default"


def _toml(value: Any, kind: Any) -> str:
    """A value in TOML that the option parses to the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(kind, SizeType):
        return f'"{value}B"'
    if isinstance(value, Latency):
        return repr(value.share) if value.share is not None else f'"{Decimal(repr(value.milliseconds)):f}ms"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(each, None) for each in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    return toml_text(str(value) if isinstance(value, Path) else value)
