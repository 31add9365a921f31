"""HTML pages that need neither a network nor other files, from the templates in ``templates/``.

Whatever a template is handed is escaped: text from files can't become markup.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric import larger_is_better, spelt
from recbole_cdr_ext.files import replacing

# Nothing may be fetched, whatever a page holds.
POLICY = "default-src 'none'; script-src 'unsafe-inline'{}; style-src 'unsafe-inline'; img-src data: blob:"
# plotly compiles what draws these while the page is open.
COMPILED = {"parcoords", "scattergl", "splom"}


@dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
        name: its id in the page.
        label: what it is called where it can't be seen.
        figure: ``data`` and ``layout`` as plotly's JSON has them.
    """

    name: str
    label: str
    figure: Mapping[str, Any]


def render(template: str, title: str, drawings: Sequence[Drawing] = (), **content: object) -> str:
    """Returns a page.

    Args:
        template: the name of a file in ``templates/``.
        drawings: the figures, which the template places.
        content: what else the template shows.

    Raises:
        CDRError: there are figures, and plotly is not installed.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            drawings=drawings,
            policy=_policy(drawings),
            plotly=Markup(plotly_script()) if drawings else None,
            **content,
        )
    )


def write(path: Path, page: str) -> None:
    """Writes a page."""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def plotly_script() -> str:
    """Returns the source of plotly.js.

    Raises:
        CDRError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise CDRError(
            "A report's figures need plotly, which is not installed: pip install 'recbole_cdr_ext[plots]' (or pip "
            "install plotly)."
        ) from error
    return str(get_plotlyjs())


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["spelt"] = spelt
    environment.tests["larger_is_better"] = larger_is_better
    # Browsers read no NaN; the order of traces' keys is that of whoever drew them.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "sort_keys": False}
    return environment


def _policy(drawings: Sequence[Drawing]) -> str:
    """Returns the content security policy: nothing is fetched; figures of :data:`COMPILED` may compile."""
    kinds = {trace.get("type") for drawing in drawings for trace in drawing.figure["data"]}
    return POLICY.format(" 'unsafe-eval'" if kinds & COMPILED else "")
