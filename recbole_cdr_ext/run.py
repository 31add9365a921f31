"""One run from settings to result, and the pieces it is made of, for those who call them one by one."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from recbole.utils import set_color

from recbole_cdr_ext import __version__, compat
from recbole_cdr_ext._settings import file_names, find_config_file, parse_arguments, read_mapping
from recbole_cdr_ext.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.data.audit import audit_candidates
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Instances, Pool
from recbole_cdr_ext.data.loader import CrossDomainLoader
from recbole_cdr_ext.data.prepare import ensure_dataset
from recbole_cdr_ext.data.sampler import Candidates, CrossDomainSampler
from recbole_cdr_ext.data.split import PARTS, Split, groups, make_split
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation import ranking, report
from recbole_cdr_ext.evaluation.metrics import RankingMetrics, mean_over_domains
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.model.abstract import CrossDomainRecommender
from recbole_cdr_ext.stages import augment, run_stages
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer, seed_everything

compat.apply()

RESULT, SETTINGS, LOG = "result.json", "config.yaml", "run.log"
HELD_OUT = ("valid", "test")
# Under split=published: the test part again, among the items of the test file.
TEST_ITEMS = ("test_among_test_items", "popularity_among_test_items")
DEFAULT_CHECKPOINT_DIR = "saved"  # as in properties/overall.yaml
PACKAGES = ("recbole", "torch", "numpy", "scipy", "pandas")
# Fewer candidates than this are another, easier question than the one the literature's figures answer.
COMPARABLE_CANDIDATES = 1000
_DOMAINS_TAKEN = {"one": (1, 1), "two": (2, 2), "two or more": (2, None)}


# -- the pieces ----------------------------------------------------------------------------------------------


@dataclass
class Experiment:
    """A model on a split of a dataset, ready to be trained, evaluated, or to recommend.

    Attributes:
        popularity: (item_num,) training interactions per global item id.
    """

    config: CDRConfig
    dataset: CrossDomainDataset
    split: Split
    model: CrossDomainRecommender
    sampler: CrossDomainSampler
    metrics: RankingMetrics
    popularity: np.ndarray
    _candidates: dict[str, Candidates] = field(default_factory=dict, repr=False)

    def candidates(self, part: str) -> Candidates:
        """What the targets of "valid" or "test" are ranked against: drawn, and audited for leaks, once."""
        if part not in self._candidates:
            mode = self.config["eval_args"]["mode"]
            mode = mode[part] if isinstance(mode, Mapping) else mode
            drawn = self.sampler.candidates(self.split.part(part), mode)
            if drawn.mode != "full":
                audit_candidates(self.split, self.split.part(part), drawn.blocks())
            self._candidates[part] = drawn
        return self._candidates[part]

    def among_test_items(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the tables of the model and of popularity on the test part, with the negatives drawn from the
        items of the published test file alone, as its authors drew them; None under the other splits.
        """
        pool, mode = self.split.test_items, self.config["eval_args"]["mode"]["test"]
        if pool is None or mode == "full":
            return None
        instances = self.split.test
        drawn = self.sampler.candidates(instances, mode, pool)
        audit_candidates(self.split, instances, drawn.blocks())
        loader = self.loader("test")
        ranks = ranking.evaluate(
            self.model, instances, drawn, loader, self.popularity, self.config, progress="test"
        )
        popular = ranking.rank_by_popularity(instances, drawn, self.popularity, self.split.item_offset)
        return self.table("test", ranks), self.table("test", popular)

    def loader(self, part: str, *, training: bool = False) -> CrossDomainLoader:
        """Batches of a part's instances."""
        return CrossDomainLoader(
            self.config, self.split.part(part), self.model, sampler=self.sampler, training=training
        )

    def rank(self, part: str) -> Ranks:
        """Ranks a part's targets with the model as it is now."""
        return ranking.evaluate(
            self.model,
            self.split.part(part),
            self.candidates(part),
            self.loader(part),
            self.popularity,
            self.config,
            progress=part,
        )

    def rank_by_popularity(self, part: str) -> Ranks:
        """Ranks a part's targets by training popularity."""
        return ranking.rank_by_popularity(
            self.split.part(part), self.candidates(part), self.popularity, self.split.item_offset
        )

    def table(self, part: str, ranks: Ranks | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns ``{domain: {group: {"n": …, metric: …}}}`` of a part, ranked here if it was not."""
        instances = self.split.part(part)
        ranks = ranks or self.rank(part)
        return self.metrics.table(instances, ranks.rank, groups(self.split, instances), self.dataset.domains)

    def instance_frame(self, part: str, ranks: Ranks) -> pd.DataFrame:
        """Returns the per-instance table of a part."""
        instances = self.split.part(part)
        masks = groups(self.split, instances)
        return report.instance_frame(self.dataset, instances, ranks, self.metrics, masks, part)

    def fallbacks(self, part: str, ranks: Ranks) -> dict[str, dict[str, int]]:
        """Returns how many instances popularity ranked in the model's place, by domain and group."""
        instances = self.split.part(part)
        masks = groups(self.split, instances)
        return {
            name: {
                g: int((mask & ranks.fallback & (instances.domain == k)).sum()) for g, mask in masks.items()
            }
            for k, name in enumerate(self.dataset.domains)
        }


def load_data(config: CDRConfig) -> tuple[CrossDomainDataset, Split]:
    """Returns the dataset that the settings ask for, prepared first if need be, and its split.

    Raises:
        CDRError: the data cannot be had, are malformed, do not fit the settings, or the split leaks.
    """
    _ensure(config, allow_simulated=False)
    dataset = CrossDomainDataset(config)
    return dataset, make_split(config, dataset)


def build(
    config: CDRConfig, dataset: CrossDomainDataset | None = None, split: Split | None = None
) -> Experiment:
    """Returns an untrained model with all it needs, its stages trained.

    Args:
        config: the settings.
        dataset, split: as :func:`load_data` returns them; loaded if not given.

    Raises:
        CDRError: as :func:`load_data`; or the data are not what the model needs.
    """
    metrics = RankingMetrics(config)
    if dataset is None or split is None:
        dataset, split = load_data(config)
    model_class = config.model_class
    _check_fit(model_class, dataset, split)
    split = run_stages(config, dataset, split, model_class)
    dataset.split = split
    split = model_class.prepare_data(config, dataset, split)
    dataset.split = split
    # After all that may draw, so that a stage from the cache and one trained just now leave the same start.
    seed_everything(int(config["seed"]))
    model = model_class(config, dataset).to(config["device"])
    return Experiment(
        config=config,
        dataset=dataset,
        split=split,
        model=model,
        sampler=CrossDomainSampler(split, int(config["candidate_seed"])),
        metrics=metrics,
        popularity=ranking.popularity_scores(split),
    )


def load_model(run: str | Path, model: type | None = None, **settings: Any) -> Experiment:
    """Returns the experiment of a saved run, with its best weights.

    Args:
        run: the run's folder.
        model: the class, if the run was of one that the registry does not know.
        settings: run-time settings to use instead of the stored ones (``data_path``, ``use_gpu``, ...).

    Raises:
        CDRError: there is no such run, or it was trained on other data than there are now.
    """
    folder = Path(run)
    stored = _stored_settings(folder)
    foreign = next((key for key in settings if key not in RUNTIME_KEYS), None)
    if foreign:
        raise CDRError(f"'{foreign}' decides what the run in {folder} computed; it cannot be changed now.")
    config = CDRConfig(model, config_dict={**stored, **settings})
    _set_threads(config)
    experiment = build(config)
    path = folder / checkpoint.MODEL
    name = "model"
    if not path.exists():
        path, name = folder / checkpoint.LAST, "best"  # an unfinished run: its best so far
    if not path.exists():
        raise CDRError(f"{folder} holds no weights yet: resume the run (--resume={folder.name}).")
    data, device = experiment.split.fingerprint, config["device"]
    _, states = checkpoint.load(path, model=config["model"], data=data, device=device)
    checkpoint.restore(experiment.model, states[name], path)
    experiment.model.eval()
    return experiment


@torch.no_grad()
def recommend(
    experiment: Experiment, users: Sequence[str], k: int = 10, domain: str | None = None
) -> pd.DataFrame:
    """Returns each user's best items of a domain that the user has not touched.

    A user is served from the whole history that the run may know: the training data and, for a held-out
    user, the histories of the held-out instances. A user whom the data do not know, or whom the model cannot
    score, gets the most popular items of the domain instead, and the column ``source`` says so.

    Args:
        users: external ids.
        k: how many items each; fewer where the domain has fewer that the user has not touched.
        domain: its name; None: the settings' ``target``, or the only domain there is.

    Returns:
        One row per user and item, best first: user, rank (from 1), item (external id), score, source
        ("model" or "popularity").

    Raises:
        CDRError: the domain is unknown, or not given where there are several.
    """
    config, dataset, split, model = experiment.config, experiment.dataset, experiment.split, experiment.model
    name = domain or config["target"] or (dataset.domains[0] if dataset.n_domains == 1 else None)
    if name is None:
        raise CDRError(f"Which domain? Give one of {', '.join(dataset.domains)}.")
    target = dataset.domain_index(name)
    own = dataset.item_range(target)
    tokens = [str(user) for user in users]
    ids = np.array([dataset.field2token_id[dataset.uid_field].get(token, 0) for token in tokens], np.int64)
    known = np.unique(ids[ids > 0])
    popular = torch.from_numpy(experiment.popularity[own].astype(np.float64))
    best: dict[int, tuple[np.ndarray, np.ndarray, str]] = {0: (*_top(popular, k), "popularity")}
    instances = _serving_instances(dataset, split, known, target)
    for stage in type(model).stages(config):
        instances = augment(config, dataset, split, stage, instances)
    if model.needs_pseudo and instances.recalled is None:
        served = replace(split, test=instances)
        instances = type(model).prepare_data(config, dataset, served).test
    model.eval()
    for batch in CrossDomainLoader(config, instances, model):
        batch = batch.to(config["device"])
        able = model.can_score(batch)
        scorable = torch.ones(len(batch), dtype=torch.bool) if able is None else able.cpu()
        scores = popular.expand(len(batch), -1).clone()
        if scorable.any():
            part = batch if scorable.all() else batch.rows(scorable.to(batch.users.device))
            scores[scorable] = model.score(part).cpu().double()
        owners = batch.users.cpu().numpy()
        row, item = split.touched.rows(owners)
        here = (item >= own.start) & (item < own.stop)
        scores[row[here], item[here] - own.start] = -torch.inf
        for user, line, by_model in zip(owners, scores, scorable.tolist(), strict=True):
            best[int(user)] = (*_top(line, k), "model" if by_model else "popularity")
    frames = []
    for token, user in zip(tokens, ids, strict=True):
        place, score, source = best[int(user)]
        item = dataset.item_token(place + own.start)
        frame = {
            "user": token,
            "rank": np.arange(1, len(place) + 1),
            "item": item,
            "score": score,
            "source": source,
        }
        frames.append(pd.DataFrame(frame))
    empty = pd.DataFrame(columns=["user", "rank", "item", "score", "source"])
    return pd.concat(frames, ignore_index=True) if frames else empty


# -- one run -------------------------------------------------------------------------------------------------


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
        config, folder = _settings_to_resume(
            model, dataset, config_file_list, config_dict, list(argv or ()), given
        )
        result = _finished(folder)
        if result is not None:
            print(report.result_tables(result))
            _write_result(result, config["result_file"])
            return result
        return _run(config, folder, [], new=False)
    config = CDRConfig(model, dataset, config_file_list, config_dict, argv)
    if config["task"] != "next_item":
        raise CDRError(
            f"task={config['task']} cannot be run: this version ranks items only (task=next_item)."
        )
    RankingMetrics(config)  # an error now, and not after the data
    make_folder(config["checkpoint_dir"])
    if config["result_file"]:
        make_folder(Path(config["result_file"]).absolute().parent)
    ensured = _ensure(config, allow_simulated=bool(config["allow_simulated"]))
    if ensured.name != config["dataset"]:
        config = CDRConfig(model, ensured.name, config_file_list, config_dict, argv)
    if ensured.simulated:
        config["simulated"] = True
    return _run(config, _new_folder(config), ensured.notes, new=True)


def _run(config: CDRConfig, folder: Path, notes: list[str], *, new: bool) -> dict[str, Any]:
    if config["task"] != "next_item":
        raise CDRError(
            f"task={config['task']} cannot be run: this version ranks items only (task=next_item)."
        )
    _write_settings(config, folder / SETTINGS)
    hint = f"interrupted; {_how_to_resume(folder)}"
    try:
        with _logging(folder / LOG, config["state"]):
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
    _set_threads(config)
    seconds: dict[str, float] = {}
    with _timed(seconds, "data"):
        dataset, split = load_data(config)
        _log_data(config, dataset, split, notes)
    with _timed(seconds, "model"):
        experiment = build(config, dataset, split)
        experiment.candidates("valid")
    logger.info(_describe_model(experiment.model))

    trainer = CrossDomainTrainer(
        config,
        experiment.model,
        folder,
        data=split.fingerprint,
        resume_hint=_how_to_resume(folder),
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
        experiment.loader("train", training=True),
        lambda: experiment.table("valid"),
        show_progress=bool(config["show_progress"]),
    )
    seconds.update(trainer.seconds)
    with _timed(seconds, "evaluation"):
        ranks = {part: experiment.rank(part) for part in HELD_OUT}
        popularity = experiment.table("test", experiment.rank_by_popularity("test"))
        second_pool = experiment.among_test_items()
    tables = {part: experiment.table(part, ranks[part]) for part in HELD_OUT}
    result = {
        "model": config["model"],
        "dataset": config["dataset"],
        "simulated": bool(config["simulated"]),
        "seed": config["seed"],
        "split": split.name,
        "run_id": config["run_id"],
        "best_valid_score": mean_over_domains(tables["valid"], experiment.metrics.valid_metric),
        **tables,
        "popularity": popularity,
        **({} if second_pool is None else dict(zip(TEST_ITEMS, second_pool, strict=True))),
        "fallback": {part: experiment.fallbacks(part, ranks[part]) for part in HELD_OUT},
        "stopped": trainer.stopped,
        "epochs_run": trainer.epochs_run,
        "seconds": {
            name: round(value, 3) for name, value in {**seconds, "total": sum(seconds.values())}.items()
        },
        "settings": config.to_dict(),
        "versions": versions(),
        "notes": _notes(experiment, trainer),
        "report": experiment.split.report,
    }
    result = json.loads(json.dumps(result, default=_plain))
    if config["save_instances"]:
        frames = [experiment.instance_frame(part, ranks[part]) for part in HELD_OUT]
        report.write_instances(pd.concat(frames, ignore_index=True), folder)
    # Last of all: a run whose result is there is finished.
    _write_result(result, folder / RESULT)
    _write_result(result, config["result_file"])
    last.unlink(missing_ok=True)
    table = report.result_tables(result)
    logger.info("\n" + table, extra={"console": False})
    print(table)
    logger.info(f"{set_color('Result', 'blue')}: {folder / RESULT}")
    return result


def versions() -> dict[str, str]:
    """The versions of Python, this library, and what it computes with."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "recbole_cdr_ext": __version__, **found}


# -- settings and folders ------------------------------------------------------------------------------------


def _ensure(config: CDRConfig, *, allow_simulated: bool):
    return ensure_dataset(
        config["dataset"],
        data_path=config["data_root"],
        raw=config["raw"],
        download=bool(config["download"]),
        layout="rows" if config["split"] == "published" else "users",
        allow_simulated=allow_simulated,
        progress=bool(config["show_progress"]),
    )


def _new_folder(config: CDRConfig) -> Path:
    run_id = config["run_id"]
    if run_id is None:
        # The random part tells apart runs of one second; the rest is for the reader of a folder listing.
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        run_id = f"{config['model']}-{config['dataset']}-{now}-{os.urandom(3).hex()}"
        config["run_id"] = run_id
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


def _settings_to_resume(
    model, dataset, config_file_list, config_dict, argv: list[str], given: Mapping[str, Any]
) -> tuple[CDRConfig, Path]:
    """Returns the stored settings of the run to resume, and its folder.

    Raises:
        CDRError: there is no such run, or a setting that is given besides contradicts the run's.
    """
    folder = _find_run(str(given["resume"]), str(given.get("checkpoint_dir") or DEFAULT_CHECKPOINT_DIR))
    stored = _stored_settings(folder)
    files = [*file_names(config_file_list), *file_names(given.get("config_files"))]
    # Anything given stands above what is stored: what then differs is a contradiction.
    beside: dict[str, Any] = {}
    for file in files:
        beside |= read_mapping(find_config_file(file))
    beside |= {key: value for key, value in dict(config_dict or {}).items() if key != "config_files"}
    argv = [word for word in argv if word.startswith("--") and not word.startswith("--config_files=")]
    asked = {
        "model": model or given.get("model"),
        "dataset": dataset or given.get("dataset"),
    }
    for key, value in asked.items():
        name = value.__name__ if isinstance(value, type) else value
        if name not in (None, stored[key]):
            raise _contradiction(key, name, stored[key], folder)
    before = CDRConfig(model if isinstance(model, type) else None, config_dict=stored)
    after = CDRConfig(model, dataset, config_dict={**stored, **beside}, argv=argv)
    old, new = before.to_dict(), after.to_dict()
    for key in sorted(set(old) | set(new)):
        if key not in RUNTIME_KEYS and old.get(key) != new.get(key):
            raise _contradiction(key, new.get(key), old.get(key), folder)
    after["run_id"], after["checkpoint_dir"], after["resume"] = folder.name, str(folder.parent), None
    return after, folder


def _how_to_resume(folder: Path) -> str:
    # The run's name is enough where --resume looks by itself.
    name = folder.name if folder.parent == Path(DEFAULT_CHECKPOINT_DIR) else folder
    return f"go on with --resume={name}"


def _contradiction(key: str, given: Any, stored: Any, folder: Path) -> CDRError:
    return CDRError(
        f"{key}={given} contradicts the run that is to be resumed ({folder}: {key}={stored}). Leave it out, "
        "or begin a new run."
    )


def _find_run(name: str, checkpoint_dir: str) -> Path:
    for folder in (Path(checkpoint_dir) / name, Path(name)):
        if (folder / SETTINGS).is_file():
            return folder
    root = Path(checkpoint_dir)
    known = [path.parent.name for path in root.glob(f"*/{SETTINGS}")] if root.is_dir() else []
    raise CDRError(
        f"There is no run '{name}': neither {root / name} nor {name} is a folder with a {SETTINGS}."
        f"{did_you_mean(name, known)}"
    )


def _stored_settings(folder: Path) -> dict[str, Any]:
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


def _finished(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CDRError(f"cannot read {path}: {error}.") from error


def _write_settings(config: CDRConfig, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")


def _write_result(result: Mapping[str, Any], path: str | Path | None) -> None:
    if path:
        make_folder(Path(path).absolute().parent)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


# -- checks --------------------------------------------------------------------------------------------------


def _check_fit(model_class: type[CrossDomainRecommender], dataset: CrossDomainDataset, split: Split) -> None:
    """Refuses data that a model cannot learn from, by what the model says of itself."""
    low, high = _DOMAINS_TAKEN.get(model_class.domains, (1, None))
    if dataset.n_domains < low or (high is not None and dataset.n_domains > high):
        raise CDRError(
            f"{model_class.__name__} takes {model_class.domains} domain(s), dataset '{dataset.dataset_name}' "
            f"has {dataset.n_domains}: {', '.join(dataset.domains)}. Choose among them with 'domains'."
        )
    if model_class.needs_overlap and not n_overlapping(split):
        raise CDRError(
            f"{model_class.__name__} learns from users with interactions in several domains, and the "
            f"training data of '{dataset.dataset_name}' have none "
            f"(of {len(np.unique(split.train_events.user)):,} users)."
        )


def n_overlapping(split: Split) -> int:
    """Returns how many users have training interactions in more than one domain."""
    events = split.train_events
    pairs = np.unique(events.user.astype(np.int64) * split.n_domains + events.domain)
    return int((np.bincount(pairs // split.n_domains) > 1).sum())


def _set_threads(config: CDRConfig) -> None:
    if config["torch_threads"]:
        torch.set_num_threads(int(config["torch_threads"]))


# -- what is said --------------------------------------------------------------------------------------------


def _log_data(config: CDRConfig, dataset: CrossDomainDataset, split: Split, notes: list[str]) -> None:
    info = logging.getLogger().info
    simulated = set_color(" (SIMULATED DATA)", "red") if config["simulated"] else ""
    info(
        f"{set_color(config['model'], 'pink')} on {set_color(config['dataset'], 'pink')}{simulated}; "
        f"recbole_cdr_ext {__version__}, run {config['run_id']}"
    )
    for note in notes:
        info(note)
    info(
        f"task {config['task']}, split {split.name} (split_seed {config['split_seed']}), "
        f"seed {config['seed']}, device {config['device']}, {torch.get_num_threads()} threads"
    )
    info(
        f"{set_color('data', 'blue')}: {dataset.summary()}; "
        f"{n_overlapping(split):,} users train in several domains"
    )
    for part in PARTS:
        instances = split.part(part)
        masks = groups(split, instances)
        said = [
            f"{name} {int((instances.domain == k).sum()):,} ("
            + ", ".join(
                f"{g} {int((m & (instances.domain == k)).sum()):,}" for g, m in masks.items() if g != "all"
            )
            + ")"
            for k, name in enumerate(dataset.domains)
        ]
        info(f"{set_color(f'{part} instances', 'blue')}: {len(instances):,}: {', '.join(said)}")
    for what, count in split.report.items():
        if not what.startswith("leak: ") and count:
            info(f"  {what}: {count}")
    leaks = {
        what.removeprefix("leak: "): n for what, n in split.report.items() if what.startswith("leak: ") and n
    }
    found = "; ".join(f"{what}: {n}" for what, n in leaks.items())
    label = set_color("leak audit", "blue")
    if leaks:
        logging.getLogger().warning(f"{label}: {found}")
    else:
        info(f"{label}: no held-out pair can be reached")


def _describe_model(model: CrossDomainRecommender) -> str:
    n = sum(p.numel() for p in model.parameters())
    phases = ", ".join(phase.name for phase in model.phases()) or "nothing to train"
    return f"{set_color('model', 'blue')}: {type(model).__name__}, {n:,} parameters; phases: {phases}"


def _notes(experiment: Experiment, trainer: CrossDomainTrainer) -> list[str]:
    notes = []
    config, dataset, split = experiment.config, experiment.dataset, experiment.split
    if config["simulated"]:
        notes.append("The data are simulated: the figures say nothing about real users.")
    candidates = experiment.candidates("test")
    most = {
        name: int(candidates.counts[split.test.domain == k].max(initial=0))
        for k, name in enumerate(dataset.domains)
    }
    few = {name: count for name, count in most.items() if 0 < count < COMPARABLE_CANDIDATES}
    if few:
        said = ", ".join(
            f"{count:,} ('{name}' has {dataset.n_domain_items(dataset.domain_index(name)):,} items)"
            for name, count in few.items()
        )
        notes.append(
            f"Fewer than {COMPARABLE_CANDIDATES:,} candidates are ranked, at most {said}: the metrics are "
            "not comparable with those from 999 negatives."
        )
    if not split.ordered and split.name != "published":
        notes.append("order: none: targets are random items and histories are shuffled; order plays no part.")
    if split.name == "published":
        notes.append(
            "split=published leaks and is not chronological; the counts stand in the log and in the result."
        )
    if trainer.stopped == "time":
        notes.append(f"Training was stopped by max_seconds={config['max_seconds']:g}, not by early stopping.")
    if trainer.skipped:
        notes.append(f"No time was left for the phases: {', '.join(trainer.skipped)}.")
    return notes


# -- small helpers -------------------------------------------------------------------------------------------


def _serving_instances(
    dataset: CrossDomainDataset, split: Split, users: np.ndarray, domain: int
) -> Instances:
    """One instance without a target for each user, over all that the run may know of the user.

    Args:
        users: (n,) ascending user ids.
    """
    events = dataset.events.take(np.isin(dataset.events.user, users))
    span = np.int64(dataset.item_num)
    known = [split.train_events.user * span + split.train_events.item]
    for part in (split.valid, split.test):
        held_out = part.take(np.isin(part.user, users))
        length = held_out.lengths.ravel()
        first = np.repeat(held_out.start.ravel() - np.append(0, np.cumsum(length)[:-1]), length)
        place = first + np.arange(length.sum())
        known.append(np.repeat(held_out.user, held_out.lengths.sum(1)) * span + held_out.pool.item[place])
    pair = events.user * span + events.item
    once = np.zeros(len(events), bool)
    once[np.unique(pair, return_index=True)[1]] = True  # published rows may repeat what a user did
    events = events.take(np.isin(pair, np.concatenate(known)) & once)
    n, n_domains = len(users), dataset.n_domains
    block = np.searchsorted(users, events.user) * n_domains + events.domain
    order = np.argsort(block, kind="stable")
    counts = np.bincount(block, minlength=n * n_domains)
    stop = np.cumsum(counts).reshape(n, n_domains)
    return Instances(
        user=users,
        domain=np.full(n, domain),
        target=np.zeros(n, np.int64),
        time=np.full(n, np.inf),
        sequence=users - 1,
        start=stop - counts.reshape(n, n_domains),
        stop=stop,
        pool=Pool(events.item, events.user, np.arange(len(events)), events.time).take(order),
    )


def _top(scores: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (places, scores) of the best, without those at minus infinity; of equal ones, the first."""
    values, places = torch.sort(scores, descending=True, stable=True)
    kept = values[:k] > -torch.inf
    return places[:k][kept].numpy(), values[:k][kept].numpy()


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + perf_counter() - started


class _Uncoloured(logging.Formatter):
    _COLOUR = re.compile(r"\x1b\[[0-9;]*m")

    def format(self, record: logging.LogRecord) -> str:
        return self._COLOUR.sub("", super().format(record))


@contextmanager
def _logging(path: Path, level: str | None) -> Iterator[None]:
    """Sends the log to a file and to the console, as RecBole formats it, for as long as a run lasts.

    RecBole's own set-up writes to ``./log`` and cannot be taken back; here the root logger is, afterwards,
    as it was.
    """
    root = logging.getLogger()
    number = logging.getLevelName((level or "INFO").upper())
    number = number if isinstance(number, int) else logging.INFO
    text = "%(asctime)-15s %(levelname)s  %(message)s"
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(_Uncoloured(text, "%a %d %b %Y %H:%M:%S"))
    console = logging.StreamHandler()
    console.setFormatter((logging.Formatter if sys.stderr.isatty() else _Uncoloured)(text, "%d %b %H:%M"))
    console.addFilter(lambda record: getattr(record, "console", True))
    before = root.level
    root.setLevel(number)
    for handler in (file, console):
        handler.setLevel(number)
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(before)
        for handler in (file, console):
            root.removeHandler(handler)
            handler.close()
