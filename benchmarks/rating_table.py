"""Makes results/rating.md: the rating models on cold-start users, by direction and share of test users.

    python benchmarks/rating_table.py [--jobs=2] [--only=REGEX] [--seeds=3] [--page]

The data must be prepared, or RECBOLE_CDR_RAW must say where their raw files are. A cell is one run (its command stands
in its row); its row goes into results/rating.jsonl as soon as it is there, and cells that have a row are not run again.
What each user's errors were is kept in RUNS (--runs) for the paired intervals, which go into results/rating_pairs.json.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

# Read by torch when it is imported: cells run side by side, each on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rows import append_row, read_rows
from rows import options as common_options
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ROWS, TABLE, PAIRS = (ROOT / "results" / name for name in ("rating.jsonl", "rating.md", "rating_pairs.json"))

RESULT_HEADING = "## Result"

DIRECTIONS = (
    ("books_movies", "books", "movies"),
    ("books_movies", "movies", "books"),
    ("douban_book_music", "book", "music"),
    ("douban_book_music", "music", "book"),
)
BETAS = (0.2, 0.5, 0.8)
FLOORS = {
    "GlobalMean": "global mean",
    "ItemMean": "item mean",
    "ItemMeanUserBias": "item mean + user's source bias",
    "BiasOnly": "bias only (d = 0)",
}
NO_SAM = {"pretrain_sharpness": "none", "sharpness": "none"}
# label: (model, settings)
METHODS = {
    "TGT": ("TGT", {}),
    "CMF": ("CMF", {}),
    "EMCDR": ("EMCDR", {}),
    "SSCDR": ("SSCDR", {}),
    "CLCDR": ("CLCDR", {}),
    "PTUPCDR": ("PTUPCDR", {}),
    "TMCDR": ("TMCDR", {}),
    "task-oriented, no SAM": ("SCDR", NO_SAM),
    "SCDR⁻": ("SCDR", {"pretrain_sharpness": "none"}),
    "SCDR": ("SCDR", {}),
}
# Rows of their own: the paper's text, and the backbones (Table VI) in its first direction.
TEXT = {"SCDR (paper's text)": ("SCDR", {"config_files": "properties/model/SCDR_paper.yaml"})}
# The mean over a graph's layers leaves zero later than plain vectors do.
PATIENT = {"pretrain_epochs": 60, "pretrain_stopping_step": 10}
BACKBONES = {
    "SCDR, LightGCN": ("SCDR", {"backbone": "LightGCN", **PATIENT}),
    "SCDR, NGCF": ("SCDR", {"backbone": "NGCF", **PATIENT}),
}


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    label: str
    model: str
    dataset: str
    source: str
    target: str
    beta: float
    seed: int
    settings: tuple[tuple[str, object], ...]

    @property
    def given(self) -> dict[str, object]:
        """What the run is told."""
        scene = {"source": self.source, "target": self.target, "beta": self.beta}
        # A seed of training is a seed of the split as well: the spread is over both, as the paper's trials are.
        return {**scene, "seed": self.seed, "split_seed": self.seed, **dict(self.settings)}

    @property
    def command(self) -> str:
        """What a reader types to get this row."""
        words = [f"--{key}={value}" for key, value in self.given.items()]
        return " ".join(
            ["python run_recbole_cdr.py", f"--model={self.model}", f"--dataset={self.dataset}", *words]
        )

    @property
    def scene(self) -> str:
        """Where it stands in the page."""
        return f"{self.dataset}: {self.source} → {self.target}"

    @property
    def errors_file(self) -> str:
        """Where each user's errors are kept."""
        form = "-".join(str(value) for _, value in self.settings)
        name = f"{self.dataset}-{self.source}-{self.beta}-{self.seed}-{self.label}-{form}"
        return re.sub(r"[^\w.-]", "_", name) + ".npz"


def cells(seeds: int) -> list[Cell]:
    """All cells: first seeds before second ones."""
    found = []
    for seed in range(seeds):
        for beta in BETAS:
            for number, direction in enumerate(DIRECTIONS):
                methods = {**METHODS, **(BACKBONES if number == 0 else {})}
                for label, (model, settings) in methods.items():
                    for biases in (True, False):
                        given = (*settings.items(), ("biases", biases))
                        found.append(Cell(label, model, *direction, beta, seed, given))
                for label, (model, settings) in TEXT.items():
                    found.append(Cell(label, model, *direction, beta, seed, tuple(settings.items())))
    return found


def run(cell: Cell, runs: str) -> dict:
    """Runs a cell to its row; one that does not train has the reason in it."""
    import logging

    import torch

    from recbole_cdr_ext.errors import CDRError
    from recbole_cdr_ext.run import run_recbole_cdr

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    quiet = {"show_progress": False, "tensorboard": False, "allow_simulated": False, "state": "ERROR"}
    name = Path(cell.errors_file).stem
    row = {
        "label": cell.label, "scene": cell.scene, "source": cell.source, "beta": cell.beta, "seed": cell.seed,
        "biases": dict(cell.settings).get("biases"), "command": cell.command,
    }  # fmt: skip
    folder = Path(runs) / name
    shutil.rmtree(folder, ignore_errors=True)  # what was left of a killed attempt
    try:
        with redirect_stdout(io.StringIO()):
            settings = {**cell.given, **quiet, "checkpoint_dir": runs, "run_id": name}
            result = run_recbole_cdr(cell.model, cell.dataset, config_dict=settings)
    except CDRError as error:
        return {**row, "failed": str(error)}
    _keep_errors(folder, Path(runs) / cell.errors_file)
    shutil.rmtree(folder, ignore_errors=True)
    kept = ("valid", "test", "floors", "unknown_items", "stopped", "epochs_run", "seconds", "versions")
    return {**row, **{key: result[key] for key in kept}}


def _keep_errors(folder: Path, path: Path) -> None:
    """Keeps the sums of each test user's absolute and squared errors."""
    import pandas as pd

    parquet = folder / "instances.parquet"
    frame = pd.read_parquet(parquet) if parquet.exists() else pd.read_csv(folder / "instances.csv")
    frame = frame[frame.part == "test"]
    error = frame.absolute_error.to_numpy(np.float64)
    user, place = np.unique(frame.user.to_numpy(str), return_inverse=True)
    sums = [np.bincount(place, weights) for weights in (np.ones(len(error)), error, error**2)]
    np.savez_compressed(path, user=user, n=sums[0], absolute=sums[1], squared=sums[2])


# -- the page ----------------------------------------------------------------------------------------------------


def write_table(rows: list[dict], runs: str) -> None:
    """Writes the page: mean ± standard deviation over the seeds, by direction, form and β."""
    scenes: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        scenes[row["scene"]].append(row)
    pairs = compare(rows, runs)
    lines = [
        "# Cold-start ratings",
        "",
        "MAE / RMSE of the test users' target ratings, mean ± standard deviation over the seeds (their number stands",
        "after the method's name), each of which draws its own test users. The epoch was chosen on the validation",
        "users. Nothing was tuned scene by scene. Of the defaults, SCDR's 20 epochs of mapping and CMF's 100 epochs",
        "with patience 10 were set on validation; the graph backbones' penalty and NGCF's averaged gradients were",
        "settled on books → movies, β = 0.5, seed 0, where their test errors were seen too. Bold: the best of the",
        "column. Made by `python benchmarks/rating_table.py`; each row's command stands in results/rating.jsonl.",
        "*Biases*: μ + b_u + b_i + product, the user's bias mapped from the source; without them the product alone, as",
        "in the papers. What it all says: [docs/ratings.md](../docs/ratings.md).",
    ]
    order = [*METHODS, *TEXT, *BACKBONES]
    for scene in dict.fromkeys(f"{d}: {s} → {t}" for d, s, t in DIRECTIONS):
        if scene in scenes:
            lines += ["", f"## {scene}", "", *_scene(scenes[scene], order)]
    lines += ["", *_claims(rows, pairs)]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    first = "{}: {} → {}".format(*DIRECTIONS[0])
    _write_model_pages(first, _scene(scenes[first], order))


def _write_model_pages(scene: str, lines: list[str]) -> None:
    """Puts each model's rows of one scene at the end of its page in docs/models."""
    for page in sorted((ROOT / "docs/models").glob("*.md")):
        names = {
            "SCDR": r"SCDR.*",
            "backbones": r"SCDR, .*",
            "floors": "|".join(map(re.escape, FLOORS.values())),
        }
        pattern = names.get(page.stem, re.escape(page.stem))
        own = [line for line in lines if re.match(rf"\| ({pattern}) \(\d+\) \|", line)]
        if not own:
            continue
        text = page.read_text(encoding="utf-8").split(RESULT_HEADING)[0].rstrip()
        said = f"{scene}, MAE / RMSE over seeds (made by `python benchmarks/rating_table.py`):"
        page.write_text(
            "\n".join([text, "", RESULT_HEADING, "", said, "", *lines[:2], *own]) + "\n", encoding="utf-8"
        )


def _values(rows: list[dict]) -> np.ndarray:
    cells_ = [next(iter(row["test"].values()))["cold"] for row in rows]
    return np.array([[cell["mae"], cell["rmse"]] for cell in cells_])


def _scene(rows: list[dict], order: list[str]) -> list[str]:
    columns: dict[tuple[str, object], dict[float, np.ndarray]] = defaultdict(dict)
    failed: dict[tuple[str, object, float], int] = defaultdict(int)
    for beta in BETAS:
        here = [row for row in rows if row["beta"] == beta]
        done = [row for row in here if "failed" not in row]
        for name in FLOORS:
            by_seed = {row["seed"]: {"test": row["floors"][name]} for row in done if name in row["floors"]}
            if by_seed:
                columns[FLOORS[name], "floor"][beta] = _values(list(by_seed.values()))
        for row in here:
            key = (row["label"], row["biases"])
            if "failed" in row:
                failed[*key, beta] += 1
                columns.setdefault(key, {})
        for key in {(row["label"], row["biases"]) for row in done}:
            same = [row for row in done if (row["label"], row["biases"]) == key]
            columns[key][beta] = _values(same)
    best = {
        beta: np.min([found[beta].mean(0) for found in columns.values() if beta in found], axis=0)
        for beta in BETAS
        if any(beta in found for found in columns.values())
    }
    lines = [
        "| method | biases | " + " | ".join(f"β = {beta}" for beta in BETAS) + " |",
        "|---|---|---|---|---|",
    ]
    floors = [(label, "floor") for label in FLOORS.values()]
    methods = [(label, form) for form in (True, False, None) for label in order]
    for key in [key for key in (*floors, *methods) if key in columns]:
        label, form = key
        shown = [_shown(columns[key].get(beta), best.get(beta), failed[*key, beta]) for beta in BETAS]
        n = max((len(v) for v in columns[key].values()), default=0)
        lines.append(f"| {label} ({n}) | {_FORMS[form]} | " + " | ".join(shown) + " |")
    return lines


_FORMS = {"floor": "–", True: "yes", False: "no", None: "no"}


def _shown(values: np.ndarray | None, best: np.ndarray | None, failed: int) -> str:
    if values is None or best is None:
        return "diverges" if failed else ""
    mean = values.mean(0)
    spread = values.std(0, ddof=1) if len(values) > 1 else (None, None)
    parts = []
    for m, s, b in zip(mean, spread, best, strict=True):
        text = f"{m:.3f}" + ("" if s is None else f" ± {s:.3f}")
        parts.append(f"**{text}**" if round(m, 3) <= round(b, 3) else text)
    return " / ".join(parts) + (f" ({failed} diverged)" if failed else "")


# -- paired comparisons --------------------------------------------------------------------------------------------


def compare(rows: list[dict], runs: str) -> dict[str, dict]:
    """Returns, per scene and β, SCDR (biases) against the best other row and against bias only, by paired bootstrap.

    Test users are drawn with replacement, 2,000 times, within each seed; the interval is that of the difference of
    the mean absolute (root mean squared) errors, averaged over the seeds. What cannot be computed now, because the
    errors were kept on another machine, is taken from results/rating_pairs.json.
    """
    known = json.loads(PAIRS.read_text(encoding="utf-8")) if PAIRS.exists() else {}
    by_key: dict[str, dict[str, dict[int, Cell]]] = defaultdict(lambda: defaultdict(dict))
    done = {row["command"] for row in rows if "failed" not in row}
    for cell in cells(1 + max(row["seed"] for row in rows)):
        if cell.command in done and (Path(runs) / cell.errors_file).exists():
            label = f"{cell.label}, {_FORMS[dict(cell.settings).get('biases')]}"
            by_key[f"{cell.scene}, β = {cell.beta}"][label][cell.seed] = cell
    for place, labels in by_key.items():
        mine = labels.get("SCDR, yes")
        if not mine:
            continue
        means = {}
        for label, of_seed in labels.items():
            if set(of_seed) >= set(mine):
                means[label] = np.mean([_mae(Path(runs) / c.errors_file) for c in of_seed.values()])
        others = {label: mean for label, mean in means.items() if label != "SCDR, yes"}
        if not others:
            continue
        rival = min(others, key=others.__getitem__)
        found = _paired([Path(runs) / mine[s].errors_file for s in sorted(mine)],
                        [Path(runs) / labels[rival][s].errors_file for s in sorted(mine)])  # fmt: skip
        known[place] = {"rival": rival, "seeds": sorted(mine), **found}
    if known:
        PAIRS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return known


def _mae(path: Path) -> float:
    with np.load(path) as kept:
        return float(kept["absolute"].sum() / kept["n"].sum())


def _paired(mine: list[Path], rivals: list[Path], draws: int = 2000) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    differences = np.zeros((draws, 2))
    point = np.zeros(2)
    for path, rival in zip(mine, rivals, strict=True):
        with np.load(path) as a, np.load(rival) as b:
            assert np.array_equal(a["user"], b["user"]), f"{path} and {rival} are of other users"
            weight = rng.multinomial(len(a["n"]), np.full(len(a["n"]), 1 / len(a["n"])), size=draws)
            for drawn, out in ((weight, differences), (np.ones((1, len(a["n"]))), point.reshape(1, 2))):
                n = drawn @ a["n"]
                out[:, 0] += drawn @ (a["absolute"] - b["absolute"]) / n / len(mine)
                out[:, 1] += (np.sqrt(drawn @ a["squared"] / n) - np.sqrt(drawn @ b["squared"] / n)) / len(
                    mine
                )
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    return {
        metric: [round(float(x), 5) for x in (point[i], low[i], high[i])]
        for i, metric in enumerate(("mae", "rmse"))
    }


def _claims(rows: list[dict], pairs: dict[str, dict]) -> list[str]:
    if not pairs:
        return []
    lines = [
        "## SCDR (biases) against the best other method",
        "",
        "Difference SCDR - other, with its 95 % interval by paired bootstrap over test users; negative: SCDR better.",
        "",
        "| direction | best other by MAE (biases) | MAE | RMSE |",
        "|---|---|---|---|",
    ]
    for place in sorted(pairs):
        found = pairs[place]
        shown = [f"{m:+.4f} [{low:+.4f}, {high:+.4f}]" for m, low, high in (found["mae"], found["rmse"])]
        lines.append(f"| {place} | {found['rival']} | " + " | ".join(shown) + " |")
    return lines


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = common_options(__doc__, jobs=2)
    parser.add_argument("--runs", default="saved/rating-table", help="folder of what is kept of the runs")
    parser.add_argument(
        "--page", action="store_true", help="only write the page from the rows that are there"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    Path(options.runs).mkdir(parents=True, exist_ok=True)
    done = read_rows(ROWS)
    missing = [
        c for c in cells(options.seeds) if c.command not in done and re.search(options.only, c.command)
    ]
    missing = [] if options.page else missing
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(options.jobs, mp_context=context) as pool,
        tqdm(total=len(missing), ncols=100, desc="runs") as bar,
    ):
        for future in as_completed(pool.submit(run, cell, options.runs) for cell in missing):
            row = future.result()
            bar.update()
            append_row(ROWS, row)
            done[row["command"]] = row
            if "failed" in row:
                tqdm.write(f"{row['command']}\n    {row['failed'][:300]}")
    write_table(list(done.values()), options.runs)
    print(f"{len(done)} rows: {TABLE}")


if __name__ == "__main__":
    main()
