"""Split ``published``: the instances that the data's authors published, row by row."""

from __future__ import annotations

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset, Rows
from recbole_cdr_ext.data.instances import Timeline
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.maker import InteractionParts, InteractionSplitMaker, long_tail_thresholds


class PublishedSplit(InteractionSplitMaker):
    """The rows of published train and test files; half of the test rows, drawn at random, validate."""

    leaky = True
    layout = "rows"
    without_effect = ("cold_start_ratio", "split_ratio")

    def draw(
        self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]
    ) -> InteractionParts:
        """Reads each row as a sequence of its own, whose last item in the target's domain is the target."""
        rows, n_domains = dataset.rows, dataset.n_domains
        assert rows is not None, "a dataset of the layout `rows` has rows"
        timeline = Timeline(dataset.events, len(rows.user), n_domains)
        last = timeline.last_of_blocks()
        sequence = timeline.events.sequence[last]
        targets = last[timeline.events.domain[last] == rows.target_domain[sequence]]
        is_test = rows.is_test[timeline.events.sequence[targets]]
        report["published rows in train / test file"] = [int((~rows.is_test).sum()), int(rows.is_test.sum())]
        report["published rows without an item of their target's domain"] = len(rows.user) - len(targets)
        held_out = np.random.default_rng(int(config["split_seed"])).permutation(np.flatnonzero(is_test))
        half = len(held_out) // 2
        learns = ~rows.is_test[timeline.events.sequence]
        train = np.flatnonzero(learns) if config["train_targets"] == "all" else targets[~is_test]
        trained = timeline.events.take(learns)
        _, first = np.unique(trained.user * np.int64(dataset.item_num) + trained.item, return_index=True)
        return InteractionParts(
            train=timeline.instances(np.sort(train), others="whole"),
            valid=timeline.instances(np.sort(targets[held_out[:half]]), others="whole"),
            test=timeline.instances(np.sort(targets[held_out[half:]]), others="whole"),
            train_events=trained.take(np.sort(first)),
            thresholds=long_tail_thresholds(trained, n_domains),
            time_respecting=False,
            test_items=_test_items(dataset, rows),
        )


def _test_items(dataset: CrossDomainDataset, rows: Rows) -> np.ndarray:
    """Returns the mask of the items that any row of the test file holds: the authors' pool of candidates."""
    mask = np.zeros(dataset.item_num, bool)
    mask[dataset.events.item[rows.is_test[dataset.events.sequence]]] = True
    return mask
