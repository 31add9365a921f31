"""A report as one HTML page that needs neither a network nor other files."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_cdr_ext.evaluation.result_table import spelt
from recbole_cdr_ext.pages.page import Drawing, render
from recbole_cdr_ext.reports.charts import figures
from recbole_cdr_ext.reports.groups import Collection, Group, differing
from recbole_cdr_ext.reports.tables import Table, warnings_of
from recbole_cdr_ext.runs.finished import FinishedRun
from recbole_cdr_ext.settings.reading import short, text_of

# A cell of a sortable table: a text; a number's text and the number; None for a gap.
Entry = str | tuple[str, float] | None
Entries = dict[str, Entry]


@dataclass(frozen=True)
class Section:
    """What a page shows of a group of runs.

    Attributes:
        tables: the first one has the notes and the tests.
        facts: the settings that the runs have in common.
        comparisons, settings, runs: rows of sortable tables; None where there is no such table.
        details: of each run.
    """

    group: Group
    tables: Sequence[Table]
    drawings: Sequence[Drawing]
    facts: str
    warnings: Sequence[str]
    comparisons: Sequence[Entries] | None
    settings: Sequence[Entries]
    runs: Sequence[Entries]
    details: Sequence[RunDetails]


@dataclass(frozen=True)
class RunDetails:
    """What a page shows of one run."""

    label: str
    run: FinishedRun
    seconds: str
    versions: str
    settings: str


def page(
    title: str,
    origin: str,
    collection: Collection,
    tables: Sequence[Sequence[Table]],
    summaries: Sequence[Table] = (),
    images: Mapping[str, Path] | None = None,
) -> str:
    """Returns the page.

    Args:
        origin: when and by what.
        tables: of each group of ``collection``.
        summaries: tables that stand above the groups.
        images: by name, PNG files that stand below these.

    Raises:
        CDRError: plotly is not installed.
    """
    groups = zip(collection.groups, tables, strict=True)
    sections = [_section(number, group, of_group) for number, (group, of_group) in enumerate(groups)]
    runs = [run for group in collection.groups for run in group.runs]
    skipped: list[Entries] = [{"folder": str(folder), "reason": why} for folder, why in collection.skipped]
    return render(
        "report.html.j2",
        title,
        [drawing for section in sections for drawing in section.drawings],
        origin=origin,
        n_runs=len(runs),
        skipped=skipped,
        summaries=summaries,
        images={name: _embedded(path) for name, path in (images or {}).items()},
        sections=sections,
        versions=_versions(runs),
    )


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _section(number: int, group: Group, tables: Sequence[Table]) -> Section:
    facts = "; ".join(f"{k} {short(v, 60)}" for k, v in group.facts.items() if v not in (None, {}))
    drawings = [
        Drawing(f"f{number}-{i}", figure["layout"]["title"]["text"], figure)
        for i, figure in enumerate(figures(group, tables[0]))
    ]
    return Section(
        group,
        tables,
        drawings,
        f"Task {group.task}; {facts}",
        [*tables[0].notes, *warnings_of(group)],
        _comparisons(tables[0]),
        _settings(group),
        [_run(label, run) for label, runs in group.members.items() for run in runs],
        [_details(label, run) for label, runs in group.members.items() for run in runs],
    )


def _comparisons(table: Table) -> list[Entries] | None:
    """Returns all numbers of the tests."""
    if table.comparisons is None:
        return None
    rows: list[Entries] = []
    for test in table.comparisons.to_dict("records"):
        numbers = {
            "difference": test["difference"], "95 % from": test["low"], "to": test["high"], "t-test p": test["t_p"],
            "Holm p": test["t_holm"], "Wilcoxon p": test["wilcoxon_p"], "Holm p ": test["wilcoxon_holm"],
            "d_z": test["d_z"], "rank-biserial": test["rank_biserial"],
        }  # fmt: skip
        metric = {"absolute_error": "absolute error", "squared_error": "squared error"}.get(test["metric"])
        rows.append(
            {
                **{
                    "domain": test["domain"],
                    "group": test["group"],
                    "metric": metric or spelt(test["metric"]),
                },
                **{"model": test["model"], "than": test["other"], "n": (f"{test['n']:,}", test["n"])},
                **{name: _number(value) for name, value in numbers.items()},
            }
        )
    return rows


def _number(value: float) -> Entry:
    return None if np.isnan(value) else (f"{value:.3g}", value)


def _settings(group: Group) -> list[Entries]:
    """Returns the settings that are not the same everywhere, of those that several labels have."""
    first = {label: runs[0] for label, runs in group.members.items()}
    rows: list[Entries] = []
    for key in differing(list(first.values())):
        texts = {
            label: short(run.settings[key], 60) if key in run.settings else "" for label, run in first.items()
        }
        if len({text for text in texts.values() if text}) > 1:
            rows.append({"setting": key, **texts})
    return rows


def _run(label: str, run: FinishedRun) -> Entries:
    result, seconds = run.result, _mapping(run.result.get("seconds"))
    return {
        "model": label,
        "seed": (str(run.seed), run.seed),
        "run": run.name,
        "best validation": _measured(result.get("best_valid_score"), 4),
        "epochs": _measured(result.get("epochs_run"), 0),
        "stopped": str(result.get("stopped") or "–"),
        "training (s)": _measured(seconds.get("training"), 1),
        "total (s)": _measured(seconds.get("total"), 1),
    }


def _measured(value: object, digits: int) -> Entry:
    if not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return f"{value:,.{digits}f}", float(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _details(label: str, run: FinishedRun) -> RunDetails:
    seconds, versions = _mapping(run.result.get("seconds")), _mapping(run.result.get("versions"))
    return RunDetails(
        label,
        run,
        ", ".join(f"{name} {text_of(value)}" for name, value in seconds.items()),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        yaml.safe_dump(dict(run.settings), sort_keys=True, allow_unicode=True, width=110),
    )


def _versions(runs: Iterable[FinishedRun]) -> str:
    """Says which versions the runs were made with, and how many with each."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, version in _mapping(run.result.get("versions")).items():
            counts.setdefault(str(name), Counter())[str(version)] += 1
    return ", ".join(
        f"{name} "
        + " / ".join(f"{version} ({n} runs)" if len(of) > 1 else version for version, n in of.items())
        for name, of in counts.items()
    )
