"""The results of a sweep, to be read: a page with figures, and a summary in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_cdr_ext import __version__
from recbole_cdr_ext.files import replacing
from recbole_cdr_ext.pages.figures import drawing_of, plain
from recbole_cdr_ext.pages.page import Drawing, render, write
from recbole_cdr_ext.tuning.records import FAILED, Record, score, shown, state, trial_table
from recbole_cdr_ext.tuning.space import Parameter

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEWEST_TRIALS = 8  # from which importance says anything
HOW_IMPORTANCE = (
    "Permutation importance: a random forest (300 trees, scikit-learn) learns the scores from the settings; a "
    "setting's importance is by how much the forest's R² on the same trials falls when that setting's values are "
    "shuffled among the trials (mean and standard deviation of 30 shufflings). A setting that a condition left out "
    "counts as a value of its own. With few trials this is a hint, and trials that were cut enter with the score they "
    "had then."
)
# By setting, mean and standard deviation.
Importances = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Section:
    """A figure of the page, None where there is none, with what has to be said of it."""

    title: str
    drawing: Drawing | None
    text: str


@dataclass(frozen=True)
class About:
    """What a reader must know of a sweep besides its trials."""

    model: str
    dataset: str
    metric: str
    larger_is_better: bool
    parameters: Sequence[Parameter]
    command: str
    how: str
    notes: Sequence[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The heading of page and summary."""
        return f"{self.model} on {self.dataset}: {self.metric} of the validation part"

    @property
    def keys(self) -> list[str]:
        """The searched settings."""
        return [parameter.key for parameter in self.parameters]


# -- importance -----------------------------------------------------------------------------------------------------


def importance(records: Sequence[Record], parameters: Sequence[Parameter]) -> Importances | None:
    """Returns each setting's permutation importance, (mean, standard deviation), largest first.

    None where fewer than :data:`FEWEST_TRIALS` trials have a score.
    """
    scored = [record for record in records if record.score is not None and record.status != FAILED]
    if len(scored) < FEWEST_TRIALS:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = np.column_stack([_numbers(scored, parameter) for parameter in parameters])
    scores = np.array([record.score for record in scored])
    forest = RandomForestRegressor(n_estimators=300, random_state=0, n_jobs=1).fit(columns, scores)
    measured = permutation_importance(forest, columns, scores, n_repeats=30, random_state=0, n_jobs=1)
    pairs = zip(parameters, measured.importances_mean, measured.importances_std, strict=True)
    named = {parameter.key: (float(mean), float(spread)) for parameter, mean, spread in pairs}
    return dict(sorted(named.items(), key=lambda item: -item[1][0]))


def _numbers(records: Sequence[Record], parameter: Parameter) -> np.ndarray:
    """Returns numbers that a forest can cut, (n,): places of a choice, -1 for none; of loguniform the logarithms."""
    values = [record.settings.get(parameter.key) for record in records]
    if parameter.kind == "choice":
        places = [repr(value) for value in parameter.values]
        return np.array([places.index(repr(v)) if repr(v) in places else -1 for v in values], float)
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    numbers = np.log10(numbers) if parameter.kind == "loguniform" else numbers
    missing = np.isnan(numbers)
    # Below all others, so that one cut parts them off.
    numbers[missing] = np.nanmin(numbers) - 1.0 if not missing.all() else 0.0
    return numbers


# -- figures --------------------------------------------------------------------------------------------------------


def _parallel(records: Sequence[Record], about: About) -> go.Figure:
    """Returns parallel coordinates: a line per trial through its settings and its score."""
    import plotly.graph_objects as go

    scored = [record for record in records if record.score is not None and record.status != FAILED]
    scores = [float(record.score or 0.0) for record in scored]
    axes = [_axis(scored, parameter) for parameter in about.parameters]
    axes.append({"label": plain(about.metric), "values": scores})
    line = {
        "color": scores, "colorscale": "Viridis", "showscale": True, "reversescale": not about.larger_is_better,
        "colorbar": {"title": plain(about.metric)},
    }  # fmt: skip
    figure = go.Figure(go.Parcoords(line=line, dimensions=axes, labelangle=-20, labelside="bottom"))
    return figure.update_layout(height=440, margin={"l": 80, "r": 40, "t": 40, "b": 110})


def _axis(records: Sequence[Record], parameter: Parameter) -> dict[str, Any]:
    values = _numbers(records, parameter)
    left_out = any(parameter.key not in record.settings for record in records)
    axis: dict[str, Any] = {"label": plain(parameter.key), "values": values.tolist()}
    if parameter.kind == "choice":
        names = [shown(value) for value in parameter.values]
        places = list(range(len(names)))
        axis |= {
            "tickvals": [-1, *places] if left_out else places,
            "ticktext": ["-", *names] if left_out else names,
        }
        axis["range"] = [-1 if left_out else 0, max(len(names) - 1, 1)]
    elif parameter.kind == "loguniform":
        ticks = np.linspace(values.min(), values.max(), 5)
        axis |= {"tickvals": ticks.tolist(), "ticktext": [f"{10**tick:.2g}" for tick in ticks]}
    return axis


def _curves(records: Sequence[Record], about: About) -> go.Figure | None:
    """Returns learning curves: validation score by epoch, the best trial on top; None where there is none."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, record in reversed(list(enumerate(records))):
        if not record.curve:
            continue
        epochs, scores = zip(*record.curve, strict=True)
        figure.add_scatter(
            x=list(epochs), y=list(scores), mode="lines+markers", name=plain(f"trial {record.trial} ({record.status})"),
            line={"width": 3 if place == 0 else 1, "color": "#c0392b" if place == 0 else None},
            marker={"size": 4}, opacity=1.0 if place == 0 else 0.6,
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=460, hovermode="closest", xaxis_title="epoch", yaxis_title=plain(about.metric),
        margin={"t": 30},
    )  # fmt: skip
    return figure if figure.data else None


def _bars(importances: Importances) -> go.Figure:
    """Returns bars: the importance of each setting."""
    import plotly.graph_objects as go

    names = list(importances)[::-1]
    bars = go.Bar(
        x=[importances[name][0] for name in names],
        y=[plain(name) for name in names],
        orientation="h",
        error_x={"type": "data", "array": [importances[name][1] for name in names]},
    )
    layout = {"template": "plotly_white", "height": 120 + 34 * len(names), "margin": {"t": 20}}
    return go.Figure(bars).update_layout(xaxis_title="fall of R²", **layout)


# -- files ----------------------------------------------------------------------------------------------------------


def write_page(records: Sequence[Record], about: About, path: Path) -> None:
    """Writes the page: one file with all that it shows, which asks for nothing outside of it.

    Args:
        records: the trials that have ended, best first.
    """
    sections = [
        Section(
            "Settings and scores",
            drawing_of(_parallel(records, about), "parallel", "Settings and scores"),
            "A line is a trial; drag along an axis to choose.",
        ),
        _importance_section(importance(records, about.parameters)),
    ]
    curves = _curves(records, about)
    if curves is not None:
        sections.append(
            Section(
                "Learning curves",
                drawing_of(curves, "curves", "Learning curves"),
                "The best trial is drawn thick. Double-click a name to see it alone.",
            )
        )
    drawings = [section.drawing for section in sections if section.drawing is not None]
    page = render(
        "sweep.html.j2",
        about.title,
        drawings,
        about=about,
        counts=_counts(records, about),
        sections=sections,
        trials=[_row(record, about) for record in records],
    )
    write(path, page)


def _importance_section(importances: Importances | None) -> Section:
    title = "Importance of the settings"
    if importances is not None:
        return Section(title, drawing_of(_bars(importances), "importance", title), HOW_IMPORTANCE)
    why = f"Left out: it is computed from {FEWEST_TRIALS} or more trials with a score, and there are fewer."
    return Section(title, None, why)


def _row(record: Record, about: About) -> dict[str, str | tuple[str, float | str]]:
    """Returns a trial's row, with the numbers to sort by: that of what is missing is "", which comes last."""
    numbers = {key: _sortable(record.settings.get(key, "-")) for key in about.keys}
    return {
        "trial": record.trial,
        **numbers,
        "epochs": (str(record.epochs), record.epochs),
        "score": (score(record), "" if record.score is None else record.score),
        "seconds": (f"{record.seconds:.1f}", record.seconds),
        "status": state(record),
    }


def _sortable(value: object) -> str | tuple[str, float | str]:
    if value == "-":
        return "-", ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shown(value)
    return shown(value), value


def write_summary(records: Sequence[Record], about: About, path: Path) -> None:
    """Writes the same in Markdown, without figures."""
    lines = [f"# {about.title}", "", _counts(records, about), "", *(f"{note}\n" for note in about.notes)]
    lines += ["To run the best, test part included:", "", f"    {about.command}", ""]
    lines += [trial_table(records, about.keys, "github"), ""]
    importances = importance(records, about.parameters)
    if importances is not None:
        lines += [
            "## Importance of the settings",
            "",
            HOW_IMPORTANCE,
            "",
            "| setting | importance | ± |",
            "|---|---|---|",
        ]
        lines += [f"| {key} | {mean:.3f} | {spread:.3f} |" for key, (mean, spread) in importances.items()]
        lines.append("")
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _counts(records: Sequence[Record], about: About) -> str:
    kinds: dict[str, int] = {}
    for record in records:
        kinds[record.status] = kinds.get(record.status, 0) + 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    better = "larger" if about.larger_is_better else "smaller"
    return (
        f"{len(records)} trials: {counts}. {about.how}. Of the score, {better} is better; the test part was not looked "
        f"at. recbole_cdr_ext {__version__}."
    )
