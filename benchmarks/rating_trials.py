"""Makes results/rating_trials.md: what SCDR's settings are worth, on validation users alone.

    python benchmarks/rating_trials.py [--seeds=3] [--only=REGEX]

Books → movies at β = 0.8, with biases, one setting changed at a time. Test users are not looked at. A trial that is
done (results/rating_trials.jsonl) is not run again.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported

import numpy as np
from rows import append_row, read_rows
from rows import options as common_options
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ROWS, PAGE = ROOT / "results/rating_trials.jsonl", ROOT / "results/rating_trials.md"

SCENE = {"source": "books", "target": "movies", "beta": 0.8, "show_progress": False, "tensorboard": False}
TRIALS = {
    "defaults": {},
    "bias only (d = 0)": {"model": "BiasOnly"},
    "mapping: learning rate 0.003": {"learning_rate": 0.003},
    "mapping: learning rate 0.03": {"learning_rate": 0.03},
    "mapping: 100 epochs, patience 20": {"epochs": 100, "stopping_step": 20},
    "mapping: ρ 0.05": {"rho": 0.05},
    "mapping: ρ 1": {"rho": 1.0},
    "mapping: ρ a quarter of each row's length": {"rho": 0.25, "rho_relative": True},
    "mapping: source vectors kept": {"learn_source_users": False},
    "pre-training: no sharpness (SCDR⁻)": {"pretrain_sharpness": "none"},
    "pre-training: ρ 0.02": {"rho_pretrain": 0.02},
    "pre-training: ρ 0.3": {"rho_pretrain": 0.3},
    "pre-training: vectors start at N(0, 0.3²)": {"init_std": 0.3},
    "pre-training: vectors start at N(0, 0.03²)": {"init_std": 0.03},
    "pre-training: penalty 0": {"pretrain_reg_weight": 0.0},
    "pre-training: penalty 0.1": {"pretrain_reg_weight": 0.1},
    "d = 32": {"embedding_size": 32},
    "bias map: biases on biases": {"bias_map": "biases"},
    "bias map: identity": {"bias_map": "identity"},
}


def trial(settings: dict, seed: int) -> tuple[float, float]:
    """Returns the validation users' (MAE, RMSE) of one trained model."""
    from recbole_cdr_ext.runs.experiment import build
    from recbole_cdr_ext.settings.config import CDRConfig
    from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

    given = {**SCENE, **settings, "seed": seed, "split_seed": seed}
    config = CDRConfig(given.pop("model", "SCDR"), "books_movies", config_dict=given)
    experiment = build(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CrossDomainTrainer(config, experiment.model, folder, data=experiment.split.fingerprint)
        trainer.fit(experiment.split, None, experiment.validate, saved=False, verbose=False)
    cell = experiment.validate()[SCENE["target"]]["cold"]
    return cell["mae"], cell["rmse"]


def write_page(found: dict[str, dict[str, list[float]]]) -> None:
    """Writes the page from {trial: {seed: [MAE, RMSE]}}."""
    first = found.get("defaults", {})
    lines = [
        "# What SCDR's settings are worth on validation",
        "",
        "Books → movies, β = 0.8, biases on: MAE / RMSE of the validation users, mean over the seeds (their number),",
        "and the difference of the MAE from the defaults', seed by seed, with its standard error. Made by",
        "`python benchmarks/rating_trials.py`; the test users were not looked at, and it changed no default.",
        "",
        "| trial | MAE / RMSE | difference |",
        "|---|---|---|",
    ]
    for name in [name for name in TRIALS if name in found]:
        values = np.array(list(found[name].values()))
        paired = [found[name][s][0] - first[s][0] for s in found[name] if s in first]
        error = np.std(paired, ddof=1) / np.sqrt(len(paired)) if len(paired) > 1 else float("nan")
        difference = "" if name == "defaults" or not paired else f"{np.mean(paired):+.4f} ± {error:.4f}"
        mae, rmse = values.mean(0)
        lines.append(f"| {name} ({len(values)}) | {mae:.4f} / {rmse:.4f} | {difference} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Runs what is missing and writes the page."""
    options = common_options(__doc__, only="trials' names").parse_args()
    os.chdir(ROOT)
    logging.disable(logging.WARNING)
    found: dict[str, dict[str, list[float]]] = {}
    for row in read_rows(ROWS, lambda row: (row["trial"], row["seed"])).values():
        found.setdefault(row["trial"], {})[str(row["seed"])] = row["valid"]
    missing = [
        (name, seed)
        for seed in range(options.seeds)
        for name in TRIALS
        if str(seed) not in found.get(name, {}) and re.search(options.only, name)
    ]
    for name, seed in tqdm(missing, ncols=100, desc="trials"):
        values = list(trial(dict(TRIALS[name]), seed))
        found.setdefault(name, {})[str(seed)] = values
        append_row(ROWS, {"trial": name, "seed": seed, "valid": values})
        write_page(found)
    write_page(found)
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
