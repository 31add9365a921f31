"""Shows the repository's Markdown where it lies, so that a link leads where it leads there.

MkDocs takes pages from docs/ alone. Here every file of the site is known by its path in the repository: docs/, the
pages beside it, all pages of results, and whatever files these link to (figures, property files). MkDocs then resolves
links itself, and says which are dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
RESULTS = "Results"  # the section of the navigation whose pages are listed here
LINK = re.compile(r"\]\(<?([^)<>#\s]+)")
ROLE = re.compile(r":[a-z]+:`~?([\w.]+)`")
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the site's files under their paths in the repository, and lists the results in the navigation."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir).relative_to(root).as_posix()
    pages = [root / name for name in TOP] + list(result_pages(root))
    sources = [f"{docs}/{file.src_uri}" for file in files.documentation_pages()]
    sources += [page.relative_to(root).as_posix() for page in pages]
    sources += sorted(linked(root, sources) - set(sources))
    shown = [file for file in files if file.src_dir != config.docs_dir]  # the theme's
    shown += [File.generated(config, source, abs_src_path=str(root / source)) for source in sources]
    for entry in config.nav or []:
        if isinstance(entry, dict) and RESULTS in entry:
            entry[RESULTS] = [*entry[RESULTS], *results_section(root)]
    return Files(shown)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Returns a page whose folded parts are read as Markdown, as CommonMark does behind a blank line."""
    return re.sub(r"^<details>", "<details markdown>", markdown, flags=re.MULTILINE)


def result_pages(root: Path) -> Iterator[Path]:
    """All Markdown below the folders that hold results: what was written, then the tables of studies."""
    yield from sorted((root / "results").glob("*.md"))
    yield from sorted((root / "results").glob("*/**/*.md"))


def results_section(root: Path) -> list[dict[str, str]]:
    """The entries of the results in the navigation, each named by its first heading."""
    return [{title(page): page.relative_to(root).as_posix()} for page in result_pages(root)]


def title(page: Path) -> str:
    """The first heading of a page, else its path without the extension."""
    heading = HEADING.search(page.read_text(encoding="utf-8"))
    return heading[1] if heading else page.with_suffix("").as_posix()


def linked(root: Path, sources: list[str]) -> set[str]:
    """The files of the repository that the pages link to, by their paths in it."""
    targets = set()
    for source in sources:
        for target in LINK.findall((root / source).read_text(encoding="utf-8")):
            path = (root / PurePosixPath(source).parent / target).resolve()
            if path.is_file() and path.is_relative_to(root):
                targets.add(path.relative_to(root).as_posix())
    return targets


class PlainRoles(griffe.Extension):
    """Shows the references of docstrings (``:class:`Name```) as code, which Markdown has no roles for."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrites one object's docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
