"""Amazon 2014's 5-core reviews: gzipped, one JSON object in each line."""

from __future__ import annotations

import gzip
import json
import zlib
from array import array
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from recbole_cdr_ext.data.delimited import check_number, unreadable
from recbole_cdr_ext.data.prepare.content import Content
from recbole_cdr_ext.data.prepare.description import Description
from recbole_cdr_ext.errors import CDRError

USER, ITEM, RATING, TIME = "reviewerID", "asin", "overall", "unixReviewTime"


def read_amazon_5core(
    description: Description, files: dict[str, Path], layout: str, progress: bool
) -> Content:
    """Reads the kind ``amazon_5core``: user, item, rating and time of each review; the texts are streamed past.

    Reviews without user or item are left out and counted; any other fault is an error.

    Raises:
        CDRError: names file and line of what cannot be read.
    """
    frames: dict[str, pd.DataFrame] = {}
    dropped: dict[str, int] = {}
    for domain in description.domains:
        frames[domain], dropped[domain] = _read(files[domain], progress)
    return Content(frames, {"rows_without_id": dropped})


class _Vocabulary(dict[str, int]):
    """Numbers names as they come, so that a name met a million times is kept once."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number

    def spell(self, numbers: array) -> pd.Series:
        names = pd.array(list(self), dtype="str")
        return pd.Series(names.take(np.frombuffer(numbers, dtype=np.int64)))


def _read(path: Path, progress: bool) -> tuple[pd.DataFrame, int]:
    users, items = _Vocabulary(), _Vocabulary()
    user_column, item_column, ratings, times = array("q"), array("q"), array("d"), array("d")
    dropped = line = 0
    try:
        with (
            path.open("rb") as raw,
            gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as stream,
            _bar(path, progress) as bar,
        ):
            for line, text in enumerate(stream, start=1):
                if line % 8192 == 0:
                    bar.update(raw.tell() - bar.n)
                if not text.strip():
                    continue
                review = _parse(f"{path}:{line}", text)
                user, item = review.get(USER), review.get(ITEM)
                if not user or not item:
                    dropped += 1
                    continue
                user_column.append(users[str(user)])
                item_column.append(items[str(item)])
                ratings.append(check_number(f"{path}:{line}", f"rating ('{RATING}')", review.get(RATING)))
                times.append(check_number(f"{path}:{line}", f"time ('{TIME}')", review.get(TIME)))
            bar.update(raw.tell() - bar.n)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, line + 1, error) from error
    if not user_column:
        raise CDRError(f"{path}: the file holds no reviews with '{USER}' and '{ITEM}'; get it again.")
    columns = {"user_id": users.spell(user_column), "item_id": items.spell(item_column)}
    return pd.DataFrame(columns | {"rating": np.array(ratings), "timestamp": np.array(times)}), dropped


def _bar(path: Path, progress: bool) -> tqdm:
    return tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=not progress)


def _parse(where: str, text: bytes) -> dict[str, Any]:
    try:
        review = json.loads(text)
    except ValueError as error:
        raise CDRError(f"{where}: is no valid JSON ({error}); the file is damaged, get it again.") from error
    if not isinstance(review, dict):
        raise CDRError(f"{where}: is no JSON object; the file should hold one review in each line.")
    return review
