"""The pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.md")])


def test_every_next_item_model_has_a_page_that_is_up_to_date():
    script = ROOT / "benchmarks" / "model_pages.py"
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
