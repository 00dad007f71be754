"""Pages of the report, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from stages.report import page
from tests import built

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


def edit(path: str, change: Callable[[Any], Any]) -> None:
    file = Path("build") / path
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def primary(**changes: Any) -> Callable[[Any], None]:
    """An edit of the primary metric in evaluation.json."""
    return lambda evaluation: evaluation["metrics"]["exact_match"].update(changes)


class Page(HTMLParser):
    """The text of a page, its links and ids; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.within_a_word = False
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.within_a_word = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(str(value))
            if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.links.append(str(value))
            assert not name.startswith("on"), f"{name} on {tag}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            if self.within_a_word:
                self.words[-1] += data
            else:
                self.words.append(data)
        self.within_a_word = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rendered(config: Any = None) -> Page:
    return Page(page.rendered(config or built.config(), "0123456789abcdef"))
