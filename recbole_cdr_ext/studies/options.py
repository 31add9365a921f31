"""The options of ``recbole-cdr study``. Imports nothing heavy: ``--help`` reads them."""

from __future__ import annotations

from recbole_cdr_ext._settings import Documented


def _option(key: str, types: str, meaning: str, default: str = "~") -> Documented:
    return Documented(key, default, types, meaning, "Options")


# What the command takes besides checkpoint_dir, show_progress and the settings of runs.
OPTIONS: tuple[Documented, ...] = (
    _option("dataset", "str or None", "Datasets, with commas between, in place of the study's."),
    _option(
        "seeds",
        "str or None",
        "Seeds of training, with commas between: some of the study's to do now, or others in place of them.",
    ),
    _option("jobs", "int or None", "Runs at a time; None: as many as there are processors for."),
    _option(
        "out",
        "str or None",
        "Folder of tables and results; None: studies/NAME, with the settings in its name where some are given.",
    ),
    _option(
        "only",
        "str or None",
        "Regular expression; only runs whose line in --dry_run it is found in are run. The tables show all there are.",
    ),
    _option(
        "adopt",
        "bool",
        "Whether finished runs in --checkpoint_dir with the settings of the study's count, whatever made them; that "
        "they had the same data can't be told.",
        "False",
    ),
    _option("dry_run", "bool", "Whether to say what would be run, and run nothing.", "False"),
)
