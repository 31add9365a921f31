"""The keys of each command: its options, and settings of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.command_options import ANALYSIS_OPTIONS, STUDY_OPTIONS, TUNE_OPTIONS
from recbole_cdr_ext.settings.declaration import documented
from recbole_cdr_ext.settings.reading import (
    Documented,
    check_type,
    parse_arguments,
    types_in,
)
from recbole_cdr_ext.settings.run_settings import RunSettings

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
