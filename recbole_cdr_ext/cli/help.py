"""The keys of each command, and what the command line shows: help texts and tables."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.command_options import ANALYSIS_OPTIONS, STUDY_OPTIONS, TUNE_OPTIONS
from recbole_cdr_ext.settings.declaration import documented
from recbole_cdr_ext.settings.property_files import described_models
from recbole_cdr_ext.settings.reading import (
    Documented,
    check_type,
    parse_arguments,
    types_in,
)
from recbole_cdr_ext.settings.run_settings import TASK_SETTINGS, RunSettings

PROGRAM = "recbole-cdr"

_JSON = Documented("json", "False", "bool", "Print JSON instead of a table.", "Options")
OPTIONS: Mapping[str, tuple[Documented, ...]] = {
    "prepare": (
        Documented(
            "layout", "users", "str", "users, or rows: published rows as they are, for split=published.", ""
        ),
        Documented("overwrite", "False", "bool", "Replace what is prepared already.", ""),
        Documented("config_files", "~", "str or None", "A file that describes a dataset of your own.", ""),
    ),
    "models": (_JSON,),
    "splits": (_JSON,),
    "metrics": (_JSON,),
    "datasets": (_JSON,),
    "report": (
        Documented(
            "runs",
            "~",
            "str or None",
            "Folders of runs, or of such folders, names in checkpoint_dir, or patterns of these (quoted), with commas "
            "between; None: all in checkpoint_dir.",
            "",
        ),
        Documented("out", "report", "str", "Folder of report.html, tables.md and tables.tex.", ""),
        Documented(
            "baseline",
            "~",
            "str or None",
            "The model, or its label in the tables, that others are compared with; None: the best with the second.",
            "",
        ),
        Documented("title", "~", "str or None", "The page's title.", ""),
    ),
    "check": (Documented("model", "~", "str or None", "Names of models, with commas between.", ""),),
    "tune": TUNE_OPTIONS,
    "study": STUDY_OPTIONS,
    **{f"analyse {kind}": keys for kind, keys in ANALYSIS_OPTIONS.items()},
}
_SHARED: Mapping[str, tuple[str, ...]] = {
    "prepare": ("raw", "download", "data_path", "show_progress"),
    "datasets": ("data_path",),
    "report": ("checkpoint_dir",),
    "check": ("task",),
    "study": ("checkpoint_dir", "show_progress"),
    **{f"analyse {kind}": ("checkpoint_dir", "show_progress") for kind in ANALYSIS_OPTIONS},
}


def command_keys(command: str) -> dict[str, Documented]:
    """Returns the keys of a command: a few options and some settings of runs; for `run` all settings."""
    settings = documented(RunSettings)
    if command == "run":
        return settings
    keys = {key.key: key for key in OPTIONS.get(command, ())}
    return keys | {name: settings[name] for name in _SHARED.get(command, ())}


def option_values(command: str, words: Iterable[str]) -> dict[str, Any]:
    """Returns the value of every key of a command.

    Raises:
        CDRError: a word is no ``--key=value``, the key is not the command's, or the value is of another type.
    """
    keys = command_keys(command)
    arguments = parse_arguments(words)
    for name in arguments:
        if name not in keys:
            raise CDRError(f"Unknown setting '{name}' of `{PROGRAM} {command}`.{did_you_mean(name, keys)}")
    return {
        name: check_type(
            name, arguments.get(name, key.default), types_in(key.types), "command line", is_text=True
        )
        for name, key in keys.items()
    }


# -- help ----------------------------------------------------------------------------------------------------------


def overview(commands: Mapping[str, Callable[..., object]]) -> str:
    """Returns what the program can do, a line per command."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {_summary(command)}" for name, command in commands.items()]
    return "\n".join(
        [
            "Cross-domain recommendation on RecBole.",
            "",
            f"Usage: {PROGRAM} COMMAND [--key=value ...]",
            "",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` says more, `{PROGRAM} --version` what is installed. For a start:",
            f"  {PROGRAM} run --model=I2VAE --dataset=ml100k_genres",
        ]
    )


def command_help(name: str, command: Callable[..., object], words: Sequence[str]) -> str:
    """Returns what a command does, and its keys with their defaults; a model's settings where ``words`` name one."""
    text = [inspect.getdoc(command) or ""]
    model = parse_arguments([word for word in words if word.startswith("--")]).get("model")
    if name == "run" and model:
        for stem, rows in described_models(model).items():
            of_task = "" if stem == model else f", task {stem.removeprefix(f'{model}_')}"
            text += ["", f"Settings of {model}{of_task}:", *_describe(rows.values())]
    if name == "study" and words and not words[0].startswith("--"):
        from recbole_cdr_ext.studies.definition import summary

        text += ["", summary(words[0])]
    if name == "run":
        for task, settings in TASK_SETTINGS.items():
            text += ["", f"Settings of task {task}, and its defaults for those of all runs:"]
            text += _describe(documented(settings).values())
    section = None
    keys_of = f"{name} {words[0]}" if words and f"{name} {words[0]}" in OPTIONS else name
    for key in command_keys(keys_of).values():
        if (key.section or "Options") != section:
            section = key.section or "Options"
            text += ["", f"{section}:"]
        text += _describe([key])
    return "\n".join(text)


def _summary(command: Callable[..., object]) -> str:
    return (inspect.getdoc(command) or "").split("\n", 1)[0]


def _describe(keys: Iterable[Documented]) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    lines = []
    for key in keys:
        head = f"  --{key.key}={key.default or '...'}"
        body = f"({key.types}) {key.meaning}" if key.types else key.meaning
        indent = " " * 34
        wrapped = textwrap.wrap(body, width, initial_indent=indent, subsequent_indent=indent) or [""]
        lines += [head.ljust(34) + wrapped[0].strip(), *wrapped[1:]] if len(head) < 34 else [head, *wrapped]
    return lines


# -- tables --------------------------------------------------------------------------------------------------------


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as a table with their keys above; lists with commas, truth values in words."""
    cells = [{title: _cell(value) for title, value in row.items()} for row in rows]
    return str(tabulate(cells, headers="keys"))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else textwrap.shorten(str(value), 80, placeholder=" ...")
