"""The published rows: as they are, with their leaks counted instead of refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from support import here, load, load_written, random_domains

from recbole_cdr_ext.data import atomic
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.runs.experiment import build
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.split import groups

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
