"""EMCDR, and what it shares with the other bridges that are fitted to overlapping users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Rows, random_ratings, rating_config, write_ratings

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Tables, whole_batch
from recbole_cdr_ext.runs.experiment import build, load_data
from recbole_cdr_ext.splits.split import Ratings, TrainingData
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer, seed_everything

NAMES = ["books", "films"]
BRIDGES = ("EMCDR", "SSCDR", "CLCDR")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emcdr")
    write_ratings(folder / "mini", random_ratings())
    return folder


# -- what a bridge's tests need ------------------------------------------------------------------------------


def normal_tables(split, domain: int, size: int, *, biases: bool = False, seed: int = 0) -> Tables:
    """Standard normal vectors of a domain, and biases if they are wanted."""
    draw = torch.Generator().manual_seed(100 * seed + domain)
    n_items = int(split.item_offset[domain + 1] - split.item_offset[domain])
    width = 1.0 if biases else 0.0
    return Tables(
        torch.randn(split.n_users, size, generator=draw),
        torch.randn(n_items, size, generator=draw),
        width * torch.randn(split.n_users, generator=draw),
        width * torch.randn(n_items, generator=draw),
        3.0 * width,
    )


def bridge_on(
    root: Path, model: str, size: int = 3, *, tables=None, edit=None, seed: int = 0, cls=None, **settings
):
    """Returns (model, split) of a bridge between given vectors: nothing is pre-trained.

    Args:
        tables: split -> {domain: Tables}; standard normal ones by default.
        edit: split -> split, before the model sees it.
        cls: another class than the one that ``model`` names, with that one's settings.
    """
    config = rating_config(root, NAMES, model, embedding_size=size, **{"biases": False, **settings})
    dataset, split = load_data(config)
    made = tables(split) if tables else {}
    for domain in (split.source, split.target):
        default = normal_tables(split, domain, size, biases=config["biases"])
        split = split.with_tables(domain, made.get(domain, default))
    split = edit(split) if edit else split
    seed_everything(seed)
    return (cls or config.model_class)(config, TrainingData.of(dataset, split)), split


def fit(model, split, validate=None) -> CrossDomainTrainer:
    """Trains a model without writing a file."""
    trainer = CrossDomainTrainer(model.config, model, "nowhere")
    trainer.fit(split, None, validate, verbose=False, saved=False)
    return trainer


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def users_batch(users, model) -> RatingBatch:
    """A batch of users without items."""
    user = torch.as_tensor(users)
    return RatingBatch(user, torch.zeros_like(user), torch.zeros(len(user)), model.target)


def known_world(noise: float = 0.0, seed: int = 0):
    """Returns (tables, edit): u^t = A u^s, ratings are ⟨u^t, v^t⟩ plus noise, and A."""
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed + 5))

    def tables(split):
        source = normal_tables(split, split.source, 3)
        target = normal_tables(split, split.target, 3)
        return {split.target: replace(target, user=source.user @ matrix.T)}

    def edit(split):
        table, rng = split.tables[split.target], np.random.default_rng(seed)

        def rated(ratings: Ratings) -> Ratings:
            user, item = (
                torch.from_numpy(ratings.user),
                torch.from_numpy(ratings.item - split.item_offset[split.target]),
            )
            product = (table.user[user] * table.item[item]).sum(1).numpy()
            value = product + rng.normal(0, noise, len(product)) if noise else product
            return replace(ratings, rating=value.astype(np.float32))

        train = {**split.train, split.target: rated(split.train[split.target])}
        return replace(split, train=train, valid=rated(split.valid), test=rated(split.test))

    return tables, edit, matrix


def error_on_test(model, split) -> float:
    """The root mean squared error on the test ratings of known items."""
    batch = whole_batch(split.test, int(split.item_offset[split.target]), split.target)
    with torch.no_grad():
        error = model.rate(batch) - batch.rating
    return float(error[model.known_items[batch.item]].square().mean().sqrt())


LONG = {"mapping": "linear", "learning_rate": 0.4, "epochs": 50, "train_batch_size": 8}


# -- the mapping ---------------------------------------------------------------------------------------------


def test_loss_by_hand(root):
    def tables(split):
        source, target = normal_tables(split, split.source, 2), normal_tables(split, split.target, 2)
        source.user[1], source.user[2] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
        target.user[1], target.user[2] = torch.tensor([4.0, 1.0]), torch.tensor([0.0, 1.0])
        return {split.source: source, split.target: target}

    for reduction, n in (("mean", 2), ("sum", 1)):
        model, _ = bridge_on(root, "EMCDR", 2, tables=tables, mapping="linear", reduction=reduction)
        with torch.no_grad():
            model.mapping.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        # f(1, 0) = (1, 3), off by (3, 2); f(0, 2) = (4, 8), off by (4, 7).
        loss = model.embedding_loss(users_batch([1, 2], model))
        assert loss.item() == pytest.approx((9 + 4 + 16 + 49) / 2 / n)
        moved = model.embedding_loss(users_batch([1, 2], model), torch.zeros(2, 2))
        assert moved.item() == pytest.approx((16 + 1 + 0 + 1) / 2 / n)


def test_a_linear_mapping_finds_the_matrix(root):
    tables, edit, matrix = known_world()
    model, split = bridge_on(root, "EMCDR", tables=tables, edit=edit, **LONG)
    assert (model.mapping.weight - matrix).norm() > 0.5 * matrix.norm()
    fit(model, split)
    assert (model.mapping.weight - matrix).norm() < 1e-3 * matrix.norm()


def test_a_known_mapping_predicts_up_to_the_noise_and_not_for_somebody_elses_vectors(root):
    """A permutation of the source vectors among the users leaves nothing to be learned."""
    tables, edit, matrix = known_world(noise=0.2)
    errors = {}
    for permuted in (False, True):

        def source_tables(split, permuted=permuted):
            made = tables(split)
            source = normal_tables(split, split.source, 3)
            order = torch.from_numpy(np.random.default_rng(0).permutation(split.n_users))
            return {**made, split.source: replace(source, user=source.user[order])} if permuted else made

        model, split = bridge_on(root, "EMCDR", tables=source_tables, edit=edit, **LONG)
        fit(model, split)
        errors[permuted] = error_on_test(model, split)
    model, split = bridge_on(root, "EMCDR", tables=tables, edit=edit, **LONG)
    with torch.no_grad():
        model.mapping.weight.copy_(matrix)
    floor, zero = error_on_test(model, split), float(np.sqrt(np.square(split.test.rating).mean()))
    assert 0.15 < floor < 0.25 and zero > 1
    assert errors[False] < 1.05 * floor
    assert errors[True] > 0.9 * zero


@pytest.mark.parametrize("mapping", ["mlp", "linear"])
def test_a_users_number_of_ratings_does_not_count(root, mapping):
    def edit(split):
        rows = split.train[split.target]
        more = rows.take(rows.user == split.overlapping[0])
        joined = (np.concatenate([getattr(rows, f), getattr(more, f)]) for f in ("user", "item", "rating"))
        assert len(more)
        return replace(split, train={**split.train, split.target: Ratings(*joined)})

    found = []
    for change in (None, edit):
        model, split = bridge_on(root, "EMCDR", edit=change, mapping=mapping, train_batch_size=8, epochs=3)
        fit(model, split)
        found.append(weights(model.mapping))
    assert same(*found)


def test_an_epoch_has_every_overlapping_user_once_and_no_other(root):
    model, split = bridge_on(root, "EMCDR", train_batch_size=7)
    batches = list(model.user_batches(np.random.default_rng(0)))
    users = torch.cat([batch.user for batch in batches])
    assert sorted(users.tolist()) == split.overlapping.tolist() != users.tolist()
    assert {len(batch) for batch in batches[:-1]} == {7}


@pytest.mark.parametrize("model_name", BRIDGES)
@pytest.mark.parametrize("biases", [False, True])
def test_only_the_mapping_learns(root, model_name, biases):
    model, split = bridge_on(root, model_name, biases=biases)
    (phase,) = model.phases()
    learning = dict(model.parameters_of(phase))
    assert {name for name, p in learning.items() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("mapping.")
    }
    before = weights(model)
    fit(model, split)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("mapping.")}
    assert torch.equal(after["target_items"], split.tables[split.target].item)


def test_a_mapping_that_is_neither_is_an_error(root):
    for model in ("EMCDR", "SSCDR"):
        with pytest.raises(CDRError, match="mapping='spline' should be one of mlp, linear"):
            rating_config(root, NAMES, model, mapping="spline")


def test_a_linear_mapping_is_one_matrix(root):
    model, _ = bridge_on(root, "EMCDR", mapping="linear")
    assert [(name, p.shape) for name, p in model.mapping.named_parameters()] == [("weight", (3, 3))]


# -- what holds for all three --------------------------------------------------------------------------------


def trained(root, model: str, data=None, **settings):
    """Returns the experiment, trained with its stages, validation off."""
    config = rating_config(root, NAMES, model, **{"eval_step": 0, "rating_range": [0, 10], **settings})
    dataset, split = load_data(config)
    experiment = build(config, dataset, data(split) if data else split)
    fit(experiment.model, experiment.split)
    return experiment


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """The data three times: as they are, target ratings one higher, source ratings one higher."""
    data, roots = random_ratings(), []
    for name in (None, "films", "books"):
        folder = tmp_path_factory.mktemp("shifted")
        rows: dict[str, Rows] = {
            domain: [(u, i, r + (domain == name)) for u, i, r in data[domain]] for domain in NAMES
        }
        write_ratings(folder / "mini", rows)
        roots.append(folder)
    return roots


@pytest.mark.parametrize("model", BRIDGES)
def test_the_mean_absorbs_a_shift_of_all_ratings(shifted, model):
    as_is, target, source = (trained(folder, model, epochs=3).predict("test") for folder in shifted)
    assert np.ptp(as_is) > 0.5
    assert target == pytest.approx(as_is + 1, abs=2e-5)
    assert source == pytest.approx(as_is, abs=2e-5)


@pytest.mark.parametrize("model", BRIDGES)
def test_without_vectors_it_is_the_biases(root, model):
    floor = trained(root, "BiasOnly").predict("test")
    empty = trained(root, model, embedding_size=0)
    assert empty.model.phases() == []
    assert np.array_equal(empty.predict("test"), floor)

    def zeros(split):
        return {
            k: Tables(0 * t.user, 0 * t.item, t.user_bias, t.item_bias, t.mean)
            for k in (split.source, split.target)
            for t in [normal_tables(split, k, 3, biases=True)]
        }

    made, split = bridge_on(root, model, tables=zeros, biases=True)
    batch = whole_batch(split.test, int(split.item_offset[split.target]), split.target)
    assert torch.equal(made.rate(batch), made.base_rating(batch))
    assert float(made.base_rating(batch).std()) > 0.1


@pytest.mark.parametrize("model", BRIDGES)
@pytest.mark.parametrize("biases", [False, True])
def test_no_held_out_rating_is_seen(root, model, biases, tmp_path):
    def spoilt(split):
        return replace(
            split, **{part: replace(split.part(part), rating=0 * split.part(part).rating + 9) for part in
                      ("valid", "test")}
        )  # fmt: skip

    found = [
        trained(root, model, data, biases=biases, cache_dir=str(tmp_path / name)).predict("test")
        for name, data in (("as_is", None), ("spoilt", spoilt))
    ]
    assert np.array_equal(*found)


@pytest.mark.parametrize("model", BRIDGES)
def test_it_beats_the_item_mean_where_vectors_transfer(worlds, model):
    """Both domains rate by the same two numbers of a user: the whole way from files to predictions."""
    config = rating_config(
        worlds,
        NAMES,
        model,
        biases=False,
        embedding_size=4,
        pretrain_epochs=30,
        epochs=40,
        pretrain_reg_weight=0.01,
        rating_range=[0, 10],
        stopping_step=10,
        seed=1,
    )
    experiment = build(config)
    fit(experiment.model, experiment.split, experiment.validate)
    mine, item_mean = (
        experiment.table("test", predicted)["films"]["cold"]["rmse"]
        for predicted in (experiment.predict("test"), experiment.floor("ItemMean"))
    )
    assert mine < 0.6 * item_mean


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("worlds"), np.random.default_rng(0)
    users = rng.uniform(0.8, 1.8, (100, 2))
    rows: dict[str, Rows] = {}
    for name in NAMES:
        items = rng.uniform(0.8, 1.8, (25, 2))
        rows[name] = [
            (f"u{u:03d}", f"{name[0]}{i}", float(users[u] @ items[i])) for u in range(100) for i in range(25)
        ]
    write_ratings(folder / "mini", rows)
    return folder


@pytest.mark.parametrize("model", BRIDGES)
def test_the_papers_form_can_be_asked_for(root, model):
    config = rating_config(root, NAMES, model, config_files=f"{model}_paper")
    assert config["biases"] is False
