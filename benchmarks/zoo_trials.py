"""Makes results/zoo_trials.md: three step sizes of each model, on validation users alone.

    python benchmarks/zoo_trials.py [--jobs=2] [--only=REGEX] [--max-seconds=300]

food_kitchen, split=user. The step size of the model's property file, a third of it, and three times it: the one setting
that all models have, and the same small budget for each. A trial is one training with early stopping; the test targets
are not looked at. A trial that is done (results/zoo_trials.jsonl) is not run again.
"""

from __future__ import annotations

import yaml
from trials import ROOT, options, run_missing

ROWS, PAGE = ROOT / "results/zoo_trials.jsonl", ROOT / "results/zoo_trials.md"
MODELS = (
    "BPR", "LightGCNPSG", "SASRec", "MultiVAE", "SVAE", "PiNet", "DASL", "C2DSR", "DisenCDR", "SAVAE", "CDRIB",
    "EMCDR",
)  # fmt: skip
# As in the table: what mixed precision makes faster on a processor.
MIXED = {"MultiVAE", "SVAE", "PiNet", "C2DSR", "DisenCDR", "SAVAE", "CDRIB"}
# As in the table, too: a softmax over 2,048 items that a batch shares, in place of all, which SASRec and I2VAE have.
SHARED = {"SVAE", "PiNet", "C2DSR"}
FACTORS = {"a third": 1 / 3, "its own": 1.0, "three times": 3.0}


def step_size(model: str) -> float:
    """The model's own."""
    folder = ROOT / "properties/model"
    found = {}
    for path in (
        folder / f"{model}_next_item.yaml",
        folder / f"{model}.yaml",
        ROOT / "properties/overall.yaml",
    ):
        if path.exists():
            found = yaml.safe_load(path.read_text(encoding="utf-8")) | found
            if "learning_rate" in found:
                break
    return float(found["learning_rate"])


def write_page(found: dict[str, dict]) -> None:
    """Writes the page from the rows."""
    lines = [
        "# The same few trials for every model",
        "",
        "food_kitchen, split=user: NDCG@10 in percent of the validation targets against 999 negatives, mean over",
        "the domains, one seed; the step size of the model's property file, a third of it, and three times it. The",
        "best is bold, and results/i2vae_groups has each model with that one. At most five minutes of processor time a",
        "trial (⏱: it ended the trial). The test targets were not looked at. Made by `python",
        "benchmarks/zoo_trials.py`. I2VAE, and SASRec with I2VAE's levers, have a log of their own,",
        "[i2vae_log.md](i2vae_log.md).",
        "",
        "| model | step size | " + " | ".join(FACTORS) + " | epochs |",
        "|---|---|" + "---|" * len(FACTORS) + "---|",
    ]
    for model in MODELS:
        rows = [found.get(f"{model}, {name}") for name in FACTORS]
        if not any(rows):
            continue
        best = max(row["score"] for row in rows if row)
        cells = []
        for row in rows:
            text = f"{100 * row['score']:.2f}{'⏱' * (row['stopped'] == 'time')}" if row else ""
            cells.append(f"**{text}**" if row and row["score"] == best else text)
        epochs = ", ".join(str(row["epochs"]) if row else "–" for row in rows)
        lines.append(f"| {model} | {step_size(model):g} | {' | '.join(cells)} | {epochs} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Runs what is missing and writes the page."""
    trials = {
        f"{model}, {name}": (
            model,
            {
                "split": "user",
                "task": "next_item",
                "learning_rate": step_size(model) * factor,
                "enable_amp": model in MIXED,
                **({"softmax_negatives": 2048} if model in SHARED else {}),
            },
        )
        for name, factor in FACTORS.items()
        for model in MODELS
    }
    run_missing(trials, "food_kitchen", ROWS, options(__doc__, 300), write_page)


if __name__ == "__main__":
    main()
