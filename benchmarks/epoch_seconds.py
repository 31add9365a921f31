"""Seconds that one epoch of each next-item model takes on all processors, phase by phase.

    python benchmarks/epoch_seconds.py [--dataset=cloth_sport] [--only=REGEX] [--threads=2]

Each model is trained for one epoch of each of its phases by `recbole-cdr run`, in a process of its own, one after the
other; stages that run before it (LightGCN-PSG) are not counted. A model whose longest epoch takes two minutes or more
is marked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
LIMIT = 120.0
# Phases whose epochs are counted by another setting.
ALSO = {"DisenCDR": ["--warmup_epochs=1"]}
MODELS = (
    "BPR", "LightGCNPSG", "MultiVAE", "SVAE", "SASRec", "PiNet", "DASL", "C2DSR", "DisenCDR", "SAVAE", "CDRIB", "EMCDR",
    "I2VAE",
)  # fmt: skip


def seconds(model: str, dataset: str, threads: int) -> dict[str, float]:
    """Returns the longest epoch of each phase, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [
            sys.executable, "-m", "recbole_cdr_ext", "run", f"--model={model}", f"--dataset={dataset}", "--split=user",
            "--task=next_item", "--epochs=1", f"--torch_threads={threads}", "--show_progress=False",
            "--tensorboard=False", "--save_instances=False", f"--checkpoint_dir={folder}", f"--result_file={result}",
            *ALSO.get(model, ()),
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{model}: {done.stdout[-800:]}{done.stderr[-800:]}")
        history = json.loads(result.read_text(encoding="utf-8"))["history"]
    longest: dict[str, float] = {}
    for entry in history:
        longest[entry["phase"]] = max(longest.get(entry["phase"], 0.0), entry["seconds"])
    return longest


def main() -> None:
    """Prints a line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cloth_sport")
    parser.add_argument("--only", default="", metavar="REGEX", help="regular expression on the models' names")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(%(default)s)")
    asked = parser.parse_args()
    for model in MODELS:
        if re.search(asked.only, model):
            found = seconds(model, asked.dataset, asked.threads)
            mark = "  <- two minutes or more" if max(found.values(), default=0.0) >= LIMIT else ""
            phases = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(f"{model:12} {phases}{mark}", flush=True)


if __name__ == "__main__":
    main()
