"""RecBole's own models as baselines, against RecBole's own results."""

from __future__ import annotations

import adapter_toys
import numpy as np
import pytest
import torch
from adapter_toys import Setup, train

from recbole_cdr_ext import compat

compat.apply()

from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR, EASE, ItemKNN, LightGCN, MultiDAE, MultiVAE, Pop
from recbole.model.sequential_recommender import SASRec

from recbole_cdr_ext.data.instances import Batch

one_thread = adapter_toys.one_thread
toys = adapter_toys.toys
build = adapter_toys.build


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
