"""RecBole's own models as baselines: what their training sees."""

from __future__ import annotations

import adapter_toys
import numpy as np
import pytest
import torch

from recbole_cdr_ext import compat

compat.apply()

from recbole.model.general_recommender import BPR, LightGCN, MultiDAE, MultiVAE, NeuMF
from recbole.model.sequential_recommender import BERT4Rec, GRU4Rec, SASRec

from recbole_cdr_ext.data.instances import make_batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler

one_thread = adapter_toys.one_thread
toys = adapter_toys.toys
build = adapter_toys.build


@pytest.mark.parametrize("scope", ["target", "all"])
def test_bpr_learns_from_training_events_and_exact_negatives(build, scope):
    setup = build(BPR, 3, baseline_scope=scope, train_neg_sample_args={"sample_num": 3})
    split, offset = setup.split, setup.dataset.item_offset
    trained = set(zip(split.train_events.user.tolist(), split.train_events.item.tolist(), strict=True))
    held_out = set()
    for part in (split.valid, split.test):
        held_out |= set(zip(part.user.tolist(), part.target.tolist(), strict=True))
    assert held_out and not held_out & trained
    positives = []
    for batch in setup.model.event_batches(np.random.default_rng(0)):
        users, items, negatives = batch.users.numpy(), batch.targets.numpy(), batch.negatives.numpy()
        assert negatives.shape == (len(users), 3)
        domain = np.searchsorted(offset, items, side="right") - 1
        if scope == "target":
            assert (domain == batch.target_domain).all()
        assert ((negatives >= offset[domain][:, None]) & (negatives < offset[domain + 1][:, None])).all()
        pairs = set(zip(np.repeat(users, 3).tolist(), negatives.ravel().tolist(), strict=True))
        assert not pairs & trained
        positives += zip(users.tolist(), items.tolist(), strict=True)
        fields = setup.model.training_fields(batch, setup.model.space_index(batch.target_domain))
        assert len(fields) == 3 * len(users)
    assert sorted(positives) == sorted(trained)


def test_graph_has_no_held_out_edge(build):
    setup = build(LightGCN, 2, baseline_scope="all")
    edges = setup.model.views[0].inter_matrix(form="csr")
    for part in (setup.split.valid, setup.split.test):
        assert edges[part.user, part.target].sum() == 0
    assert edges.sum() == len(setup.split.train_events)


def test_pointwise_models_get_labels(build):
    setup = build(NeuMF, 2)
    batch = next(iter(setup.model.event_batches(np.random.default_rng(0))))
    fields = setup.model.training_fields(batch, batch.target_domain)
    label = fields[setup.config["LABEL_FIELD"]]
    n = len(batch)
    assert label[:n].eq(1).all() and label[n:].eq(0).all() and len(label) == 2 * n
    first = setup.dataset.item_range(batch.target_domain).start
    assert torch.equal(fields["item_id"][:n] + first - 1, batch.targets)
    assert torch.equal(fields["item_id"][n:] + first - 1, batch.negatives[:, 0])


def test_events_are_drawn_by_the_seed_alone(build):
    setup = build(BPR, 2)
    first, again, other = (
        torch.cat([b.negatives for b in setup.model.event_batches(np.random.default_rng(seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("model_class", [MultiDAE, MultiVAE])
def test_autoencoders_learn_from_each_user_with_events(build, model_class):
    setup = build(model_class, 2)
    users = {0: set(), 1: set()}
    for batch in setup.model.user_batches(np.random.default_rng(0)):
        users[batch.target_domain] |= set(batch.users.tolist())
    events = setup.split.train_events
    assert users == {k: set(events.user[events.domain == k].tolist()) for k in (0, 1)}


def test_sequential_models_learn_from_filled_histories_with_negatives_where_asked(build):
    setup = build(SASRec, 2, loss_type="BPR", train_neg_num=2)
    assert setup.model.needs_negatives
    split = setup.split
    loader = CrossDomainLoader(
        setup.config, split.train, setup.model, sampler=CrossDomainSampler(split), training=True
    )
    rows = 0
    for batch in loader:
        fields = setup.model.training_fields(batch, batch.target_domain)
        filled = int((batch.own_history != 0).any(1).sum())
        if fields is None:
            assert filled == 0
            continue
        rows += filled
        assert len(fields) == 2 * filled == len(fields["neg_item_id"])
        assert (fields["item_length"] > 0).all()
        last = fields["item_id_list"].gather(1, (fields["item_length"] - 1).unsqueeze(1))
        assert (last != 0).all()
    assert rows == (split.train.own_length > 0).sum()


@pytest.mark.parametrize("scope", ["target", "all"])
@pytest.mark.parametrize("model_class", [SASRec, GRU4Rec])
def test_one_pass_is_the_mean_of_a_pass_per_position(build, model_class, scope):
    """No sequence is longer than a window here, so every position reads the same history either way."""
    settings = {"max_history_length": 60, "baseline_scope": scope, "train_batch_size": 10**6}
    setup = build(model_class, 2, split="leave_one_out", **settings)
    assert setup.model.one_pass
    batches = list(setup.model.training_sequences.batches(np.random.default_rng(0)))
    each = build(model_class, 2, split="leave_one_out", one_pass=False, **settings)
    assert each.model.phases()[0].batches is None
    each.model.load_state_dict(setup.model.state_dict())
    setup.model.eval(), each.model.eval()  # no dropout
    train_ = setup.split.train
    assert len(batches) == len(setup.model.spaces)
    for batch in batches:
        rows = np.arange(len(train_)) if scope == "all" else np.flatnonzero(train_.domain == batch.tag)
        terms, count = 0.0, 0
        for domain in np.unique(train_.domain[rows]):
            own = rows[train_.domain[rows] == domain]
            one = make_batch(train_, own, max_length=60, merged=scope == "all")
            filled = int((one["merged" if scope == "all" else f"history_{domain}"] != 0).any(1).sum())
            terms, count = terms + each.model.calculate_loss(one).item() * filled, count + filled
        assert count == int((batch.targets != 0).sum())
        np.testing.assert_allclose(setup.model.sequence_loss(batch).item(), terms / count, rtol=1e-4)


def test_the_softmax_may_be_over_the_targets_domain(build):
    settings = {
        "split": "leave_one_out",
        "baseline_scope": "all",
        "softmax_items": "domain",
        "train_batch_size": 10**6,
    }
    model = build(SASRec, 2, **settings).model
    (batch,) = model.training_sequences.batches(np.random.default_rng(0))
    wrapped, expected = model.wrapped[0], []
    for row in range(len(batch)):
        items = batch.items[row][batch.items[row] != 0]  # over all domains, local ids are global ones
        for place in range(len(items)):
            state = wrapped(items[: place + 1].unsqueeze(0), torch.tensor([place + 1]))[0]
            target = int(batch.targets[row, place])
            own = next(k for k in (0, 1) if target in range(*model.item_slice(k).indices(model.n_items)))
            span = model.item_slice(own)
            scores = wrapped.item_embedding.weight[span] @ state
            expected.append(-scores.log_softmax(0)[target - span.start])
    torch.testing.assert_close(model.sequence_loss(batch), torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scene", [{"baseline_scope": "target"}, {"baseline_scope": "all", "softmax_items": "domain"}]
)
def test_the_softmax_may_be_over_shared_negatives(build, scene):
    n = 100_000  # so many that every item is drawn about equally often
    settings = {"split": "leave_one_out", "train_batch_size": 10**6, "softmax_negatives": n, **scene}
    model = build(SASRec, 2, **settings).model.eval()
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    space, wrapped = model.spaces[batch.tag], model.wrapped[batch.tag]
    expected = []
    for row in range(len(batch)):
        items = space.local(batch.items[row][batch.items[row] != 0])
        for place in range(len(items)):
            if not (target := int(batch.targets[row, place])):
                continue
            state = wrapped(items[: place + 1].unsqueeze(0), torch.tensor([place + 1]))[0]
            own = next(k for k in (0, 1) if target in range(*model.item_slice(k).indices(model.n_items)))
            span = model.item_slice(own)
            scores = (wrapped.item_embedding.weight[space.columns(span)] @ state).exp()
            mine = scores[target - span.start]
            others = (scores.sum() - mine) * n / len(scores)
            expected.append(-(mine / (mine + others)).log())
    torch.testing.assert_close(model.sequence_loss(batch), torch.stack(expected).mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"softmax_items": "batch"},
        {"softmax_items": "domain", "one_pass": False},
        {"softmax_negatives": -1},
        {"softmax_negatives": 10, "one_pass": False},
    ],
)
def test_a_softmax_that_cannot_be_is_one_clear_error(build, settings):
    with pytest.raises(CDRError, match=next(iter(settings))):
        build(SASRec, 2, baseline_scope="all", **settings)


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (SASRec, {"train_targets": "last"}),
        (SASRec, {"targets_per_sequence": 2}),
        (SASRec, {"loss_type": "BPR", "train_neg_num": 1}),
        (BERT4Rec, {}),
    ],
)
def test_models_that_cannot_train_in_one_pass_train_per_position(build, model_class, settings):
    assert build(model_class, 2, **settings).model.phases()[0].batches is None


def test_a_batch_without_any_history_has_a_loss_without_effect(build):
    setup = build(SASRec, 2)
    batch = make_batch(setup.split.train, np.array([0]), max_length=5)
    empty = batch.with_fields(**{f"history_{k}": torch.zeros(1, 1, dtype=torch.long) for k in (0, 1)})
    loss = setup.model.calculate_loss(empty)
    loss.backward()
    assert loss.item() == 0
