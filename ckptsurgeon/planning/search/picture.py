"""Draws the scores of a study as a picture: a point for each trial, and a line for the best score so far."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .result import Trial

__all__ = ["scores_svg"]

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 32, 40
INK, FAINT, POINT, LINE, FAULT = "#333", "#ccc", "#7aa6a1", "#00695c", "#c62828"


def scores_svg(trials: Sequence[Trial], *, maximize: bool, title: str) -> str:
    """Return the picture as SVG; failed trials are crosses at the bottom, and the best trial has a ring around it."""
    scored = [(one.number, one.score) for one in trials if one.score is not None]
    failed = [one.number for one in trials if one.score is None]
    last = max((one.number for one in trials), default=1)
    scores = [score for _, score in scored] or [0.0]
    low, high = min(scores), max(scores)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)

    def x(number: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (number - 1) / max(last - 1, 1), 1)

    def y(score: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low), 1)

    best, line = None, list[str]()
    for number, score in scored:
        if best is None or (score > best[1] if maximize else score < best[1]):
            line += [f"{x(number)},{y(best[1])}"] if best is not None else []
            best = (number, score)
            line.append(f"{x(number)},{y(score)}")
    line += [f"{x(last)},{y(best[1])}"] if best is not None else []
    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20">{escape(title)}</text>',
        *(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at)}" y2="{y(at)}" stroke="{FAINT}"/>'
            f'<text x="{LEFT - 8}" y="{y(at) + 4}" text-anchor="end">{at:.4g}</text>'
            for at in (low, (low + high) / 2, high)
        ),
        f'<text x="{LEFT}" y="{HEIGHT - 12}">1</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">trial {last}</text>',
        f'<polyline points="{" ".join(line)}" fill="none" stroke="{LINE}" stroke-width="1.5"/>',
        *(f'<circle cx="{x(number)}" cy="{y(score)}" r="3" fill="{POINT}"/>' for number, score in scored),
        *(f'<text x="{x(number)}" y="{floor + 14}" text-anchor="middle" fill="{FAULT}">×</text>' for number in failed),
    ]
    if best is not None:
        parts.append(f'<circle cx="{x(best[0])}" cy="{y(best[1])}" r="6" fill="none" stroke="{LINE}"/>')
    return "\n".join([*parts, "</svg>", ""])
