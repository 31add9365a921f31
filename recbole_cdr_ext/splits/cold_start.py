"""Split ``cold_start``: users without ratings in the target domain are asked for theirs."""

from __future__ import annotations

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Events
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.maker import RatingParts, RatingSplitMaker
from recbole_cdr_ext.splits.split import Ratings


class ColdStartSplit(RatingSplitMaker):
    """A share ``beta`` of the overlapping users is tested, a tenth of the others validates; both are cold-start users.

    All their ratings in the target domain leave the training data (section V.A of the SCDR paper). The overlapping
    users are ordered by their tokens and permuted with ``split_seed``.
    """

    without_effect = ("cold_start_ratio", "split_ratio", "overlap_ratio", "density", "time_respecting")

    def draw(self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]) -> RatingParts:
        """Draws the users and takes their target ratings out.

        Raises:
            CDRError: the domains are unknown or equal, a rating is missing or outside of ``rating_range``, or the
                overlapping users are too few.
        """
        source, target = directions(config, dataset)
        events = _rated(dataset.events, dataset, (source, target), tuple(config["rating_range"]))
        by_domain = {k: events.take(events.domain == k) for k in (source, target)}
        overlapping = np.intersect1d(by_domain[source].user, by_domain[target].user)
        test, valid, train = _draw_users(
            overlapping, float(config["beta"]), int(config["split_seed"]), dataset
        )
        report["overlapping users in train / valid / test"] = [len(train), len(valid), len(test)]
        is_held_out = np.isin(by_domain[target].user, np.concatenate([valid, test]))
        held_out = by_domain[target].take(is_held_out)
        source_events = _without_tokens(by_domain[source], held_out, dataset, report)
        return RatingParts(
            source=source,
            target=target,
            source_ratings=Ratings.of(source_events),
            target_ratings=Ratings.of(by_domain[target].take(~is_held_out)),
            valid=Ratings.of(held_out.take(np.isin(held_out.user, valid))),
            test=Ratings.of(held_out.take(np.isin(held_out.user, test))),
            overlapping=train,
        )


def directions(config: CDRConfig, dataset: CrossDomainDataset) -> tuple[int, int]:
    """Returns the indices of source and target: as configured, else the first two domains that are left.

    Raises:
        CDRError: there is only one domain, or both are the same.
    """
    if dataset.n_domains < 2:
        raise CDRError(f"Cold-start ratings need two domains, and {dataset} has one.")
    names = [name for name in dataset.domains if name not in (config["source"], config["target"])]
    source = config["source"] or names.pop(0)
    target = config["target"] or names.pop(0)
    if source == target:
        raise CDRError(f"source and target are both '{source}': choose two of {', '.join(dataset.domains)}.")
    return dataset.domain_index(source), dataset.domain_index(target)


def _rated(
    events: Events, dataset: CrossDomainDataset, domains: tuple[int, int], allowed: tuple[float, float]
) -> Events:
    events = events.take(np.isin(events.domain, domains))
    missing = np.isnan(events.rating)
    if missing.any():
        first = events.domain[missing][0]
        name, count = dataset.domains[first], int(missing[events.domain == first].sum())
        raise CDRError(
            f"{count:,} interactions of domain '{name}' have no rating: task=rating needs the column "
            f"rating:float in {name}.inter."
        )
    outside = (events.rating < allowed[0]) | (events.rating > allowed[1])
    if outside.any():
        first = np.flatnonzero(outside)[0]
        user = dataset.id2token(dataset.uid_field, int(events.user[first]))
        raise CDRError(
            f"{int(outside.sum()):,} ratings lie outside of rating_range={list(allowed)}, the first is "
            f"{events.rating[first]:g} (user {user}, item {dataset.item_token(events.item[first])}, domain "
            f"'{dataset.domains[events.domain[first]]}'). Mend the file or set rating_range."
        )
    return events


def _draw_users(
    overlapping: np.ndarray, beta: float, seed: int, dataset: CrossDomainDataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the test, the validation and the training users among the overlapping ones."""
    shuffled = np.random.default_rng(seed).permutation(overlapping)
    n_test = int(beta * len(shuffled))
    n_valid = max(1, round(0.1 * (len(shuffled) - n_test)))
    test, valid, train = np.split(shuffled, [n_test, n_test + n_valid])
    if not len(test) or not len(train):
        raise CDRError(
            f"beta={beta:g} of {len(overlapping)} overlapping users of {dataset} leaves {len(test)} to test, "
            f"{len(valid)} to validate and {len(train)} to train on; each needs one at least. Change beta, or "
            "take data that share more users."
        )
    return test, valid, np.sort(train)


def _without_tokens(
    events: Events, held_out: Events, dataset: CrossDomainDataset, report: dict[str, object]
) -> Events:
    """Takes out the source ratings of held-out users for what is asked of them: the same thing under another id."""
    span = int(dataset.token_key.max()) + 1
    secret = held_out.user.astype(np.int64) * span + dataset.token_key[held_out.item]
    double = np.isin(events.user.astype(np.int64) * span + dataset.token_key[events.item], secret)
    report["source ratings of held-out users for an asked item's token removed"] = int(double.sum())
    return events.take(~double) if double.any() else events
