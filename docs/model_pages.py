"""Writes what can be looked up into the pages of the models: capabilities, settings, results.

    python docs/model_pages.py [--check]

Three sections of a next-item model's docs/models/NAME.md are written: "At a glance" (what the class says of itself),
"Settings" (its property file) and "Result" (its rows in results/); of a rating model the last only. All else on a page
is written by hand. `--check` writes nothing, and fails if a page is missing or its first two sections are out of date.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from recbole_cdr_ext.registry.models import ModelInfo, list_models
from recbole_cdr_ext.settings.property_files import property_file_rows
from recbole_cdr_ext.settings.reading import model_property_file
from recbole_cdr_ext.studies.definition import shipped_studies

PAGES = ROOT / "docs" / "models"
GLANCE, SETTINGS, RESULT = "At a glance", "Settings", "Result"
PRINTED = ("ndcg@10", "hit@10")
RATING_STUDIES, RATING_SCENE = ("scdr_results", "scdr_ablation", "scdr_backbones"), "books → movies"
RATING_PRINTED = ("mae", "rmse")


def page_of(info: ModelInfo) -> Path:
    """Where a model's page is; RecBole's models without one of their own share a page."""
    page = PAGES / f"{info.name}.md"
    return page if page.exists() or info.origin == "recbole_cdr_ext" else PAGES / "recbole.md"


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
    for key in property_file_rows(path.stem).values():
        cells = (f"`{key.key}`", f"`{key.default or 'see the file'}`", key.types, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def results(info: ModelInfo) -> list[str]:
    """NDCG@10 / HR@10 in percent of each label of the model, by dataset, split, domain and group."""
    by_label: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for scene, study, row in next_item_rows():
        if f"--model={info.name} " in row["command"]:
            by_label[scene, row["label"]][study].append(row)
    by_scene: dict[tuple[str, str], dict[str, list[dict]]] = defaultdict(dict)
    for (scene, label), studies in by_label.items():
        study = max(studies, key=lambda name: len(studies[name]))  # of several studies the one of most seeds
        by_scene[scene, study][label] = studies[study]
    lines: list[str] = []
    for (scene, study), labels in sorted(by_scene.items()):
        first = next(iter(labels.values()))[0]["test"]
        columns = [(d, g) for d, groups in first.items() for g, cell in groups.items() if cell["n"]]
        lines += [
            "",
            f"{scene}, NDCG@10 / HR@10 in percent (seeds after the name; made by",
            f"`recbole-cdr study {study}`):",
            "",
        ]
        lines.append("| | " + " | ".join(f"{d} {g}" for d, g in columns) + " |")
        lines.append("|---|" + "---|" * len(columns))
        for label, rows in sorted(labels.items()):
            cells = [" / ".join(_mean(rows, column, metric) for metric in PRINTED) for column in columns]
            lines.append(f"| {label} ({len(rows)}) | " + " | ".join(cells) + " |")
    return lines[1:] or ["No row yet."]


def next_item_rows() -> Iterator[tuple[str, str, dict]]:
    """Every row of next-item results: its dataset and split, its study, and label, command and test table."""
    for study in sorted(shipped_studies()):
        for cell in study_cells(study):
            # Else of thinned data, or of the validation part.
            if cell["settings"]["task"] == "next_item" and cell["varied"] is None and "part" not in cell:
                result = cell["result"]
                row = {"label": cell["row"], "command": cell["command"], "test": result["test"]}
                yield f"{result['dataset']}, split={result['split']}", study, row


def study_cells(study: str) -> list[dict]:
    """The finished cells of a study; of lines with one key the last counts, and half a line is left out."""
    path, cells = ROOT / "results" / study / "cells.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:  # a process was killed while it wrote
            continue
        cells[cell["key"]] = cell
    return list(cells.values())


def _mean(rows: list[dict], column: tuple[str, str], metric: str) -> str:
    return _spread([100 * row["test"][column[0]][column[1]][metric] for row in rows], 1)


def _spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; a dash for no values."""
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def rating_results(selects: Callable[[dict], bool]) -> list[str]:
    """MAE / RMSE by β of the cells of one direction whose settings are selected, mean ± deviation over seeds."""
    commands: set[str] = set()
    by_label: dict[tuple[str, str], dict[float, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for study, cell in rating_cells():
        # What stands in several studies is shown from the first.
        if selects(cell["settings"]) and cell["command"] not in commands:
            commands.add(cell["command"])
            by_label[study, cell["row"]][cell["varied"][1]].append(_single(cell["result"]["test"]))
    return _rating_table(by_label)


def floor_results() -> list[str]:
    """The same of the floors, which stand beside every run."""
    by_label: dict[tuple[str, str], dict[float, list[dict]]] = defaultdict(lambda: defaultdict(list))
    places = set()
    for study, cell in rating_cells():
        beta, seed = cell["varied"][1], cell["seed"]
        if study == RATING_STUDIES[0] and (beta, seed) not in places:
            places.add((beta, seed))
            for name, table in cell["result"]["floors"].items():
                by_label[study, name][beta].append(_single(table))
    return _rating_table(by_label)


def rating_cells() -> Iterator[tuple[str, dict]]:
    """The cells of one direction, with the studies that they stand in."""
    for study in RATING_STUDIES:
        for cell in study_cells(study):
            if cell["scene"] == RATING_SCENE:
                yield study, cell


def _single(table: dict) -> dict:
    """The metrics in a table of one domain and one group."""
    (groups,) = table.values()
    (cell,) = groups.values()
    return cell


def _rating_table(by_label: dict[tuple[str, str], dict[float, list[dict]]]) -> list[str]:
    betas = sorted({beta for cells in by_label.values() for beta in cells})
    lines: list[str] = []
    for study in dict.fromkeys(study for study, _ in by_label):
        lines += [
            "",
            f"{RATING_SCENE}, MAE / RMSE of cold-start users by their share β (seeds after the name; made by",
            f"`recbole-cdr study {study}`, [all of it](../../results/{study}/tables.md)):",
            "",
            "| | " + " | ".join(f"β = {beta}" for beta in betas) + " |",
            "|---|" + "---|" * len(betas),
        ]
        for label, cells in ((label, cells) for (of, label), cells in by_label.items() if of == study):
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
    old = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if old:
        return (text[: old.start()] + new + "\n" + text[old.end() :].lstrip("\n")).rstrip("\n") + "\n"
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
        raise SystemExit("\n".join([*behind, "Write them with: python docs/model_pages.py"]))


def write(*, check: bool = False) -> list[str]:
    """Writes the pages; with ``check`` writes nothing, and returns what is out of date."""
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
