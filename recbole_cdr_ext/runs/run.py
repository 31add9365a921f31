"""One run from settings to result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from recbole.utils import set_color

from recbole_cdr_ext import compat
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.instance_table import write_instances
from recbole_cdr_ext.evaluation.result_table import result_tables
from recbole_cdr_ext.files import locked, make_folder
from recbole_cdr_ext.runs.experiment import build, check_metrics, ensure_data, load_data, set_threads
from recbole_cdr_ext.runs.folder import (
    LOG,
    RESULT,
    SETTINGS,
    as_json,
    finished_result,
    how_to_resume,
    new_folder,
    settings_to_resume,
    write_result,
    write_settings,
)
from recbole_cdr_ext.runs.log import describe_model, log_data, logging_to, notes_on
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import parse_arguments
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer
from recbole_cdr_ext.versions import versions

compat.apply()


def run_recbole_cdr(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | str | Path | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Trains and evaluates one model: what ``recbole-cdr run`` does.

    The folder ``checkpoint_dir/run_id`` gets the settings, the log, the checkpoints, the result and the
    per-instance table. With ``resume`` an interrupted run goes on with its own settings, to the result it
    would have had; a finished one gives its result again.

    Args:
        model, dataset, config_file_list, config_dict, argv: as for :class:`CDRConfig`.

    Returns:
        What ``result.json`` holds: model, dataset, simulated, seed, split, run_id, best_valid_score,
        ``valid`` and ``test`` ({domain: {group: {"n", metrics as fractions}}}), popularity (as ``test``),
        fallback (instances that popularity ranked in the model's place), stopped, epochs_run, seconds,
        settings, versions, notes, report.

    Raises:
        CDRError: something the user can mend; raised before any long work where that is possible.
        KeyboardInterrupt: Ctrl-C; its text says how to go on.
    """
    given = {**dict(config_dict or {}), **parse_arguments(argv or ())}
    if given.get("resume") not in (None, "None", "~", ""):
        config, folder = settings_to_resume(
            model, dataset, config_file_list, config_dict, list(argv or ()), given
        )
        result = finished_result(folder)
        if result is not None:
            print(result_tables(result))
            write_result(result, config["result_file"])
            return result
        return _run(config, folder, [], new=False)
    config = CDRConfig(model, dataset, config_file_list, config_dict, argv)
    check_metrics(config)  # an error now, and not after the data
    make_folder(config["checkpoint_dir"])
    if config["result_file"]:
        make_folder(Path(config["result_file"]).absolute().parent)
    ensured = ensure_data(config, allow_simulated=bool(config["allow_simulated"]))
    if ensured.name != config["dataset"]:
        config = CDRConfig(model, ensured.name, config_file_list, config_dict, argv)
    if ensured.simulated:
        config["simulated"] = True
    return _run(config, new_folder(config), ensured.notes, new=True)


def _run(config: CDRConfig, folder: Path, notes: list[str], *, new: bool) -> dict[str, Any]:
    with locked(folder, "run"):
        return _run_alone(config, folder, notes, new=new)


def _run_alone(config: CDRConfig, folder: Path, notes: list[str], *, new: bool) -> dict[str, Any]:
    write_settings(config, folder / SETTINGS)
    hint = f"interrupted; {how_to_resume(folder)}"
    try:
        with logging_to(folder / LOG, config["state"]):
            try:
                return _train_and_evaluate(config, folder, notes)
            except KeyboardInterrupt as stop:
                hint = str(stop) or hint
                logging.getLogger().warning(hint)
                raise KeyboardInterrupt(hint) from None
            except CDRError as error:
                logging.getLogger().error(str(error), extra={"console": False})
                raise
    except CDRError:
        # Nothing was trained: a folder that only says so would stand in the way of the next attempt.
        if new and not (folder / checkpoint.LAST).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _train_and_evaluate(config: CDRConfig, folder: Path, notes: list[str]) -> dict[str, Any]:
    logger = logging.getLogger()
    set_threads(config)
    seconds: dict[str, float] = {}
    with _timed(seconds, "data"):
        dataset, split = load_data(config)
        log_data(config, dataset, split, notes)
    with _timed(seconds, "model"):
        experiment = build(config, dataset, split)
        experiment.check()
    logger.info(describe_model(experiment.model))

    trainer = CrossDomainTrainer(
        config,
        experiment.model,
        folder,
        data=split.fingerprint,
        resume_hint=how_to_resume(folder),
        about={
            "run_id": config["run_id"],
            "dataset": config["dataset"],
            "settings": config.fingerprint(),
            "versions": versions(),
        },
    )
    last = folder / checkpoint.LAST
    if last.exists():
        trainer.resume_checkpoint(last)
    trainer.fit(
        experiment.split,
        experiment.training_batches(),
        experiment.validate,
        show_progress=bool(config["show_progress"]),
    )
    seconds.update(trainer.seconds)
    with _timed(seconds, "evaluation"):
        found, instances = experiment.outcome()
    result = {
        "model": config["model"],
        "task": config["task"],
        "dataset": config["dataset"],
        "simulated": bool(config["simulated"]),
        "seed": config["seed"],
        "split": split.name,
        "run_id": config["run_id"],
        **found,
        "stopped": trainer.stopped,
        "epochs_run": trainer.epochs_run,
        "history": trainer.history,
        "seconds": {
            name: round(value, 3) for name, value in {**seconds, "total": sum(seconds.values())}.items()
        },
        "settings": config.to_dict(),
        "versions": versions(),
        "notes": notes_on(experiment, trainer),
        "report": experiment.split.report,
    }
    result = as_json(result)
    if config["save_instances"]:
        write_instances(instances, folder)
    # Last of all: a run whose result is there is finished.
    write_result(result, folder / RESULT)
    write_result(result, config["result_file"])
    last.unlink(missing_ok=True)
    table = result_tables(result)
    logger.info("\n" + table, extra={"console": False})
    print(table)
    logger.info(f"{set_color('Result', 'blue')}: {folder / RESULT}")
    return result


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + perf_counter() - started
