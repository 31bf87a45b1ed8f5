"""What all drawings are made of: boxes, texts, cells and arrows, for light and dark pages.

A drawing is at most ``WIDTH`` units wide, so that its smallest text is still read on a phone, where a unit is a pixel.
The colours follow the reader's system, and the drawing has a background of its own, so it is read on any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 360
MIN_SIZE = 11  # of a text, in units
LETTER = 0.6  # mean width of a letter in a wide font, in parts of its size
KINDS = ("plain", "ids", "table", "dense", "result", "quiet")
STYLE = """
svg { --page: #ffffff; --ink: #1d2733; --soft: #5b6877; --line: #8592a1;
  --plain: #eef1f4; --ids: #dbe9fb; --table: #fbe8c6; --dense: #d9f0df; --result: #f5dbe8; --quiet: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { --page: #15191e; --ink: #e7ecf2; --soft: #a9b4c0; --line: #77848f;
    --plain: #2a3138; --ids: #1d3d63; --table: #5a4213; --dense: #1d4a2c; --result: #5a2743; --quiet: #15191e; }
}
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .strong { font-weight: 600; } .code { font-family: ui-monospace, Consolas, monospace; }
.box { stroke: var(--line); stroke-width: 1; } .way { stroke: var(--line); stroke-width: 1.4; fill: none; }
.head { fill: var(--line); }
"""


class Drawing:
    """An SVG picture that is put together part by part; coordinates are units from the upper left corner."""

    def __init__(self, height: int, title: str) -> None:
        """``title`` says what is seen, for readers who do not see it."""
        self.height = height
        self.title = title
        self.parts: list[str] = []

    def box(
        self,
        at: tuple[float, float],
        size: tuple[float, float],
        text: str = "",
        *,
        kind: str = "plain",
        bold: bool = False,
    ) -> None:
        """A box with its upper left corner ``at``, and a text in its middle; lines are separated by newlines.

        Raises ValueError for a text that does not fit.
        """
        if kind not in KINDS:
            raise ValueError(f"kind of a box must be one of {KINDS}: got {kind!r}; name one of them")
        (x, y), (width, height) = at, size
        self.parts.append(
            f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" '
            f'style="fill: var(--{kind})"/>'
        )
        lines = text.split("\n") if text else []
        for number, line in enumerate(lines):
            if len(line) * LETTER * 12 > width:
                raise ValueError(f"text of a box must fit its {width:g} units: got {line!r}; shorten it")
            middle = y + height / 2 + 4 + 14 * (number - (len(lines) - 1) / 2)
            self.text((x + width / 2, middle), line, anchor="middle", look="strong" if bold else "")

    def text(
        self, at: tuple[float, float], text: str, *, size: float = 12, anchor: str = "start", look: str = ""
    ) -> None:
        """A line of text whose baseline begins ``at``, or has its middle or end there.

        ``look`` is any of soft, strong and code. Raises ValueError for a text that is too small or leaves the drawing.
        """
        width = len(text) * LETTER * size
        left = at[0] - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        if size < MIN_SIZE or left < 0 or left + width > WIDTH + 4:
            raise ValueError(
                f"text must have at least {MIN_SIZE} units of height and lie within {WIDTH} units: got {text!r} of "
                f"{size} from {left:.0f} to {left + width:.0f}; shorten or move it"
            )
        self.parts.append(
            f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{size:g}" text-anchor="{anchor}" class="{look}">'
            f"{escape(text)}</text>"
        )

    def cells(
        self, at: tuple[float, float], texts: Sequence[str], *, width: float, height: float = 20, kind: str = "plain"
    ) -> None:
        """Equal boxes side by side, each with a text, which may be empty."""
        for number, text in enumerate(texts):
            self.box((at[0] + number * width, at[1]), (width, height), text, kind=kind)

    def column(
        self, at: tuple[float, float], texts: Sequence[str], *, width: float, height: float = 20, kind: str = "plain"
    ) -> None:
        """Equal boxes below each other, each with a text, which may be empty."""
        for number, text in enumerate(texts):
            self.box((at[0], at[1] + number * height), (width, height), text, kind=kind)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a head at the last one."""
        self.line(*points)
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        along = ((x1 - x0) / length, (y1 - y0) / length)
        base = (x1 - 7 * along[0], y1 - 7 * along[1])
        corners = [(x1, y1), (base[0] - 3.5 * along[1], base[1] + 3.5 * along[0])]
        corners.append((base[0] + 3.5 * along[1], base[1] - 3.5 * along[0]))
        self.parts.append(f'<polygon class="head" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"/>')

    def line(self, *points: tuple[float, float]) -> None:
        """A line through the points."""
        self.parts.append(f'<polyline class="way" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>')

    def svg(self, source: str) -> str:
        """The file; ``source`` says what drew it, and stands in a comment."""
        body = "\n".join(self.parts)
        return (
            f"<!-- {source} -->\n"
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH * 1.6:g}" '
            f'height="{self.height * 1.6:g}" role="img" aria-label="{escape(self.title, {chr(34): "&quot;"})}">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n"
            f'<rect width="{WIDTH}" height="{self.height}" rx="6" style="fill: var(--page)"/>\n{body}\n</svg>\n'
        )
