"""A page parsed again, for tests of what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input"}  # the elements of the pages that have no end tag


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str, kind: str = "") -> list[Element]:
        """Elements below of a tag, and of a class when one is given."""
        return [each for each in self.walk() if each.tag == tag and (not kind or kind in each.classes)]

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def text(self) -> str:
        pieces = (child if isinstance(child, str) else child.text for child in self.children)
        return "".join(pieces).replace("\N{NO-BREAK SPACE}", " ")

    def values(self) -> list[float]:
        """The exact numbers below."""
        return [float(each.attributes["value"]) for each in self.all("data")]

    def styled(self, name: str) -> float:
        """A percentage of the style attribute."""
        (percent,) = re.findall(rf"(?:^|;){name}:([\d.e+-]+)%", self.attributes["style"])
        return float(percent)


class Tree(HTMLParser):
    """Elements of a document; every start tag must have its end tag."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(document)
        self.close()
        assert [each.tag for each in self.open] == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert len(element.attributes) == len(attrs)
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)
