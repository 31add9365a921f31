"""PTUPCDR: histories, attention, bridges, and that nothing but the meta network learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support import random_ratings, rating_config, write_ratings

from recbole_cdr_ext.data import atomic
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.rating.ptupcdr import NO_ITEM, PTUPCDR, last_items, mean_vectors
from recbole_cdr_ext.model.rating_recommender import RatingBatch, Tables
from recbole_cdr_ext.runs.experiment import build, load_data
from recbole_cdr_ext.splits.split import Ratings, TrainingData
from recbole_cdr_ext.trainer.sharpness import PGD
from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

NAMES = ["books", "films"]
SIZE = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ptupcdr")
    write_ratings(folder / "mini", random_ratings())
    return folder


def random_tables(dataset, split, seed=0):
    """Vectors from N(0, 1), so that every part of a prediction counts."""
    draw = torch.Generator().manual_seed(seed)
    for k in (split.source, split.target):
        n = dataset.n_domain_items(k)
        table = Tables(
            torch.randn(dataset.user_num, SIZE, generator=draw),
            torch.randn(n, SIZE, generator=draw),
            torch.randn(dataset.user_num, generator=draw) / 3,
            torch.randn(n, generator=draw) / 3,
            3.0 + k,
        )
        split = split.with_tables(k, table)
    return split


def made(root, **settings):
    """Returns (dataset, split, model) on random vectors, with bridges that are far from zero."""
    config = rating_config(root, NAMES, "PTUPCDR", **{"meta_init_scale": 1.0, **settings})
    dataset, split = load_data(config)
    split = random_tables(dataset, split)
    torch.manual_seed(0)
    return dataset, split, PTUPCDR(config, TrainingData.of(dataset, split))


def with_readers(tmp_path, readers, **settings):
    """As :func:`made`, with more users, who rated the given (book, rating) and the same two films."""
    data = random_ratings()
    for name, rated in readers.items():
        data["books"] += [(name, f"b{item}", float(rating)) for item, rating in rated]
        data["films"] += [(name, "f0", 4.0), (name, "f1", 2.0)]
    write_ratings(tmp_path / "mini", data)
    dataset, split, model = made(tmp_path, **settings)
    ids = {name: int(dataset.token2id("user_id", name)) for name in readers}
    place = {item: int(dataset.item_ids(0, [f"b{item}"])[0] - dataset.item_offset[0]) for item in range(30)}
    return split, model, ids, place


def asked(model, split):
    whole = split.test
    item = torch.from_numpy(whole.item - split.item_offset[split.target])
    return RatingBatch(torch.from_numpy(whole.user), item, torch.from_numpy(whole.rating), split.target)


def trained(root, **settings):
    experiment = build(rating_config(root, NAMES, "PTUPCDR", **settings))
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    trainer = CrossDomainTrainer(experiment.config, experiment.model, root)
    trainer.fit(experiment.split, None, experiment.validate, verbose=False, saved=False)
    return experiment, before


# -- histories ---------------------------------------------------------------------------------------------------------


def test_last_items_by_hand():
    """Users' ratings may come interleaved; the last two of user 2 are 13 and 11, the very last first."""
    ratings = Ratings(
        np.array([2, 1, 2, 2, 0]), np.array([10, 14, 13, 11, 12]), np.array([5, 5, 5, 5, 5], np.float32)
    )
    table = last_items(ratings, n_users=4, item_offset=10, length=2)
    assert table.tolist() == [[2, NO_ITEM], [4, NO_ITEM], [1, 3], [NO_ITEM, NO_ITEM]]
    assert last_items(ratings, 4, 10, 20).shape == (4, 3)
    nothing = ratings.take(np.zeros(0, int))
    assert last_items(nothing, 4, 10, 20).tolist() == [[NO_ITEM]] * 4


def test_mean_vectors_by_hand():
    ratings = Ratings(np.array([1, 1, 3]), np.array([10, 11, 11]), np.ones(3, np.float32))
    items = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    wanted = [[0, 0], [(1 + 3) / 2, (2 + 5) / 2], [0, 0], [3, 5]]
    assert mean_vectors(ratings, 4, 10, items).tolist() == wanted


def test_liked_is_above_the_threshold_and_fractions_stay(tmp_path):
    """3 is not liked, 3.5 (two ratings of one item, averaged) is."""
    readers = {"reader": [(0, 3), (1, 3), (1, 4), (2, 5), (3, 1)]}
    _, model, ids, place = with_readers(tmp_path, readers)
    history = model.history[ids["reader"]]
    assert set(history.tolist()) == {place[1], place[2], NO_ITEM}


def test_users_without_a_liked_item_stand_on_all_they_rated(tmp_path):
    _, model, ids, place = with_readers(tmp_path, {"grump": [(4, 1), (7, 3)]})
    user = torch.tensor([ids["grump"]])
    assert (model.history[user] == NO_ITEM).all()
    mean = (model.source_items[place[4]] + model.source_items[place[7]]) / 2
    torch.testing.assert_close(model.profile(user)[0], mean)
    # Users who have a history have no stand-in, and the padding user, who rated nothing, has the profile 0.
    assert not model.stand_in[(model.history != NO_ITEM).any(1)].any()
    with torch.no_grad():
        assert not model.profile(torch.tensor([0])).any()
        constant = model.mapping.generator(torch.zeros(1, SIZE)).view(SIZE, SIZE)
        torch.testing.assert_close(model.bridges(torch.tensor([0]))[0], constant)


def test_a_long_history_keeps_the_newest_where_time_is_real(tmp_path):
    rng = np.random.default_rng(0)
    data, times = random_ratings(), {}
    data["books"] = [row for row in data["books"] if row[0] != "u000"]
    data["books"] += [("u000", f"b{item}", 5.0) for item in range(25)]
    (tmp_path / "mini").mkdir()
    for name, rows in data.items():
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
        frame["timestamp"] = rng.permutation(len(frame)).astype(float)
        times[name] = frame
        atomic.write_inter(tmp_path / "mini" / f"{name}.inter", frame)
    dataset, _, model = made(tmp_path, order="clock")
    books = times["books"]
    newest = books[books.user_id == "u000"].sort_values("timestamp")["item_id"].tolist()[::-1][:20]
    history = model.history[int(dataset.token2id("user_id", "u000"))].numpy()
    assert dataset.item_token(history + dataset.item_offset[0]).tolist() == newest


def test_without_time_a_long_history_is_one_seeded_sample(root):
    def history(**settings):
        return made(root, history_length=2, positive_rating=0.0, **settings)[2].history

    first = history(split_seed=1)
    assert torch.equal(first, history(split_seed=1, seed=5)) and first.shape[1] == 2
    assert not torch.equal(first, history(split_seed=2))
    # And not always what stands last in the file.
    dataset = made(root, split_seed=1)[0]
    books: dict[str, list[str]] = {}
    for user, item, _ in random_ratings()["books"]:
        books.setdefault(user, []).append(item)
    drawn = {
        user: set(
            dataset.item_token(first[dataset.token2id("user_id", user)].numpy() + dataset.item_offset[0])
        )
        for user in books
    }
    assert all(drawn[user] <= set(items) for user, items in books.items())
    assert 0 < sum(drawn[user] == set(items[-2:]) for user, items in books.items()) < len(books) / 2


# -- attention and bridges ---------------------------------------------------------------------------------------------


def test_order_and_padding_of_a_history_change_nothing(tmp_path):
    """The reader's history holds the first item of the source, whose place is 0."""
    readers = {"reader": [(0, 5), (3, 4), (9, 4)], "other": [(3, 5), (9, 4)]}
    split, model, ids, place = with_readers(tmp_path, readers)
    assert place[0] == 0
    batch = asked(model, split)
    batch = replace(batch, user=torch.where(torch.arange(len(batch)) % 3 == 0, ids["reader"], batch.user))
    with torch.no_grad():
        before, alone = model.rate(batch), model.profile(torch.tensor([ids["other"]]))
        history = model.history
        model.history = history.flip(1)
        torch.testing.assert_close(model.rate(batch), before)
        model.history = torch.nn.functional.pad(history, (2, 3), value=NO_ITEM)
        torch.testing.assert_close(model.rate(batch), before)
        # Padding is not item 0: who has not read it does not feel it.
        model.source_items[0] += 10
        assert torch.equal(model.profile(torch.tensor([ids["other"]])), alone)
        changed = model.rate(batch) != before
        assert changed[batch.user == ids["reader"]].all()


def test_a_history_of_one_item_is_that_item(tmp_path):
    _, model, ids, place = with_readers(tmp_path, {"reader": [(0, 5), (5, 2)], "other": [(8, 4)]})
    users = torch.tensor([ids["reader"], ids["other"]])
    history = model.history[users]
    real = history != NO_ITEM
    assert history.shape[1] > 1 and real.sum(1).tolist() == [1, 1]
    with torch.no_grad():
        attention = model.mapping.attention(model.source_items[history.clamp(min=0)], real)
        assert attention.sum(1).tolist() == [1, 1] and not attention[~real].any()
        torch.testing.assert_close(model.profile(users), model.source_items[[place[0], place[8]]])


def test_attention_is_the_softmax_of_the_scores(tmp_path):
    _, model, ids, place = with_readers(tmp_path, {"reader": [(2, 5), (5, 4), (6, 4)]})
    items = model.source_items[[place[2], place[5], place[6]]]
    with torch.no_grad():
        score = model.mapping.scorer(items)
        by_hand = (score.exp() / score.exp().sum() * items).sum(0)
        torch.testing.assert_close(model.profile(torch.tensor([ids["reader"]]))[0], by_hand)


def test_one_history_makes_one_bridge_for_different_users(tmp_path):
    _, model, ids, _ = with_readers(tmp_path, {"a": [(2, 5), (5, 4)], "b": [(5, 5), (2, 4)], "c": [(2, 5)]})
    users = torch.tensor([ids["a"], ids["b"], ids["c"]])
    with torch.no_grad():
        a, b, c = model.bridges(users)
        torch.testing.assert_close(a, b)
        assert (a - c).abs().max() > 1e-3
        mapped = model.bridged(model.source_users(users), users)
        assert (mapped[0] - mapped[1]).abs().max() > 1e-2


def test_a_row_vector_is_multiplied_with_the_bridge(root):
    """u = (1, 2, 3), M = ((0, 1, 2), (0, 0, 1), (1, 0, 0)): u M = (3, 1, 4), and M u = (8, 3, 1)."""
    _, _, model = made(root, biases=False)
    last = model.mapping.generator[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1, 2, 0, 0, 1, 1, 0, 0]))
        model.target_items[5] = torch.tensor([1.0, 10.0, 100.0])
        rows, user = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])
        assert model.bridged(rows, user).tolist() == [[3, 1, 4]]
        batch = RatingBatch(user, torch.tensor([5]), torch.tensor([0.0]), 1)
        assert model.rate_from(rows, batch).tolist() == [3 + 10 + 400]


def test_moved_vectors_do_not_move_the_bridge(root):
    """r̂ is linear in the rows that attacks move; and a batch is what its rows are one by one."""
    _, split, model = made(root)
    batch = asked(model, split)
    rows = model.source_rows(batch)
    with torch.no_grad():
        base = model.base_rating(batch)
        once, thrice = (model.rate_from(scale * rows, batch) - base for scale in (1, 3))
        torch.testing.assert_close(thrice, 3 * once)
        single = torch.cat([model.rate(batch.take(slice(i, i + 1))) for i in range(20)])
        torch.testing.assert_close(single, model.rate(batch)[:20])


def test_the_worst_vectors_can_be_looked_at(root):
    """The squared error grows along û^t's only way: δ has the sign of -(r - r̂) M v."""
    _, split, model = made(root)
    batch = asked(model, split)
    rows = model.source_rows(batch)
    delta = PGD(0.1, 1).worst(rows, lambda moved: model.calculate_loss(batch, moved))
    with torch.no_grad():
        pull = (model.bridges(batch.user) @ model.target_items[batch.item].unsqueeze(2)).squeeze(2)
        error = (batch.rating - model.rate(batch)).unsqueeze(1)
    assert torch.equal(delta.sign(), -(error * pull).sign())
    assert model.calculate_loss(batch, rows + delta) > model.calculate_loss(batch)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
def test_only_the_meta_network_learns(root, biases):
    experiment, before = trained(root, biases=biases, eval_step=0)
    after = experiment.model.state_dict()
    for name in ("source_users.weight", "source_items", "target_users", "target_items"):
        assert torch.equal(after[name], before[name]), name
    for name in before:
        assert torch.equal(after[name], before[name]) != name.startswith("mapping."), name


def test_it_starts_from_the_biases_alone(root):
    _, split, near = made(root, meta_init_scale=0.01)
    _, _, far = made(root)
    batch = asked(near, split)
    with torch.no_grad():
        # Vectors of length about 2, some five times as long as trained ones with biases.
        assert (near.rate(batch) - near.base_rating(batch)).abs().max() < 0.1
        assert (far.rate(batch) - far.base_rating(batch)).abs().max() > 1


def test_bridges_that_depend_on_the_history_are_found(tmp_path):
    """Who likes books 0 to 4 has û^t = u^s, who likes 5 to 9 has û^t = -u^s: no mapping of u^s alone fits both."""
    rng = np.random.default_rng(1)
    n_users, n_items = 80, 10
    vectors, items = rng.normal(size=(n_users, SIZE)), rng.normal(size=(n_items, SIZE))
    sign = np.where(np.arange(n_users) % 2, 1, -1)
    rows: dict[str, list] = {"books": [], "films": []}
    for u in range(n_users):
        given = sign[u] * vectors[u] @ items.T
        rows["books"] += [(f"u{u:02d}", f"b{i + 5 * (sign[u] < 0)}", 5.0) for i in range(5)]
        rows["films"] += [(f"u{u:02d}", f"f{i}", float(given[i])) for i in range(n_items)]
    write_ratings(tmp_path / "mini", rows)
    settings = {"biases": False, "rating_range": [-99, 99], "meta_init_scale": 1.0, "learning_rate": 0.01}
    config = rating_config(tmp_path, NAMES, "PTUPCDR", epochs=15, train_batch_size=32, **settings)
    dataset, split = load_data(config)
    split = random_tables(dataset, split)
    source, target = (replace(split.tables[k], user_bias=torch.zeros(n_users + 1)) for k in (0, 1))
    padded = torch.cat([torch.zeros(1, SIZE), torch.from_numpy(vectors).float()])
    source = replace(source, user=padded)
    target = replace(target, item=torch.from_numpy(items).float())
    split = split.with_tables(0, source).with_tables(1, target)
    torch.manual_seed(0)
    model = PTUPCDR(config, TrainingData.of(dataset, split))
    CrossDomainTrainer(config, model, tmp_path).fit(split, verbose=False, saved=False)
    batch = asked(model, split)
    with torch.no_grad():
        error = (model.rate(batch) - batch.rating).square().mean()
    # Cold-start users, against the variance of what they gave.
    assert error < 0.1 * batch.rating.var()


def test_a_constant_on_all_target_ratings_moves_the_mean_alone(tmp_path):
    data, found = random_ratings(), []
    for extra in (0.0, 1.0):
        write_ratings(
            tmp_path / "mini", {n: [(u, i, r + extra * (n == "films")) for u, i, r in data[n]] for n in data}
        )
        found.append(trained(tmp_path, rating_range=[1, 6])[0].predict("test"))
    assert found[1] - found[0] == pytest.approx(1.0, abs=1e-4)


def test_settings_are_checked_and_the_papers_form_can_be_run(root):
    with pytest.raises(CDRError, match="history_length=0"):
        rating_config(root, NAMES, "PTUPCDR", history_length=0)
    paper = trained(root, config_files="PTUPCDR_paper")[0]
    assert paper.config["pretrain_learner"] == "adam" and not paper.model.has_biases
    assert np.isfinite(paper.predict("test")).all()
