"""``recbole-cdr report``: reads runs, writes the page and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from recbole_cdr_ext import __version__
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.reports.groups import Collection, collect
from recbole_cdr_ext.reports.report_page import page
from recbole_cdr_ext.reports.table_text import latex, markdown
from recbole_cdr_ext.reports.tables import baseline_of, tables_of
from recbole_cdr_ext.runs.folder import DEFAULT_CHECKPOINT_DIR
from recbole_cdr_ext.settings.command_options import joined

PAGE, MARKDOWN, LATEX = "report.html", "tables.md", "tables.tex"


def report(
    runs: str | Path | Sequence[str | Path] | None = None,
    *,
    checkpoint_dir: str | Path = DEFAULT_CHECKPOINT_DIR,
    out: str | Path = "report",
    baseline: str | None = None,
    title: str | None = None,
) -> Path:
    """Writes ``report.html``, ``tables.md`` and ``tables.tex`` into a folder, and says what was skipped.

    Args:
        runs: folders of runs, or of such folders, names in ``checkpoint_dir``, or patterns of these; text may have
            several with commas between. None: all in ``checkpoint_dir``.
        out: the folder.
        baseline: the model, or its label in the tables, that others are compared with; None: the best with the second.
        title: of the page; None: "Report".

    Returns:
        The page's path.

    Raises:
        CDRError: there is no finished run, no group has the baseline, plotly is missing, or nothing can be written.
    """
    collection = collect(joined("runs", runs), checkpoint_dir)
    _check_baseline(collection, baseline)
    folder = make_folder(out)
    tables = [tables_of(group, baseline) for group in collection.groups]
    pairs = list(zip(collection.groups, tables, strict=True))
    title = title or "Report"
    origin = f"Made {datetime.now():%Y-%m-%d %H:%M} by recbole_cdr_ext {__version__}"
    written = {
        PAGE: page(title, origin, collection, tables),
        MARKDOWN: markdown(title, pairs),
        LATEX: latex(pairs),
    }
    for name, text in written.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for path, reason in collection.skipped:
        print(f"Skipped {path}: {reason}")
    n = sum(len(group.runs) for group in collection.groups)
    print(f"{n} runs in {len(collection.groups)} groups: {', '.join(str(folder / name) for name in written)}")
    return folder / PAGE


def _check_baseline(collection: Collection, baseline: str | None) -> None:
    """Refuses a baseline that no group has; where some have it, the others say so."""
    if baseline is None:
        return
    means = [baseline_of(group, baseline) for group in collection.groups]
    if all(label is None for label, _ in means):
        labels = list(dict.fromkeys(label for group in collection.groups for label in group.members))
        several = next((notes[0] for _, notes in means if "several" in notes[0]), "")
        known = f"Known: {'; '.join(labels)}."
        raise CDRError(
            several or f"No run is of the baseline '{baseline}'.{did_you_mean(baseline, labels)} {known}"
        )
