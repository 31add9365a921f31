"""Means over seeds and what of their differences is more than chance, from the per-instance tables of runs.

Seeds are repetitions of one model, not further instances: an instance's values are averaged over them first. Models are
paired by instance, (part, domain, user, item), and compared user by user, per domain and user group: what one vector or
bias says of a user's many ratings errs together, so they are one observation and not many.

    d_u = (n / m) Σ_i (a_i - b_i)   over the instances i of user u, of n users and m instances: where each has
                            one, its difference; the mean over users is that over instances
    d̄ ± t_{n-1} s_d / √n    that mean with a 95 % interval, and the paired t-test
    d_z = d̄ / s_d           Cohen's effect size of paired differences
    r = (W⁺ - W⁻) / (W⁺ + W⁻)   matched-pairs rank-biserial correlation (Kerby 2014), W± the rank sums of Wilcoxon's
                            signed-rank test, which leaves zeros out
    p̃_(i) = max_{j ≤ i} min(1, (m - j + 1) p_(j))   Holm's correction over the m comparisons of a table

Two models that agree everywhere have p = 1 and effects of 0. One user can show nothing: p = 1, no interval.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.evaluation.metric import larger_is_better

INTERVAL = 0.95
# What a per-rating table has of each rating, and the metrics of ratings are made of.
ERRORS = ("absolute_error", "squared_error")  # less is better
RANKED = ("ndcg@10", "hit@10")
_DECIMALS = 12  # the same mean by another order of summation is no difference
# Columns that say what was asked, and are no groups although they are true or false.
_NO_GROUPS = ("fallback", "known_item")
_AT = re.compile(r"(ndcg|hit)@([1-9]\d*)")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n runs; ``std`` is None of one run."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Takes the values of at least one run."""
        of_runs = np.asarray(list(values), float)
        std = float(of_runs.std(ddof=1)) if len(of_runs) > 1 else None
        return cls(float(of_runs.mean()), std, len(of_runs))


@dataclass(frozen=True)
class Paired:
    """The difference of two models over n users, ``a - b``; see the module's header."""

    n: int
    difference: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float
    d_z: float
    rank_biserial: float


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Compares two models by (n,) values of the same n users (or instances) in the same order.

    Raises:
        CDRError: there is none, their numbers differ, or a value is no number.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise CDRError(f"paired values have to be of the same instances, not {a.shape} and {b.shape}.")
    d = np.round(a - b, _DECIMALS)
    if not np.isfinite(d).all():
        raise CDRError("values that are compared must be numbers: there are NaN or infinite ones.")
    n, mean = len(d), float(d.mean())
    if not d.any():
        return Paired(n, 0.0, 0.0 if n > 1 else nan, 0.0 if n > 1 else nan, 1.0, 1.0, 0.0, 0.0)
    up, down = _rank_sums(d)
    biserial = (up - down) / (up + down)
    if n == 1:
        return Paired(n, mean, nan, nan, 1.0, 1.0, nan, biserial)
    std = 0.0 if (d == d[0]).all() else float(d.std(ddof=1))
    half = float(stats.t.ppf((1 + INTERVAL) / 2, n - 1)) * std / sqrt(n)
    t = sqrt(n) * mean / std if std else np.sign(mean) * inf
    with (
        warnings.catch_warnings()
    ):  # scipy warns of small samples with ties; the number of instances is shown
        warnings.simplefilter("ignore")
        wilcoxon = float(stats.wilcoxon(d).pvalue)
    t_p = float(2 * stats.t.sf(abs(t), n - 1))
    return Paired(n, mean, mean - half, mean + half, t_p, wilcoxon, t / sqrt(n), biserial)


def _rank_sums(d: np.ndarray) -> tuple[float, float]:
    """Wilcoxon's W⁺ and W⁻."""
    d = d[d != 0]
    ranks = stats.rankdata(np.abs(d))
    return float(ranks[d > 0].sum()), float(ranks[d < 0].sum())


def holm(p: Iterable[float]) -> np.ndarray:
    """Returns Holm's adjusted p-values, in the order of ``p``.

    Raises:
        CDRError: one is no probability.
    """
    raw = np.asarray(list(p), float)
    if not ((raw >= 0) & (raw <= 1)).all():
        raise CDRError(f"p-values lie between 0 and 1, not {raw[~((raw >= 0) & (raw <= 1))][0]}.")
    order = np.argsort(raw, kind="stable")
    steps = np.minimum(1.0, (len(raw) - np.arange(len(raw))) * raw[order])
    adjusted = np.empty(len(raw))
    adjusted[order] = np.maximum.accumulate(steps) if len(raw) else steps
    return adjusted


# -- tables of runs -------------------------------------------------------------------------------------------------

Runs = Mapping[str, Sequence[pd.DataFrame]]


@dataclass(frozen=True)
class Aligned:
    """The instances of one part, and what every model's runs did on each.

    Attributes:
        instances: (n) rows with domain, user, item and one boolean column per group.
        metrics: the names.
        values: {model: (seeds, n, metrics)}.
        weights: (n,) how many instances a row stands for: 1, or a user's ratings (:func:`per_user`).
    """

    instances: pd.DataFrame
    metrics: tuple[str, ...]
    values: dict[str, np.ndarray]
    weights: np.ndarray

    @property
    def groups(self) -> list[str]:
        """The names of the user groups."""
        return [column for column in self.instances.columns if column not in ("domain", "user", "item")]

    def cells(self) -> Iterable[tuple[str, str, np.ndarray]]:
        """Yields (domain, group, (n,) mask) where there are instances."""
        for domain in dict.fromkeys(self.instances["domain"]):
            for group in self.groups:
                mask = ((self.instances["domain"] == domain) & self.instances[group]).to_numpy(bool)
                if mask.any():
                    yield str(domain), group, mask


def is_per_instance(frame: pd.DataFrame, metric: str) -> bool:
    """Returns whether a per-instance table says a metric, or one of :data:`ERRORS`, of each instance."""
    if metric in ERRORS:
        return metric in frame or "absolute_error" in frame
    return metric in frame or ("rank" in frame and _AT.fullmatch(metric) is not None)


def align(models: Runs, *, part: str = "test", metrics: Sequence[str] | None = None) -> Aligned:
    """Brings the instances of all runs into one order.

    Args:
        models: per model the per-instance (or per-rating) tables of its runs, one per seed.
        part: "test" or "valid".
        metrics: names such as ndcg@10 and hit@10, which ranks give for any cut-off, any other metric that is a column,
            or for ratings absolute_error and squared_error; None: both of the kind that the tables are of.

    Raises:
        CDRError: there is no run, a table lacks what is read, or two are not of the same instances.
    """
    if not models or not all(len(frames) for frames in models.values()):
        raise CDRError("Nothing to compare: every model needs the per-instance table of at least one run.")
    first: _Table | None = None
    values: dict[str, np.ndarray] = {}
    names = tuple(metrics) if metrics is not None else None
    for model, frames in models.items():
        of_seeds = []
        for number, frame in enumerate(frames):
            table = _Table(frame, part, f"run {number + 1} of {model}")
            first = first or table
            order = first.order_of(table)
            names = names or (ERRORS if table.rated else RANKED)
            of_seeds.append(np.column_stack([table.values(name)[order] for name in names]))
        values[model] = np.stack(of_seeds)
    assert first is not None and names is not None
    return Aligned(first.instances(), names, values, first.weights())


def summary(aligned: Aligned) -> pd.DataFrame:
    """Returns mean ± std over the seeds: domain, group, metric, model, n (instances), seeds, mean, std."""
    rows = []
    for domain, group, mask in aligned.cells():
        for m, metric in enumerate(aligned.metrics):
            for model, values in aligned.values.items():
                of = Spread.of(np.average(values[:, mask, m], axis=1, weights=aligned.weights[mask]))
                rows.append(
                    {
                        **{"domain": domain, "group": group, "metric": metric, "model": model},
                        **{
                            "n": int(aligned.weights[mask].sum()),
                            "seeds": of.n,
                            "mean": of.mean,
                            "std": of.std,
                        },
                    }
                )
    return pd.DataFrame(rows)


def compare(aligned: Aligned, baseline: str | None = None) -> pd.DataFrame:
    """Compares the models per domain, group and metric.

    Args:
        baseline: what every other model is compared with; None: in each cell the best model with the second best.

    Returns:
        One row per comparison: domain, group, metric, model, other, the fields of :class:`Paired` with the sign of
        model - other, ``better`` (whether that is in the model's favour), ``t_holm`` and ``wilcoxon_holm``, corrected
        over all rows, and ``p``, the larger of these two.

    Raises:
        CDRError: there are less than two models, or the baseline is none of them.
    """
    models = list(aligned.values)
    if len(models) < 2:
        raise CDRError("A comparison takes at least two models.")
    if baseline is not None and baseline not in models:
        hint = did_you_mean(baseline, models)
        raise CDRError(f"The baseline '{baseline}' is none of the models: {', '.join(models)}.{hint}")
    rows: list[dict[str, Any]] = []
    over_seeds = {model: values.mean(axis=0) for model, values in aligned.values.items()}
    users = aligned.instances["user"]
    for domain, group, mask in aligned.cells():
        user = pd.factorize(users[mask])[0]
        for m, metric in enumerate(aligned.metrics):
            sign = 1 if metric not in ERRORS and larger_is_better(metric) else -1
            of_users = {
                model: _by_user(values[mask, m], user, aligned.weights[mask])
                for model, values in over_seeds.items()
            }
            if baseline is None:
                best, second = sorted(
                    models, key=lambda model: -sign * round(of_users[model].mean(), _DECIMALS)
                )[:2]
                pairs = [(best, second)]
            else:
                pairs = [(model, baseline) for model in models if model != baseline]
            for model, other in pairs:
                one = paired(of_users[model], of_users[other])
                where = {"domain": domain, "group": group, "metric": metric, "model": model, "other": other}
                rows.append({**where, **vars(one), "better": sign * one.difference > 0})
    table = pd.DataFrame(rows)
    for test in ("t", "wilcoxon"):
        table[f"{test}_holm"] = holm(table[f"{test}_p"])
    table["p"] = table[["t_holm", "wilcoxon_holm"]].max(axis=1)
    return table


def _by_user(values: np.ndarray, user: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the (n,) users' sums of (m,) weighted values, scaled so that their mean is that of the values."""
    sums: np.ndarray = np.bincount(user, values * weights)
    return sums * (len(sums) / float(weights.sum()))


def per_user(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns what comparisons read of a per-rating table, in a row per part, domain, user and groups.

    Columns besides these: ``ratings``, how many there are; ``asked``, a checksum of their items and values; and the
    means ``absolute_error`` and ``squared_error``.
    """
    flags = [name for name in frame if pd.api.types.is_bool_dtype(frame[name]) and name not in _NO_GROUPS]
    error = frame["absolute_error"].to_numpy(float)
    question = frame["item"].astype(str) + "=" + frame["rating"].astype(float).astype(str) + ";"
    table = frame[["part", "domain", "user", *flags]].assign(
        ratings=1, asked=question, absolute_error=error, squared_error=error**2
    )
    of_users = table.groupby(["part", "domain", "user", *flags], sort=False, as_index=False).agg(
        {"ratings": "sum", "asked": _checksum, "absolute_error": "mean", "squared_error": "mean"}
    )
    return of_users.assign(item="")


def _checksum(texts: pd.Series) -> str:
    """Returns eight hexadecimal digits of texts, whatever their order."""
    return f"{zlib.crc32(''.join(sorted(texts)).encode()):08x}"


class _Table:
    """One run's table of one part.

    Args:
        what: what errors call it.
    """

    def __init__(self, frame: pd.DataFrame, part: str, what: str):
        self.what, self.part = what, part
        self.rated = "prediction" in frame.columns or "absolute_error" in frame.columns
        self.item = "item" if self.rated else "target"
        missing = [name for name in ("part", "domain", "user", self.item) if name not in frame.columns]
        if missing:
            raise CDRError(f"{what}: no per-instance table, it has no column '{missing[0]}'.")
        self.frame = frame[frame["part"] == part].reset_index(drop=True)
        if self.frame.empty:
            raise CDRError(f"{what}: its per-instance table has no rows of the part '{part}'.")
        keys = self.frame[["domain", "user", self.item]].astype(str)
        # The same (user, item) may be asked for twice; runs on one split write them in one order.
        self.keys = pd.MultiIndex.from_frame(
            keys.set_axis(["domain", "user", "item"], axis=1).assign(
                repeat=keys.groupby(list(keys)).cumcount()
            )
        )
        self.groups = [
            name
            for name in self.frame.columns
            if name not in _NO_GROUPS and pd.api.types.is_bool_dtype(self.frame[name])
        ]

    def weights(self) -> np.ndarray:
        """Returns (n,) how many instances the rows stand for."""
        return self.frame["ratings"].to_numpy(float) if "ratings" in self.frame else np.ones(len(self.frame))

    def values(self, metric: str) -> np.ndarray:
        """Returns (n,) values of a metric."""
        frame = self.frame
        if metric in ERRORS:
            if metric in self.frame:
                return self._column(metric, metric)
            error = self._column("absolute_error", metric)
            return error if metric == "absolute_error" else error**2
        if (match := _AT.fullmatch(metric)) and "rank" in frame.columns:
            rank, k = self._column("rank", metric), int(match[2])
            return np.where(rank <= k, 1 / np.log2(rank + 1) if match[1] == "ndcg" else 1.0, 0.0)
        return self._column(metric, metric)

    def _column(self, name: str, metric: str) -> np.ndarray:
        if name not in self.frame.columns:
            known = [column for column in self.frame.columns if "@" in column or column in ERRORS]
            raise CDRError(
                f"{self.what}: its per-instance table has no '{name}', which the metric '{metric}' is read from."
                f"{did_you_mean(name, known)}"
            )
        try:
            values: np.ndarray = self.frame[name].to_numpy(float)
        except (TypeError, ValueError) as error:
            raise CDRError(f"{self.what}: its column '{name}' holds other things than numbers.") from error
        if not np.isfinite(values).all():
            raise CDRError(f"{self.what}: its column '{name}' has values that are no numbers.")
        return values

    def order_of(self, other: _Table) -> np.ndarray:
        """Returns where in ``other`` each of the instances here stands.

        Raises:
            CDRError: it is not of the same instances, or does not say the same of them.
        """
        if self.rated != other.rated:
            raise CDRError(f"{self.what} and {other.what} are of different tasks: ranks and ratings.")
        order = (
            np.arange(len(self.keys)) if self.keys.equals(other.keys) else other.keys.get_indexer(self.keys)
        )
        if (order < 0).any() or len(self.keys) != len(other.keys):
            only = [f"{len(self.keys.difference(other.keys)):,} are in the first alone"]
            only += [f"{len(other.keys.difference(self.keys)):,} in the second alone"]
            odd = (self.keys.difference(other.keys).union(other.keys.difference(self.keys)))[0]
            raise self._differ(
                other,
                f"of {len(self.keys):,} and {len(other.keys):,} {self.part} instances {', '.join(only)}, such as user "
                f"{odd[1]}, item {odd[2]} of {odd[0]}",
            )
        if sorted(self.groups) != sorted(other.groups):
            raise self._differ(other, f"their groups are {self.groups} and {other.groups}")
        for name in [*self.groups, *(("rating", "ratings", "asked") if self.rated else ("candidates",))]:
            if name not in self.frame.columns or name not in other.frame.columns:
                continue
            mine, its = self.frame[name].to_numpy(), other.frame[name].to_numpy()[order]
            if (mine != its).any():
                odd = self.keys[int(np.flatnonzero(mine != its)[0])]
                raise self._differ(
                    other,
                    f"'{name}' differs in {int((mine != its).sum()):,} of them, such as user {odd[1]}, item "
                    f"{odd[2]} of {odd[0]}",
                )
        return order

    def instances(self) -> pd.DataFrame:
        """Returns the instances, with the groups that they are in; ratings are in one."""
        frame = self.keys.to_frame(index=False)[["domain", "user", "item"]]
        if not self.groups:
            return frame.assign(**{"cold" if self.rated else "all": True})
        return pd.concat([frame, self.frame[self.groups]], axis=1)

    def _differ(self, other: _Table, how: str) -> CDRError:
        return CDRError(
            f"{self.what} and {other.what} were not asked the same: {how}. Only runs on the same data and split, "
            "with the same candidates, can be compared."
        )
