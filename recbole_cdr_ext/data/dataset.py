"""Several domains of one user space as a RecBole dataset."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_cdr_ext import compat
from recbole_cdr_ext.data import atomic
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.registry.splits import get_split
from recbole_cdr_ext.settings.config import CDRConfig

compat.apply()

DOMAIN_FIELD = "domain"
PAD = "[PAD]"
FILTERS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval")


@dataclass(frozen=True)
class Events:
    """m interactions, ordered by (sequence, merged timeline).

    A sequence is what one user did (in the layout ``rows``: what one published row says of a user).

    Attributes:
        user, item, domain: (m,) user ids, global item ids, domain indices.
        time, rating: (m,) as in the files; rating is NaN where there is none.
        sequence: (m,) sequence ids, 0-based.
    """

    user: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    time: np.ndarray
    rating: np.ndarray
    sequence: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Events:
        """Returns the events at ``rows`` (indices or a mask)."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Rows:
    """The published rows as instances: (r,) arrays indexed by sequence id."""

    user: np.ndarray
    target_domain: np.ndarray
    is_test: np.ndarray


class TokenIds(Mapping[str, dict[str, int]]):
    """Ids by field and token, written when a field is first looked up: most models never do that.

    Args:
        tokens: by field, the token of each id.
    """

    def __init__(self, tokens: Mapping[str, np.ndarray]):
        self._tokens = tokens
        self._ids: dict[str, dict[str, int]] = {}

    def __getitem__(self, name: str) -> dict[str, int]:
        if name not in self._ids:
            self._ids[name] = {str(token): i for i, token in enumerate(self._tokens[name])}
        return self._ids[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)


class CrossDomainDataset(Dataset):
    """RecBole's ``Dataset`` over a list of domains: one user space, one item space cut into a range per domain.

    Users with one token are one user. Items with one token in two domains are two items, whose tokens leak checks
    compare (:attr:`token_key`). Ids start from 1; id 0 is padding, as in RecBole.

    Attributes:
        domains: their names; the index of a domain is its place in this list.
        item_offset: (K+1,) domain k owns the global item ids ``item_offset[k] .. item_offset[k+1] - 1``.
        token_key: (item_num,) equal for items whose external token is the same.
        events: all interactions after the filters, on each user's merged timeline.
        order: "clock", "merged" or "none": what the timestamps mean.
        rows: the published rows, in the layout ``rows`` only.
        report: what loading did, counted.

    A dataset stays as it was loaded: splits are made of it, and models are built on a split's :class:`TrainingData`.

    Raises:
        CDRError: a file is missing or malformed, or a domain is empty after the filters.
    """

    config: Any

    def _from_scratch(self) -> None:
        self._get_preset()
        self._get_field_from_config()
        config = self.config
        self.domains: list[str] = list(config["domains"])
        self.n_domains = len(self.domains)
        self.order: str = config["order"]
        self.simulated = bool(config["simulated"])
        maker = get_split(config["split"])
        self.averages_repeats = maker.averages_repeats
        published = maker.layout == "rows"
        self.report: dict[str, object] = {}
        self.user_feat = self.item_feat = None
        folder = Path(self.dataset_path) / "rows" if published else Path(self.dataset_path)
        if published and not (folder / "rows.inter").exists():
            raise CDRError(
                f"split={config['split']} needs the published rows as they are, and {folder} does not hold them. "
                f"Run: recbole-cdr prepare {self.dataset_name} --layout=rows --raw=DIR"
            )
        frames = [self._load_domain(folder, k, name) for k, name in enumerate(self.domains)]
        self.fingerprint = atomic.fingerprint(folder)
        self._remap(frames)
        self.rows = self._load_rows(folder) if published else None
        self._sort_events()
        self.feat_name_list = ["inter_feat"]

    # -- loading ------------------------------------------------------------------------------------------------

    def _load_domain(self, folder: Path, index: int, name: str) -> pd.DataFrame:
        """Reads one domain's file and applies RecBole's filters with that domain's settings."""
        path = folder / f"{name}.inter"
        if not path.exists():
            raise CDRError(
                f"{path} is missing: dataset '{self.dataset_name}' names the domain '{name}'. "
                f"Prepare it (recbole-cdr prepare {self.dataset_name}) or mend 'domains' in its property file."
            )
        general = self.config
        of_domain = (general["domain_settings"] or {}).get(name) or {}
        frame = self._read_columns(path, of_domain.get("load_col", general["load_col"]))
        frame = frame.rename(columns={"user_id": self.uid_field, "item_id": self.iid_field})
        n_in_file = len(frame)
        self.inter_feat = self._without_duplicates(frame, name)
        # RecBole's filters read their settings from self.config: lend them this domain's for as long as they run.
        self.config = {key: of_domain.get(key, general[key]) for key in FILTERS}
        self._declare_fields(self.inter_feat)
        for field in self.config["val_interval"] or {}:
            if field not in self.inter_feat:
                raise CDRError(
                    f"val_interval: {path} has no column '{field}', only {', '.join(self.inter_feat)}."
                    f"{did_you_mean(field, self.inter_feat)}"
                )
        try:
            self._filter_by_field_value()
            self._filter_by_inter_num()
        finally:
            self.config = general
        filtered, self.inter_feat = self.inter_feat, None
        self.report[f"{name}: interactions in the file"] = n_in_file
        self.report[f"{name}: interactions kept"] = len(filtered)
        if filtered.empty:
            raise CDRError(
                f"No interaction of domain '{name}' is left of {n_in_file} in {path} after the filters "
                f"(val_interval, user_inter_num_interval, item_inter_num_interval): loosen them."
            )
        filtered[DOMAIN_FIELD] = index
        return filtered

    @staticmethod
    def _read_columns(path: Path, load_col: Mapping[str, list[str]] | None) -> pd.DataFrame:
        """Reads a domain's file, or those of its columns that ``load_col`` names."""
        if load_col is None:
            return atomic.read_inter(path)
        named = load_col["inter"]
        # Rows of the layout `rows` are what they are: the column that tells them apart is not the user's to choose.
        return atomic.read_inter(path, required=named, columns={*named, "row_id"})

    def _without_duplicates(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Keeps the first of a user's interactions with an item, or averages their ratings, as the split asks for."""
        key = [c for c in ("row_id", self.uid_field, self.iid_field) if c in frame]
        double = frame.duplicated(key)
        self.report[f"{name}: duplicated (user, item)"] = int(double.sum())
        if not double.any():
            return frame
        if self.averages_repeats and "rating" in frame:
            means = frame.groupby(key, sort=False)["rating"].transform("mean")
            return frame.assign(rating=means)[~double].copy()
        if "timestamp" in frame:
            order = frame.reset_index().sort_values(["timestamp", "index"], kind="stable")["index"]
            frame = frame.loc[order]
        return frame.drop_duplicates(key, keep="first").sort_index().copy()

    def _declare_fields(self, frame: pd.DataFrame) -> None:
        tokens = {self.uid_field, self.iid_field, "row_id"}
        for column in frame.columns:
            kind = FeatureType.TOKEN if column in tokens else FeatureType.FLOAT
            self.set_field_property(column, kind, FeatureSource.INTERACTION, 1)

    def _load_rows(self, folder: Path) -> Rows:
        table = atomic.read_inter(
            folder / "rows.inter", required=("row_id", "user_id", "target_domain", "part")
        )
        unknown = set(table["target_domain"]) - set(self.domains)
        if unknown:
            raise CDRError(
                f"{folder / 'rows.inter'}: target_domain {sorted(unknown)} is none of {self.domains}."
            )
        table = table.set_index("row_id")
        missing = self._row_index.index.difference(table.index)
        if len(missing):
            raise CDRError(f"{folder / 'rows.inter'}: row {missing[0]} has events but no line of its own.")
        table = table.loc[self._row_index.index]
        user = np.array([self.field2token_id[self.uid_field][u] for u in table["user_id"]])
        domain = table["target_domain"].map({d: k for k, d in enumerate(self.domains)}).to_numpy()
        return Rows(user, domain, (table["part"] == "test").to_numpy())

    # -- ids ----------------------------------------------------------------------------------------------------

    def _remap(self, frames: list[pd.DataFrame]) -> None:
        """Gives users one id space and each domain's items a range of one; makes ``inter_feat``."""
        users = pd.Index(sorted(pd.unique(pd.concat([f[self.uid_field] for f in frames]))))
        item_tokens, self.item_offset = [PAD], np.ones(self.n_domains + 1, np.int64)
        columns: dict[str, list[np.ndarray]] = {
            c: [] for c in ("user", "item", "domain", "time", "rating", "row")
        }
        for k, frame in enumerate(frames):
            tokens = pd.Index(sorted(frame[self.iid_field].unique()))
            self.item_offset[k + 1] = self.item_offset[k] + len(tokens)
            item_tokens.extend(tokens)
            columns["user"].append(users.get_indexer(frame[self.uid_field]) + 1)
            columns["item"].append(tokens.get_indexer(frame[self.iid_field]) + self.item_offset[k])
            columns["domain"].append(np.full(len(frame), k))
            columns["time"].append(
                frame["timestamp"].to_numpy() if "timestamp" in frame else np.zeros(len(frame))
            )
            columns["rating"].append(
                frame["rating"].to_numpy() if "rating" in frame else np.full(len(frame), np.nan)
            )
            columns["row"].append(
                frame["row_id"].to_numpy() if "row_id" in frame else np.zeros(len(frame), object)
            )
        if self.order != "none" and not all("timestamp" in f for f in frames):
            raise CDRError(
                f"Dataset '{self.dataset_name}' says order: {self.order}, but a domain's file has no timestamp column. "
                "Add one, or say order: none in the property file."
            )
        flat = {name: np.concatenate(parts) for name, parts in columns.items()}
        self._tokens = np.array(item_tokens, dtype=object)
        self.token_key = pd.factorize(self._tokens)[0]
        # Two domains may share a token, so RecBole's token table says the domain as well.
        owner = np.searchsorted(self.item_offset, np.arange(1, len(item_tokens)), side="right") - 1
        unique = [PAD] + [f"{self.domains[k]}:{t}" for k, t in zip(owner, item_tokens[1:], strict=True)]
        self._set_tokens(self.uid_field, [PAD, *users])
        self._set_tokens(self.iid_field, unique)
        self._set_tokens(DOMAIN_FIELD, self.domains)
        self._flat = flat

    def _set_tokens(self, field: str, tokens: list[str]) -> None:
        self.field2id_token[field] = np.array(tokens, dtype=object)
        self.field2token_id[field] = {token: i for i, token in enumerate(tokens)}
        self.set_field_property(field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _sort_events(self) -> None:
        flat = self._flat
        sequence = flat["user"] - 1
        if self.rows is not None:
            sequence = self._row_index.to_numpy()[self._row_index.index.get_indexer(flat["row"])]
        time = flat["time"]
        if self.order == "none" and self.rows is None:
            # The files' order means nothing: a seeded one takes its place, so that "last" is a random item and
            # every history comes shuffled, in all that follows.
            time = np.random.default_rng(int(self.config["split_seed"])).permutation(len(time)).astype(float)
        # Stable: within a domain, the file's order breaks ties; between domains, the domains' order does.
        order = np.lexsort((flat["domain"], time, sequence))
        columns = (flat["user"], flat["item"], flat["domain"], time, flat["rating"], sequence)
        self.events = Events(*(np.ascontiguousarray(c[order]) for c in columns))
        self.inter_feat = self.interactions()
        del self._flat

    def portable(self) -> CrossDomainDataset:
        """Returns a copy that processes can share: its bulk in arrays of plain types, and no settings."""
        other = copy.copy(self)
        other.config, other.inter_feat = None, None
        other.field2id_token = {
            name: np.array([str(token) for token in tokens]) for name, tokens in self.field2id_token.items()
        }
        other.field2token_id = cast("dict[str, dict[str, int]]", TokenIds(other.field2id_token))
        other._tokens = np.array([str(token) for token in self._tokens])
        return other

    def with_settings(self, config: CDRConfig) -> CrossDomainDataset:
        """Returns a copy, on the same memory, under other settings: what :meth:`portable` leaves out is there again."""
        other = copy.copy(self)
        other.config, other.inter_feat = config, self.interactions()
        return other

    def interactions(self) -> Interaction:
        """Returns the events as RecBole's ``Interaction``, on their memory where the types are the same."""
        return Interaction(
            {
                self.uid_field: torch.from_numpy(self.events.user),
                self.iid_field: torch.from_numpy(self.events.item),
                DOMAIN_FIELD: torch.from_numpy(self.events.domain),
                "rating": torch.from_numpy(self.events.rating.astype(np.float32)),
                "timestamp": torch.from_numpy(self.events.time),
            }
        )

    @property
    def _row_index(self) -> pd.Series:
        """Published row ids to sequence ids, in order of appearance."""
        if not hasattr(self, "_row_ids"):
            rows = pd.unique(pd.Series(self._flat["row"]))
            self._row_ids = pd.Series(np.arange(len(rows)), index=pd.Index(rows))
        return self._row_ids

    # -- questions ----------------------------------------------------------------------------------------------

    def item_range(self, domain: int) -> slice:
        """Returns the global item ids of a domain."""
        return slice(int(self.item_offset[domain]), int(self.item_offset[domain + 1]))

    def n_domain_items(self, domain: int) -> int:
        """Returns how many items a domain has."""
        return int(self.item_offset[domain + 1] - self.item_offset[domain])

    def domain_index(self, name: str) -> int:
        """Returns the index of a domain.

        Raises:
            CDRError: there is no such domain.
        """
        if name not in self.domains:
            raise CDRError(
                f"Unknown domain '{name}'; dataset '{self.dataset_name}' has {', '.join(self.domains)}."
            )
        return self.domains.index(name)

    def item_token(self, items: np.ndarray) -> np.ndarray:
        """Returns the external tokens of global item ids."""
        tokens: np.ndarray = self._tokens[np.asarray(items)]
        return tokens

    def item_ids(self, domain: int, tokens: list[str]) -> np.ndarray:
        """Returns the global ids of a domain's items by external token.

        Raises:
            CDRError: the domain has no such item.
        """
        table, name = self.field2token_id[self.iid_field], self.domains[domain]
        try:
            return np.array([table[f"{name}:{token}"] for token in tokens])
        except KeyError as error:
            raise CDRError(f"Unknown item in domain '{name}': {str(error).split(':', 1)[1]}.") from None

    def summary(self) -> str:
        """Returns one line: users, and per domain items and interactions."""
        counts = np.bincount(self.events.domain, minlength=self.n_domains)
        parts = [
            f"{name}: {self.n_domain_items(k):,} items, {counts[k]:,} interactions"
            for k, name in enumerate(self.domains)
        ]
        return f"{self.user_num - 1:,} users; " + "; ".join(parts)

    def __str__(self) -> str:
        return f"{self.dataset_name} ({self.summary()})"

    __repr__ = __str__


def hash_arrays(*arrays: np.ndarray) -> str:
    """Returns a short hash of what arrays hold."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def data_key(*parts: object) -> str:
    """Returns a short hash of anything whose text says what it is, to name cached results by."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
