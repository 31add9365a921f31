"""Recommending from what a run saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Instances, Pool
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.runs.experiment import build, set_threads
from recbole_cdr_ext.runs.folder import stored_settings
from recbole_cdr_ext.settings.config import RUNTIME_KEYS, CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.split import Split
from recbole_cdr_ext.tasks.next_item import NextItemExperiment
from recbole_cdr_ext.tasks.task import Experiment
from recbole_cdr_ext.trainer import checkpoint
from recbole_cdr_ext.trainer.stages import augment

# Places of items in their domain, their scores, and whose these are.
_Best = tuple[np.ndarray, np.ndarray, str]


def load_model(run: str | Path, model: type | None = None, **settings: Any) -> Experiment:
    """Returns the experiment of a saved run, with its best weights.

    Args:
        run: the run's folder.
        model: the class, if the run was of one that the registry does not know.
        settings: run-time settings to use instead of the stored ones (``data_path``, ``use_gpu``, ...).

    Raises:
        CDRError: there is no such run, or it was trained on other data than there are now.
    """
    folder = Path(run)
    stored = stored_settings(folder)
    foreign = next((key for key in settings if key not in RUNTIME_KEYS), None)
    if foreign:
        raise CDRError(f"'{foreign}' decides what the run in {folder} computed; it cannot be changed now.")
    config = CDRConfig(model, config_dict={**stored, **settings})
    set_threads(config)
    experiment = build(config)
    path = folder / checkpoint.MODEL
    name = "model"
    if not path.exists():
        path, name = folder / checkpoint.LAST, "best"  # an unfinished run: its best so far
    if not path.exists():
        raise CDRError(f"{folder} holds no weights yet: resume the run (--resume={folder.name}).")
    data, device = experiment.split.fingerprint, config["device"]
    _, states = checkpoint.load(path, model=config["model"], data=data, device=device)
    checkpoint.restore(experiment.model, states[name], path)
    experiment.model.eval()
    return experiment


@torch.no_grad()
def recommend(
    experiment: Experiment, users: Sequence[str] | str, k: int = 10, domain: str | None = None
) -> pd.DataFrame:
    """Returns each user's best items of a domain that the user has not touched.

    A user is served from the whole history that the run may know: the training data and, for a held-out
    user, the histories of the held-out instances. A user whom the data do not know, or whom the model cannot
    score, gets the most popular items of the domain instead, and the column ``source`` says so.

    Args:
        users: external ids; one alone may be text.
        k: how many items each; fewer where the domain has fewer that the user has not touched.
        domain: its name; None: the settings' ``target``, or the only domain there is.

    Returns:
        One row per user and item, best first: user, rank (from 1), item (external id), score, source
        ("model" or "popularity").

    Raises:
        CDRError: the domain is unknown, or not given where there are several; or the run predicts ratings.
    """
    if not isinstance(experiment, NextItemExperiment):
        raise CDRError(
            f"{experiment.config['model']} predicts ratings and ranks no items: recommend from a next_item run."
        )
    dataset = experiment.dataset
    target = _domain_to_serve(experiment, domain)
    tokens = [users] if isinstance(users, str) else [str(user) for user in users]
    ids = np.array([dataset.field2token_id[dataset.uid_field].get(token, 0) for token in tokens], np.int64)
    domain_items = dataset.item_range(target)
    popular = torch.from_numpy(experiment.popularity[domain_items].astype(np.float64))
    best: dict[int, _Best] = {0: (*_top(popular, k), "popularity")}
    for user, scores, by_model in _scores(experiment, np.unique(ids[ids > 0]), target, popular):
        best[user] = (*_top(scores, k), "model" if by_model else "popularity")
    frames = []
    for token, user in zip(tokens, ids, strict=True):
        place, score, source = best[int(user)]
        frame = {
            "user": token,
            "rank": np.arange(1, len(place) + 1),
            "item": dataset.item_token(place + domain_items.start),
            "score": score,
            "source": source,
        }
        frames.append(pd.DataFrame(frame))
    empty = pd.DataFrame(columns=["user", "rank", "item", "score", "source"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def _domain_to_serve(experiment: NextItemExperiment, domain: str | None) -> int:
    dataset = experiment.dataset
    only = dataset.domains[0] if dataset.n_domains == 1 else None
    name = domain or experiment.config["target"] or only
    if name is None:
        raise CDRError(f"Which domain? Give one of {', '.join(dataset.domains)}.")
    return dataset.domain_index(name)


def _scores(
    experiment: NextItemExperiment, users: np.ndarray, domain: int, popular: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, bool]]:
    """Yields each user with the scores of a domain's items, (n_k,), and whether they are the model's.

    What a user has touched is at minus infinity.

    Args:
        users: (n,) ascending user ids.
        popular: (n_k,) the scores of those whom the model cannot score.
    """
    config, split, model = experiment.config, experiment.split, experiment.model
    span = experiment.dataset.item_range(domain)
    model.eval()
    for batch in CrossDomainLoader(config, _enriched_instances(experiment, users, domain), model):
        batch = batch.to(config["device"])
        able = model.can_score(batch)
        scorable = torch.ones(len(batch), dtype=torch.bool) if able is None else able.cpu()
        scores = popular.expand(len(batch), -1).clone()
        if scorable.any():
            part = batch if scorable.all() else batch.rows(scorable.to(batch.users.device))
            scores[scorable] = model.score(part).cpu().double()
        owners = batch.users.cpu().numpy()
        row, item = split.touched.rows(owners)
        inside = (item >= span.start) & (item < span.stop)
        scores[row[inside], item[inside] - span.start] = -torch.inf
        yield from zip(owners.tolist(), scores, scorable.tolist(), strict=True)


def _enriched_instances(experiment: NextItemExperiment, users: np.ndarray, domain: int) -> Instances:
    """Returns the users' instances with what the model's stages, and the model itself, add to them."""
    config, dataset, split, model = experiment.config, experiment.dataset, experiment.split, experiment.model
    instances = _serving_instances(dataset, split, users, domain)
    for stage in type(model).stages(config):
        instances = augment(config, dataset, split, stage, instances)
    if model.needs_pseudo and instances.recalled is None:
        instances = type(model).prepare_data(config, dataset, replace(split, test=instances)).test
    return instances


def _serving_instances(
    dataset: CrossDomainDataset, split: Split, users: np.ndarray, domain: int
) -> Instances:
    """Returns one instance without a target for each user, over all that the run may know of the user.

    Args:
        users: (n,) ascending user ids.
    """
    events = dataset.events.take(np.isin(dataset.events.user, users))
    span = np.int64(dataset.item_num)
    known = [split.train_events.user * span + split.train_events.item]
    for part in (split.valid, split.test):
        held_out = part.take(np.isin(part.user, users))
        length = held_out.lengths.ravel()
        first = np.repeat(held_out.start.ravel() - np.append(0, np.cumsum(length)[:-1]), length)
        place = first + np.arange(length.sum())
        known.append(np.repeat(held_out.user, held_out.lengths.sum(1)) * span + held_out.pool.item[place])
    pair = events.user * span + events.item
    once = np.zeros(len(events), bool)
    once[np.unique(pair, return_index=True)[1]] = True  # published rows may repeat what a user did
    events = events.take(np.isin(pair, np.concatenate(known)) & once)
    n, n_domains = len(users), dataset.n_domains
    block = np.searchsorted(users, events.user) * n_domains + events.domain
    order = np.argsort(block, kind="stable")
    counts = np.bincount(block, minlength=n * n_domains)
    stop = np.cumsum(counts).reshape(n, n_domains)
    return Instances(
        user=users,
        domain=np.full(n, domain),
        target=np.zeros(n, np.int64),
        time=np.full(n, np.inf),
        sequence=users - 1,
        start=stop - counts.reshape(n, n_domains),
        stop=stop,
        pool=Pool(events.item, events.user, np.arange(len(events)), events.time).take(order),
    )


def _top(scores: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (places, scores) of the best, without those at minus infinity; of equal ones, the first."""
    values, places = torch.sort(scores, descending=True, stable=True)
    untouched = values[:k] > -torch.inf
    return places[:k][untouched].numpy(), values[:k][untouched].numpy()
