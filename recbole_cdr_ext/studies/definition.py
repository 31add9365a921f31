"""Studies as files say them: read, checked as far as that needs no settings, changed by options, and listed.

Imports nothing heavy: ``--help`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.command_options import ANALYSIS_OPTIONS as ANALYSES
from recbole_cdr_ext.settings.reading import TASKS, dataset_property_files, properties_dir, read_mapping

SEED = "seed"  # as a setting's value: that of training
DEFAULT_SEEDS = (2024,)
PARTS = ("test", "valid")
Settings = Mapping[str, Any]

KEYS = ("title", "task", "part", "datasets", "scenes", "seeds", "settings", "models", "rows", "vary", "metrics",
        "groups", "baseline", "analyses", "quoted", "notes")  # fmt: skip
# Settings that have a place of their own in a study.
_ELSEWHERE = {
    "model": "in a row (rows, models)",
    "dataset": "in a scene (scenes, datasets)",
    "seed": "in 'seeds'",
    "task": "beside 'title', for all runs",
}
# What the study gives an analysis itself.
_OF_ANALYSES = {"runs", "out", "model", "dataset"}
_BRIDGES_ONLY = ("fgsm", "landscape", "lipschitz")


@dataclass(frozen=True)
class Study:
    """What is run, and what of it is shown.

    Attributes:
        path: the file.
        part: the part that is evaluated, "test", or "valid" where settings are searched for.
        scenes: what tables are made of, with ``dataset``, by label.
        plain: whether scenes are datasets and nothing else.
        rows: what is compared, with ``model``, by label.
        vary: values by setting; one setting at a time has another value than in the scene.
        metrics, groups: what tables show, in this order; None: all.
        analyses: options by kind.
        scene_seeds: seeds of the scenes that have others than the study.
        quoted: figures of others, {label: {scene: {domain: {user group: {metric: value}}}}}.
        notes: what a reader of a scene's table must know.
    """

    name: str
    path: Path
    title: str
    task: str | None
    scenes: Mapping[str, Settings]
    plain: bool
    seeds: tuple[int, ...]
    settings: Settings
    rows: Mapping[str, Settings]
    vary: Mapping[str, tuple[Any, ...]]
    metrics: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    baseline: str | None
    analyses: Mapping[str, Settings]
    scene_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    quoted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    part: str = "test"

    @property
    def variations(self) -> list[tuple[str, Any] | None]:
        """What is varied, (setting, value); [None] where nothing is."""
        return [(key, value) for key, values in self.vary.items() for value in values] or [None]

    @property
    def n_runs(self) -> int:
        """The number of its cells."""
        of_a_seed = len(self.rows) * len(self.variations)
        return of_a_seed * sum(len(self.seeds_of(scene)) for scene in self.scenes)

    def seeds_of(self, scene: str) -> tuple[int, ...]:
        """Returns the seeds of a scene's runs."""
        return self.scene_seeds.get(scene, self.seeds)

    @property
    def seeds_in_words(self) -> str:
        """The seeds, and where there are others."""
        others = [f"{scene}: {', '.join(map(str, seeds))}" for scene, seeds in self.scene_seeds.items()]
        return ", ".join(map(str, self.seeds)) + (f" ({'; '.join(others)})" if others else "")

    def on(self, datasets: Iterable[str]) -> Study:
        """Returns the study on other datasets.

        Scenes keep their other settings, the names of domains if the dataset has all of them, and are called by what
        they are then; scenes that become the same are one.
        """
        changed: dict[str, Settings] = {}
        for name in datasets:
            domains = _domains(name)
            for scene in self.scenes.values():
                named = {scene[key] for key in ("source", "target") if key in scene}
                named |= set(scene.get("domains") or ())
                settings = {
                    key: value
                    for key, value in scene.items()
                    if key not in ("source", "target", "domains") or named <= set(domains)
                }
                label = ", ".join([name, *(f"{k}={v}" for k, v in settings.items() if k != "dataset")])
                changed[label] = {**settings, "dataset": name}
        # What is said of a scene holds for no other data.
        notes = {
            scene: text for scene, text in self.notes.items() if changed.get(scene) == self.scenes[scene]
        }
        quoted = {
            label: {scene: of for scene, of in scenes.items() if changed.get(scene) == self.scenes[scene]}
            for label, scenes in self.quoted.items()
        }
        seeds = {
            scene: of for scene, of in self.scene_seeds.items() if changed.get(scene) == self.scenes[scene]
        }
        return replace(self, scenes=changed, notes=notes, quoted=quoted, scene_seeds=seeds)

    def with_seeds(self, seeds: Iterable[int | str]) -> Study:
        """Returns the study with other seeds, in all scenes."""
        return replace(self, seeds=_different(tuple(seeds), "--seeds", _seed), scene_seeds={})


def shipped_studies() -> dict[str, Path]:
    """Returns the package's own studies, by name."""
    return {path.stem: path for path in sorted((properties_dir() / "study").glob("*.yaml"))}


def find_study(name: str | Path) -> Path:
    """Returns the file of a study: a path, or the name of one of the package's.

    Raises:
        CDRError: there is none (with the nearest name).
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped_studies()
    if str(name) not in known:
        raise CDRError(
            f"There is no study '{name}', neither as a file here nor among the package's: {', '.join(known)}."
            f"{did_you_mean(str(name), known)}"
        )
    return known[str(name)]


def read_study(name: str | Path) -> Study:
    """Reads and checks a study; settings are checked when cells are made of it.

    Raises:
        CDRError: there is no such file, or something in it is not as it should be: what, where, and how to mend it.
    """
    path = find_study(name)
    content = read_mapping(path)
    try:
        return _read(path, content)
    except CDRError as error:
        raise CDRError(f"{path}: {error}") from error


def _read(path: Path, content: Mapping[str, Any]) -> Study:
    unknown = next((key for key in content if key not in KEYS), None)
    if unknown:
        raise CDRError(
            f"unknown key '{unknown}'.{did_you_mean(unknown, KEYS)} A study has {', '.join(KEYS)}; settings of all "
            "runs stand under 'settings'."
        )
    task = content.get("task")
    if task not in (None, *TASKS):
        raise CDRError(f"task: {task} should be one of {', '.join(TASKS)}.{did_you_mean(str(task), TASKS)}")
    part = _part(content)
    title = content.get("title", path.stem)
    if not isinstance(title, str):
        raise CDRError(f"title: {title} should be text.")
    content, scene_seeds = _without_seeds(content)
    scenes = _labelled(content, "scenes", "datasets", "dataset")
    rows = _labelled(content, "rows", "models", "model")
    settings = _settings(content.get("settings") or {}, "settings")
    vary = _vary(content.get("vary") or {}, {"settings": settings, **scenes, **rows})
    seeds = content.get("seeds", list(DEFAULT_SEEDS))
    baseline = content.get("baseline")
    known = [*rows, *(str(row["model"]) for row in rows.values())]
    if baseline is not None and baseline not in known:
        hint = did_you_mean(str(baseline), known)
        raise CDRError(f"baseline: '{baseline}' is no row.{hint} Rows: {'; '.join(rows)}.")
    return Study(
        name=path.stem,
        path=path,
        title=title,
        task=task,
        part=part,
        scenes=scenes,
        plain="datasets" in content,
        seeds=_seeds(seeds, "seeds"),
        scene_seeds=scene_seeds,
        settings=settings,
        rows=rows,
        vary=vary,
        metrics=_names(content, "metrics"),
        groups=_names(content, "groups"),
        baseline=baseline,
        analyses=_analyses(content.get("analyses") or {}),
        quoted=_quoted(content, scenes, rows),
        notes=_notes(content.get("notes") or {}, scenes),
    )


def _part(content: Mapping[str, Any]) -> str:
    part = str(content.get("part", "test"))
    if part not in PARTS:
        raise CDRError(f"part: {part} should be one of {', '.join(PARTS)}.{did_you_mean(part, PARTS)}")
    if part == "valid" and content.get("analyses"):
        raise CDRError(
            "analyses: they are of the test part, and 'part: valid' leaves it alone: leave out one of them."
        )
    return part


def _without_seeds(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, tuple[int, ...]]]:
    """Takes the seeds out of the scenes."""
    scenes, seeds = content.get("scenes"), {}
    if not isinstance(scenes, dict):
        return content, {}
    rest = {}
    for label, block in scenes.items():
        rest[label] = block
        if isinstance(block, dict) and "seeds" in block:
            seeds[str(label)] = _seeds(block["seeds"], f"scenes, '{label}', seeds")
            rest[label] = {key: value for key, value in block.items() if key != "seeds"}
    return {**content, "scenes": rest}, seeds


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    return _different(value if isinstance(value, list) else [value], where, _seed)


def _labelled(content: Mapping[str, Any], long: str, short: str, needed: str) -> dict[str, Settings]:
    """Returns rows or scenes, from their blocks or from their shorthand."""
    present = [key for key in (long, short) if content.get(key)]
    if len(present) != 1:
        what = (
            "both stand here: give one" if present else "are missing: give one of them, with something in it"
        )
        raise CDRError(f"'{long}' and '{short}' {what}.")
    if present == [short]:
        names = content[short] if isinstance(content[short], list) else [content[short]]
        return {str(name): {needed: str(name)} for name in _different(names, short, str)}
    if not isinstance(content[long], dict):
        raise CDRError(f"{long}: should be lines 'LABEL: {{{needed}: NAME, ...}}'.")
    blocks: dict[str, Settings] = {}
    for label, block in content[long].items():
        where = f"{long}, '{label}'"
        if not isinstance(block, dict) or not isinstance(block.get(needed), str):
            raise CDRError(f"{where}: should be settings with '{needed}: NAME' among them.")
        rest = _settings({key: value for key, value in block.items() if key != needed}, where)
        blocks[str(label)] = {needed: block[needed], **rest}
    return blocks


def _settings(block: Any, where: str) -> dict[str, Any]:
    if not isinstance(block, dict) or not all(isinstance(key, str) for key in block):
        raise CDRError(f"{where}: should be settings, 'key: value'.")
    for key in block:
        if key in _ELSEWHERE:
            raise CDRError(f"{where}: '{key}' is not given here but {_ELSEWHERE[key]}.")
    return dict(block)


def _vary(block: Any, fixed: Mapping[str, Settings]) -> dict[str, tuple[Any, ...]]:
    varied = {}
    for key, values in _settings(block, "vary").items():
        if not isinstance(values, list) or not values:
            raise CDRError(f"vary: '{key}' should have a list of values, not {values}.")
        place = next((label for label, settings in fixed.items() if key in settings), None)
        if place is not None:
            where = place if place == "settings" else f"'{place}'"
            raise CDRError(f"vary: '{key}' is given in {where} as well: leave it out there.")
        varied[key] = _different(values, f"vary, '{key}'", lambda value: value)
    return varied


def _different(values: Iterable[Any], where: str, kind: Any) -> tuple[Any, ...]:
    items = tuple(kind(value) for value in values)
    twice = next((value for i, value in enumerate(items) if value in items[:i]), None)
    if twice is not None:
        raise CDRError(f"{where}: {twice} stands there twice.")
    if not items:
        raise CDRError(f"{where}: there is none.")
    return items


def _seed(value: Any) -> int:
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**32:
        raise CDRError(f"seeds: {value} should be a whole number between 0 and 2**32 - 1.")
    return seed


def _names(content: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    names = content.get(key)
    if names is None:
        return None
    return _different(
        [str(name).lower() for name in (names if isinstance(names, list) else [names])], key, str
    )


def _analyses(block: Any) -> dict[str, Settings]:
    if not isinstance(block, dict):
        raise CDRError("analyses: should be lines 'KIND: {option: value}'.")
    analyses: dict[str, Settings] = {}
    for kind, options in block.items():
        if kind not in ANALYSES:
            raise CDRError(
                f"analyses: unknown kind '{kind}'.{did_you_mean(str(kind), ANALYSES)} Known: {', '.join(ANALYSES)}."
            )
        known = {option.key for option in ANALYSES[kind]} - _OF_ANALYSES
        options = {} if options is None else options
        if not isinstance(options, dict):
            raise CDRError(f"analyses, '{kind}': should be options, {{option: value}}.")
        unknown = next((key for key in options if key not in known), None)
        if unknown:
            raise CDRError(
                f"analyses, '{kind}': unknown option '{unknown}'.{did_you_mean(str(unknown), known)} "
                f"`recbole-cdr analyse {kind} --help` lists them."
            )
        # Lists are text on the command line: 1,2,3.
        analyses[kind] = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in options.items()}
    return analyses


def _quoted(
    content: Mapping[str, Any], scenes: Mapping[str, Settings], rows: Mapping[str, Settings]
) -> dict[str, dict[str, Any]]:
    quoted: dict[str, dict[str, Any]] = {}
    shown = {"user group": _names(content, "groups"), "metric": _names(content, "metrics")}

    def check_shown(name: str, what: str, where: str) -> None:
        known = shown[what] or ()
        if known and name not in known:
            raise CDRError(
                f"{where}: the tables have no {what} '{name}', only {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )

    for label, of_scenes in _mapping(content.get("quoted") or {}, "quoted").items():
        if label in rows:
            raise CDRError(f"quoted: '{label}' is a row: call the figures of others something else.")
        for scene, of_domains in _mapping(of_scenes, f"quoted, '{label}'").items():
            _check_scene(scene, scenes, f"quoted, '{label}'")
            where = f"quoted, '{label}', '{scene}'"
            for domain, of_groups in _mapping(of_domains, where).items():
                for group, values in _mapping(of_groups, f"{where}, '{domain}'").items():
                    check_shown(group, "user group", f"{where}, '{domain}'")
                    for metric, value in _mapping(values, f"{where}, '{domain}', '{group}'").items():
                        check_shown(metric, "metric", f"{where}, '{domain}', '{group}'")
                        if isinstance(value, bool) or not isinstance(value, int | float):
                            raise CDRError(f"{where}: {domain}, {group}, {metric}: {value} is no number.")
        quoted[label] = of_scenes
    return quoted


def _notes(block: Any, scenes: Mapping[str, Settings]) -> dict[str, str]:
    for scene, text in _mapping(block, "notes").items():
        _check_scene(scene, scenes, "notes")
        if not isinstance(text, str):
            raise CDRError(f"notes, '{scene}': should be text.")
    return dict(block)


def _mapping(block: Any, where: str) -> dict[str, Any]:
    if not isinstance(block, dict) or not all(isinstance(key, str) for key in block):
        raise CDRError(f"{where}: should be lines 'NAME: ...'.")
    return block


def _check_scene(scene: str, scenes: Mapping[str, Settings], where: str) -> None:
    if scene not in scenes:
        raise CDRError(f"{where}: there is no scene '{scene}'.{did_you_mean(scene, scenes)}")


def needs_bridges(study: Study) -> bool:
    """Says whether its analyses move source vectors, which its models must have."""
    return any(kind in _BRIDGES_ONLY for kind in study.analyses)


def _domains(dataset: str) -> list[str]:
    path = dataset_property_files().get(dataset)
    return (read_mapping(path).get("domains") if path else None) or []


# -- what there is, in words ------------------------------------------------------------------------------------------


def studies() -> list[dict[str, object]]:
    """Returns name, title and number of runs of each of the package's studies."""
    shipped = (read_study(path) for path in shipped_studies().values())
    return [{"study": one.name, "title": one.title, "runs": one.n_runs} for one in shipped]


def summary(name: str) -> str:
    """Returns what a study runs."""
    study = read_study(name)
    lines = [
        f"{study.title}: {study.n_runs} runs ({study.path})",
        f"  seeds: {study.seeds_in_words}",
    ]
    for label, block in (("scenes", study.scenes), ("rows", study.rows)):
        lines.append(f"  {label}: {'; '.join(block)}")
    lines += [
        f"  varied, one at a time: {key} in {', '.join(map(str, of))}" for key, of in study.vary.items()
    ]
    lines += [f"  analysis: {kind}" for kind in study.analyses]
    return "\n".join(lines)
