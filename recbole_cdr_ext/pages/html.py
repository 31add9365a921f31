"""A report as one HTML page that needs neither a network nor other files.

Whatever comes from files goes through :func:`tag` or :func:`_json`, which escape it.
"""

from __future__ import annotations

import html
import json

from recbole_cdr_ext.errors import CDRError

# Nothing may be fetched, whatever a page holds.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """Returns an element; content and attributes that are no :class:`Markup` are escaped.

    Args:
        attributes: ``data_value`` is data-value, ``class_`` is class; None and False are left out, True has no value.
    """
    given = [
        f" {key.strip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    inner = "".join(escaped(one) for one in content if one is not None)
    return Markup(f"<{name}{''.join(given)}>{inner}</{name}>")


def escaped(content: object) -> Markup:
    """Returns HTML that shows ``content``; the parts of a list one after another."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, list | tuple):
        return Markup("".join(escaped(one) for one in content))
    return Markup(html.escape(str(content)))


def plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise CDRError(
            "A report's figures need plotly, which is not installed: pip install 'recbole_cdr_ext[plots]' (or pip "
            "install plotly)."
        ) from error
    return get_plotlyjs()


def json_element(value: object, name: str) -> Markup:
    """JSON for the page's script to read; nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')
