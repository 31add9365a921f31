"""What every kind of source hands over to be written, and the report on it, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_cdr_ext.data.atomic import format_statistics, statistics
from recbole_cdr_ext.data.prepare.description import Description

# A number for the whole dataset, or one per domain (or per part of the published rows).
Fact = int | Mapping[str, int]


@dataclass
class Content:
    """The tables of one dataset in one layout.

    Args:
        frames: per domain (and ``rows`` in layout rows), the table that becomes ``NAME.inter``.
        facts: what was found in the raw data and what was done about it: counts by name (see ``MEANINGS``).
    """

    frames: dict[str, pd.DataFrame]
    facts: Mapping[str, Fact] = field(default_factory=dict)


# (description, raw files by key, layout, whether to show progress) -> tables
Reader = Callable[[Description, dict[str, Path], str, bool], Content]


# Each count's meaning, and what follows from it. A count of 0 is left out of the text, but not of the JSON.
MEANINGS = {
    "rows": "published rows",
    "users_with_several_rows": "users with several rows",
    "users_whose_rows_disagree": "users whose rows disagree about a sequence",
    "users_in_train_and_test": "users who stand in the train and in the test file",
    "users_without_history": "users without any history",
    "rows_without_target": "rows without an item in their target domain",
    "rows_without_id": "rows without user or item (left out)",
    "titles": "titles",
    "users_cut_to_one_domain": "users of several domains who were cut to this one",
    "ratings_left_out_by_that_cut": "ratings left out by that cut",
    "repeated_rows": "rows that repeat a user and item (kept; next_item uses the first, rating the mean)",
    "repeated_pairs": "pairs of user and item that occur more than once",
    "repeated_pairs_that_disagree": "of these, pairs with different ratings",
    "items_with_numeric_ids": "items whose id looks like a number (kept as text)",
    "users_with_numeric_ids": "users whose id looks like a number (kept as text)",
    "users_in_several_domains": "users in more than one domain (one user each)",
    "item_ids_in_several_domains": "item ids that occur in more than one domain (a different item in each)",
}
_DONE_IN_LAYOUT = {
    ("users", "users_with_several_rows"): " (merged: the longest sequence per domain)",
    ("users", "users_without_history"): " (left out)",
    ("users", "rows_without_target"): " (no matter in this layout)",
    ("rows", "users_with_several_rows"): " (all rows kept)",
    ("rows", "rows_without_target"): " (left out)",
}


def build_report(
    description: Description, layout: str, content: Content, files: Mapping[str, Path]
) -> dict[str, Any]:
    """Returns the contents of ``statistics.json``.

    Returns:
        ``name``, ``layout``, ``order``, ``simulated``, ``raw_files`` (names only), ``domains`` (the rows of
        :func:`~recbole_cdr_ext.data.atomic.statistics`) and ``facts`` (counts, by domain where that makes
        sense). In layout rows the statistics count each (user, item) pair once, however many rows repeat it.
    """
    frames = {domain: content.frames[domain] for domain in description.domains}
    if layout == "rows":
        frames = {domain: frame.drop_duplicates(["user_id", "item_id"]) for domain, frame in frames.items()}
    return {
        "name": description.name,
        "layout": layout,
        "order": description.order,
        "simulated": description.simulated,
        "raw_files": sorted(path.name for path in files.values()),
        "domains": statistics(frames).to_dict(orient="index"),
        "facts": {**content.facts, **_common_facts(frames)},
    }


def _common_facts(frames: Mapping[str, pd.DataFrame]) -> dict[str, Fact]:
    items = {domain: frame["item_id"].drop_duplicates() for domain, frame in frames.items()}
    users = {domain: frame["user_id"].drop_duplicates() for domain, frame in frames.items()}
    repeats = {domain: _repeats(frame) for domain, frame in frames.items()}
    return {
        **{key: {domain: repeats[domain][key] for domain in frames} for key in next(iter(repeats.values()))},
        "users_with_numeric_ids": {domain: _numeric(users[domain]) for domain in frames},
        "items_with_numeric_ids": {domain: _numeric(items[domain]) for domain in frames},
        "users_in_several_domains": _in_several(users),
        "item_ids_in_several_domains": _in_several(items),
    }


def _repeats(frame: pd.DataFrame) -> dict[str, int]:
    pair = ["user_id", "item_id"]
    later = frame.duplicated(pair)
    disagree = 0
    if later.any() and "rating" in frame:
        repeated = frame[frame.duplicated(pair, keep=False)]
        disagree = int(repeated.groupby(pair)["rating"].nunique().gt(1).sum())
    return {
        "repeated_rows": int(later.sum()),
        "repeated_pairs": len(frame.loc[later, pair].drop_duplicates()),
        "repeated_pairs_that_disagree": disagree,
    }


def _numeric(tokens: pd.Series) -> int:
    return int(tokens.str.fullmatch(r"[0-9]+").sum())


def _in_several(tokens: Mapping[str, pd.Series]) -> int:
    counts = pd.concat(list(tokens.values()), ignore_index=True).value_counts()
    return int((counts > 1).sum())


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the contents of ``statistics.txt``: the table, then one line for each count that is not 0."""
    simulated = ", simulated" if report["simulated"] else ""
    lines = [f"{report['name']} (layout {report['layout']}, order: {report['order']}{simulated})", ""]
    lines += [format_statistics(pd.DataFrame.from_dict(report["domains"], orient="index")), ""]
    for key, fact in report["facts"].items():
        counts = fact if isinstance(fact, dict) else {"": fact}
        if any(counts.values()):
            numbers = ", ".join(f"{domain} {count:,}".strip() for domain, count in counts.items())
            lines.append(f"{MEANINGS[key]}{_DONE_IN_LAYOUT.get((report['layout'], key), '')}: {numbers}")
    return "\n".join(lines).rstrip() + "\n"
