"""What stands in an HTML page, as a browser would read it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

EVIL = "</script><img src=x onerror=alert(1)><script>alert(1)</script>"
EMPTY = ("meta", "link", "img")


class Page(HTMLParser):
    """What stands in a page: tags with attributes, and text outside of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.title, self.open = "", "", []
        self.figures: dict[str, dict] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data
        if "title" in self.open:
            self.title += data
        if "script" in self.open and self.tags[-1][1].get("type") == "application/json":
            self.figures[self.tags[-1][1]["id"]] = json.loads(data)

    @property
    def scripts(self) -> int:
        """How many elements hold a script that runs."""
        return sum(tag == "script" and "type" not in attributes for tag, attributes in self.tags)

    @property
    def policy(self) -> str:
        """The content security policy."""
        (policy,) = [
            of["content"] for tag, of in self.tags if of.get("http-equiv") == "Content-Security-Policy"
        ]
        return policy


def check_harmless(page: Page, images: int = 0) -> None:
    """Checks that a page is whole, fetches nothing, and that nothing in it became markup."""
    assert not page.open  # every element was closed
    assert page.scripts == 2  # plotly's and the page's own
    assert page.policy.startswith("default-src 'none'; ") and "http" not in page.policy
    assert sum(tag == "img" for tag, _ in page.tags) == images
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    places = [attributes["data-figure"] for _, attributes in page.tags if "data-figure" in attributes]
    assert places == list(page.figures)
