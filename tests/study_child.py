"""Stands in for the process of a study's run: leaves what `recbole-cdr run` leaves, in a few milliseconds.

What is told to it goes into calls.txt. A file moods/MODEL says what happens to runs of a model: raise, refuse, die
(killed in the middle, settings written), or wait for ever.
"""

import csv
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

N = 60  # test users of a domain
RATING = ("EMCDR", "SCDR")


def main() -> int:
    """Makes the run."""
    words = dict(word[2:].partition("=")[::2] for word in sys.argv[2:] if word.startswith("--"))
    with Path("calls.txt").open("a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    if sys.argv[1] == "analyse":
        return analyse(sys.argv[2], Path(words["out"]))
    folder = Path(words["checkpoint_dir"]) / (words.get("run_id") or words["resume"])
    if "resume" in words:
        words = json.loads((folder / "config.yaml").read_text()) | words
    (folder / "config.yaml").write_text(json.dumps(words))
    mood = mood_of(words["model"])
    if mood == "refuse":
        print("recbole-cdr: the loss is not finite.", file=sys.stderr)
        return 2
    if mood == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while mood == "wait":
        time.sleep(0.05)
    rating = words.get("task") == "rating"
    rows = rated(words) if rating else ranked(words)
    result = {
        "model": words["model"], "task": words.get("task", "next_item"), "dataset": words["dataset"],
        "simulated": True, "seed": int(words["seed"]), "split": "cold_start" if rating else "user",
        "run_id": folder.name, "best_valid_score": 0.5, "test": table(rows, rating), "stopped": "early",
        "epochs_run": 3, "history": [{"epoch": 0}] * 50, "seconds": {"total": 1.0}, "notes": ["Made up."],
        "settings": {"split_seed": int(words.get("split_seed", 2024)), "seed": int(words["seed"])},
        "report": {"leak: made up": 1, "users": 3}, "versions": {"python": "3"},
        **({"source": "books", "target": "films", "beta": 0.5} if rating else {}),
    }  # fmt: skip
    if words.get("evaluate_test") == "False":
        result["valid"] = result.pop("test")
        result["settings"]["evaluate_test"] = False
    with (folder / "instances.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "model.pth").touch()
    (folder / "result.json").write_text(json.dumps(result))
    return 0


def mood_of(what: str) -> str:
    """What happens to it."""
    path = Path("moods") / what
    mood = path.read_text() if path.exists() else ""
    if mood == "raise":
        raise ValueError("bad luck")
    return mood


def analyse(kind: str, folder: Path) -> int:
    """Makes an analysis."""
    mood_of(kind)
    folder.mkdir(parents=True)
    (folder / f"{kind}.png").write_bytes(b"a figure")
    (folder / f"{kind}.csv").write_text("model,run,epsilon\nEMCDR,x,0.25\n")
    return 0


def ranked(words: dict) -> list:
    """A next-item table; neighbours rank better than others, and the denser the data the better."""
    draw = random.Random(repr((words["model"], words["seed"], words.get("density"))))
    gain = (12 if words["model"] == "ItemKNN" else 0) + 5 * float(words.get("density", 1))
    first = {"part": "valid", "user": "u0", "domain": "books", "target": "i0"}
    rows = [
        {
            **first,
            "all": True,
            "tailed": True,
            "cold": False,
            "candidates": 1000,
            "rank": 1,
            "fallback": False,
        }
    ]
    for i in range(2 * N):
        rank = max(1, draw.randint(1, 40) - round(gain))
        where = {
            "part": "test",
            "user": f"u{i % N}",
            "domain": "books" if i < N else "films",
            "target": f"i{i}",
        }
        flags = {"all": True, "tailed": i % 2 == 0, "cold": i % 3 == 0}
        rows.append({**where, **flags, "candidates": 1000, "rank": rank, "fallback": False})
    return rows


def rated(words: dict) -> list:
    """A rating table, of other users in each split."""
    draw, scale = (
        random.Random(repr((words["model"], words["seed"]))),
        0.4 if words["model"] == "SCDR" else 1.0,
    )
    split = words.get("split_seed", "2024")
    rows = []
    for i in range(2 * N):
        rating, error = float(1 + i % 5), scale * abs(draw.gauss(0, 1))
        where = {"part": "test", "user": f"u{i + int(split)}", "domain": "films", "item": f"i{i}"}
        rows.append({**where, "rating": rating, "prediction": rating + error, "absolute_error": error,
                     "known_item": True})  # fmt: skip
    return rows


def table(rows: list, rating: bool) -> dict:
    """The means, as a result has them."""
    found = {}
    for domain in ["films"] if rating else ["books", "films"]:
        own = [row for row in rows if row["domain"] == domain and row["part"] == "test"]
        if rating:
            errors = [row["absolute_error"] for row in own]
            mse = sum(e * e for e in errors) / len(errors)
            found[domain] = {
                "cold": {"n": len(own), "mae": sum(errors) / len(errors), "rmse": math.sqrt(mse)}
            }
            continue
        found[domain] = {}
        for group in ("all", "tailed", "cold"):
            ranks = [row["rank"] for row in own if row[group]]
            gains = [1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]
            hits = [rank <= 10 for rank in ranks]
            found[domain][group] = {
                "n": len(ranks),
                "ndcg@10": round(sum(gains) / len(ranks), 6),
                "hit@10": round(sum(hits) / len(ranks), 6),
            }
    return found


if __name__ == "__main__":
    sys.exit(main())
