"""The folder of a run: its name, its stored settings and result, and what there is to resume."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.settings.reading import file_names, find_config_file, read_mapping

RESULT, SETTINGS, LOG = "result.json", "config.yaml", "run.log"
DEFAULT_CHECKPOINT_DIR = "saved"  # as in properties/overall.yaml


def new_folder(config: CDRConfig) -> Path:
    """Makes the folder of a new run, under a name of its own unless the settings give one.

    Raises:
        CDRError: the name is no folder's, or there is such a run.
    """
    run_id = config["run_id"]
    if run_id is None:
        # The random part tells apart runs of one second; the rest is for the reader of a folder listing.
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        run_id = f"{config['model']}-{config['dataset']}-{now}-{os.urandom(3).hex()}"
    if not re.fullmatch(r"[\w.+=@-]+", str(run_id)) or set(run_id) <= {"."}:
        raise CDRError(
            f"run_id '{run_id}' names a folder: use letters, digits, '-', '_', '.', '+', '=' and '@' only."
        )
    folder = Path(config["checkpoint_dir"]) / run_id
    if (folder / RESULT).exists():
        raise CDRError(
            f"run '{run_id}' is finished ({folder}): choose another run_id, or see its result by "
            f"--resume={run_id}."
        )
    if (folder / SETTINGS).exists():
        raise CDRError(
            f"run '{run_id}' was begun ({folder}): go on with --resume={run_id}, or choose another run_id."
        )
    return make_folder(folder)


# -- resuming ------------------------------------------------------------------------------------------------


def settings_to_resume(
    model: str | type | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path] | str | Path | None,
    config_dict: Mapping[str, Any] | None,
    argv: list[str],
    arguments: Mapping[str, Any],
) -> tuple[CDRConfig, Path]:
    """Returns the stored settings of the run to resume, and its folder.

    Raises:
        CDRError: there is no such run, or a setting that is given besides contradicts the run's.
    """
    folder = find_run(
        str(arguments["resume"]), str(arguments.get("checkpoint_dir") or DEFAULT_CHECKPOINT_DIR)
    )
    stored = stored_settings(folder)
    files = [*file_names(config_file_list), *file_names(arguments.get("config_files"))]
    # Anything given stands above what is stored: what then differs is a contradiction.
    beside: dict[str, Any] = {}
    for file in files:
        beside |= read_mapping(find_config_file(file))
    beside |= {key: value for key, value in dict(config_dict or {}).items() if key != "config_files"}
    argv = [word for word in argv if word.startswith("--") and not word.startswith("--config_files=")]
    requested = {
        "model": model or arguments.get("model"),
        "dataset": dataset or arguments.get("dataset"),
    }
    for key, value in requested.items():
        name = value.__name__ if isinstance(value, type) else value
        if name not in (None, stored[key]):
            raise _contradiction(key, name, stored[key], folder)
    before = CDRConfig(model if isinstance(model, type) else None, config_dict=stored)
    after = CDRConfig(model, dataset, config_dict={**stored, **beside}, argv=argv)
    old, new = before.to_dict(), after.to_dict()
    for key in sorted(set(old) | set(new)):
        if key not in RUNTIME_KEYS and old.get(key) != new.get(key):
            raise _contradiction(key, new.get(key), old.get(key), folder)
    return after.replaced(run_id=folder.name, checkpoint_dir=str(folder.parent), resume=None), folder


def settings_to_finish(folder: Path) -> dict[str, str] | None:
    """Returns the settings that bring the run of a folder to its end, whatever there is of it.

    Returns:
        None for a run that is finished; else ``checkpoint_dir``, and ``resume`` for one that was begun (beside its
        stored settings), ``run_id`` for a new one.
    """
    if (folder / RESULT).exists():
        return None
    key = "resume" if (folder / SETTINGS).exists() else "run_id"
    return {key: folder.name, "checkpoint_dir": str(folder.parent)}


def how_to_resume(folder: Path) -> str:
    """Returns the words that make the run in a folder go on."""
    # The run's name is enough where --resume looks by itself.
    name = folder.name if folder.parent == Path(DEFAULT_CHECKPOINT_DIR) else folder
    return f"go on with --resume={name}"


def _contradiction(key: str, value: Any, stored: Any, folder: Path) -> CDRError:
    return CDRError(
        f"{key}={value} contradicts the run that is to be resumed ({folder}: {key}={stored}). Leave it out, "
        "or begin a new run."
    )


def find_run(name: str, checkpoint_dir: str | Path) -> Path:
    """Returns the folder of a run: a name in ``checkpoint_dir``, or a path.

    Raises:
        CDRError: there is none of that name (with the nearest one).
    """
    for folder in (Path(checkpoint_dir) / name, Path(name)):
        if (folder / SETTINGS).is_file():
            return folder
    root = Path(checkpoint_dir)
    known = [path.parent.name for path in root.glob(f"*/{SETTINGS}")] if root.is_dir() else []
    places = ", ".join(dict.fromkeys([str(root / name), str(name)]))
    raise CDRError(f"There is no run '{name}': no {SETTINGS} in {places}.{did_you_mean(name, known)}")


# -- settings and result -------------------------------------------------------------------------------------


def stored_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings that a run was begun with."""
    path = folder / SETTINGS
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CDRError(f"{folder} is no run's folder: cannot read {path} ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise CDRError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or not {"model", "dataset", "split"} <= set(settings):
        raise CDRError(f"{path} is damaged: it does not hold a run's settings.")
    return settings


def write_settings(config: CDRConfig, path: Path) -> None:
    """Writes the settings, to be read again by :func:`stored_settings`."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")


def finished_result(folder: Path) -> dict[str, Any] | None:
    """Returns the result of a run, None if it is not finished.

    Raises:
        CDRError: its file can't be read, or holds no result.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CDRError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        result, reason = None, str(error)
    else:
        reason = "it holds no result"
    if (
        not isinstance(result, dict)
        or not {"model", "dataset"} <= set(result)
        or not {"test", "valid"} & set(result)
    ):
        raise CDRError(f"{path} is damaged ({reason}). Delete it, and --resume={folder.name} makes it anew.")
    return result


def write_result(result: Mapping[str, Any], path: str | Path | None) -> None:
    """Writes a result as JSON; without a path, nothing."""
    if path:
        make_folder(Path(path).absolute().parent)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def as_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result as its file holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(result, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
