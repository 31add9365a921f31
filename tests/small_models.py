"""Small models of the zoo and their data, as the tests of each build and train them; and C2DSR's loss by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import load, random_domains, random_ratings, rating_config, write_ratings

from recbole_cdr_ext.data.instances import Batch
from recbole_cdr_ext.model.backbones import LightGCNBackbone, NGCFBackbone
from recbole_cdr_ext.model.next_item.c2dsr import C2DSR
from recbole_cdr_ext.model.next_item.dasl import DASL
from recbole_cdr_ext.model.next_item.emcdr import EMCDR
from recbole_cdr_ext.model.next_item.svae import SVAE
from recbole_cdr_ext.model.rating_recommender import RatingBatch
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

SMALL_C2DSR = {
    "embedding_size": 16,
    "inner_size": 16,
    "n_layers": 2,
    "n_graph_layers": 2,
    "dropout": 0.0,
    "max_history_length": 60,
    "train_batch_size": 100,
    "split": "leave_one_out",
}
# What is compared here position by position is one order; tests/test_model_parts.py has those of the epochs.
CLOCKLESS_C2DSR = {"order": "none", "split": "user", "reorder": False}


def build_c2dsr(tmp_path, domains=None, **settings):
    loaded = load(tmp_path, domains or random_domains(), model="C2DSR", **{**SMALL_C2DSR, **settings})
    torch.manual_seed(0)
    model = C2DSR(loaded.config, loaded.data).eval()
    with torch.no_grad():  # what starts at zero could hide that it is left out
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return loaded, loaded.split, model


def train_c2dsr(model, epochs, lr=5e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    losses = []
    for epoch in range(epochs):
        losses.append(0.0)
        for batch in model.training_sequences.batches(np.random.default_rng(epoch)):
            loss = sum(model.sequence_loss(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    model.eval()
    return losses


def c2dsr_batches(loaded, part, model):
    return list(CrossDomainLoader(loaded.config, part, model))


@pytest.fixture(scope="module")
def ready_c2dsr(tmp_path_factory):
    return build_c2dsr(tmp_path_factory.mktemp("c2dsr"))


def c2dsr_loss_by_loops(model, batch):
    """The three terms, position by position, each state from a prefix that is encoded alone."""
    tables = [table() for table in (model.merged_table, *model.table)]

    def state(encoder, table, ids, offset):
        return encoder(torch.tensor([ids]), lambda i: table[i - offset])[0, -1]

    def single_state(x, ids):
        return state(model.encoder[x], tables[1 + x], ids, model.item_offsets[x])

    def merged_state(ids):
        return state(model.merged_encoder, tables[0], ids, 0)

    def domain(item):
        return next(k for k in range(model.n_domains) if item < model.item_offsets[k + 1])

    k_all = range(model.n_domains)
    single, merged, infomax = ([[] for _ in k_all] for _ in range(3))
    for items, targets in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
        length = sum(i != 0 for i in items)
        items, last = items[:length], targets[length - 1]
        whole = [*items, last]
        leads = {x: [] for x in k_all}
        for t in range(length):
            h = merged_state(items[: t + 1])
            y = domain(whole[t + 1])
            merged[y].append(-model.predictor[y](h).log_softmax(0)[whole[t + 1] - model.item_offsets[y]])
            x = domain(whole[t])
            later = [i for i in whole[t + 1 :] if domain(i) == x]
            if later:
                own = single_state(x, [i for i in items[: t + 1] if domain(i) == x])
                leads[x].append((t, own, h))
                scores = model.predictor[x](h + own)
                single[x].append(-scores.log_softmax(0)[later[0] - model.item_offsets[x]])
        for x in k_all:
            others = [t for y in k_all if y != x for t, _, _ in leads[y]]
            if not leads[x] or not others:
                continue
            wrong = model._corrupted(torch.tensor([items]), x)[0].tolist()
            r_x = torch.stack([own for _, own, _ in leads[x]]).mean(0)
            r_other = torch.stack([merged_state(items[: t + 1]) for t in others]).mean(0)
            r_false = torch.stack([merged_state(wrong[: t + 1]) for t in others]).mean(0)
            matrix, bias = model.discriminator[x].weight.weight, model.discriminator[x].bias
            real, false = (torch.sigmoid(r_x @ matrix @ r + bias) for r in (r_other, r_false))
            infomax[x].append(-(real.log() + (1 - false).log()))
    asked = [x for x in k_all if model.clock or x == batch.tag]
    contrasted = [x for x in k_all if model.clock or x != batch.tag]

    def total(lists, domains):
        return sum(torch.stack(lists[x]).mean() for x in domains if lists[x])

    weight = model.weight
    return (
        weight * total(single, asked),
        weight * total(merged, asked),
        (1 - weight) * total(infomax, contrasted),
    )


SMALL_DASL = {"embedding_size": 16, "mlp_hidden_size": [12, 6], "attention_size": 5}


def build_dasl(tmp_path, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), model="DASL", **{**SMALL_DASL, **settings})
    torch.manual_seed(seed)
    model = DASL(loaded.config, loaded.data).eval()
    with torch.no_grad():  # what starts at 0 or 1 must count in the tests too
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for head in model.head:
            for norm in (head.norm_user, head.norm_item):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2.0)
    return loaded, loaded.split, model


def dasl_batches(loaded, split, model, part="test"):
    return list(CrossDomainLoader(loaded.config, split.part(part), model))


def dasl_training_loader(loaded, split, model):
    return CrossDomainLoader(
        loaded.config, split.train, model, sampler=CrossDomainSampler(split), training=True
    )


def train_dasl(loaded, split, model, epochs, lr=5e-3):
    loader = dasl_training_loader(loaded, split, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    losses = []
    for epoch in range(epochs):
        loader.set_epoch(0, epoch)
        for batch in loader:
            optimizer.zero_grad()
            loss = sum(model.calculate_loss(batch))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


@pytest.fixture(scope="module")
def ready_dasl(tmp_path_factory):
    return build_dasl(tmp_path_factory.mktemp("dasl"))


def without_own(batch):
    return batch.with_fields(**{f"history_{batch.target_domain}": torch.zeros_like(batch.own_history)})


def without_other(batch):
    other = 1 - batch.target_domain
    return batch.with_fields(**{f"history_{other}": torch.zeros_like(batch.history(other))})


SMALL_EMCDR = {
    "task": "next_item",
    "embedding_size": 8,
    "mapping_hidden_size": 16,
    "train_batch_size": 64,
    "map_batch_size": 8,
    "epochs": 2,
    "eval_args": {"mode": "uni20"},
}


def make_emcdr(folder, domains=None, cls=EMCDR, **settings):
    """Returns (loaded, model) on data made in a test."""
    loaded = load(folder, domains or random_domains(), "EMCDR", **{**SMALL_EMCDR, **settings})
    torch.manual_seed(0)
    return loaded, cls(loaded.config, loaded.data).eval()


def fit_emcdr(model, split) -> CrossDomainTrainer:
    """Trains all phases without writing a file."""
    trainer = CrossDomainTrainer(model.config, model, "nowhere")
    trainer.fit(split, verbose=False, saved=False)
    model.eval()
    return trainer


def questions(users, domain: int) -> Batch:
    """A batch without histories, which the model never reads."""
    user = torch.as_tensor(users)
    return Batch({"user_id": user, "item_id": torch.zeros_like(user)}, domain, 2)


@pytest.fixture(scope="module")
def ready_emcdr(tmp_path_factory):
    """A model after all of its phases. Do not change it."""
    loaded, model = make_emcdr(tmp_path_factory.mktemp("emcdr"))
    fit_emcdr(model, loaded.split)
    return loaded, model


def emcdr_users(model) -> dict[str, np.ndarray]:
    """Users by where they have training items."""
    first, second = model.trained.numpy()
    found = {"both": first & second, "cold in 0": ~first & second, "cold in 1": first & ~second}
    return {name: np.flatnonzero(mask) for name, mask in found.items()}


SMALL_SVAE = {
    "embedding_size": 12,
    "rnn_size": 10,
    "hidden_size": 8,
    "latent_size": 4,
    "split": "leave_one_out",
    "max_history_length": 60,
    "train_batch_size": 60,
}
# What is compared here position by position is one order; tests/test_model_parts.py has those of the epochs.
CLOCKLESS_SVAE = {"order": "none", "split": "user", "input": "merged", "reorder": False}
SVAE_FORMS = [{}, {"bos": False}, {"input": "merged"}, CLOCKLESS_SVAE, {"input": "merged", "bos": False}]


def build_svae(tmp_path, domains=None, seed=0, **settings):
    loaded = load(tmp_path, domains or random_domains(), "SVAE", **{**SMALL_SVAE, **settings})
    torch.manual_seed(seed)
    return loaded, SVAE(loaded.config, loaded.data).eval()


def svae_batches(loaded, model, part="test"):
    return list(CrossDomainLoader(loaded.config, loaded.split.part(part), model))


def svae_sequence_batches(model, seed=0):
    return list(model.training_sequences.batches(np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def ready_svae(tmp_path_factory):
    return build_svae(tmp_path_factory.mktemp("svae"))


BACKBONE_NAMES = ["books", "films"]
GRAPH_BACKBONES = ["LightGCN", "NGCF"]
SMF = {"pretrain_sharpness": "pgd", "rho_pretrain": 0.1}


@pytest.fixture(scope="module")
def backbone_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    write_ratings(folder / "mini", random_ratings())
    return folder


def tgt_on(backbone_root, backbone, **settings):
    """An untrained TGT on its split."""
    return build(rating_config(backbone_root, BACKBONE_NAMES, "TGT", backbone=backbone, **settings))


def fit_backbone(experiment) -> CrossDomainTrainer:
    trainer = CrossDomainTrainer(experiment.config, experiment.model, "nowhere")
    trainer.fit(experiment.split, None, verbose=False, saved=False)
    return trainer


def backbone_tables(experiment):
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
