"""Writes what can be looked up into the pages of the models: capabilities, settings, results.

    python benchmarks/model_pages.py [--check]

Three sections of a next-item model's docs/models/NAME.md are made: "At a glance" (what the class says of itself),
"Settings" (its property file) and "Result" (its rows in results/); of a rating model the last only.
All else on a page is written by hand. `--check` writes nothing, and fails if a page is missing or what its code says is
out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from recbole_cdr_ext.registry.models import ModelInfo, list_models
from recbole_cdr_ext.settings.paths import model_property_file
from recbole_cdr_ext.settings.reading import documented_keys
from recbole_cdr_ext.studies.definition import shipped_studies

PAGES = ROOT / "docs" / "models"
GLANCE, SETTINGS, RESULT = "At a glance", "Settings", "Result"
PRINTED = ("ndcg@10", "hit@10")
RATING_STUDIES, RATING_SCENE = ("scdr_results", "scdr_ablation", "scdr_backbones"), "books → movies"
RATING_PRINTED = ("mae", "rmse")


def page_of(info: ModelInfo) -> Path:
    """Where a model's page is; RecBole's models without one of their own share a page."""
    own = PAGES / f"{info.name}.md"
    return own if own.exists() or info.origin == "recbole_cdr_ext" else PAGES / "recbole.md"


def glance(info: ModelInfo) -> list[str]:
    """What the class says of itself."""
    yes = {True: "yes", False: "no"}
    return [
        "| domains | serves cold-start users | needs overlapping users | published in |",
        "|---|---|---|---|",
        f"| {info.domains} | {yes[info.cold_start]} | {yes[info.needs_overlap]} | {info.paper} |",
    ]


def settings(info: ModelInfo) -> list[str]:
    """Each key of the property file, with its default and meaning."""
    path = model_property_file(ROOT / "properties" / "model", info.name, info.task)
    if path is None:
        return ["None of its own; those of all runs are in `properties/overall.yaml`."]
    lines = ["| key | default | type | meaning |", "|---|---|---|---|"]
    for key in documented_keys(path).values():
        cells = (f"`{key.key}`", f"`{key.default or 'see the file'}`", key.types, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def results(info: ModelInfo) -> list[str]:
    """NDCG@10 / HR@10 in percent of each label of the model, by dataset, split, domain and group."""
    lines: list[str] = []
    found: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for scene, made_by, row in all_rows():
        if f"--model={info.name} " in row["command"]:
            found[scene, row["label"]][made_by].append(row)
    scenes: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(dict)
    for (scene, label), sources in found.items():
        made_by = max(
            sources, key=lambda name: len(sources[name])
        )  # of what stands in several, the most seeds
        scenes[scene, made_by][label] = sources[made_by]
    for (scene, made_by), labels in sorted(scenes.items()):
        first = next(iter(labels.values()))[0]["test"]
        columns = [(d, g) for d, groups in first.items() for g, cell in groups.items() if cell["n"]]
        lines += [
            "",
            f"{scene}, NDCG@10 / HR@10 in percent (seeds after the name; made by",
            f"`{made_by}`):",
            "",
        ]
        lines.append("| | " + " | ".join(f"{d} {g}" for d, g in columns) + " |")
        lines.append("|---|" + "---|" * len(columns))
        for label, rows in sorted(labels.items()):
            cells = [" / ".join(_mean(rows, column, metric) for metric in PRINTED) for column in columns]
            lines.append(f"| {label} ({len(rows)}) | " + " | ".join(cells) + " |")
    return lines[1:] or ["No row yet."]


def all_rows() -> Iterator[tuple[str, str, dict]]:
    """Every row of next-item results: its dataset and split, what made it, and label, command and test table."""
    for name in sorted(shipped_studies()):
        path = ROOT / "results" / name / "cells.jsonl"
        for line in read_lines(path):
            result = line["result"]
            # Else of thinned data, or of the validation part.
            if line["settings"]["task"] == "next_item" and line["varied"] is None and "part" not in line:
                scene = f"{result['dataset']}, split={result['split']}"
                row = {"label": line["row"], "command": line["command"], "test": result["test"]}
                yield scene, f"recbole-cdr study {path.parent.name}", row


def read_lines(path: Path) -> list[dict]:
    """What a study has kept of its runs; of several lines of one run the last."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
    return list({line["key"]: line for line in lines}.values())


def _mean(rows: list[dict], column: tuple[str, str], metric: str) -> str:
    return _spread([100 * row["test"][column[0]][column[1]][metric] for row in rows], 1)


def _spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; a dash for no values."""
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def rating_results(wanted: Callable[[dict], bool]) -> list[str]:
    """MAE / RMSE by β of the rows of one direction whose settings are wanted, mean ± standard deviation over seeds."""
    seen: set[str] = set()
    found: dict[tuple[str, str], dict[float, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for study, line in rating_lines():
        # What stands in several studies is shown from the first.
        if wanted(line["settings"]) and line["command"] not in seen:
            seen.add(line["command"])
            found[study, line["row"]][line["varied"][1]].append(_only_cell(line["result"]["test"]))
    return _rating_table(found)


def floor_results() -> list[str]:
    """The same of the floors, which stand beside every run."""
    found: dict[tuple[str, str], dict[float, list[dict]]] = defaultdict(lambda: defaultdict(list))
    seen = set()
    for study, line in rating_lines():
        place = line["varied"][1], line["seed"]
        if study == RATING_STUDIES[0] and place not in seen:
            seen.add(place)
            for name, table in line["result"]["floors"].items():
                found[study, name][place[0]].append(_only_cell(table))
    return _rating_table(found)


def rating_lines() -> Iterator[tuple[str, dict]]:
    """The runs of one direction, with the studies that they stand in."""
    for study in RATING_STUDIES:
        path = ROOT / "results" / study / "cells.jsonl"
        for line in read_lines(path):
            if line["scene"] == RATING_SCENE:
                yield study, line


def _only_cell(table: dict) -> dict:
    """What a table of one domain and one group holds."""
    (groups,) = table.values()
    (cell,) = groups.values()
    return cell


def _rating_table(found: dict[tuple[str, str], dict[float, list[dict]]]) -> list[str]:
    betas = sorted({beta for cells in found.values() for beta in cells})
    lines: list[str] = []
    for study in dict.fromkeys(study for study, _ in found):
        lines += [
            "",
            f"{RATING_SCENE}, MAE / RMSE of cold-start users by their share β (seeds after the name; made by",
            f"`recbole-cdr study {study}`, [all of it](../../results/{study}/tables.md)):",
            "",
            "| | " + " | ".join(f"β = {beta}" for beta in betas) + " |",
            "|---|" + "---|" * len(betas),
        ]
        for label, cells in ((label, cells) for (of, label), cells in found.items() if of == study):
            shown = [
                " / ".join(_spread([cell[m] for cell in cells[beta]], 3) for m in RATING_PRINTED)
                for beta in betas
            ]
            seeds = max(len(of_beta) for of_beta in cells.values())
            lines.append(f"| {label} ({seeds}) | " + " | ".join(shown) + " |")
    return lines[1:] or ["No row yet."]


def with_section(text: str, heading: str, body: list[str], *, before: str = "") -> str:
    """Returns a page with the section's text replaced, or added: before a section that begins so, else at the end."""
    new = f"## {heading}\n\n" + "\n".join(body) + "\n"
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found:
        return (text[: found.start()] + new + "\n" + text[found.end() :].lstrip("\n")).rstrip("\n") + "\n"
    place = text.find(f"\n{before}") if before else -1
    if place < 0:
        return text.rstrip("\n") + "\n\n" + new
    return text[:place].rstrip("\n") + "\n\n" + new + text[place:]


SECTIONS: dict[str, Callable[[ModelInfo], list[str]]] = {GLANCE: glance, SETTINGS: settings, RESULT: results}


def main() -> None:
    """Writes the pages, or checks them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page is behind the code"
    )
    options = parser.parse_args()
    behind = write(check=options.check)
    if behind:
        raise SystemExit("\n".join([*behind, "Write them with: python benchmarks/model_pages.py"]))


def write(*, check: bool = False) -> list[str]:
    """Writes the pages, or with ``check`` returns what is wrong with them."""
    behind, infos = [], list_models()
    shared = {info.name for info in infos if info.task == "rating"}
    for info in infos:
        if info.task != "next_item" or info.origin not in ("recbole", "recbole_cdr_ext"):
            continue
        path = page_of(info)
        if not path.exists():
            behind.append(f"{path.relative_to(ROOT)} is missing.")
            continue
        if path.stem != info.name:
            continue
        text = old = path.read_text(encoding="utf-8")
        for heading, section in SECTIONS.items():
            # Rows come while tables are made: no test should fail for that.
            if check and heading == RESULT:
                continue
            if info.name in shared:  # a page of two models, which ends in the results of ratings
                text = with_section(
                    text, f"Next items: {heading.lower()}", section(info), before=f"## {RESULT}\n"
                )
            else:
                text = with_section(text, heading, section(info), before="## " if heading == GLANCE else "")
        if text != old and check:
            behind.append(f"{path.relative_to(ROOT)} is not what the code says.")
        elif text != old:
            path.write_text(text, encoding="utf-8")
    if not check:
        for path, lines in rating_pages():
            text = with_section(path.read_text(encoding="utf-8"), RESULT, lines)
            path.write_text(text, encoding="utf-8")
    return behind


def rating_pages() -> Iterator[tuple[Path, list[str]]]:
    """The pages of the rating models, of the backbones and of the floors, with their results."""
    for info in list_models():
        path = PAGES / f"{info.name}.md"
        if info.task == "rating" and path.exists():
            yield path, rating_results(lambda settings, name=info.name: settings["model"] == name)
    yield PAGES / "backbones.md", rating_results(lambda settings: settings.get("backbone", "MF") != "MF")
    yield PAGES / "floors.md", floor_results()


if __name__ == "__main__":
    main()
