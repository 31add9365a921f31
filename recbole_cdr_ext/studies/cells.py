"""The runs of a study: what each is told, all of its settings, its data, and the key that says whether it is done."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from recbole_cdr_ext.analysis.bridges import check_bridge
from recbole_cdr_ext.data.prepare import ensure_dataset
from recbole_cdr_ext.data.prepare.preparation import layout_folder
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics, ValueMetrics
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.runs.finished import CAPS
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.settings.reading import as_argument, file_names, text_of
from recbole_cdr_ext.studies.definition import SEED, Settings, Study, needs_bridges
from recbole_cdr_ext.tasks import get_task


@dataclass(frozen=True)
class Source:
    """A dataset's files, as one layout has them."""

    dataset: str
    root: str
    layout: str
    domains: tuple[str, ...]

    def digest(self) -> str | None:
        """Returns a hash of the atomic files; None if they are not there."""
        names = [f"{name}.inter" for name in (*self.domains, *(["rows"] if self.layout == "rows" else []))]
        folder, digest = layout_folder(self.root, self.dataset, self.layout), hashlib.sha256()
        for name in sorted(names):
            try:
                with (folder / name).open("rb") as file:
                    digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
            except FileNotFoundError:
                return None
        return digest.hexdigest()


def prepare(source: Source, raw: str | None, download: bool) -> None:
    """Has a source prepared.

    Raises:
        CDRError: it cannot be had.
    """
    ensure_dataset(
        source.dataset,
        data_path=source.root,
        raw=raw,
        download=download,
        layout=source.layout,
        progress=False,
    )


# Of the settings that reports leave aside, those that change a result: sums depend on the number of threads.
DECIDING = CAPS | {"metric_decimal_place", "torch_threads"}
# Settings of where and how runs run; a study's file holds none, a command may.
MACHINE_KEYS = RUNTIME_KEYS - DECIDING - {"config_files"} | {"torch_threads"}
# What the study says of each run itself.
_SET_BY_STUDY = {
    "model",
    "seed",
    "task",
    "run_id",
    "resume",
    "result_file",
    "save_instances",
    "evaluate_test",
    "allow_simulated",
    "tensorboard",
}
QUIET = {
    "show_progress": "False",
    "tensorboard": "False",
    "allow_simulated": "False",
    "save_instances": "True",
    "torch_threads": "1",
}


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        words: what the run is told, without what lies on the machine.
        machine: the words of where and how it runs.
        settings: all of its settings, as its result would hold them.
        identity: a hash of the settings that decide its result.
        part: the part that is evaluated, "test" or "valid".
    """

    row: str
    scene: str
    varied: tuple[str, Any] | None
    seed: int
    words: tuple[str, ...]
    machine: tuple[str, ...] = field(repr=False)
    settings: Settings = field(repr=False)
    identity: str = field(repr=False)
    source: Source
    part: str = "test"

    @property
    def place(self) -> tuple[str, str | None]:
        """The table that it stands in: its scene, and what is varied there."""
        return self.scene, self.varied and f"{self.varied[0]}={text_of(self.varied[1])}"

    @property
    def name(self) -> str:
        """What messages call it."""
        return ", ".join([self.row, *(part for part in self.place if part), f"seed {self.seed}"])

    @property
    def command(self) -> str:
        """What a reader types to get it."""
        return shlex.join(["recbole-cdr", "run", *self.words])

    @property
    def metrics(self) -> list[str]:
        """The metrics that its result has."""
        return metrics_of(self.settings).names

    def key(self, data: str) -> str:
        """Returns what decides its result: settings, the digest of the data, and which part is evaluated."""
        part = "" if self.part == "test" else f" {self.part}"
        return hashlib.sha256(f"{self.identity} {data}{part}".encode()).hexdigest()

    def run_id(self, data: str) -> str:
        """Returns the name of its run's folder."""
        return f"study-{self.settings['model']}-{self.settings['dataset']}-{self.key(data)[:12]}"


def metrics_of(settings: Mapping[str, Any]) -> RankingMetrics | ValueMetrics:
    """Returns the metrics that settings ask for."""
    return get_task(settings["task"]).metrics(settings)


# -- from studies to cells ------------------------------------------------------------------------------------------


def make_cells(study: Study, passed: Mapping[str, Any] | None = None) -> list[Cell]:
    """Returns the cells of a study, first seeds first; all settings are checked.

    Args:
        passed: settings of all runs, above the study's own; text is read as on the command line.

    Raises:
        CDRError: a setting, model, dataset, metric or group is none, two rows are the same run, or an analysis can't
            be made of a row: what and where.
    """
    arguments = {
        key: value if isinstance(value, str) else as_argument(value) for key, value in (passed or {}).items()
    }
    for key in arguments:
        if key in _SET_BY_STUDY:
            where = {"model": " Rows say which.", "seed": " Say --seeds=1,2."}.get(key, "")
            raise CDRError(f"'{key}' is set by the study for each of its runs: leave it out.{where}")
        if key in study.vary:
            raise CDRError(f"'{key}' is what {study.name} varies ({key} in 'vary'): leave it out.")
    _check_machine(study)
    with _warnings_once():
        return _cells_of(study, arguments)


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Lets no warning be said of every run that it holds for."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in seen
        seen.add(text)
        return new

    logger = logging.getLogger()
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _cells_of(study: Study, arguments: Mapping[str, str]) -> list[Cell]:
    by_seed: dict[int, list[Cell]] = {}
    for scene in study.scenes:
        for varied in study.variations:
            same: dict[str, str] = {}
            for row in study.rows:
                for cell in _of_all_seeds(study, arguments, scene, varied, row):
                    by_seed.setdefault(cell.seed, []).append(cell)
                other = same.setdefault(cell.identity, row)
                if other != row:
                    raise CDRError(
                        f"{study.path}: the rows '{other}' and '{row}' are the same run on '{scene}': leave out one of "
                        "them, or whatever makes them alike."
                    )
    cells = [cell for cells in by_seed.values() for cell in cells]
    _check_shown(study, cells)
    return cells


def _of_all_seeds(
    study: Study, arguments: Mapping[str, str], scene: str, varied: tuple[str, Any] | None, row: str
) -> Iterator[Cell]:
    """Yields the cells that differ in their seed alone; settings are resolved once."""
    blocks: dict[str, Any] = {**study.settings, **study.scenes[scene], **study.rows[row]}
    if study.task is not None:
        blocks["task"] = study.task
    blocks |= dict([varied]) if varied else {}
    files = [
        str(name)
        for block in (study.settings, study.scenes[scene], study.rows[row], arguments)
        for name in file_names(block.get("config_files"))
    ]
    texts = {key: as_argument(value) for key, value in blocks.items() if value != SEED} | dict(arguments)
    seeded = [key for key, value in blocks.items() if value == SEED and key not in arguments]
    if files:
        texts["config_files"] = ",".join(files)
    machine = {key: text for key, text in {**QUIET, **arguments}.items() if key in MACHINE_KEYS}
    words = {key: text for key, text in texts.items() if key not in ("model", "dataset", *MACHINE_KEYS)}
    if study.part == "valid":
        words["evaluate_test"] = "False"
    resolved: CDRConfig | None = None
    for seed in study.seeds_of(scene):
        of_seed = {"seed": str(seed), **dict.fromkeys(seeded, str(seed))}
        run_settings = {"model": texts["model"], "dataset": texts["dataset"], **of_seed, **words}
        if resolved is None:
            resolved = _resolve(study, scene, row, {**run_settings, **machine}, arguments)
        settings = {**resolved.to_dict(), **dict.fromkeys(of_seed, seed)}
        yield Cell(
            row=row,
            scene=scene,
            varied=varied,
            seed=seed,
            words=_as_words(run_settings),
            machine=_as_words(machine),
            settings=settings,
            identity=_identity(settings),
            source=Source(
                settings["dataset"],
                settings["data_path"],
                get_split(settings["split"]).layout,
                tuple(settings["domains"]),
            ),
            part=study.part,
        )


def _as_words(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{key}={text}" for key, text in settings.items())


def _resolve(
    study: Study, scene: str, row: str, settings: Mapping[str, str], arguments: Mapping[str, str]
) -> CDRConfig:
    """Returns the settings of a run, from the very words that it will be told."""
    try:
        config = CDRConfig(argv=_as_words(settings))
        metrics_of(config.to_dict())
        if needs_bridges(study):
            check_bridge(f"{config['model']} can't be analysed", config.model_class, config.to_dict())
    except CDRError as error:
        text = str(error)
        for key in set(settings) - set(arguments):  # those stand in the study's file
            text = text.replace(f"'{key}' (command line)", f"'{key}'").replace(
                f"{key}={settings[key]!r} (command line)", f"{key}={settings[key]}"
            )
        raise CDRError(f"{study.path}, row '{row}' on '{scene}': {text}") from error
    return config


def deciding(settings: Settings) -> dict[str, Any]:
    """Returns the settings that decide a run's result, as JSON has them."""
    decides = {key: value for key, value in settings.items() if key not in RUNTIME_KEYS - DECIDING}
    plain: dict[str, Any] = json.loads(json.dumps(decides, sort_keys=True))
    return plain


def _identity(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(deciding(settings), sort_keys=True).encode()).hexdigest()


def _check_machine(study: Study) -> None:
    blocks = {"settings": study.settings, **study.scenes, **study.rows, "vary": study.vary}
    for label, block in blocks.items():
        for key in block:
            if key in MACHINE_KEYS | _SET_BY_STUDY - {"model"}:
                raise CDRError(
                    f"{study.path}, '{label}': '{key}' is no part of a study"
                    + (
                        ": the study sets it itself."
                        if key in _SET_BY_STUDY
                        else f": give it on the command line, --{key}=..."
                    )
                )


def _check_shown(study: Study, cells: Sequence[Cell]) -> None:
    for cell in {(cell.scene, cell.row): cell for cell in cells}.values():
        groups = get_task(cell.settings["task"]).groups
        for what, shown, known in (
            ("metrics", study.metrics, cell.metrics),
            ("groups", study.groups, groups),
        ):
            missing = next((name for name in shown or () if name not in known), None)
            if missing is not None:
                raise CDRError(
                    f"{study.path}, {what}: the runs of '{cell.row}' on '{cell.scene}' have no '{missing}', only "
                    f"{', '.join(known)}.{did_you_mean(missing, known)}"
                )
