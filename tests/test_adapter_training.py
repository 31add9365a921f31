"""RecBole's own models as baselines, against RecBole's own results; and what their training sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy_models
from toy_models import Setup, train

from recbole_cdr_ext import compat

compat.apply()

from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR, EASE, ItemKNN, LightGCN, MultiDAE, MultiVAE, NeuMF, Pop
from recbole.model.sequential_recommender import BERT4Rec, GRU4Rec, SASRec

from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.sampler import CrossDomainSampler

one_thread = toy_models.one_thread
toys = toy_models.toys
build = toy_models.build


def recbole_batch(setup: Setup, users: np.ndarray, domain: int, width: int = 12) -> Batch:
    """Instances whose history is all that these users did in training, newest last."""
    events = setup.split.train_events
    fields = {"user_id": users, "item_id": np.zeros_like(users)}
    for k in range(setup.dataset.n_domains):
        history = np.zeros((len(users), width), np.int64)
        for row, user in enumerate(users):
            items = events.item[(events.user == user) & (events.domain == k)]
            history[row, width - len(items) :] = items
        fields[f"history_{k}"] = history
    tensors = {name: torch.from_numpy(value) for name, value in fields.items()}
    return Batch(tensors, domain, setup.dataset.n_domains)


def training_users(setup: Setup, domain: int) -> np.ndarray:
    events = setup.split.train_events
    return np.unique(events.user[events.domain == domain])[:20]


def test_pop_scores_are_counts(build):
    setup = build(Pop, 3)
    events = setup.split.train_events
    for batch in setup.batches():
        items = setup.dataset.item_range(batch.target_domain)
        counts = torch.from_numpy(np.bincount(events.item, minlength=setup.dataset.item_num)[items])
        expected = (counts / counts.max()).expand(len(batch), -1)
        torch.testing.assert_close(setup.model.score(batch), expected, check_dtype=False)
        assert setup.model.can_score(batch) is None


@pytest.mark.parametrize("model_class", [ItemKNN, EASE])
def test_item_item_scores_equal_recboles_on_training_users(build, model_class):
    setup = build(model_class, 2)
    for domain in (0, 1):
        view = setup.model.views[domain]
        original = model_class(setup.model.settings, view)
        users = training_users(setup, domain)
        expected = original.full_sort_predict(Interaction({"user_id": torch.from_numpy(users)}))
        expected = expected.view(len(users), -1)[:, 1:]
        ours = setup.model.score(recbole_batch(setup, users, domain))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        assert expected.abs().sum() > 0


def test_item_knn_has_no_matrix_of_all_users(build):
    wrapped = build(ItemKNN).model.wrapped[0]
    assert not hasattr(wrapped, "pred_mat")


def test_sasrec_scores_equal_recboles_on_right_padded_sequences(build):
    setup = build(SASRec, 2, max_history_length=6)
    train(setup, epochs=1)
    batch = setup.batches()[0]
    domain, wrapped = batch.target_domain, setup.model.wrapped[batch.target_domain]
    first = setup.dataset.item_range(domain).start
    items = torch.zeros(len(batch), 6, dtype=torch.long)  # as RecBole's data set has it: always of full width
    length = torch.zeros(len(batch), dtype=torch.long)
    for row, history in enumerate(batch.own_history.tolist()):
        kept = [i - first + 1 for i in history if i][-6:]
        items[row, : len(kept)], length[row] = torch.tensor(kept or [0]), max(1, len(kept))
    original = SASRec(setup.model.settings, setup.model.views[domain]).eval()
    original.load_state_dict(wrapped.state_dict())
    with torch.no_grad():
        expected = original.full_sort_predict(Interaction({"item_id_list": items, "item_length": length}))[
            :, 1:
        ]
        torch.testing.assert_close(setup.model.score(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", [BPR, LightGCN, MultiDAE])
def test_user_scores_equal_recboles(build, model_class):
    """MultiDAE reads the same bag from the instance that RecBole reads from its table of training items."""
    setup = build(model_class, 2)
    train(setup, epochs=1)
    for domain in (0, 1):
        users = training_users(setup, domain)
        wrapped = setup.model.wrapped[domain]
        with torch.no_grad():
            ours = setup.model.score(recbole_batch(setup, users, domain))
            setup.model.eval()  # forgets what LightGCN keeps
            expected = wrapped.full_sort_predict(Interaction({"user_id": torch.from_numpy(users)}))
        expected = expected.view(len(users), -1)[:, 1:]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_autoencoders_serve_users_they_never_met(build):
    setup = build(MultiDAE, 2)
    train(setup, epochs=2)
    users = training_users(setup, 0)
    batch = recbole_batch(setup, users, 0)
    unseen = batch.with_fields(user_id=torch.zeros_like(batch.users))
    emptied = batch.with_fields(history_0=torch.zeros_like(batch.history(0)))
    with torch.no_grad():
        torch.testing.assert_close(setup.model.score(unseen), setup.model.score(batch))
        assert not torch.allclose(setup.model.score(emptied), setup.model.score(batch))
    assert not setup.model.can_score(emptied).any()
    assert setup.model.can_score(unseen).all()


def test_multivae_goes_on_annealing_after_a_checkpoint(build):
    setup = build(MultiVAE, 2)
    train(setup, epochs=2)
    steps = [model.update for model in setup.model.wrapped]
    assert min(steps) > 0
    fresh = setup.rebuilt()
    fresh.load_state_dict(setup.model.state_dict())
    assert [model.update for model in fresh.wrapped] == steps


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
