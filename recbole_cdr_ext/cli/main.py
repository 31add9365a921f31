"""The command line: ``recbole-cdr COMMAND --key=value``.

Every command imports what it needs when it runs, so that ``--help`` and a misspelt command answer at once.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.command_options import ANALYSIS_OPTIONS as OPTIONS
from recbole_cdr_ext.settings.command_options import STUDY_OPTIONS as STUDY_OPTIONS
from recbole_cdr_ext.settings.command_options import TUNE_OPTIONS as TUNE_OPTIONS
from recbole_cdr_ext.settings.declaration import documented
from recbole_cdr_ext.settings.model_help import described_models
from recbole_cdr_ext.settings.reading import (
    Documented,
    file_names,
    find_config_file,
    parse_arguments,
    read_mapping,
    types_in,
    words_in,
)
from recbole_cdr_ext.settings.run_settings import RunSettings
from recbole_cdr_ext.settings.task_settings import TASK_SETTINGS
from recbole_cdr_ext.settings.value_types import check_type
from recbole_cdr_ext.versions import versions

PROGRAM = "recbole-cdr"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after the program's name; None: those of the process.

    Returns:
        The exit status: 0, 1 if some runs of a study failed, 2 for an error that the user can mend, 130 if the user
        interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except CDRError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{PROGRAM}: {stop.args[0] if stop.args else 'interrupted.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `recbole-cdr models | head`; what is left to flush has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _dispatch(words: Sequence[str]) -> int:
    asks_help = any(word in ("-h", "--help") for word in words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("--version", "version"):
        print("\n".join(f"{name} {version}" for name, version in versions().items()))
        return 0
    name, rest = words[0], [word for word in words[1:] if word not in ("-h", "--help")]
    if name not in COMMANDS:
        raise CDRError(
            f"Unknown command '{name}'.{did_you_mean(name, COMMANDS)} `{PROGRAM} --help` lists them."
        )
    if asks_help:
        print(_help(name, rest))
        return 0
    return COMMANDS[name](rest) or 0


# -- commands: the first line of a docstring is what `--help` says in one line --------------------------------------


def run(words: Sequence[str]) -> None:
    """Train and evaluate one model on one dataset.

    Usage: recbole-cdr run --model=NAME --dataset=NAME [--config_files=FILE,FILE] [--key=value ...]

    A dataset that is not prepared is prepared first. The result is a table of domain x user group, and a JSON file.
    Settings come from RecBole's defaults, properties/overall.yaml, the model's and the dataset's property files,
    your files, and the command line; later ones win. `recbole-cdr run --help --model=NAME` shows the model's own.
    """
    given = parse_arguments(words)
    from recbole_cdr_ext.runs.run import run_recbole_cdr

    run_recbole_cdr(given.get("model"), given.get("dataset"), argv=list(words))


def prepare(words: Sequence[str]) -> None:
    """Make a dataset's atomic files from raw data, and print its statistics.

    Usage: recbole-cdr prepare NAME [--raw=DIR] [--layout=users|rows] [--download] [--overwrite]

    `recbole-cdr datasets` lists the names. For data of your own, describe it as the files in properties/dataset do,
    and say --config_files=FILE.
    """
    names = [word for word in words[:1] if not word.startswith("--")]
    given = _options("prepare", words[len(names) :])
    if not names:
        raise CDRError(f"Which dataset? Say `{PROGRAM} prepare NAME`; `{PROGRAM} datasets` lists them.")
    from recbole_cdr_ext.data.prepare import prepare as prepare_dataset

    described: dict[str, Any] = {}
    for file in file_names(given["config_files"]):
        described |= read_mapping(find_config_file(file))
    folder = prepare_dataset(
        names[0],
        raw=given["raw"],
        data_path=given["data_path"],
        layout=given["layout"],
        download=given["download"],
        overwrite=given["overwrite"],
        progress=given["show_progress"],
        description=described or None,
    )
    if not given["show_progress"]:  # which prints the statistics as well
        print((folder / "statistics.txt").read_text(encoding="utf-8"), end="")
    print(f"Prepared: {folder}")


def analyse(words: Sequence[str]) -> None:
    """Draw how robust saved runs of bridges are, or what latents carry, with the numbers beside the figures.

    Usage: recbole-cdr analyse fgsm|landscape|lipschitz|latents --runs=RUN,RUN [--key=value ...]
           recbole-cdr analyse sensitivity --dataset=NAME [--key=value ...]

    fgsm         error when the source vectors are moved against the model, by several attack rates
    landscape    error around the source vectors, as surfaces and contours
    lipschitz    how far the mapping carries apart what lies close together
    latents      KL and active dimensions of I2VAE's latents, and how many targets LightGCN-PSG recalls
    sensitivity  trains SCDR for several steps k and radii rho, and makes all of these measurements; what was trained
                 is not trained again. Any setting of `recbole-cdr run` can be given besides, for the runs

    Each writes a PNG image, an HTML page and a CSV file into a folder in analyses/, or into --out. RUN is the name of
    a folder in saved/, or a path. `recbole-cdr analyse fgsm --help` lists that analysis's options; docs/analyses.md
    says what is computed. Figures need matplotlib and plotly: pip install 'recbole_cdr_ext[plots]'.
    """
    kind, rest = (words[0], words[1:]) if words and not words[0].startswith("--") else ("", words)
    if not kind:
        raise CDRError(f"Which analysis? Say `{PROGRAM} analyse KIND`, KIND one of {', '.join(OPTIONS)}.")
    if kind not in OPTIONS:
        raise CDRError(
            f"Unknown analysis '{kind}'.{did_you_mean(kind, OPTIONS)} Known: {', '.join(OPTIONS)}."
        )
    command, passed = f"analyse {kind}", []
    if kind == "sensitivity":  # what is none of its own keys is for its runs, and checked with their settings
        given, own = parse_arguments(rest), _keys(command)
        passed = [f"--{key}={value}" for key, value in given.items() if key not in own]
        rest = [f"--{key}={value}" for key, value in given.items() if key in own]
    options = _options(command, rest)
    from recbole_cdr_ext.analysis.analyse import analyse as make

    make(kind, options, passed)


def report(words: Sequence[str]) -> None:
    """Make one HTML page, and tables in Markdown and LaTeX, of finished runs.

    Usage: recbole-cdr report [--runs=DIR,PATTERN,...] [--checkpoint_dir=saved] [--out=report] [--baseline=MODEL]

    Runs that were asked the same stand in one table, seeds of one model and its settings in one row: mean and standard
    deviation, paired tests, figures, settings, and the command of every run. The page needs no network. What is not
    finished, or can't be read, is listed with the reason. Figures need plotly: pip install 'recbole_cdr_ext[plots]'.
    """
    options = _options("report", words)
    from recbole_cdr_ext.reports.report import report as make

    make(options)


def tune(words: Sequence[str]) -> None:
    """Search for the best settings of a model on a dataset, by Ray Tune.

    Usage: recbole-cdr tune --model=NAME --dataset=NAME [--space=FILE] [--trials=N] [--key=value ...]

    Each trial trains as `recbole-cdr run` does, with settings from the space and any other --key=value of a run, and
    is scored by valid_metric on the validation part; the test part is not looked at. The data are loaded once. A sweep
    that was interrupted goes on with the same command, or with --resume --out=FOLDER.

    The folder of the sweep gets the best settings as a property file for `recbole-cdr run --config_files=`, a table of
    all trials, and a page with figures. docs/tuning.md shows how spaces are written. Needs Ray:
    pip install 'recbole_cdr_ext[tune]'.
    """
    given, own = parse_arguments(words), _keys("tune")
    options = _options("tune", [f"--{key}={value}" for key, value in given.items() if key in own])
    from recbole_cdr_ext.tuning.tune import tune as search

    search(argv=[f"--{key}={value}" for key, value in given.items() if key not in own], **options)


def study(words: Sequence[str]) -> int:
    """Run what makes a paper's table or figure, and write it; without a name, list the studies there are.

    Usage: recbole-cdr study [NAME] [--dataset=NAME] [--seeds=1,2] [--only=REGEX] [--dry_run] [--key=value ...]

    NAME is one of the package's studies, or a path to a YAML file (docs/studies.md). Each run is a process of its own;
    what is done is not done again, and a study that was interrupted goes on with the same command. Any other
    --key=value of `recbole-cdr run` goes to all runs: --epochs=3 makes a quick look. `recbole-cdr study NAME --help`
    says what is run. Runs that fail are listed, make the exit status 1, and are tried again by the next call.
    """
    name, rest = (words[0], words[1:]) if words and not words[0].startswith("--") else ("", words)
    given = parse_arguments(rest)
    if not name:
        if given:
            raise CDRError(f"Which study? Say `{PROGRAM} study NAME`; `{PROGRAM} study` lists them.")
        from recbole_cdr_ext.studies.listing import studies

        print(_table(studies()))
        return 0
    from recbole_cdr_ext.studies import study as run_study

    return 1 if run_study(name, given)["failed"] else 0


def models(words: Sequence[str]) -> None:
    """List the models: what each does, what it needs, and where it was published.

    Usage: recbole-cdr models [--json]
    """
    given = _options("models", words)
    from recbole_cdr_ext.registry.models import list_models

    infos = [asdict(info) for info in list_models()]
    if given["json"]:
        print(json.dumps(infos, indent=2))
        return
    columns = {
        "model": "name", "task": "task", "domains": "domains", "cold start": "cold_start",
        "needs overlap": "needs_overlap", "from": "origin", "paper": "paper",
    }  # fmt: skip
    print(_table([{title: info[key] for title, key in columns.items()} for info in infos]))


def datasets(words: Sequence[str]) -> None:
    """List the datasets: their domains, tasks, order, and whether they are prepared.

    Usage: recbole-cdr datasets [--json] [--data_path=DIR]
    """
    given = _options("datasets", words)
    from recbole_cdr_ext.data.prepare import list_datasets

    entries = list_datasets(given["data_path"])
    if given["json"]:
        print(json.dumps(entries, indent=2))
        return
    columns = {
        "dataset": "name", "domains": "domains", "tasks": "tasks", "order": "order", "prepared": "layouts",
        "simulated": "simulated",
    }  # fmt: skip
    print(_table([{title: entry[key] for title, key in columns.items()} for entry in entries]))


def check(words: Sequence[str]) -> None:
    """Check that a model is what a model of this package should be, and what it says of itself.

    Usage: recbole-cdr check --model=NAME[,NAME] [--task=next_item|rating] [--key=value ...]

    It is trained on small data with a known answer, and each check prints a line; docs/conformance.md says what they
    ask for. Other settings of the model may be given, where its defaults need thousands of users.
    """
    own = _keys("check")
    given = parse_arguments(words)
    options = _options("check", [f"--{key}={value}" for key, value in given.items() if key in own])
    if not options["model"]:
        raise CDRError(f"Which model? Say `{PROGRAM} check --model=NAME`; `{PROGRAM} models` lists them.")
    from recbole_cdr_ext.testing import outcomes

    failed = 0
    settings = {key: value for key, value in given.items() if key not in own}
    for model in words_in(options["model"]):
        with tempfile.TemporaryDirectory() as folder:
            for name, wrong in outcomes(model, Path(folder), options["task"], **settings):
                print(f"{model}  {name.replace('_', ' ')}: {wrong or 'yes'}", flush=True)
                failed += bool(wrong)
    if failed:
        raise CDRError(f"{failed} checks failed.")


Command = Callable[[Sequence[str]], int | None]
COMMANDS: Mapping[str, Command] = {
    command.__name__: command
    for command in (run, tune, study, prepare, models, datasets, analyse, report, check)
}


# -- the keys of the commands that take a few of their own ----------------------------------------------------------

_JSON = Documented("json", "False", "bool", "Print JSON instead of a table.", "Options")
_OWN: Mapping[str, tuple[Documented, ...]] = {
    "prepare": (
        Documented(
            "layout", "users", "str", "users, or rows: published rows as they are, for split=published.", ""
        ),
        Documented("overwrite", "False", "bool", "Replace what is prepared already.", ""),
        Documented("config_files", "~", "str or None", "A file that describes a dataset of your own.", ""),
    ),
    "models": (_JSON,),
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
    **{f"analyse {kind}": keys for kind, keys in OPTIONS.items()},
}
_SHARED: Mapping[str, tuple[str, ...]] = {
    "prepare": ("raw", "download", "data_path", "show_progress"),
    "datasets": ("data_path",),
    "report": ("checkpoint_dir",),
    "check": ("task",),
    "study": ("checkpoint_dir", "show_progress"),
    **{f"analyse {kind}": ("checkpoint_dir", "show_progress") for kind in OPTIONS},
}


def _keys(command: str) -> dict[str, Documented]:
    """The keys of a command: a few of its own and of the settings; for `run` all settings."""
    settings = documented(RunSettings)
    if command == "run":
        return settings
    own = {key.key: key for key in _OWN.get(command, ())}
    return own | {name: settings[name] for name in _SHARED.get(command, ())}


def _options(command: str, words: Iterable[str]) -> dict[str, Any]:
    """Returns the value of every key of a command.

    Raises:
        CDRError: a word is no ``--key=value``, the key is not the command's, or the value is of another type.
    """
    keys = _keys(command)
    given = parse_arguments(words)
    for name in given:
        if name not in keys:
            raise CDRError(f"Unknown setting '{name}' of `{PROGRAM} {command}`.{did_you_mean(name, keys)}")
    return {
        name: check_type(
            name, given.get(name, key.default), types_in(key.types), "command line", is_text=True
        )
        for name, key in keys.items()
    }


# -- help -----------------------------------------------------------------------------------------------------------


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_summary(command)}" for name, command in COMMANDS.items()]
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


def _summary(command: Command) -> str:
    return (inspect.getdoc(command) or "").split("\n", 1)[0]


def _help(name: str, words: Sequence[str]) -> str:
    text = [inspect.getdoc(COMMANDS[name]) or ""]
    model = parse_arguments([word for word in words if word.startswith("--")]).get("model")
    if name == "run" and model:
        for stem, rows in described_models(model).items():
            of_task = "" if stem == model else f", task {stem.removeprefix(f'{model}_')}"
            text += ["", f"Settings of {model}{of_task}:", *_describe(rows.values())]
    if name == "study" and words and not words[0].startswith("--"):
        from recbole_cdr_ext.studies.listing import summary

        text += ["", summary(words[0])]
    if name == "run":
        for task, settings in TASK_SETTINGS.items():
            text += ["", f"Settings of task {task}, and its defaults for those of all runs:"]
            text += _describe(documented(settings).values())
    section = None
    command = f"{name} {words[0]}" if words and f"{name} {words[0]}" in _OWN else name
    for key in _keys(command).values():
        if (key.section or "Options") != section:
            section = key.section or "Options"
            text += ["", f"{section}:"]
        text += _describe([key])
    return "\n".join(text)


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


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    from tabulate import tabulate

    return tabulate([{title: _cell(value) for title, value in row.items()} for row in rows], headers="keys")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else textwrap.shorten(str(value), 80, placeholder=" ...")
