"""``recbole-cdr report``: reads runs, writes the page and the tables."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from recbole_cdr_ext import __version__
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.files import make_folder, replacing
from recbole_cdr_ext.reports.groups import Collection, collect
from recbole_cdr_ext.reports.report_page import page
from recbole_cdr_ext.reports.table_text import latex, markdown
from recbole_cdr_ext.reports.tables import baseline_of, tables_of

PAGE, MARKDOWN, LATEX = "report.html", "tables.md", "tables.tex"


def report(options: Mapping[str, Any]) -> Path:
    """Writes ``report.html``, ``tables.md`` and ``tables.tex`` into a folder, and says what was skipped.

    Args:
        options: ``runs``, ``checkpoint_dir``, ``out``, ``baseline``, ``title``, as the command line has them.

    Returns:
        The page's path.

    Raises:
        CDRError: there is no finished run, no group has the baseline, plotly is missing, or nothing can be written.
    """
    collection = collect(options["runs"], options["checkpoint_dir"])
    _check_baseline(collection, options["baseline"])
    out = make_folder(options["out"])
    tables = [tables_of(group, options["baseline"]) for group in collection.groups]
    pairs = list(zip(collection.groups, tables, strict=True))
    title = options["title"] or "Report"
    origin = f"Made {datetime.now():%Y-%m-%d %H:%M} by recbole_cdr_ext {__version__}"
    written = {
        PAGE: page(title, origin, collection, tables),
        MARKDOWN: markdown(title, pairs),
        LATEX: latex(pairs),
    }
    for name, text in written.items():
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for folder, reason in collection.skipped:
        print(f"Skipped {folder}: {reason}")
    n = sum(len(group.runs) for group in collection.groups)
    print(f"{n} runs in {len(collection.groups)} groups: {', '.join(str(out / name) for name in written)}")
    return out / PAGE


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
