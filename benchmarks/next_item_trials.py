"""Makes results/i2vae_log.md: what each lever of I2VAE and of SASRec is worth, on validation users alone.

    python benchmarks/next_item_trials.py [--jobs=2] [--only=REGEX] [--max-seconds=1200]

food_kitchen, split=leave_one_out. A trial is one training with early stopping; the test targets are not looked at. A
trial that is done (results/i2vae_trials.jsonl) is not run again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported

from rows import append_row, read_rows
from rows import options as common_options
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ROWS, PAGE = ROOT / "results/i2vae_trials.jsonl", ROOT / "results/i2vae_log.md"

SCENE = {"split": "leave_one_out", "show_progress": False, "tensorboard": False, "epochs": 200}
# The start of the search: one pass, merged timeline, no latents. Each trial changes what it names.
PLAIN = {
    "embedding_size": 128, "inner_size": 256, "n_layers": 1, "n_heads": 2, "dropout": 0.5, "max_history_length": 50,
    "cross_encoder": "merged", "pooling": "last", "decoder": "sum", "psg": "none", "variational": False,
    "cross_regularizer": False, "denoise_regularizer": False, "cold_start_mask_prob": 0.0, "loss_type": "sampled",
    "train_neg_num": 2048, "temperature": 1.0, "learner": "adamw", "learning_rate": 0.001, "weight_decay": 0.1,
    "train_batch_size": 2048, "residual_posteriors": False, "weight_averaging": 0.0, "stopping_step": 10,
}  # fmt: skip
RESIDUAL = {
    "residual_posteriors": True, "train_batch_size": 1024, "learning_rate": 0.002, "weight_decay": 0.3,
    "stopping_step": 6,
}  # fmt: skip
DECAYED = RESIDUAL | {"weight_decay": 1.0}
AVERAGED = DECAYED | {"weight_averaging": 0.998}
LATENT = {
    "variational": True, "kl_weight": 0.0001, "cross_regularizer": True, "lambda_c": 0.0005, "lambda_a": 0.0005,
    "cold_start_mask_prob": 0.1,
}  # fmt: skip
FULL = {"kl_weight": 0.00001, "psg": "lightgcn", "denoise_regularizer": True}
LOW = FULL | {"lambda_c": 0.00001, "lambda_a": 0.00001}
SASREC = {
    "hidden_size": 128, "inner_size": 256, "n_layers": 1, "max_history_length": 50, "learner": "adamw",
    "learning_rate": 0.002, "weight_decay": 1.0, "train_batch_size": 1024, "stopping_step": 6,
    "weight_averaging": 0.998,
}  # fmt: skip
# Trials that were stopped by hand before their row was written; what they showed.
STOPPED = (
    "without latents, weight decay 1.5: 14.6 at its best in 28 epochs, as without;",
    "without latents, softmax over all items: 7.0 after 5 epochs, at twice the time of an epoch;",
    "residual, weight decay 3: 11.1 after 6 epochs, where weight decay 1 had 16.0;",
    "latents, kl 0.00001: 12.1 after 5 epochs, where kl 0.0001 had 11.8 and no latents 16.1;",
    "latents, kl 0.00001, log-variances from -8: 5.3 after 4 epochs; between narrow posteriors CD-R is a large KL;",
    "latents and PSG: 17.0 at its best in 11 epochs, where lambdas of 0.00001 had 17.5;",
    "residual, weight decay 1, d 256: 16.5 at its best in 11 epochs.",
)
# label: (model, what it starts from, what it changes)
TRIALS: dict[str, tuple[str, dict, dict]] = {
    "without latents": ("I2VAE", PLAIN, {}),
    "without latents, batch 512": ("I2VAE", PLAIN, {"train_batch_size": 512}),
    "residual": ("I2VAE", PLAIN, RESIDUAL),
    "residual, weight decay 1": ("I2VAE", PLAIN, RESIDUAL | {"weight_decay": 1.0}),
    "decayed, weights averaged": ("I2VAE", PLAIN, DECAYED | {"weight_averaging": 0.998}),
    "averaged, d 256": ("I2VAE", PLAIN, AVERAGED | {"embedding_size": 256, "inner_size": 512}),
    "averaged, dropout 0.7": ("I2VAE", PLAIN, AVERAGED | {"dropout": 0.7}),
    "averaged, dropout 0.3": ("I2VAE", PLAIN, AVERAGED | {"dropout": 0.3}),
    "averaged, two layers": ("I2VAE", PLAIN, AVERAGED | {"n_layers": 2}),
    "averaged, temperature 0.5": ("I2VAE", PLAIN, AVERAGED | {"temperature": 0.5}),
    "averaged, softmax over all items": ("I2VAE", PLAIN, AVERAGED | {"loss_type": "CE"}),
    "averaged, one encoder": ("I2VAE", PLAIN, AVERAGED | {"shared_encoder": True}),
    "averaged, items from PSG": ("I2VAE", PLAIN, AVERAGED | {"item_init": "psg"}),
    "latents, kl 0.0001": ("I2VAE", PLAIN, AVERAGED | LATENT),
    "latents, kl 0.00001": ("I2VAE", PLAIN, AVERAGED | LATENT | {"kl_weight": 0.00001}),
    "latents and PSG": ("I2VAE", PLAIN, AVERAGED | LATENT | FULL),
    "latents and PSG, lambdas 0.00001": (
        "I2VAE",
        PLAIN,
        AVERAGED | LATENT | LOW,
    ),
    "latents, lambdas 0.00001": (
        "I2VAE",
        PLAIN,
        AVERAGED | LATENT | LOW | {"psg": "none", "denoise_regularizer": False},
    ),
    "latents and PSG, lambdas 0.00001, nothing hidden": (
        "I2VAE",
        PLAIN,
        AVERAGED | LATENT | LOW | {"cold_start_mask_prob": 0.0},
    ),
    "latents and PSG, lambdas 0.00001, one encoder": (
        "I2VAE",
        PLAIN,
        AVERAGED | LATENT | LOW | {"shared_encoder": True, "stopping_step": 10},
    ),
    "SASRec (own), as RecBole has it": ("SASRec", {}, {}),
    "SASRec (own)": ("SASRec", SASREC, {}),
    "SASRec (merged)": ("SASRec", SASREC, {"baseline_scope": "all", "softmax_items": "domain"}),
    "SASRec (merged), 2048 shared negatives": (
        "SASRec",
        SASREC,
        {"baseline_scope": "all", "softmax_items": "domain", "softmax_negatives": 2048},
    ),
    "SASRec (own), 2048 shared negatives": ("SASRec", SASREC, {"softmax_negatives": 2048}),
}


def trial(label: str, max_seconds: float) -> dict:
    """Returns the validation scores of one trained model."""
    import torch

    from recbole_cdr_ext.config import CDRConfig
    from recbole_cdr_ext.experiment import build
    from recbole_cdr_ext.trainer.trainer import CrossDomainTrainer

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    model, start, changed = TRIALS[label]
    given = {**SCENE, **start, **changed, "max_processor_seconds": max_seconds}
    config = CDRConfig(model, "food_kitchen", config_dict=given)
    experiment = build(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CrossDomainTrainer(config, experiment.model, folder, data=experiment.split.fingerprint)
        trainer.fit(
            experiment.split,
            experiment.training_batches(),
            experiment.validate,
            saved=False,
            verbose=False,
            callback_fn=lambda epoch, score: print(f"{label}: epoch {epoch}, {score:.4f}", flush=True),
        )
    table = experiment.validate()
    return {
        "trial": label,
        "model": model,
        "settings": {**start, **changed},
        "valid": {name: groups["all"] for name, groups in table.items()},
        "score": trainer.best_valid_score,
        "best_epoch": trainer.best_epoch,
        "epochs": trainer.epochs_run,
        "stopped": trainer.stopped,
        "seconds": round(trainer.processor_seconds),
        "history": [round(entry["valid_score"], 5) for entry in trainer.history if "valid_score" in entry],
    }


def write_page(found: dict) -> None:
    """Writes the page from the rows."""
    rows = [found[label] for label in TRIALS if label in found]
    if not rows:
        return
    domains = list(rows[0]["valid"])
    lines = [
        "# What the levers are worth on validation",
        "",
        "food_kitchen, leave_one_out: NDCG@10 / HR@10 in percent of the validation targets against 999 negatives, one",
        "seed each; the test targets were not looked at. Made by `python benchmarks/next_item_trials.py`.",
        "",
        "| trial | mean NDCG@10 | " + " | ".join(domains) + " | best epoch / all | processor minutes |",
        "|---|---|" + "---|" * len(domains) + "---|---|",
    ]
    for row in rows:
        cells = [f"{100 * c['ndcg@10']:.2f} / {100 * c['hit@10']:.2f}" for c in row["valid"].values()]
        mark = "⏱" if row["stopped"] == "time" else ""
        lines.append(
            f"| {row['trial']} | {100 * row['score']:.2f} | {' | '.join(cells)} | "
            f"{row['best_epoch']} / {row['epochs']}{mark} | {row['seconds'] / 60:.0f} |"
        )
    lines += ["", "Stopped by hand (mean NDCG@10):", "", *(f"- {line}" for line in STOPPED)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = common_options(__doc__, jobs=2, only="trials' names")
    parser.add_argument(
        "--max-seconds", type=int, default=1200, help="processor time of a trial (%(default)s)"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    found = read_rows(ROWS, lambda row: row["trial"])
    missing = [label for label in TRIALS if label not in found and re.search(options.only, label)]
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(options.jobs, mp_context=context) as pool,
        tqdm(total=len(missing), ncols=100, desc="trials") as bar,
    ):
        for future in as_completed(pool.submit(trial, label, options.max_seconds) for label in missing):
            row = future.result()
            bar.update()
            append_row(ROWS, row)
            found[row["trial"]] = row
            write_page(found)
            tqdm.write(f"{row['trial']}: {row['score']:.4f} at epoch {row['best_epoch']}, {row['seconds']} s")
    write_page(found)


if __name__ == "__main__":
    main()
