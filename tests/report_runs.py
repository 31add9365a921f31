"""Folders as runs leave them, made without training, and the report on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.evaluation.instance_table import write_instances
from recbole_cdr_ext.reports.groups import collect
from recbole_cdr_ext.runs.finished import default_settings

N = 40  # test users in each domain


def write_run(
    root: Path,
    model: str = "BPR",
    seed: int = 1,
    *,
    name: str | None = None,
    dataset: str = "toy",
    shift: float = 0.0,
    instances: bool = True,
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Writes a finished next-item run; the larger ``shift``, the lower its ranks.

    Args:
        changes: what stands in ``result.json`` in place of what a run writes.
        settings: other settings than the defaults.
    """
    folder = root / (name or f"{model}-{seed}-{len(list(root.glob('*')))}")
    folder.mkdir(parents=True)
    frame = ranked(np.random.default_rng(seed), shift)
    # What BPR has stands in for what a model has that isn't known here.
    known = default_settings(model, dataset, "next_item") or default_settings("BPR", "toy", "next_item")
    all_settings = {**known, "seed": seed, **settings, "model": model, "dataset": dataset}
    test = {
        domain: {group: _means(rows[rows[group]]) for group in ("all", "cold")}
        for domain, rows in frame.groupby("domain", sort=False)
    }
    result = {
        "model": model, "task": "next_item", "dataset": dataset, "simulated": False, "seed": seed,
        "split": all_settings["split"], "run_id": folder.name, "best_valid_score": 0.25, "valid": test, "test": test,
        "popularity": {d: {g: {**c, "ndcg@10": 0.01, "hit@10": 0.02} for g, c in t.items()} for d, t in test.items()},
        "fallback": {"test": {d: dict.fromkeys(t, 0) for d, t in test.items()}}, "stopped": "early", "epochs_run": 3,
        "history": [{"phase": "train", "epoch": e, "loss": [1.0], "valid_score": 0.2 + 0.02 * e} for e in range(3)],
        "seconds": {"training": 3.0, "total": 4.5}, "settings": all_settings, "versions": {"python": "3.11"},
        "notes": [], "report": {"leak: held-out pairs among training interactions": 0}, **(changes or {}),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(all_settings))
    if instances:
        write_instances(frame, folder)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def ranked(rng: np.random.Generator, shift: float) -> pd.DataFrame:
    """A per-instance table of two domains."""
    rank = np.maximum(1, np.round(rng.integers(1, 40, 2 * N) - shift)).astype(int)
    return pd.DataFrame(
        {
            **{
                "part": "test",
                "user": [f"u{i % N}" for i in range(2 * N)],
                "domain": ["books"] * N + ["films"] * N,
            },
            **{"target": [f"i{i}" for i in range(2 * N)], "all": True, "cold": np.arange(2 * N) % 4 == 0},
            **{"candidates": 1000, "rank": rank, "fallback": False},
        }
    )


def _means(rows: pd.DataFrame) -> dict[str, Any]:
    rank = rows["rank"].to_numpy()
    gain = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
    return {
        "n": len(rows),
        "ndcg@10": round(float(gain.mean()), 6),
        "hit@10": round(float((rank <= 10).mean()), 6),
    }


def only_group(root: Path):
    (group,) = collect(None, root).groups
    return group


def written(root: Path, out: Path, *words: str) -> dict[str, str]:
    assert main(["report", f"--checkpoint_dir={root}", f"--out={out}", *words]) == 0
    return {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
