"""Makes results/robustness/: attacks, landscapes, Lipschitz estimates and sensitivity of the bridges.

    python benchmarks/robustness.py [--seed=0] [--beta=0.8]

Books → movies, with and without biases: trains what is to be compared (a finished run is not trained again), then calls
`recbole-cdr analyse`. Figures and CSV files are kept; the interactive pages lie beside them, out of the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

OUT = ROOT / "results/robustness"
FORMS = {"no": "no_biases", "yes": "biases"}
EPSILONS = ("0.25", "0.5", "0.75", "1")
PAGE = """# Robustness of the bridges, books → movies, β = 0.8, seed 0

Made by `python benchmarks/robustness.py`: without biases (the papers' form) in `no_biases/`, with them in `biases/`.
What is computed, and how to read it, stands in [docs/analyses.md](../../docs/analyses.md). One seed: differences of a
few hundredths say nothing.

## FGSM (the paper's Fig. 5): MAE of the test ratings under attack

| biases | model | ε = 0 | 0.25 | 0.5 | 0.75 | 1 |
|---|---|---|---|---|---|---|
{fgsm}

![FGSM](no_biases/fgsm.png)

## SCDR over k and ρ (Table V, Fig. 6–8; α = 0.3, the mapping's k and ρ)

| biases | ρ | k | ε = 0 | 0.25 | 0.5 | 0.75 | 1 | Lipschitz (one ball) |
|---|---|---|---|---|---|---|---|---|
{sensitivity}

As in Table V, ρ = 1 and ρ = 5 are equal at k = 1 (α keeps one step within both balls) and ρ = 1 is flat in k. Without
biases ρ = 5 from k = 2 on is robust because the mapping hardly looks at u^s any more: its MAE is then that of the item
mean (0.810) or worse. The paper's table has no such floor to see that by.

![Sensitivity](no_biases/sensitivity.png)

## Loss landscape (Fig. 2, 4) and Lipschitz estimate (Fig. 6)

![Landscape](no_biases/landscape.png)

![Lipschitz](no_biases/lipschitz.png)
"""
NO_SAM = ["--sharpness=none", "--pretrain_sharpness=none"]
RUNS = {
    "SCDR": ("SCDR", []),
    "SCDR-no-SAM": ("SCDR", NO_SAM),
    "EMCDR": ("EMCDR", []),
    "PTUPCDR": ("PTUPCDR", []),
    "TMCDR": ("TMCDR", []),
}


def call(*words: str) -> None:
    """Calls the command line, saying so; what fails ends the script."""
    from recbole_cdr_ext.cli import main as recbole_cdr

    print(f"\n$ recbole-cdr {' '.join(words)}", flush=True)
    status = recbole_cdr(list(words))
    if status:
        sys.exit(status)


def write_page() -> None:
    """Writes README.md: the numbers of the CSV files, and the figures."""
    import pandas as pd

    attacks, cells = [], []
    for form, folder in FORMS.items():
        fgsm = pd.read_csv(OUT / folder / "fgsm.csv")
        for run, lines in fgsm.groupby("run", sort=False):
            label = str(run).rsplit("-", 3)[0]
            attacks.append([form, label, *(f"{mae:.3f}" for mae in lines["mae"])])
        for _, cell in pd.read_csv(OUT / folder / "sensitivity.csv").iterrows():
            errors = [cell["mae"], *(cell[f"mae_eps={e}"] for e in EPSILONS), cell["lipschitz"]]
            cells.append([form, f"{cell['rho']:g}", str(cell["k"]), *(f"{error:.3f}" for error in errors)])
    tables = ["\n".join(f"| {' | '.join(row)} |" for row in rows) for rows in (attacks, cells)]
    text = PAGE.replace("{fgsm}", tables[0]).replace("{sensitivity}", tables[1])
    (OUT / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Trains what is missing and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and of the split")
    parser.add_argument("--beta", type=float, default=0.8, help="share of test users")
    parser.add_argument("--runs", default="saved/robustness", help="folder of the runs")
    options = parser.parse_args()
    os.chdir(ROOT)
    scene = [
        "--dataset=books_movies", "--source=books", "--target=movies", f"--beta={options.beta}",
        f"--seed={options.seed}", f"--split_seed={options.seed}",
    ]  # fmt: skip
    quiet = [
        "--show_progress=False",
        "--state=WARNING",
        "--torch_threads=1",
        f"--checkpoint_dir={options.runs}",
    ]
    for biases, form in zip((False, True), FORMS.values(), strict=True):
        names = []
        for label, (model, settings) in RUNS.items():
            name = f"{label}-{form}-{options.beta}-{options.seed}"
            folder = Path(options.runs) / name
            names.append(str(folder))
            if not (folder / "result.json").exists():
                begun = (folder / "config.yaml").exists()
                words = [f"--resume={folder}"] if begun else [f"--model={model}", *scene, *settings]
                named = [] if begun else [f"--biases={biases}", f"--run_id={name}"]
                call("run", *words, *named, *quiet)
        out = OUT / form
        for analysis in ("fgsm", "landscape", "lipschitz"):
            call("analyse", analysis, f"--runs={','.join(names)}", f"--out={out}")
        call("analyse", "sensitivity", *scene, f"--biases={biases}", *quiet, f"--out={out}")
    write_page()


if __name__ == "__main__":
    main()
