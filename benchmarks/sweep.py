"""What a trial costs beside another one: memory for its data, and time.

    python benchmarks/sweep.py memory --dataset=food_kitchen
    python benchmarks/sweep.py time --dataset=ml100k_genres --model=I2VAE --epochs=5

``memory``: how much memory of its own a process needs for data and split that it shares, and for those that it loads
itself, every array read once. ``time``: the same four trials one after another and two at a time, one thread each.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from recbole_cdr_ext.runs.experiment import load_data
from recbole_cdr_ext.tuning import ray_tune
from recbole_cdr_ext.tuning.sweep import DEFAULTS, prepare
from recbole_cdr_ext.tuning.tune import share, tune

SPACE = "learning_rate: {choice: [0.004, 0.003, 0.002, 0.001]}\n"


def own_memory() -> float:
    """MiB that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def read_all(value: Any, seen: set[int]) -> float:
    """Reads every array below a value; returns their sum, so that nothing is left out."""
    if id(value) in seen:
        return 0.0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return float(value.view(np.uint8).sum()) if value.dtype != object and value.size else 0.0
    if isinstance(value, dict):
        return sum(read_all(item, seen) for item in value.values())
    if is_dataclass(value):
        return sum(read_all(getattr(value, field.name), seen) for field in fields(value))
    return sum(read_all(item, seen) for item in vars(value).values()) if hasattr(value, "events") else 0.0


def memory(model: str, dataset: str, given: dict[str, Any]) -> None:
    """Prints what data and split take of a process's own memory."""
    with tempfile.TemporaryDirectory() as folder, ray_tune._connected({**DEFAULTS, "jobs": 2}, use_gpu=False):
        space = Path(folder, "space.yaml")
        space.write_text(SPACE, encoding="utf-8")
        options = {**DEFAULTS, "space": str(space), "search": "grid", "out": folder}
        sweep = prepare(model, dataset, options, None, given)
        reference = ray_tune.ray.put(share(sweep))

        def measure(references: list[Any]) -> tuple[float, float]:

            gc.collect()
            before = own_memory()
            shared = ray_tune.ray.get(references[0])
            read_all([shared.dataset, shared.split], set())
            gc.collect()
            between = own_memory()
            loaded = load_data(sweep.config)
            read_all(loaded, set())
            gc.collect()
            return between - before, own_memory() - between

        found = [ray_tune.ray.get(ray_tune.ray.remote(measure).remote([reference])) for _ in range(3)]
        print(
            f"{dataset}: MiB of a process's own, (shared, loaded): {[tuple(round(v, 1) for v in f) for f in found]}"
        )


def time(model: str, dataset: str, given: dict[str, Any]) -> None:
    """Prints how long four trials take one after another and two at a time."""
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder, "space.yaml")
        space.write_text(SPACE, encoding="utf-8")
        # The stages are trained before either.
        share(
            prepare(
                model,
                dataset,
                {**DEFAULTS, "space": str(space), "search": "grid", "out": folder},
                None,
                given,
            )
        )
        seconds = {}
        for jobs in (1, 2):
            started = perf_counter()
            out = str(Path(folder, f"jobs{jobs}"))
            tune(
                model,
                dataset,
                config_dict=given,
                space=str(space),
                search="grid",
                scheduler="none",
                jobs=jobs,
                out=out,
            )
            seconds[jobs] = perf_counter() - started
        print(
            f"{model} on {dataset}: {seconds[1]:.1f} s and {seconds[2]:.1f} s, ratio {seconds[2] / seconds[1]:.2f}"
        )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["memory", "time"])
    parser.add_argument("--model", default="I2VAE")
    parser.add_argument("--dataset", default="ml100k_genres")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--data_path", default="dataset_atomic")
    parser.add_argument("--cache_dir", default="cache")
    asked = vars(parser.parse_args())
    what, model, dataset = asked.pop("what"), asked.pop("model"), asked.pop("dataset")
    (memory if what == "memory" else time)(model, dataset, {**asked, "torch_threads": 1})


if __name__ == "__main__":
    main()
