"""A view as HTML: a block of fixed width that can be read on light and on dark pages, without script."""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape as escape_html

from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style

from ..util.text import count, escape

__all__ = ["COLOURS", "Lines", "as_html", "as_text", "html_of_lines", "lines_of", "text_of_lines"]

WIDTH = 100
LINES = 400
"""Lines of a view; of one that has more, the first and the last are shown."""
TAIL = 12
COLOURS = {
    "green": "#148d3c", "yellow": "#a17204", "red": "#d84747", "cyan": "#0c8797",
    "blue": "#3d77dd", "magenta": "#b553b5",
}  # fmt: skip
"""Between light and dark, so that each has a contrast of about 4 to 1 on either."""
# A terminal shows the letters of a line in their order; right-to-left ones would move the columns.
BLOCK = (
    "white-space:pre;overflow-x:auto;line-height:1.3;margin:0;text-align:left;color:inherit;background:none;"
    "direction:ltr;unicode-bidi:bidi-override;font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace"
)
UNCUT = 1 << 30

Lines = list[list[Segment]]


def as_html(views: Iterable[RenderableType]) -> str:
    """Return views, one below the other, as one ``<pre>``."""
    return html_of_lines(lines_of(views))


def as_text(views: Iterable[RenderableType]) -> str:
    """Return the same lines without colours."""
    return text_of_lines(lines_of(views))


def html_of_lines(lines: Lines) -> str:
    """Return lines as one ``<pre>``."""
    spans = ["".join(_span(segment) for segment in Segment.simplify(line)) for line in lines]
    return f'<pre style="{BLOCK}">\n' + "\n".join(spans) + "</pre>"


def text_of_lines(lines: Lines) -> str:
    """Return lines without colours."""
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


def lines_of(views: Iterable[RenderableType]) -> Lines:
    """Return the lines of views, one below the other; of too many the first and the last."""
    # Nothing of where it runs: the notebook's own way of showing rich, or a terminal's colours and width.
    console = Console(
        file=io.StringIO(), width=WIDTH, force_jupyter=False, force_terminal=False, no_color=False, color_system=None,
        highlight=False, markup=False, emoji=False, legacy_windows=False, _environ={},
    )  # fmt: skip
    lines = [line for view in views for line in Segment.split_lines(console.render(view))]
    left_out = len(lines) - LINES
    if left_out <= 0:
        return lines
    said = Segment(f"  … {count(left_out + 1, 'more line')} …", Style(dim=True))
    return [*lines[: LINES - TAIL - 1], [said], *lines[-TAIL:]]


def _span(segment: Segment) -> str:
    """Return a piece of a line; whatever it holds, it is text."""
    text = escape_html(escape(segment.text, UNCUT), quote=True)
    style = _css(segment.style)
    return f'<span style="{style}">{text}</span>' if style and text else text


def _css(style: Style | None) -> str:
    if style is None:
        return ""
    colour = COLOURS.get(style.color.name) if style.color else None
    said = [
        ("color", colour),
        ("font-weight", "bold" if style.bold else None),
        ("opacity", ".7" if style.dim else None),
    ]
    return ";".join(f"{name}:{value}" for name, value in said if value)
