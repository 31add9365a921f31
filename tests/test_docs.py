"""The pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(page for where in ("*.md", "docs/**/*.md", "results/**/*.md") for page in ROOT.glob(where))


def test_every_next_item_model_has_a_page_that_is_up_to_date():
    script = ROOT / "docs" / "model_pages.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(<?([^)>#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_of_a_model_is_found_from_the_list():
    listed = set(
        re.findall(r"\(models/(\w+)\.md\)", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    )
    assert listed == {page.stem for page in (ROOT / "docs" / "models").glob("*.md")}


def navigation() -> list[str]:
    """The pages that mkdocs.yml names, in order."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text[text.index("\nnav:") :])["nav"]

    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    return pages(entries)


def test_the_site_shows_every_page_once():
    named = navigation()
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += (ROOT / "docs").rglob("*.md")
    assert sorted(named) == sorted(page.relative_to(ROOT).as_posix() for page in pages)


def test_the_api_shows_modules_that_exist():
    for page in (ROOT / "docs" / "api").glob("*.md"):
        modules = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert modules
        for module in modules:
            assert importlib.util.find_spec(module), f"{page.name}: {module}"


@pytest.mark.slow
def test_the_site_links_lead_where_those_of_the_repository_lead(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']?https?:""", text), page.name
        for target in re.findall(r'(?:href|src)="([^"#?:]+)[^":]*"', text):
            assert target.startswith("/") or (page.parent / unquote(target)).exists(), f"{page}: {target}"
    for source in ROOT.glob("results/**/*.md"):
        shown = (tmp_path / source.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        tables = re.findall(r"^\|-+", source.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(re.findall("<table", shown)) == len(tables), source  # those in folded parts as well


def test_the_walks_name_what_there_is():
    """What docs/architecture.md calls `module:function` is there."""
    names = re.findall(
        r"`([a-z_.0-9]+:[\w.]+)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    )
    assert len(names) > 20
    for name in names:
        assert pkgutil.resolve_name(f"recbole_cdr_ext.{name}"), name


def test_the_layers_of_the_page_are_those_that_are_checked():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = [
        re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    ]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    order = {room: height for height, layer in enumerate(layers) for room in re.findall(r"\w+", layer)}
    rooms = [room for row in shown for room in row]
    assert sorted(rooms) == sorted(order)
    assert [order[room] for room in rooms] == sorted(order[room] for room in rooms)
