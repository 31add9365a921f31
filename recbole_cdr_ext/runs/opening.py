"""What a run begins from: settings that are checked and a folder, of a new run or of one to go on with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_cdr_ext.evaluation.result_table import result_tables
from recbole_cdr_ext.files import make_folder
from recbole_cdr_ext.runs.experiment import check_metrics, ensure_data
from recbole_cdr_ext.runs.folder import finished_result, new_folder, settings_to_resume, write_result
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import parse_arguments


@dataclass(frozen=True)
class OpenedRun:
    """A run that can begin, or go on.

    Attributes:
        notes: what was said while its data were looked for.
        new: whether it was never begun before.
        result: of a run that is finished already; None of any other.
    """

    config: CDRConfig
    folder: Path
    notes: list[str]
    new: bool
    result: dict[str, Any] | None = None


def open_run(
    model: str | type | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path] | str | Path | None,
    config_dict: Mapping[str, Any] | None,
    argv: Iterable[str] | None,
) -> OpenedRun:
    """Checks the settings of a run, has its data prepared and its folder made; or finds the run to resume.

    Args:
        model, dataset, config_file_list, config_dict, argv: as for :class:`CDRConfig`.

    Raises:
        CDRError: a setting or the data are not right, or the run to resume is not there.
    """
    words = list(argv or ())
    arguments = {**dict(config_dict or {}), **parse_arguments(words)}
    if arguments.get("resume") not in (None, "None", "~", ""):
        config, folder = settings_to_resume(model, dataset, config_file_list, config_dict, words, arguments)
        return OpenedRun(config, folder, [], new=False, result=_shown_result(config, folder))
    config = CDRConfig(model, dataset, config_file_list, config_dict, words)
    check_metrics(config)  # an error now, and not after the data
    make_folder(config["checkpoint_dir"])
    if config["result_file"]:
        make_folder(Path(config["result_file"]).absolute().parent)
    ensured = ensure_data(config, allow_simulated=bool(config["allow_simulated"]))
    if ensured.name != config["dataset"]:
        config = CDRConfig(model, ensured.name, config_file_list, config_dict, words)
    if ensured.simulated:
        config = config.replaced(simulated=True)
    folder = new_folder(config)
    return OpenedRun(config.replaced(run_id=folder.name), folder, ensured.notes, new=True)


def _shown_result(config: CDRConfig, folder: Path) -> dict[str, Any] | None:
    """Prints the result of a finished run, and writes it where the settings ask for it besides."""
    result = finished_result(folder)
    if result is not None:
        print(result_tables(result))
        write_result(result, config["result_file"])
    return result
