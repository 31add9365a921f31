"""Split ``leave_one_out``: each user's last two interactions are asked for."""

from __future__ import annotations

import numpy as np

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Timeline
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.maker import (
    InteractionParts,
    InteractionSplitMaker,
    long_tail_thresholds,
    without_held_out_tokens,
)


class LeaveOneOutSplit(InteractionSplitMaker):
    """Each user's last interaction is the test target and the one before it the validation target."""

    needs_order = True
    without_effect = ("cold_start_ratio", "split_ratio")

    def draw(
        self, config: CDRConfig, dataset: CrossDomainDataset, report: dict[str, object]
    ) -> InteractionParts:
        """Holds out of each user with three interactions or more."""
        if dataset.order == "none":
            raise CDRError(
                f"split={config['split']} asks for each user's last interaction, and dataset '{dataset.dataset_name}' "
                "says order: none. Use split=user."
            )
        events = dataset.events
        stops = np.append(np.flatnonzero(np.diff(events.sequence)) + 1, len(events))
        lengths = np.diff(np.append(0, stops))
        long_enough = lengths >= 3
        report["users with fewer than three interactions (all of them train)"] = int((~long_enough).sum())
        place = np.zeros(len(events), np.int8)
        place[stops[long_enough] - 1], place[stops[long_enough] - 2] = 2, 1
        timeline = Timeline(events, dataset.user_num - 1, dataset.n_domains)
        timeline, place = without_held_out_tokens(timeline, place, dataset, report)
        events, rank = timeline.events, np.arange(len(timeline.events))
        learns = place == 0
        targets = rank[learns] if config["train_targets"] == "all" else timeline.last_of_blocks(learns)
        # A user's held-out interactions stand behind all that trains; "strict" looks at nothing behind a target.
        trained = events.take(learns)
        return InteractionParts(
            train=timeline.instances(targets, others="strict"),
            valid=timeline.instances(rank[place == 1], others="strict"),
            test=timeline.instances(rank[place == 2], others="strict"),
            train_events=trained,
            thresholds=long_tail_thresholds(trained, dataset.n_domains),
        )
