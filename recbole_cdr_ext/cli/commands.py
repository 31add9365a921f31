"""What each command does. The first line of a docstring is what ``--help`` says in one line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole_cdr_ext.cli.help import PROGRAM, command_keys, option_values, text_table
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.command_options import ANALYSIS_OPTIONS, analysis_options
from recbole_cdr_ext.settings.reading import (
    file_names,
    find_config_file,
    parse_arguments,
    read_mapping,
    words_in,
)


def run(words: Sequence[str]) -> None:
    """Train and evaluate one model on one dataset.

    Usage: recbole-cdr run --model=NAME --dataset=NAME [--config_files=FILE,FILE] [--key=value ...]

    A dataset that is not prepared is prepared first. The result is a table of domain x user group, and a JSON file.
    Settings come from RecBole's defaults, properties/overall.yaml, the model's and the dataset's property files,
    your files, and the command line; later ones win. `recbole-cdr run --help --model=NAME` shows the model's own.
    """
    arguments = parse_arguments(words)
    from recbole_cdr_ext.runs.run import run as train_and_evaluate

    train_and_evaluate(arguments.get("model"), arguments.get("dataset"), argv=list(words))


def prepare(words: Sequence[str]) -> None:
    """Make a dataset's atomic files from raw data, and print its statistics.

    Usage: recbole-cdr prepare NAME [--raw=DIR] [--layout=users|rows] [--download] [--overwrite]

    `recbole-cdr datasets` lists the names. For data of your own, describe it as the files in properties/dataset do,
    and say --config_files=FILE.
    """
    names = [word for word in words[:1] if not word.startswith("--")]
    arguments = option_values("prepare", words[len(names) :])
    if not names:
        raise CDRError(f"Which dataset? Say `{PROGRAM} prepare NAME`; `{PROGRAM} datasets` lists them.")
    from recbole_cdr_ext.data.prepare import prepare as prepare_dataset

    described: dict[str, Any] = {}
    for file in file_names(arguments["config_files"]):
        described |= read_mapping(find_config_file(file))
    folder = prepare_dataset(
        names[0],
        raw=arguments["raw"],
        data_path=arguments["data_path"],
        layout=arguments["layout"],
        download=arguments["download"],
        overwrite=arguments["overwrite"],
        progress=arguments["show_progress"],
        description=described or None,
    )
    if not arguments["show_progress"]:  # which prints the statistics as well
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
        raise CDRError(
            f"Which analysis? Say `{PROGRAM} analyse KIND`, KIND one of {', '.join(ANALYSIS_OPTIONS)}."
        )
    analysis_options(kind)
    command, passed = f"analyse {kind}", []
    if kind == "sensitivity":  # what is none of its own keys is for its runs, and checked with their settings
        arguments, keys = parse_arguments(rest), command_keys(command)
        passed = [f"--{key}={value}" for key, value in arguments.items() if key not in keys]
        rest = [f"--{key}={value}" for key, value in arguments.items() if key in keys]
    options = option_values(command, rest)
    from recbole_cdr_ext.analysis.analyse import analyse as make

    make(kind, words=passed, **options)


def report(words: Sequence[str]) -> None:
    """Make one HTML page, and tables in Markdown and LaTeX, of finished runs.

    Usage: recbole-cdr report [--runs=DIR,PATTERN,...] [--checkpoint_dir=saved] [--out=report] [--baseline=MODEL]

    Runs that were asked the same stand in one table, seeds of one model and its settings in one row: mean and standard
    deviation, paired tests, figures, settings, and the command of every run. The page needs no network. What is not
    finished, or can't be read, is listed with the reason. Figures need plotly: pip install 'recbole_cdr_ext[plots]'.
    """
    options = option_values("report", words)
    from recbole_cdr_ext.reports.report import report as make

    make(**options)


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
    arguments, keys = parse_arguments(words, flags=("resume",)), command_keys("tune")
    options = option_values("tune", [f"--{key}={value}" for key, value in arguments.items() if key in keys])
    from recbole_cdr_ext.tuning.tune import tune as search

    search(argv=[f"--{key}={value}" for key, value in arguments.items() if key not in keys], **options)


def study(words: Sequence[str]) -> int:
    """Run what makes a paper's table or figure, and write it; without a name, list the studies there are.

    Usage: recbole-cdr study [NAME] [--dataset=NAME] [--seeds=1,2] [--only=REGEX] [--dry_run] [--key=value ...]

    NAME is one of the package's studies, or a path to a YAML file (docs/studies.md). Each run is a process of its own;
    what is done is not done again, and a study that was interrupted goes on with the same command. Any other
    --key=value of `recbole-cdr run` goes to all runs: --epochs=3 makes a quick look. `recbole-cdr study NAME --help`
    says what is run. Runs that fail are listed, make the exit status 1, and are tried again by the next call.
    """
    name, rest = (words[0], words[1:]) if words and not words[0].startswith("--") else ("", words)
    arguments = parse_arguments(rest)
    if not name:
        if arguments:
            raise CDRError(f"Which study? Say `{PROGRAM} study NAME`; `{PROGRAM} study` lists them.")
        from recbole_cdr_ext.studies.definition import studies

        print(text_table(studies()))
        return 0
    from recbole_cdr_ext.studies import study as run_study

    return 1 if run_study(name, arguments)["failed"] else 0


def models(words: Sequence[str]) -> None:
    """List the models: what each does, what it needs, and where it was published.

    Usage: recbole-cdr models [--json]
    """
    arguments = option_values("models", words)
    from recbole_cdr_ext.registry.models import list_models

    columns = {
        "model": "name", "task": "task", "domains": "domains", "cold start": "cold_start",
        "needs overlap": "needs_overlap", "from": "origin", "paper": "paper",
    }  # fmt: skip
    _print_infos([asdict(info) for info in list_models()], columns, as_json=arguments["json"])


def datasets(words: Sequence[str]) -> None:
    """List the datasets: their domains, tasks, order, and whether they are prepared.

    Usage: recbole-cdr datasets [--json] [--data_path=DIR]
    """
    arguments = option_values("datasets", words)
    from recbole_cdr_ext.data.prepare import list_datasets

    columns = {
        "dataset": "name", "domains": "domains", "tasks": "tasks", "order": "order", "prepared": "layouts",
        "simulated": "simulated",
    }  # fmt: skip
    _print_infos(list_datasets(arguments["data_path"]), columns, as_json=arguments["json"])


def splits(words: Sequence[str]) -> None:
    """List the splits: whom each trains on and asks about, for which task, and whether it leaks.

    Usage: recbole-cdr splits [--json]
    """
    arguments = option_values("splits", words)
    from recbole_cdr_ext.registry.splits import list_splits

    columns = {
        "split": "name", "task": "task", "leaks": "leaky", "needs order": "ordered", "layout": "layout",
        "from": "origin", "what it does": "summary",
    }  # fmt: skip
    _print_infos([asdict(info) for info in list_splits()], columns, as_json=arguments["json"])


def metrics(words: Sequence[str]) -> None:
    """List the metrics: of what each is computed, for which task, and which way is better.

    Usage: recbole-cdr metrics [--json]
    """
    arguments = option_values("metrics", words)
    from recbole_cdr_ext.registry.metrics import list_metrics

    columns = {
        "metric": "name", "task": "task", "needs": "needs", "larger is better": "larger_is_better",
        "from": "origin", "what it says": "summary",
    }  # fmt: skip
    _print_infos([asdict(info) for info in list_metrics()], columns, as_json=arguments["json"])


def check(words: Sequence[str]) -> None:
    """Check that a model is what a model of this package should be, and what it says of itself.

    Usage: recbole-cdr check --model=NAME[,NAME] [--task=next_item|rating] [--key=value ...]

    It is trained on small data with a known answer, and each check prints a line; docs/conformance.md says what they
    ask for. Other settings of the model may be given, where its defaults need thousands of users.
    """
    keys = command_keys("check")
    arguments = parse_arguments(words)
    options = option_values("check", [f"--{key}={value}" for key, value in arguments.items() if key in keys])
    if not options["model"]:
        raise CDRError(f"Which model? Say `{PROGRAM} check --model=NAME`; `{PROGRAM} models` lists them.")
    from recbole_cdr_ext.testing import outcomes

    failed = 0
    settings = {key: value for key, value in arguments.items() if key not in keys}
    for model in words_in(options["model"]):
        with tempfile.TemporaryDirectory() as folder:
            for name, wrong in outcomes(model, Path(folder), options["task"], **settings):
                print(f"{model}  {name.replace('_', ' ')}: {wrong or 'yes'}", flush=True)
                failed += bool(wrong)
    if failed:
        raise CDRError(f"{failed} checks failed.")


def _print_infos(infos: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool) -> None:
    """Prints what a registry knows: all of it as JSON, or a table of the columns, key by title."""
    if as_json:
        print(json.dumps(infos, indent=2))
        return
    print(text_table([{title: info[key] for title, key in columns.items()} for info in infos]))


Command = Callable[[Sequence[str]], int | None]
COMMANDS: Mapping[str, Command] = {
    command.__name__: command
    for command in (run, tune, study, prepare, models, splits, metrics, datasets, analyse, report, check)
}
