"""Makes results/next_item.md: I2VAE as its paper has it, and baselines, on real data, by domain and user group.

    python benchmarks/next_item_table.py [--jobs=2] [--only=REGEX] [--seeds=3] [--max-seconds=900]

The data must be prepared, or RECBOLE_CDR_RAW must say where their raw files are. A cell is one run in a process of
its own, with one thread; its row goes into results/next_item.jsonl as soon as it is there. Cells that have a row are
not run again, and a killed run goes on where it stood: start the same command again. I2VAE tuned has a page of its
own, results/i2vae.md, whose table `recbole-cdr study i2vae_tuned` makes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from model_pages import write as write_pages
from rows import append_row, read_rows
from rows import options as common_options
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
PAPER = ("--config_files=properties/model/I2VAE_paper.yaml",)

TEST_ITEMS = "test_among_test_items"

# label: (model, arguments, whether it depends on the seed)
MODELS = {
    "Pop": ("Pop", (), False),
    "ItemKNN (own)": ("ItemKNN", ("--baseline_scope=target",), False),
    "ItemKNN (union)": ("ItemKNN", ("--baseline_scope=all",), False),
    "BPR": ("BPR", (), True),
    "LightGCNPSG": ("LightGCNPSG", (), True),
    "SASRec": ("SASRec", (), True),
    "I2VAE (paper's form)": ("I2VAE", PAPER, True),
}
ZOO = {
    "MultiVAE": ("MultiVAE", (), True),
    "SVAE": ("SVAE", (), True),
    "PiNet": ("PiNet", (), True),
    "DASL": ("DASL", (), True),
    "C2DSR": ("C2DSR", (), True),
    "DisenCDR": ("DisenCDR", (), True),
    "SAVAE": ("SAVAE", (), True),
    "CDRIB": ("CDRIB", (), True),
    "EMCDR": ("EMCDR", (), True),
}
ABLATIONS = {
    "I2VAE w/o PSG": ("I2VAE", (*PAPER, "--psg=random"), True),
    "I2VAE w/o CD-R & DS-R": ("I2VAE", (*PAPER, "--cross_regularizer=False"), True),
    "I2VAE w/o DN-R": ("I2VAE", (*PAPER, "--denoise_regularizer=False"), True),
}
PUBLISHED = {
    "Pop": ("Pop", (), False),
    "OrderPop": ("OrderPop", (), False),
    "ItemKNN (union)": MODELS["ItemKNN (union)"],
    "I2VAE (paper's form)": MODELS["I2VAE (paper's form)"],
}
ORDER = [*MODELS, *ABLATIONS, *ZOO, "OrderPop"]
# (dataset, split, most seeds, models), in the order of what matters most.
SCENES = [
    ("food_kitchen", "user", 3, MODELS),
    ("cloth_sport", "published", 1, PUBLISHED),
    ("food_kitchen", "leave_one_out", 3, MODELS),
    ("cloth_sport", "user", 3, MODELS),
    ("food_kitchen", "user", 1, ABLATIONS),
    ("food_kitchen_partial", "user", 1, MODELS),
    ("food_kitchen", "user", 3, ZOO),
    ("food_kitchen", "leave_one_out", 3, ZOO),
    ("cloth_sport", "user", 1, ZOO),
    ("game_video", "user", 1, {**MODELS, **ZOO}),
]
# What a reader must know of the data.
NOTES = {
    "food_kitchen": (
        "Days are the resolution of the source, and within a day it orders a user's events by domain and item id: 31 % "
        "of adjacent events share a day, and 32 % of leave_one_out's test targets share one with the event before. "
        "Part of what a sequence model learns here is that order."
    ),
}
FIRST_SEED = 2024
# I2VAE's Table 1 on Cloth–Sport: another preparation of the data, leaking rows, negatives from the test file's items.
PRINTED = {
    "cloth": {"all": (2.59, 5.00), "tailed": (2.52, 4.73), "cold": (3.45, 6.77)},
    "sport": {"all": (4.40, 8.53), "tailed": (3.36, 6.66), "cold": (5.43, 10.30)},
}


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    label: str
    model: str
    dataset: str
    split: str
    seed: int
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a reader types to get this row."""
        parts = [
            f"--model={self.model}",
            f"--dataset={self.dataset}",
            f"--split={self.split}",
            f"--seed={self.seed}",
        ]
        return " ".join(["python run_recbole_cdr.py", *parts, *self.arguments])

    @property
    def key(self) -> str:
        """Names the run; the same cell has the same name in every session."""
        return f"table-{self.model}-{hashlib.sha256(self.command.encode()).hexdigest()[:12]}"


def cells(seeds: int) -> list[Cell]:
    """All cells, first seeds before second ones."""
    found = []
    for number in range(seeds):
        for dataset, split, most, models in SCENES:
            for label, (model, arguments, seeded) in models.items():
                if number < (most if seeded else 1):
                    found.append(Cell(label, model, dataset, split, FIRST_SEED + number, (*arguments,)))
    return found


def run(cell: Cell, options: argparse.Namespace) -> dict | str:
    """Runs a cell to its row, or returns the end of what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        out = Path(options.runs) / cell.key
        resume = [f"--resume={out}"] if (out / "config.yaml").exists() else []
        fresh = [
            *cell.command.split()[2:],
            f"--run_id={cell.key}",
            f"--max_processor_seconds={options.max_seconds}",
        ]
        shared = [
            f"--result_file={result}", f"--checkpoint_dir={options.runs}", "--show_progress=False",
            "--tensorboard=False", "--torch_threads=1", "--allow_simulated=False",
        ]  # fmt: skip
        command = [sys.executable, "run_recbole_cdr.py", *(resume or fresh), *shared]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode or not result.exists():
            return f"{cell.command}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        found = json.loads(result.read_text())
    kept = ("valid", "test", "best_valid_score", "stopped", "epochs_run", "seconds", "fallback", "versions")
    leaks = {k: v for k, v in found["report"].items() if k.startswith("leak")}
    row = {"label": cell.label, "dataset": cell.dataset, "split": cell.split, "seed": cell.seed}
    if TEST_ITEMS in found:
        kept = (*kept, TEST_ITEMS)
    return {**row, "command": cell.command, **{key: found[key] for key in kept}, "leaks": leaks}


def write_table(path: Path, rows: list[dict], max_seconds: int) -> None:
    """Writes the Markdown page: mean ± standard deviation over the seeds, per scene, domain and group."""
    scenes: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        scenes[row["dataset"], row["split"]][row["label"]].append(row)
    lines = [
        "# Next-item results",
        "",
        "NDCG@10 / HR@10 in percent against 999 sampled negatives, mean ± standard deviation over the seeds (n after",
        "the model's name; deterministic models run once). Chosen on validation, ranked once on test. At most",
        f"{max_seconds // 60} minutes of processor time for the training of a run, early stopping after 10 epochs",
        "without gain (LightGCNPSG: none);",
        "⏱ marks rows that the time cap ended, † rows of which some instances were ranked by popularity because the",
        "model cannot rank them. Made by `python benchmarks/next_item_table.py`; each row's command stands below.",
    ]
    for (dataset, split), models in scenes.items():
        lines += ["", f"## {dataset}, split={split}", ""]
        if dataset in NOTES:
            lines += [*textwrap.wrap(NOTES[dataset], 118), ""]
        if split == "published":
            leaks = next(iter(models.values()))[0]["leaks"]
            counts = "; ".join(f"{what.removeprefix('leak: ')}: {n}" for what, n in leaks.items() if n)
            lines += [f"**This protocol leaks and is not chronological** ({counts}).", ""]
        lines += _scene(models, "test")
        if split == "published":
            lines += ["", "Negatives from the items of the test file alone, as its authors drew them:", ""]
            lines += _scene(models, TEST_ITEMS)
        lines += ["", "<details><summary>Commands</summary>", "", "```"]
        lines += [models[label][0]["command"] for label in sorted(models, key=ORDER.index)]
        lines += ["```", "", "</details>"]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scene(models: dict[str, list[dict]], part: str) -> list[str]:
    first = next(iter(models.values()))[0][part]
    columns = [(d, g) for d, groups in first.items() for g, cell in groups.items() if cell["n"]]
    lines = ["| model | " + " | ".join(f"{d} {g} (n={first[d][g]['n']:,})" for d, g in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    best = {
        (c, m): sorted({round(_average(found, part, c, m), 6) for found in models.values()})[::-1][:2]
        for c in columns
        for m in ("ndcg@10", "hit@10")
    }
    for label in sorted(models, key=ORDER.index):
        found = models[label]
        marks = "⏱" * any(r["stopped"] == "time" for r in found)
        marks += "†" * any(n for r in found for cell in r["fallback"]["test"].values() for n in cell.values())
        cells_of = [
            " / ".join(_cell(found, part, c, m, best[c, m]) for m in ("ndcg@10", "hit@10")) for c in columns
        ]
        lines.append(f"| {label}{marks} ({len(found)}) | " + " | ".join(cells_of) + " |")
    if part == TEST_ITEMS:
        printed = [" / ".join(f"{v:.2f}" for v in PRINTED[d][g]) for d, g in columns]
        lines.append("| *I2VAE as its paper prints it (five seeds)* | " + " | ".join(printed) + " |")
    return lines


def _average(rows: list[dict], part: str, column: tuple[str, str], metric: str) -> float:
    return float(np.mean([row[part][column[0]][column[1]][metric] for row in rows]))


def _cell(rows: list[dict], part: str, column: tuple[str, str], metric: str, best: list[float]) -> str:
    """Mean ± standard deviation in percent; the best is bold, the second best underlined."""
    values = [100 * row[part][column[0]][column[1]][metric] for row in rows]
    text = f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
    average = round(_average(rows, part, column, metric), 6)
    return f"**{text}**" if average == best[0] else f"<u>{text}</u>" if average in best else text


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = common_options(__doc__, jobs=2)
    parser.add_argument(
        "--max-seconds", type=int, default=900, help="cap on the processor time of a run's training"
    )
    parser.add_argument("--runs", default="saved", help="folder of the runs")
    options = parser.parse_args()
    path = ROOT / "results/next_item.jsonl"
    done = read_rows(path)
    missing = [
        c for c in cells(options.seeds) if c.command not in done and re.search(options.only, c.command)
    ]
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(missing), ncols=100) as bar:
        for future in as_completed(pool.submit(run, cell, options) for cell in missing):
            row = future.result()
            bar.update()
            if isinstance(row, str):
                tqdm.write(f"FAILED {row}")
                continue
            append_row(path, row)
            done[row["command"]] = row
            write_table(path, list(done.values()), options.max_seconds)
            tqdm.write(
                f"{row['label']} {row['dataset']} {row['split']} seed {row['seed']}: {row['best_valid_score']:.4f}"
            )
    write_table(path, list(done.values()), options.max_seconds)
    write_pages()


if __name__ == "__main__":
    main()
