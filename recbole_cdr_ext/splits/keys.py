"""The settings that decide a split."""

from __future__ import annotations

SPLIT_KEYS = (
    "split", "split_seed", "split_ratio", "cold_start_ratio", "overlap_ratio", "density", "time_respecting",
    "train_on_histories", "train_targets", "task", *("val_interval", "user_inter_num_interval"),
    "item_inter_num_interval", "domain_settings", "domains", "order",
)  # fmt: skip

RATING_SPLIT_KEYS = (
    "split", "split_seed", "beta", "source", "target", "domains", "task", "rating_range", "val_interval",
    "user_inter_num_interval", "item_inter_num_interval", "domain_settings",
)  # fmt: skip
