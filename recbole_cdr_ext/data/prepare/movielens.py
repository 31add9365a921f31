"""The MovieLens-100k inside RecBole, cut into two domains by genre: real data, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import recbole

from recbole_cdr_ext.data.atomic import read_inter
from recbole_cdr_ext.data.prepare.content import Content
from recbole_cdr_ext.data.prepare.description import Description
from recbole_cdr_ext.errors import CDRError

REST = "rest"


def read_movielens(description: Description, files: dict[str, Path], layout: str, progress: bool) -> Content:
    """Reads the kind ``movielens``: every title falls into the first domain of ``genres`` that lists one of its genres.

    Exactly one domain is ``rest`` and takes the titles that no other takes, so none is dropped. Of the users
    with ratings in more than one domain, a seeded part (``single_domain_users``) keeps a single domain's, the
    domains in turn: without them, hardly anyone would be a single-domain user. No title loses all its ratings
    by that.

    Raises:
        CDRError: the genres do not fit the domains, or RecBole's copy of the data is missing or damaged.
    """
    folder = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    ratings = read_inter(folder / "ml-100k.inter", required=("user_id", "item_id", "rating", "timestamp"))
    titles = _read_titles(folder / "ml-100k.item")
    domain_of = _cut(titles, _genres(description))
    domains = ratings["item_id"].map(domain_of)
    only = _single_domain_users(ratings, domains, description)
    remains = ratings["user_id"].map(only).fillna(domains) == domains
    frames = {d: ratings[remains & (domains == d)].reset_index(drop=True) for d in description.domains}
    facts = {
        "titles": {d: int((domain_of == d).sum()) for d in description.domains},
        "users_cut_to_one_domain": {d: int((only == d).sum()) for d in description.domains},
        "ratings_left_out_by_that_cut": {
            d: int((~remains & (domains == d)).sum()) for d in description.domains
        },
    }
    return Content(frames, facts)


def _read_titles(path: Path) -> pd.Series:
    """Returns the set of genres of each title, by item token."""
    # RecBole's item file is atomic like an .inter file; some titles have an empty year, so it is read
    # leniently.
    table = pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False, quoting=3, encoding="utf-8")
    try:
        return table.set_index("item_id:token")["class:token_seq"].map(
            lambda genres: frozenset(genres.split())
        )
    except KeyError as error:
        raise CDRError(f"{path}:1: the header has no column {error}; install recbole again.") from error


def _genres(description: Description) -> dict[str, frozenset[str] | None]:
    """Genres per domain, None for the domain that takes the rest (put last)."""
    genres = description.source["genres"]
    rest = [d for d, listed in genres.items() if listed == REST] if isinstance(genres, Mapping) else []
    listed = [genres[d] for d in genres if d not in rest] if rest else []
    fits = sorted(genres) == sorted(description.domains) and all(isinstance(names, list) for names in listed)
    if len(rest) != 1 or not fits:
        raise CDRError(
            f"{description.origin}: the 'source' block: 'genres' must list genres for each of "
            f"{', '.join(description.domains)}, and '{REST}' for exactly one of them."
        )
    return {d: frozenset(genres[d]) for d in genres if d not in rest} | {rest[0]: None}


def _cut(titles: pd.Series, genres: dict[str, frozenset[str] | None]) -> pd.Series:
    """Returns the domain of each title."""

    def domain_of(title: frozenset[str]) -> str:
        return next(domain for domain, listed in genres.items() if listed is None or title & listed)

    return titles.map(domain_of)


def _single_domain_users(ratings: pd.DataFrame, domains: pd.Series, description: Description) -> pd.Series:
    """Returns the only domain that stays, by user, for the seeded part of the users with several.

    Users are taken in a seeded order and the domains in turn; a cut that would leave a title without any
    rating is not made, so no title is lost.
    """
    part = float(description.source.get("single_domain_users", 0.0))
    if not 0 <= part < 1:
        raise CDRError(
            f"{description.origin}: 'single_domain_users' is {part}, but must be at least 0 and below 1."
        )
    titles = {key: set(group) for key, group in ratings.groupby(["user_id", domains])["item_id"]}
    remaining = ratings["item_id"].value_counts().to_dict()
    per_user = domains.groupby(ratings["user_id"]).nunique()
    several = sorted(per_user.index[per_user > 1])
    order = np.random.default_rng(int(description.source.get("seed", 0))).permutation(len(several))
    only: dict[str, str] = {}
    for user in (several[i] for i in order):
        if len(only) == round(part * len(several)):
            break
        keep = description.domains[len(only) % len(description.domains)]
        lost = [title for d in description.domains if d != keep for title in titles.get((user, d), ())]
        if (user, keep) in titles and all(remaining[title] > 1 for title in lost):
            only[user] = keep
            for title in lost:
                remaining[title] -= 1
    return pd.Series(only, dtype="str")
