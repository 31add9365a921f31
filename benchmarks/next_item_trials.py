"""Makes results/i2vae_log.md: what each lever of I2VAE and of SASRec is worth, on validation users alone.

    python benchmarks/next_item_trials.py [--jobs=2] [--only=REGEX] [--max-seconds=1200]

food_kitchen, split=leave_one_out. A trial is one training with early stopping; the test targets are not looked at. A
trial that is done (results/i2vae_trials.jsonl) is not run again.
"""

from __future__ import annotations

from trials import ROOT, options, run_missing

ROWS, PAGE = ROOT / "results/i2vae_trials.jsonl", ROOT / "results/i2vae_log.md"

SCENE = {"split": "leave_one_out", "epochs": 200}
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
ONE = AVERAGED | LATENT | LOW | {"shared_encoder": True, "psg": "none", "denoise_regularizer": False}
SASREC = {
    "hidden_size": 128, "inner_size": 256, "n_layers": 1, "max_history_length": 50, "learner": "adamw",
    "learning_rate": 0.002, "weight_decay": 1.0, "train_batch_size": 1024, "stopping_step": 6,
    "weight_averaging": 0.998,
}  # fmt: skip
MERGED = {"baseline_scope": "all", "softmax_items": "domain", "softmax_negatives": 2048}
# Trials that were stopped by hand before their row was written; what they showed.
STOPPED = (
    "without latents, weight decay 1.5: 14.6 at its best in 28 epochs, as without;",
    "without latents, softmax over all items: 7.0 after 5 epochs, at twice the time of an epoch;",
    "residual, weight decay 3: 11.1 after 6 epochs, where weight decay 1 had 16.0;",
    "latents, kl 0.00001: 12.1 after 5 epochs, where kl 0.0001 had 11.8 and no latents 16.1;",
    "latents, kl 0.00001, log-variances from -8: 5.3 after 4 epochs; between narrow posteriors CD-R is a large KL;",
    "latents and PSG: 17.0 at its best in 11 epochs, where lambdas of 0.00001 had 17.5;",
    "residual, weight decay 1, d 256: 16.5 at its best in 11 epochs;",
    "latents and PSG, lambdas of 0.00001, cold_start_mask_prob 0: 17.3 at its best in 11 epochs, as with 0.1;",
    "one encoder: latents, cold_start_mask_prob 0.3: 18.2 at its best in 14 epochs, where 0.1 had 18.0;",
    "one encoder: latents, 8192 negatives: 18.4 at its best in 22 epochs, where 2048 had 18.3 in half the time;",
    "SASRec (merged, shared), weight decay 2: 13.9 at its best in 11 epochs.",
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
    "one encoder: latents, lambdas 0.00001": ("I2VAE", PLAIN, ONE),
    "one encoder: latents, log-variances from -8": ("I2VAE", PLAIN, ONE | {"initial_logvar": -8.0}),
    "one encoder: latents and PSG": ("I2VAE", PLAIN, ONE | {"psg": "lightgcn", "denoise_regularizer": True}),
    "SASRec (own), as RecBole has it": ("SASRec", {}, {}),
    "SASRec (own)": ("SASRec", SASREC, {}),
    "SASRec (own), 2048 shared negatives": ("SASRec", SASREC, {"softmax_negatives": 2048}),
    "SASRec (merged)": ("SASRec", SASREC, {"baseline_scope": "all", "softmax_items": "domain"}),
    "SASRec (merged), 2048 shared negatives": ("SASRec", SASREC, MERGED),
    "SASRec (merged, shared), weight decay 0.3": ("SASRec", SASREC, MERGED | {"weight_decay": 0.3}),
    "SASRec (merged, shared), weight decay 2": ("SASRec", SASREC, MERGED | {"weight_decay": 2.0}),
    "SASRec (merged, shared), dropout 0.3": (
        "SASRec",
        SASREC,
        MERGED | {"hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3},
    ),
    "SASRec (merged, shared), attention dropout 0.1": ("SASRec", SASREC, MERGED | {"attn_dropout_prob": 0.1}),
    "SASRec (merged, shared), two layers": ("SASRec", SASREC, MERGED | {"n_layers": 2}),
    "SASRec (merged, shared), d 256": ("SASRec", SASREC, MERGED | {"hidden_size": 256, "inner_size": 512}),
    "SASRec (merged, shared), 8192 negatives": ("SASRec", SASREC, MERGED | {"softmax_negatives": 8192}),
    "SASRec (merged, shared), step 0.004": ("SASRec", SASREC, MERGED | {"learning_rate": 0.004}),
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
    trials = {
        label: (model, {**SCENE, **start, **changed}) for label, (model, start, changed) in TRIALS.items()
    }
    run_missing(trials, "food_kitchen", ROWS, options(__doc__, 1200), write_page)


if __name__ == "__main__":
    main()
