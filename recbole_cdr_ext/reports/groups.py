"""Finished runs put beside what they can be compared with, and what tables call them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.runs.finished import FinishedRun, Unusable, find_folders, read_run
from recbole_cdr_ext.runs.folder import RESULT
from recbole_cdr_ext.settings.config import RUNTIME_KEYS
from recbole_cdr_ext.settings.reading import short, text_of
from recbole_cdr_ext.tasks import get_task

OLDER = "older version"
IN_A_LABEL = 3  # settings; more than that say less than a number does


@dataclass
class Group:
    """Runs that answered the same questions.

    Attributes:
        title: the dataset, the split, and what tells it apart from other groups of these.
        facts: the settings that its runs have in common.
        members: by label, the runs of one model with one set of settings, by seed.
        notes: what a reader must know of it.
    """

    task: str
    dataset: str
    split: str
    simulated: bool
    title: str
    facts: Mapping[str, Any]
    members: dict[str, list[FinishedRun]]
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[FinishedRun]:
        """All its runs."""
        return [run for runs in self.members.values() for run in runs]

    def instances_of(self, label: str) -> list[pd.DataFrame]:
        """Returns the per-instance tables of a label that all labels can be compared on.

        One per seed. Where seeds have splits of their own, each table has the instances of all splits that every label
        has a run of, one run of each.

        Raises:
            CDRError: a table is missing or can't be read, the labels have no split in common, or the splits have not
                equally many runs.
        """
        runs = self.members[label]
        if len({run.value("split_seed") for run in self.runs}) == 1:
            return [run.instances for run in runs]
        shared: set[Any] = set.intersection(
            *({run.value("split_seed") for run in of_label} for of_label in self.members.values())
        )
        if not shared:
            raise CDRError("there is no split that all of them were run on")
        by_split = [[run for run in runs if run.value("split_seed") == split] for split in sorted(shared)]
        if len({len(of_split) for of_split in by_split}) > 1:
            raise CDRError("some of its splits have more runs than others")
        rounds = zip(*by_split, strict=True)
        return [pd.concat([run.instances for run in round_], ignore_index=True) for round_ in rounds]

    @property
    def cells(self) -> dict[str, list[str]]:
        """The user groups that have instances, by domain."""
        table = self.runs[0].result["test"]
        return {
            domain: [group for group, cell in groups.items() if cell["n"]]
            for domain, groups in table.items()
            if any(cell["n"] for cell in groups.values())
        }

    def n(self, domain: str, group: str) -> int:
        """Returns the number of test instances."""
        return int(self.runs[0].result["test"][domain][group]["n"])

    @property
    def metrics(self) -> list[str]:
        """The metrics' names, of whichever run has them."""
        names: dict[str, None] = {}
        for run in self.runs:
            for groups in run.result["test"].values():
                for cell in groups.values():
                    names |= dict.fromkeys(name for name in cell if name != "n")
        return list(names)


@dataclass(frozen=True)
class Collection:
    """The runs that a report is of.

    Attributes:
        skipped: (folder, reason).
    """

    groups: list[Group]
    skipped: list[tuple[Path, str]]


def collect(runs: str | None, checkpoint_dir: str | Path) -> Collection:
    """Finds and reads runs.

    Args:
        runs: folders of runs or folders of such folders, their names in ``checkpoint_dir``, or patterns of these, with
            commas between; None: all in ``checkpoint_dir``.

    Raises:
        CDRError: there is no such folder, or no finished run in any.
    """
    usable: list[FinishedRun] = []
    skipped: list[tuple[Path, str]] = []
    for folder in find_folders(runs, checkpoint_dir):
        try:
            usable.append(read_run(folder))
        except Unusable as reason:
            skipped.append((folder, str(reason)))
    if not usable:
        first = f" {len(skipped)} skipped; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        where = runs if runs is not None else checkpoint_dir
        raise CDRError(f"There is no finished run in {where}, so there is nothing to report.{first}")
    groups, repeated = grouped(usable)
    return Collection(groups, skipped + repeated)


def grouped(runs: Iterable[FinishedRun]) -> tuple[list[Group], list[tuple[Path, str]]]:
    """Puts runs that can be compared together; of runs with equal settings and seed the newest counts.

    Returns:
        The groups, and what was left out with the reason.
    """
    together: dict[str, list[FinishedRun]] = {}
    for run in runs:
        together.setdefault(_key(run), []).append(run)
    groups, repeated = [], []
    for members in together.values():
        first, facts = members[0].result, shared_settings(members[0])
        find_unknown(members)
        labelled: dict[str, list[FinishedRun]] = {}
        labels = label_runs(members)
        for label, run in sorted(zip(labels, members, strict=True), key=lambda pair: (pair[0], pair[1].seed)):
            labelled.setdefault(label, []).append(run)
        for label, same in labelled.items():
            newest: dict[int, FinishedRun] = {}
            for run in sorted(same, key=lambda run: ((run.folder / RESULT).stat().st_mtime, run.name)):
                if run.seed in newest:
                    older = newest[run.seed]
                    repeated.append(
                        (older.folder, f"the same settings and seed as {run.name}, which is newer")
                    )
                newest[run.seed] = run
            labelled[label] = [newest[seed] for seed in sorted(newest)]
        group = Group(
            members[0].task, first["dataset"], first["split"], any(r.result.get("simulated") for r in members),
            f"{first['dataset']}, split={first['split']}", facts, labelled,
        )  # fmt: skip
        group.notes += notes_of(group)
        groups.append(group)
    groups.sort(key=lambda group: (group.task, group.title))
    titles = [_title(group, [other for other in groups if other is not group]) for group in groups]
    for group, title in zip(groups, titles, strict=True):
        group.title = title
    return groups, repeated


def shared_settings(run: FinishedRun) -> dict[str, Any]:
    """Returns what makes runs comparable: whatever decides what was asked, and among which candidates."""
    task = get_task(run.task)
    shared = {key: run.value(key) for key in task.shared_keys if key not in ("task", "split")}
    return {**shared, **task.questions(run.value, run.result)}


def _key(run: FinishedRun) -> str:
    counts = {d: {g: cell["n"] for g, cell in groups.items()} for d, groups in run.result["test"].items()}
    names = [run.task, run.result["dataset"], run.result["split"], bool(run.result.get("simulated"))]
    return json.dumps([names, shared_settings(run), counts], sort_keys=True, default=str)


def _title(group: Group, groups: Sequence[Group]) -> str:
    """Returns a group's title, with what differs from the groups of the same dataset and split."""
    others = [other for other in groups if (other.task, other.title) == (group.task, group.title)]
    keys = [k for k in group.facts if any(other.facts.get(k) != group.facts[k] for other in others)]
    differences = [f"{key}={short(group.facts[key])}" for key in keys]
    if others and not keys:
        n = sum(group.n(domain, names[0]) for domain, names in group.cells.items())
        differences = [f"{n:,} test instances"]
    return ", ".join([group.title, *differences])


def label_runs(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns what tables call each of the runs of a group: the model, and the settings that are not the usual ones.

    The usual value of a setting is the default, or the most frequent one if no run has the default. Seeds are
    repetitions of one label.
    """
    texts: list[str] = []
    for run in runs:
        same = [other for other in runs if other.model == run.model]
        unusual = [key for key in differing(same) if text_of(run.value(key)) != _usual(key, same)]
        known = [key for key in unusual if key not in run.unknown]
        # One word for all that a version did not have yet.
        words = [OLDER] * (len(known) < len(unusual))
        words += [f"{key}={short(run.value(key))}" for key in known[:IN_A_LABEL]]
        if len(known) > IN_A_LABEL:
            words.append(f"{len(known) - IN_A_LABEL} more")
        texts.append(f"{run.model} ({', '.join(words)})" if words else run.model)
    # What was shortened away may be what tells two apart.
    numbers: dict[str, dict[str, int]] = {}
    for text, run in zip(texts, runs, strict=True):
        seen = numbers.setdefault(text, {})
        seen.setdefault(_identity(run, runs), len(seen) + 1)
    return [
        f"{text} #{numbers[text][_identity(run, runs)]}" if len(numbers[text]) > 1 else text
        for text, run in zip(texts, runs, strict=True)
    ]


def find_unknown(runs: Iterable[FinishedRun]) -> None:
    """Finds the settings that runs are older than and that today's defaults can't stand for.

    A new setting's default is what was done before, as a rule. Where a run of the same model has another value than
    today's default, that can't be relied on, and the older run is no repetition of either.
    """
    of_model: dict[str, list[FinishedRun]] = {}
    for run in runs:
        of_model.setdefault(run.model, []).append(run)
    for same in of_model.values():
        for key in dict.fromkeys(key for run in same for key in run.settings if key not in RUNTIME_KEYS):
            older = [run for run in same if key not in run.settings]
            if older and any(
                run.settings.get(key, run.defaults().get(key)) != run.defaults().get(key) for run in same
            ):
                for run in older:
                    run.unknown.add(key)


def differing(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns the settings that are not the same in all runs; no run-time ones, and not the seed."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    passed = RUNTIME_KEYS | {"seed", "model"}
    return [key for key in keys if key not in passed and len({text_of(run.value(key)) for run in runs}) > 1]


def _identity(run: FinishedRun, runs: Sequence[FinishedRun]) -> str:
    same = [other for other in runs if other.model == run.model]
    return json.dumps([text_of(run.value(key)) for key in differing(same)])


def _usual(key: str, runs: Sequence[FinishedRun]) -> str:
    counts = Counter(text_of(run.value(key)) for run in runs if key not in run.unknown)
    default = text_of(runs[0].defaults().get(key))
    return default if default in counts else counts.most_common(1)[0][0]


_TAKEN = "Made by a version without the settings {}: here, and in the commands, these are today's defaults."
_UNKNOWN = (
    "Made by an older version without the settings {}, which other runs have at other values than today's defaults: "
    "they are taken to be runs of something else."
)


def notes_of(group: Group) -> list[str]:
    """Returns what runs say of themselves, with whom it is said of."""
    said: dict[str, list[str]] = {}
    for label, runs in group.members.items():
        for run in runs:
            for note in run.notes:
                said.setdefault(note, []).append(label)
            missing = set(run.defaults()) - set(run.settings) - RUNTIME_KEYS
            for text, keys in ((_TAKEN, missing - run.unknown), (_UNKNOWN, run.unknown)):
                if keys:
                    said.setdefault(text.format(", ".join(sorted(keys))), []).append(label)
    notes = []
    for note, labels in said.items():
        counts = Counter(labels)
        everyone = sum(counts.values()) == len(group.runs)
        who = "; ".join(f"{label}: {_runs(n)}" for label, n in counts.items())
        notes.append(note if everyone else f"{note} ({who})")
    return notes


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"
