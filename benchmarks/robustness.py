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
    for biases in (False, True):
        names = []
        for label, (model, settings) in RUNS.items():
            name = f"{label}-{'biases' if biases else 'no_biases'}-{options.beta}-{options.seed}"
            folder = Path(options.runs) / name
            names.append(str(folder))
            if not (folder / "result.json").exists():
                begun = (folder / "config.yaml").exists()
                words = [f"--resume={folder}"] if begun else [f"--model={model}", *scene, *settings]
                form = [] if begun else [f"--biases={biases}", f"--run_id={name}"]
                call("run", *words, *form, *quiet)
        out = OUT / ("biases" if biases else "no_biases")
        for analysis in ("fgsm", "landscape", "lipschitz"):
            call("analyse", analysis, f"--runs={','.join(names)}", f"--out={out}")
        call("analyse", "sensitivity", *scene, f"--biases={biases}", *quiet, f"--out={out}")


if __name__ == "__main__":
    main()
