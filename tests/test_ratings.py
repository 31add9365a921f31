"""Splits beside the default one: ratings of cold-start users, and published rows, whose leaks are counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support import here, load, load_written, random_domains, random_ratings, rating_config, write_ratings

from recbole_cdr_ext.data import atomic
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.runs.experiment import build, load_data
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.audit import LeakError, audit_ratings
from recbole_cdr_ext.splits.split import Ratings, groups

NAMES = ["books", "films"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ratings")
    write_ratings(folder / "mini", random_ratings())
    return folder


def split_of(root, **settings):
    return load_data(rating_config(root, NAMES, **settings))


def frames(root):
    return {
        n: pd.read_csv(root / "mini" / f"{n}.inter", sep="\t", header=0, names=["u", "i", "r"]) for n in NAMES
    }


# -- who is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("source", "target"), [("books", "films"), ("films", "books")])
def test_users_fall_apart_and_held_out_ones_have_no_target_rating(root, beta, source, target):
    dataset, split = split_of(root, beta=beta, source=source, target=target, split_seed=3)
    raw = frames(root)
    overlapping = sorted(set(raw["books"].u) & set(raw["films"].u))
    # The same draw as an independent script makes it: the first β n of a permutation of the sorted tokens.
    shuffled = np.random.default_rng(3).permutation(overlapping)
    n_test = int(beta * len(overlapping))
    n_valid = round(0.1 * (len(overlapping) - n_test))

    def tokens(ids):
        return set(dataset.id2token("user_id", np.unique(ids)))

    assert tokens(split.test.user) == set(shuffled[:n_test])
    assert tokens(split.valid.user) == set(shuffled[n_test : n_test + n_valid])
    assert tokens(split.overlapping) == set(shuffled[n_test + n_valid :])
    held_out = set(shuffled[: n_test + n_valid])
    kept = raw[target][~raw[target].u.isin(held_out)]
    mine = split.train[split.target]
    assert len(mine) == len(kept) and not tokens(mine.user) & held_out
    assert mine.rating.sum() == pytest.approx(kept.r.sum())
    # The source keeps everything; what is asked is all of the rest.
    assert len(split.train[split.source]) == len(raw[source])
    assert len(split.valid) + len(split.test) == len(raw[target]) - len(kept)
    shared = split.shared_ratings()
    assert tokens(shared.user) == tokens(split.overlapping)
    assert split.report["overlapping users in train / valid / test"] == [
        len(overlapping) - n_test - n_valid, n_valid, n_test,
    ]  # fmt: skip


def test_split_depends_on_its_seed_and_not_on_that_of_training(root):
    first, again, other = (split_of(root, **s)[1] for s in ({"seed": 1}, {"seed": 2}, {"split_seed": 7}))
    assert np.array_equal(first.test.user, again.test.user) and first.fingerprint == again.fingerprint
    assert not np.array_equal(np.unique(first.test.user), np.unique(other.test.user))
    assert first.fingerprint != other.fingerprint
    assert first.fingerprint != split_of(root, beta=0.4)[1].fingerprint
    assert first.fingerprint != split_of(root, source="films")[1].fingerprint


def test_repeated_ratings_are_averaged_and_keep_their_fraction(tmp_path):
    data = random_ratings()
    user, item, value = data["books"][0]
    data["books"].append((user, item, value + 1 if value < 5 else value - 1))
    write_ratings(tmp_path / "mini", data)
    dataset, split = split_of(tmp_path)
    rows = split.train[split.source]
    mine = rows.rating[
        (rows.item == dataset.item_ids(0, [item])[0]) & (rows.user == dataset.token2id("user_id", user))
    ]
    assert mine.tolist() == [value + 0.5 if value < 5 else value - 0.5]
    assert split.report["books: duplicated (user, item)"] == 1


def test_items_that_only_held_out_users_rated_are_counted_and_get_the_mean(tmp_path):
    data = random_ratings()
    write_ratings(tmp_path / "mini", data)
    dataset, split = split_of(tmp_path)
    user = dataset.id2token("user_id", int(split.test.user[0]))
    data["films"].append((user, "unseen", 5.0))
    write_ratings(tmp_path / "mini", data)
    for model, biases in (
        ("TGT", False),
        ("TGT", True),
        ("GlobalMean", True),
        ("EMCDR", False),
        ("EMCDR", True),
    ):
        experiment = build(rating_config(tmp_path, NAMES, model, biases=biases))
        split, dataset = experiment.split, experiment.dataset
        assert split.report["test ratings of items without a training rating"] == 1
        unseen = split.test.item == dataset.item_ids(1, ["unseen"])[0]
        predicted = experiment.predict("test")[unseen]
        mean = split.train[split.target].rating.mean()
        bias = experiment.model.cold_bias(torch.from_numpy(split.test.user[unseen]))
        assert predicted == pytest.approx(mean + bias.numpy(), rel=1e-5)
        assert "1 of " in experiment.notes()[0]


# -- the audit -------------------------------------------------------------------------------------------------------


def test_audit_finds_what_is_planted(root):
    split = split_of(root)[1]
    assert all(count == 0 for count in audit_ratings(split).values())
    target = split.train[split.target]

    def with_target(extra: Ratings):
        joined = Ratings(
            *(np.concatenate([getattr(target, f), getattr(extra, f)]) for f in ("user", "item", "rating"))
        )
        return replace(split, train={**split.train, split.target: joined})

    with pytest.raises(LeakError, match=r"held-out pairs among training ratings: 1.*held-out users"):
        audit_ratings(with_target(split.test.take(np.array([0]))))
    # Another item of a held-out user is as bad: the user would not be cold.
    other = split.test.take(np.array([0]))
    rated = split.test.item[split.test.user == other.user[0]]
    free = np.setdiff1d(np.arange(*split.item_offset[1:3]), rated)[:1]
    with pytest.raises(LeakError, match="held-out users with training ratings in the target domain: 1"):
        audit_ratings(with_target(replace(other, item=free)))
    with pytest.raises(LeakError, match="users both validated and tested: "):
        audit_ratings(replace(split, valid=split.test))
    with pytest.raises(LeakError, match="among those the mapping learns from: 1"):
        audit_ratings(replace(split, overlapping=np.append(split.overlapping, split.test.user[0])))


def test_an_asked_item_under_another_id_leaves_the_source(tmp_path):
    """The same token in both domains is the same thing: a test user's source rating of it would be the answer."""
    data = random_ratings()
    write_ratings(tmp_path / "mini", data)
    dataset, split = split_of(tmp_path)
    user = dataset.id2token("user_id", int(split.test.user[0]))
    token = dataset.item_token(split.test.item[:1])[0]
    data["books"].append((user, token, 5.0))
    write_ratings(tmp_path / "mini", data)
    dataset, split = split_of(tmp_path)
    assert split.report["source ratings of held-out users for an asked item's token removed"] == 1
    assert len(split.train[split.source]) == len(data["books"]) - 1


@pytest.mark.parametrize("model", ["ItemMeanUserBias", "BiasOnly", "SCDR", "EMCDR"])
def test_no_held_out_rating_enters_any_prediction(tmp_path, model):
    """Held-out ratings are set to another value: not one prediction moves."""
    data = random_ratings()
    write_ratings(tmp_path / "mini", data)
    found = []
    for value in (None, 1.0):
        # Without validation, whose ratings choose the epoch and may move what is kept.
        settings = {"eval_step": 0, "cache_dir": str(tmp_path / f"cache{value}"), "run_id": f"run{value}"}
        experiment = build(rating_config(tmp_path, NAMES, model, **settings))
        if value is None:
            asked = {
                (u, i)
                for part in (experiment.split.test, experiment.split.valid)
                for u, i in zip(
                    experiment.dataset.id2token("user_id", part.user),
                    experiment.dataset.item_token(part.item),
                    strict=True,
                )
            }
            films = [(u, i, 1.0 if (u, i) in asked else r) for u, i, r in data["films"]]
            assert films != data["films"]
            write_ratings(tmp_path / "mini", {**data, "films": films})
        run_recbole_cdr(
            model, "mini", config_dict=rating_config(tmp_path, NAMES, model, **settings).to_dict()
        )
        found.append(load_model(tmp_path / "saved" / f"run{value}").predict("test"))
    assert len(np.unique(found[0])) > 20
    assert np.array_equal(*found)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0 should be above 0 and below 1."),
        ({"beta": 1.0}, "beta=1.0 should be above 0 and below 1."),
        ({"beta": 0.001}, "leaves 0 to test"),
        ({"beta": 0.99}, "to train on; each needs one at least"),
        ({"source": "films", "target": "films"}, "source and target are both 'films'"),
        ({"target": "songs"}, "target=songs is none of the domains books, films."),
        ({"rating_range": [1, 4]}, "lie outside of rating_range=[1, 4], the first is 5"),
        ({"rating_range": [5, 1]}, "rating_range=[5, 1] should be two numbers"),
        ({"rho": -1.0}, "rho=-1.0 should be at least 0"),
        ({"pgd_steps": -1}, "pgd_steps=-1 should be at least 0"),
        ({"rho_pretrain": -0.1}, "rho_pretrain=-0.1 should be at least 0"),
        ({"split": "user"}, "split=user does not serve task=rating"),
        ({"overlap_ratio": 0.5}, "overlap_ratio has no effect with split=cold_start"),
        ({"embedding_size": 0, "biases": False}, "leaves nothing to learn"),
        ({"metrics": ["NDCG"], "valid_metric": "NDCG@10"}, "metric"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_clear_error(root, settings, message):
    with pytest.raises(CDRError) as error:
        build(rating_config(root, NAMES, **settings))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("BiasOnly", {"biases": False}, "BiasOnly is biases and nothing else"),
        ("TGT", {"cold_user": "men"}, "cold_user='men' should be one of untrained, mean"),
    ],
)
def test_settings_that_a_model_cannot_have_are_an_error(root, model, settings, message):
    with pytest.raises(CDRError) as error:
        rating_config(root, NAMES, model, **settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, "epochs=3 has no effect on TGT, which is pre-training alone: set pretrain_epochs."),
        ({"sharpness": "sam"}, "set pretrain_sharpness."),
    ],
)
def test_settings_that_tgt_ignores_are_a_warning(root, caplog, settings, message):
    rating_config(root, NAMES, "TGT", **settings)
    assert message in caplog.text


def test_ratings_that_are_missing_are_an_error(tmp_path):
    write_ratings(tmp_path / "mini", random_ratings())
    path = tmp_path / "mini" / "films.inter"
    frame = pd.read_csv(path, sep="\t").drop(columns="rating:float")
    frame.to_csv(path, sep="\t", index=False)
    with pytest.raises(CDRError, match="interactions of domain 'films' have no rating"):
        split_of(tmp_path)


def test_no_overlapping_user_is_an_error(tmp_path):
    data = random_ratings()
    write_ratings(
        tmp_path / "mini", {"books": data["books"], "films": [("v" + u, i, r) for u, i, r in data["films"]]}
    )
    with pytest.raises(CDRError, match="of 0 overlapping users"):
        split_of(tmp_path)


def test_one_task_is_asked_for_where_a_dataset_serves_both():
    assert CDRConfig("SCDR", "ml100k_genres")["split"] == "cold_start"
    assert CDRConfig("I2VAE", "ml100k_genres")["split"] == "user"
    with pytest.raises(CDRError, match="SCDR does rating"):
        CDRConfig("SCDR", "cloth_sport", config_dict={"task": "next_item"})


# -- floors ----------------------------------------------------------------------------------------------------------


def test_floors_are_what_pandas_makes_of_the_files(root):
    """The formulas of the floors, written again without a line of the library."""
    experiment = build(rating_config(root, NAMES, "ItemMeanUserBias", beta=0.3))
    dataset, split = experiment.dataset, experiment.split
    raw = frames(root)

    def tokens(ids):
        return set(dataset.id2token("user_id", np.unique(ids)))

    test, train_users = tokens(split.test.user), tokens(split.overlapping)
    train = raw["films"][~raw["films"].u.isin(test | tokens(split.valid.user))]

    def biases(frame):
        mean = frame.r.mean()
        of_item = (frame.r - mean).groupby(frame.i).agg(lambda x: x.sum() / (len(x) + 5))
        rest = frame.r - mean - frame.i.map(of_item)
        return mean, of_item, rest.groupby(frame.u).agg(lambda x: x.sum() / (len(x) + 10))

    mean, of_item, of_user = biases(train)
    of_source = biases(raw["books"])[2]
    users = sorted(train_users)
    x, y = of_source.reindex(users).fillna(0), of_user.reindex(users).fillna(0)
    scale = (x * y).sum() / (x * x).sum()
    asked = pd.DataFrame(
        {"u": dataset.id2token("user_id", split.test.user), "i": dataset.item_token(split.test.item)}
    )
    expected = {
        "GlobalMean": mean + 0 * asked.i.map(of_item),
        "ItemMean": mean + asked.i.map(of_item),
        "ItemMeanUserBias": mean + asked.i.map(of_item) + scale * asked.u.map(of_source),
    }
    for name, values in expected.items():
        assert experiment.floor(name) == pytest.approx(values.to_numpy(), abs=1e-5), name


def test_floors_stand_beside_the_result_but_not_beside_themselves(root):
    experiment = build(rating_config(root, NAMES, "BiasOnly"))
    assert experiment.floor_names() == ["GlobalMean", "ItemMean", "ItemMeanUserBias"]
    found, frame = experiment.outcome()
    cell = found["test"]["films"]["cold"]
    errors = frame[frame.part == "test"].absolute_error
    assert cell["n"] == len(errors) == len(experiment.split.test)
    assert cell["mae"] == pytest.approx(errors.mean(), abs=1e-5)
    assert cell["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-5)
    assert found["source"] == "books" and found["target"] == "films"


def test_clipping_is_a_setting(root):
    wide = build(rating_config(root, NAMES, "BiasOnly", pretrain_epochs=30, pretrain_reg_weight=0.0))
    clipped = build(
        rating_config(root, NAMES, "BiasOnly", pretrain_epochs=30, pretrain_reg_weight=0.0, clip_ratings=True)
    )
    assert wide.predict("test").max() > 5
    assert clipped.predict("test").max() <= 5 and clipped.predict("test").min() >= 1
    assert np.array_equal(clipped.predict("test"), np.clip(wide.predict("test"), 1, 5))


DOMAINS = ["books", "films"]


def write_rows(root, n_train=60, n_test=20):
    """Rows of ascending items (one global order); every tenth test row repeats a training user and target."""
    rng = np.random.default_rng(0)
    events: dict[str, list] = {name: [] for name in DOMAINS}
    rows = []
    for number in range(n_train + n_test):
        part = "train" if number < n_train else "test"
        leaks = part == "test" and number % 10 == 0
        row, user = f"{part}-{number}", f"u{number - n_train}" if leaks else f"u{number}"
        target = DOMAINS[number % 2]
        for name in DOMAINS:
            items = np.sort(rng.choice(25, 5, replace=False))
            if leaks or number in (0, 10):
                items[-1] = 24  # the same last item in the training row and in the test row
            if number % 9 == 4 and name != target:
                items = items[:0]
            if number % 9 == 5 and name == target:
                items = items[-1:]  # cold start: the target alone
            for position, item in enumerate(items):
                events[name].append((row, user, f"{name[0]}{item}", float(position)))
        rows.append((row, user, target, part))
    folder = root / "mini" / "rows"
    folder.mkdir(parents=True)
    for name in DOMAINS:
        columns = ["row_id", "user_id", "item_id", "timestamp"]
        atomic.write_inter(folder / f"{name}.inter", pd.DataFrame(events[name], columns=columns))
    columns = ["row_id", "user_id", "target_domain", "part"]
    atomic.write_inter(folder / "rows.inter", pd.DataFrame(rows, columns=columns))


@pytest.fixture
def published(tmp_path):
    write_rows(tmp_path)
    return load_written(tmp_path, DOMAINS, split="published", order="none", train_targets="last")


def test_rows_are_instances_and_leaks_are_counted(published):
    split = published.split
    assert len(split.train) + split.report["train: instances without any history dropped"] == 60
    assert len(split.valid) + len(split.test) == 20 - sum(
        split.report[f"{part}: instances without any history dropped"] for part in ("valid", "test")
    )
    assert split.report["published rows in train / test file"] == [60, 20]
    assert split.report["leak: held-out pairs as training targets"] == 2
    assert split.report["leak: held-out pairs among training interactions"] >= 2
    row = int(np.flatnonzero(split.test.own_length == 4)[0])
    history = published.dataset.item_token(split.test.history(row, int(split.test.domain[row])))
    assert [int(t[1:]) for t in history] == sorted(int(t[1:]) for t in history), "rows keep their order"
    assert groups(split, split.train)["cold"].any()


def test_without_the_rows_it_says_how_to_get_them(tmp_path):
    with pytest.raises(CDRError, match="--layout=rows"):
        load(tmp_path, random_domains(), split="published", order="none")


def test_a_run_reports_both_pools(tmp_path, capsys):
    write_rows(tmp_path)
    settings = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "domains": DOMAINS}
    result = run_recbole_cdr(
        "OrderPop",
        "mini",
        config_dict={**settings, "split": "published", "order": "none", "show_progress": False},
    )
    assert set(result["test_among_test_items"]) == set(DOMAINS)
    printed = capsys.readouterr().out
    assert "negatives from the items of the test file" in printed
    # What stands after the last item of an ascending row is found far more often than by popularity alone.
    ours = np.mean([result["test"][d]["all"]["ndcg@10"] for d in DOMAINS])
    popular = np.mean([result["popularity"][d]["all"]["ndcg@10"] for d in DOMAINS])
    assert ours > 1.2 * popular


def test_recalled_items_of_repeated_rows_stand_with_their_first_events(tmp_path):
    write_rows(tmp_path)
    settings = {**here(tmp_path), "domains": DOMAINS, "split": "published", "order": "none"}
    recalled = {"psg": "random", "random_recall_size": 3}
    model = build(CDRConfig("I2VAE", "mini", config_dict={**settings, **recalled})).model
    sequences = model.training_sequences
    assert len(sequences.recalled) == len(sequences.events) and sequences.recalled.any(1).mean() > 0.5
    for batch in model.training_sequences.batches(np.random.default_rng(0)):
        assert all(torch.isfinite(term) for term in model.sequence_loss(batch))
