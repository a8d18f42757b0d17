"""Plots as inline SVG: text stays text (the reader's fonts draw Chinese), colours are CSS variables (dark mode, print).

Two kinds: `line_plot` and `reliability_plot` have a fixed drawing size that fits a phone, and stand in a grid; `track`
is one row as wide as its place, drawn in per cent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series: points (x, y), drawn pale as they are and bold as a moving average."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str  # CSS class: c0, c1, ...
    marks: bool = False  # a few points with dots, no average


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One value with its interval on a track; numbers on the track's scale."""

    value: float
    low: float | None
    high: float | None
    style: str  # m0, m1, ...: colour and shape of a model; on bars any class that sets a colour
    title: str  # shown on hover and read aloud


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers from the one at or below `low` to the one at or above `high`.

    >>> ticks(0.13, 0.92)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / (about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def number(x: float) -> str:
    """A tick's label: no more digits than it needs."""
    if x == 0:
        return "0"
    if abs(x) >= 10_000 or abs(x) < 0.001:
        return f"{x:.2g}"
    return f"{x:.10f}".rstrip("0").rstrip(".")


def moving_average(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred, over about a tenth of the series."""
    half = len(points) // 20
    ys = [y for _, y in points]
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)  # symmetric, so that a slope is not bent at the ends
        window = ys[i - reach:i + reach + 1]
        out.append((x, sum(window) / len(window)))
    return out


def line_plot(lines: Sequence[Line], *, x_label: str, y_label: str, title: str) -> str:
    """Series over steps; not-finite points are left out.  `title` is the accessible name."""
    lines = [Line(name=l.name, style=l.style, marks=l.marks, points=[p for p in l.points if all(map(math.isfinite, p))])
             for l in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    x_ticks = [t for t in ticks(x_low, x_high) if x_low <= t <= x_high and t == int(t)] or [x_low]
    place = _Frame(x_low, x_high, y_ticks[0], y_ticks[-1])
    parts = [place.grid(x_ticks, y_ticks, x_label=x_label, y_label=y_label)]
    for line in lines:
        if line.marks or len(line.points) == 1:
            parts.append(f'<polyline class="line {line.style}" points="{place.points(line.points)}"/>')
            parts += [f'<circle class="dot {line.style}" cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="3.2">'
                      f"<title>{escape(line.name)}: {number(x)}, {y:.4g}</title></circle>" for x, y in line.points]
            continue
        parts.append(f'<polyline class="line pale {line.style}" points="{place.points(line.points)}"/>')
        parts.append(f'<polyline class="line {line.style}" points="{place.points(moving_average(line.points))}"/>')
    if len(lines) > 1:
        parts.append(_legend(lines))
    return _svg(parts, title)


def reliability_plot(rows: Sequence[tuple[float, float, float, float, int]], *, x_label: str, y_label: str, title: str,
                     low: float) -> str:
    """Promise and outcome; rows: (probability, outcome, interval low, interval high, n), scale `low` to 1."""
    place = _Frame(low, 1.0, 0.0, 1.0)
    x_ticks = [t for t in ticks(low, 1.0) if low <= t <= 1]
    most = max((n for *_, n in rows), default=1)
    parts = [place.grid(x_ticks, [0, 0.25, 0.5, 0.75, 1.0], x_label=x_label, y_label=y_label, share=True),
             f'<polyline class="half" points="{place.points([(low, low), (1, 1)])}"/>']
    for probability, outcome, bottom, top, n in rows:
        x = place.x(probability)
        whisker = place.points([(probability, bottom), (probability, top)])
        parts.append(f'<polyline class="whisker c0" points="{whisker}"/>')
        parts.append(f'<circle class="dot c0" cx="{x:.1f}" cy="{place.y(outcome):.1f}" r="{3 + 5 * math.sqrt(n / most):.1f}">'
                     f"<title>{probability:.2f} → {outcome:.2f} (n = {n})</title></circle>")
    return _svg(parts, title)


def track(marks: Sequence[Mark], *, high: float, half: float | None = None, bar: bool = False) -> str:
    """One row from 0 to `high`: a dot and whisker for each mark, or with `bar` a filled bar; `half`: dashed line."""
    per = lambda x: f"{100 * min(max(x / high, 0), 1):.3f}%"
    row = 18 if bar else 15
    parts = [f'<rect class="ground" width="100%" height="{row * len(marks) + 6}" rx="3"/>']
    for i, mark in enumerate(marks):
        y = 3 + row * (i + 0.5)
        parts.append(f'<g class="{mark.style}"><title>{escape(mark.title)}</title>')
        if bar:
            parts.append(f'<rect class="bar" y="{y - 7:g}" width="{per(mark.value)}" height="14" rx="2"/>')
        if mark.low is not None and mark.high is not None:
            left, right = per(mark.low), per(mark.high)
            parts.append(f'<line class="whisker" x1="{left}" x2="{right}" y1="{y:g}" y2="{y:g}"/>')
            parts += [f'<line class="whisker" x1="{x}" x2="{x}" y1="{y - 3.5:g}" y2="{y + 3.5:g}"/>' for x in (left, right)]
        sign = '<circle class="sign" r="4"/>' if bar else shape(mark.style)
        parts.append(f'<svg x="{per(mark.value)}" y="{y:g}" overflow="visible">{sign}</svg></g>')
    if half is not None:
        parts.append(f'<line class="half" x1="{per(half)}" x2="{per(half)}" y1="0" y2="100%"/>')
    label = escape("; ".join(mark.title for mark in marks), quote=True)
    height = row * len(marks) + 6
    return f'<svg class="track" role="img" aria-label="{label}" width="100%" height="{height}">{"".join(parts)}</svg>'


def axis(values: Sequence[float], *, high: float, suffix: str = "") -> str:
    """The scale under tracks."""
    last = len(values) - 1
    texts = [f'<text x="{100 * v / high:.3f}%" y="13" text-anchor="{"start" if i == 0 else "end" if i == last else "middle"}">'
             f"{number(v)}{escape(suffix)}</text>" for i, v in enumerate(values)]
    return f'<svg class="axis" width="100%" height="17" aria-hidden="true">{"".join(texts)}</svg>'


def shape(style: str) -> str:
    """The sign of a model, so that black and white print and colour-blind readers can tell them apart."""
    return {
        "m0": '<circle class="sign" r="4.6"/>',
        "m1": '<rect class="sign" x="-4.2" y="-4.2" width="8.4" height="8.4"/>',
        "m2": '<path class="sign" d="M0 -6L6 0L0 6L-6 0Z"/>',
        "m3": '<path class="sign" d="M0 -5.5L5.5 4.5L-5.5 4.5Z"/>',
        "m4": '<path class="sign" d="M0 5.5L5.5 -4.5L-5.5 -4.5Z"/>',
    }[style]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Data to drawing coordinates."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / ((self.x_high - self.x_low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.y_high - value) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def points(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def grid(self, x_ticks: Sequence[float], y_ticks: Sequence[float], *,
             x_label: str, y_label: str, share: bool = False) -> str:
        show = (lambda v: f"{number(round(100 * v, 6))}%") if share else number
        parts = [f'<text class="label" x="4" y="13">{escape(y_label)}</text>',
                 f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>']
        for v in y_ticks:
            y = self.y(v)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                         f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{show(v)}</text>')
        for v in x_ticks:
            parts.append(f'<text x="{self.x(v):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{show(v)}</text>')
        return "".join(parts)


def _legend(lines: Sequence[Line]) -> str:
    parts, x = [], WIDTH - RIGHT
    for line in reversed(lines):
        width = sum(13.5 if ord(c) > 0x2E80 else 7.2 for c in line.name)
        parts.append(f'<text class="label" x="{x:.0f}" y="13" text-anchor="end">{escape(line.name)}</text>'
                     f'<line class="line {line.style}" x1="{x - width - 20:.0f}" x2="{x - width - 5:.0f}" y1="9" y2="9"/>')
        x -= width + 32
    return "".join(parts)


def _svg(parts: Sequence[str], title: str) -> str:
    return (f'<svg class="plot" role="img" aria-label="{escape(title, quote=True)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
            f"{''.join(parts)}</svg>")
