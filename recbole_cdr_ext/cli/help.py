"""What the command line shows: help texts, and tables."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from recbole_cdr_ext.cli.arguments import OPTIONS, PROGRAM, command_keys
from recbole_cdr_ext.settings.declaration import documented
from recbole_cdr_ext.settings.property_files import described_models
from recbole_cdr_ext.settings.reading import Documented, parse_arguments
from recbole_cdr_ext.settings.run_settings import TASK_SETTINGS

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
