"""Small graphs, backbones on them, and TGT with each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.model.backbones import LightGCNBackbone, NGCFBackbone
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

NAMES = ["books", "films"]
GRAPHS = ["LightGCN", "NGCF"]
SMF = {"pretrain_sharpness": "pgd", "rho_pretrain": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    write_ratings(folder / "mini", random_ratings())
    return folder


def tgt(root, backbone, **settings):
    """An untrained TGT on its split."""
    return build(rating_config(root, NAMES, "TGT", backbone=backbone, **settings))


def fit(experiment) -> CrossDomainTrainer:
    trainer = CrossDomainTrainer(experiment.config, experiment.model, "nowhere")
    trainer.fit(experiment.split, None, verbose=False, saved=False)
    return trainer


def tables(experiment):
    model = experiment.model
    return model.augment(experiment.split).tables[model.domain]


def some_batch(model) -> RatingBatch:
    return next(iter(model.batches(np.random.default_rng(0))))


def edges(*pairs, rating=None) -> RatingBatch:
    user, item = torch.tensor(pairs).T
    rating = torch.full((len(pairs),), 3.0) if rating is None else torch.tensor(rating)
    return RatingBatch(user, item, rating, 0)


def ngcf(graph, size, n_layers, **more) -> NGCFBackbone:
    return NGCFBackbone(graph, size, n_layers, **{"normalised": False, **more}).eval()


def light(graph, size, n_layers, **more) -> LightGCNBackbone:
    return LightGCNBackbone(graph, size, n_layers).eval()


PATH = edges((0, 0), (1, 0))  # u0 – i0 – u1: degrees 1, 2, 1, every edge weighs 1/√2
