"""One run, from settings to result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_cdr_ext import compat
from recbole_cdr_ext.runs.experiment import build, load_data, set_threads
from recbole_cdr_ext.runs.folder import how_to_resume
from recbole_cdr_ext.runs.record import log_data, log_model, open_run, recording
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

compat.apply()


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | str | Path | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Trains and evaluates one model: what ``recbole-cdr run`` does.

    The folder ``checkpoint_dir/run_id`` gets the settings, the log, the checkpoints, the result and the per-instance
    table. With ``resume`` an interrupted run goes on with its own settings, to the result it would have had; a
    finished one gives its result again.

    Args:
        model, dataset, config_file_list, config_dict, argv: as for :class:`CDRConfig`.

    Returns:
        What ``result.json`` holds: model, dataset, simulated, seed, split, run_id, best_valid_score, ``valid`` and
        ``test`` ({domain: {group: {"n", metrics as fractions}}}), popularity (as ``test``), fallback (instances that
        popularity ranked in the model's place), stopped, epochs_run, seconds, settings, versions, notes, report.

    Raises:
        CDRError: something the user can mend; raised before any long work where that is possible.
        KeyboardInterrupt: Ctrl-C; its text says how to go on.
    """
    opened = open_run(model, dataset, config_file_list, config_dict, argv)
    if opened.result is not None:
        return opened.result
    config, folder = opened.config, opened.folder
    with recording(opened) as record:
        set_threads(config)
        with record.timed("data"):
            data, split = load_data(config)
            log_data(config, data, split, opened.notes)
        with record.timed("model"):
            experiment = build(config, data, split)
            experiment.check()
        log_model(experiment.model)
        trainer = CrossDomainTrainer(
            config,
            experiment.model,
            folder,
            data=split.fingerprint,
            resume_hint=how_to_resume(folder),
            about=record.about,
        )
        if (folder / checkpoint.LAST).exists():
            trainer.resume_checkpoint(folder / checkpoint.LAST)
        trainer.fit(
            experiment.split,
            experiment.training_batches(),
            experiment.validate,
            show_progress=bool(config["show_progress"]),
        )
        with record.timed("evaluation"):
            outcome, instances = experiment.outcome()
        return record.finish(experiment, trainer, outcome, instances)


# The name that it has in RecBole's manner, and had before.
run_recbole_cdr = run
