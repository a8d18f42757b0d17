"""What the label-efficiency experiment found: a closing table, the plot, and the part of the page between two marks."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from tutelage.core.errors import UserError
from tutelage.core.files import write_atomic
from tutelage.evals.plots import HEIGHT, WIDTH, number, ticks
from tutelage.pipeline.algorithms_report import STYLE
from tutelage.stats.intervals import mean_interval
from tutelage.stats.selection import ArmReport, arm_report

BEGIN, END = "<!-- figures: begin (written by `python -m tutelage.pipeline.label_efficiency --page`) -->", "<!-- figures: end -->"
ARMS = ("random", "active")


def area(accuracies: Sequence[float]) -> float:
    """Area under the curve by the trapezoidal rule over steps of equal size on the scale of log labels, divided by its width: a
    mean accuracy in which the first and the last number of labels count half.

    >>> area([0.5, 0.6, 0.7])
    0.6
    """
    inner = sum(accuracies) - (accuracies[0] + accuracies[-1]) / 2
    return round(inner / (len(accuracies) - 1), 12)


def area_report(found: Mapping[str, Any], name: str) -> ArmReport:
    """Active against random by the area under the curve, paired by seed."""
    counts = found["settings"]["counts"]
    active, random = ([area(run[arm]) for run in found["sets"][name]["runs"]] for arm in ("active", "random"))
    report = arm_report(active, random, labels=counts[-1])
    return report._replace(text=report.text.replace(f"{counts[-1]} labels", f"{counts[0]} to {counts[-1]} labels"))


def rows_of(found: Mapping[str, Any], name: str) -> list[list[str]]:
    """A row a number of labels: mean accuracy of each arm, and the paired difference."""
    runs, out = found["sets"][name]["runs"], []
    for at, count in enumerate(found["settings"]["counts"]):
        cells = [mean_interval([100 * run[arm][at] for run in runs]) for arm in ARMS]
        cells.append(mean_interval([100 * (run["active"][at] - run["random"][at]) for run in runs]))
        out.append([str(count), *(f"{'+' if at == 2 and c.estimate >= 0 else ''}{c.estimate:.1f} [{c.low:.1f}, {c.high:.1f}]"
                                  for at, c in enumerate(cells))])
    return out


def closing_table(found: Mapping[str, Any]) -> list[Table | str]:
    out: list[Table | str] = []
    for name, facts in found["sets"].items():
        shown = Table(title=f"{facts['title']}: held-out accuracy in per cent, mean of {len(facts['runs'])} seeds, 95 %")
        for column in ("labels", *ARMS, "difference"):
            shown.add_column(column, justify="right")
        for row in rows_of(found, name):
            shown.add_row(*row)
        out += [shown, f"area under the curve: {area_report(found, name).text}"]
    return out


def conclusion(found: Mapping[str, Any]) -> str:
    """The sentence on the default, as the figures have it."""
    reports = {facts["title"]: area_report(found, name) for name, facts in found["sets"].items()}
    won = [title for title, report in reports.items() if report.better]
    if len(won) == len(reports):
        return "Choosing beats random on every set. The default stays random all the same until a project's own labels show it there."
    least = f"only on {', '.join(won)}" if won else "on none of the sets"
    return f"**Choosing beats random {least}, so random is the default** of `tutelage feedback plan`."


def write_page(found: Mapping[str, Any], page: Path) -> None:
    """Table and plot into `page`, which keeps what people wrote around the two marks."""
    picture = page.parent / "images" / "label-efficiency.svg"
    write_atomic(picture, curves_svg(found))
    before = page.read_text(encoding="utf-8") if page.exists() else f"# Label efficiency\n\n{BEGIN}\n{END}\n"
    if BEGIN not in before or END not in before:
        raise UserError(f"{page} has not the two marks between which the figures stand; put them back:\n{BEGIN}\n{END}")
    head, tail = before.split(BEGIN, 1)[0], before.split(END, 1)[1]
    write_atomic(page, f"{head}{BEGIN}\n{generated(found, picture=f'images/{picture.name}')}\n{END}{tail}")


def generated(found: Mapping[str, Any], *, picture: str) -> str:
    settings, lines = found["settings"], []
    for name, facts in found["sets"].items():
        held = sorted(run["held_out"] for run in facts["runs"])
        lines += [f"**{facts['title']}** ({facts['license']}): {facts['pairs']} pairs on {facts['prompts']} prompts, {held[0]} to "
                  f"{held[-1]} pairs held out. Accuracy in per cent, mean of {len(facts['runs'])} seeds [95 %, Student's t over seeds].",
                  "",
                  "| labels | random | active | active - random, paired |", "|---|---|---|---|",
                  *(f"| {' | '.join(row)} |" for row in rows_of(found, name)), "",
                  f"Area under the curve over log labels: {area_report(found, name).text}.", ""]
    return "\n".join([*lines, conclusion(found), "", f"![held-out accuracy over labels]({picture})", "",
                      f"Model `{settings['model']}` ({settings['dtype']}), pairs of at most {settings['characters']} characters, "
                      f"head with prior precision {settings['prior']:g}."])


def curves_svg(found: Mapping[str, Any]) -> str:
    """A plot a data set, side by side."""
    plots = [f'<g transform="translate({column * (WIDTH + 20)} 0)">{_plot(facts, found["settings"]["counts"])}</g>'
             for column, facts in enumerate(found["sets"].values())]
    width = len(plots) * (WIDTH + 20)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">'
            f"<style>{STYLE}</style>{''.join(plots)}</svg>\n")


def _plot(facts: Mapping[str, Any], counts: Sequence[int]) -> str:
    """Mean accuracy with whiskers over labels, every doubling one step; the arms stand a little apart."""
    cells = {arm: [mean_interval([100 * run[arm][at] for run in facts["runs"]]) for at in range(len(counts))] for arm in ARMS}
    levels = ticks(min(c.low for row in cells.values() for c in row), max(c.high for row in cells.values() for c in row))
    span = math.log(counts[-1] / counts[0])
    x = lambda count: 55 + math.log(count / counts[0]) / span * (WIDTH - 80)
    y = lambda value: 40 + (levels[-1] - value) / (levels[-1] - levels[0]) * (HEIGHT - 80)
    parts = [f'<text class="label" x="4" y="14">{escape(facts["title"])}: held-out accuracy, %</text>',
             f'<text class="label" x="{WIDTH - 12}" y="{HEIGHT - 6}" text-anchor="end">labels</text>']
    parts += [f'<line class="grid" x1="45" x2="{WIDTH - 12}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
              f'<text x="40" y="{y(v) + 4:.1f}" text-anchor="end">{number(v)}</text>' for v in levels]
    parts += [f'<text x="{x(count):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{count}</text>' for count in counts]
    for at, (arm, row) in enumerate(cells.items()):
        places = [(x(count) + 4 * at - 2, c) for count, c in zip(counts, row, strict=True)]
        parts.append(f'<polyline class="line c{at}" points="{" ".join(f"{px:.1f},{y(c.estimate):.1f}" for px, c in places)}"/>')
        parts += [f'<line class="line c{at}" x1="{px:.1f}" x2="{px:.1f}" y1="{y(c.low):.1f}" y2="{y(c.high):.1f}"/>'
                  f'<circle class="dot c{at}" cx="{px:.1f}" cy="{y(c.estimate):.1f}" r="3.2"/>' for px, c in places]
        parts.append(f'<line class="line c{at}" x1="{60 + 90 * at}" x2="{75 + 90 * at}" y1="26" y2="26"/>'
                     f'<text class="label" x="{80 + 90 * at}" y="30">{arm}</text>')
    return "".join(parts)
