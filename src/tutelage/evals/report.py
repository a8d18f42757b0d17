"""The report: one HTML file that opens offline, and a table for the terminal.

Answers are hostile text: Jinja escapes everything, and a content-security policy in the page forbids every resource
that is not in the file, so that nothing is loaded and no script runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from rich.table import Table
from rich.text import Text

from tutelage.core.words import Prompt
from tutelage.evals import plots
from tutelage.evals.findings import next_steps, not_improved, row_name
from tutelage.evals.inputs import CURVES, Cell, ReportInput, RewardModelCard, Row, against_half, bracket, curve, headline, show
from tutelage.evals.tasks import UNIT_AND_DIRECTION
from tutelage.evals.winrate import WinRate
from tutelage.evals.words import METRICS, metric_name, model_name, task_name, words
from tutelage.judges.rules import language_of

__all__ = ["ReportInput", "RewardModelCard", "next_steps", "not_improved", "print_table", "render"]

ARROWS = {"up": "↑", "down": "↓", "none": "↕"}
SIGNS = {"better": "▲", "worse": "▼", "unclear": "●", "": ""}
STYLES = 5  # models told apart by colour and shape; a sixth starts again


def render(report: ReportInput, *, lang: str = "en") -> str:
    """The whole page.  lang: "en" or "zh"."""
    t = words(lang)
    template = Environment(
        loader=PackageLoader("tutelage.evals"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    ).get_template("report.html.j2")
    style = {model: f"m{k % STYLES}" for k, model in enumerate(report.models)}
    return template.render(
        r=report, t=t, lang=lang, style=style, sign=lambda m: Markup(plots.shape(style[m])),
        model=lambda name: model_name(name, lang), task_name=lambda task: task_name(task, lang), code=_code,
        metric_name=lambda metric: metric_name(metric, lang), metrics={k: v[lang] for k, v in METRICS.items()},
        headline=[(row, row_name(row, lang, report.models[0])) for row in headline(report)],
        sentences=_sentences(report, lang),
        not_improved=not_improved(report, lang=lang), next_steps=next_steps(report, lang=lang),
        win_groups=_win_groups(report), win_track=lambda win: _win_track(win, lang), task_track=_task_track,
        rate_axis=Markup(plots.axis([0, 25, 50, 75, 100], high=100, suffix="%")),
        task_cards=_task_cards(report, style, lang), safety_rows=_safety_rows(report, style, lang), curves=_curves(report, t),
        calibration=_calibration(report, t), sides=_sides(report), prompt_counts=_prompt_counts(report),
        all_scores=_all_scores(report), show=show, bracket=bracket, arrows=ARROWS, signs=SIGNS, language_of=language_of,
        duration=duration, units=UNIT_AND_DIRECTION)


def print_table(report: ReportInput, *, lang: str = "en") -> Table:
    """The headline table for a terminal: `rich.print(print_table(report))`."""
    t = words(lang)
    table = Table(title=report.title, title_justify="left", caption_justify="left",
                  caption=t("interval_note", base=model_name(report.models[0], lang)))
    table.add_column(t("figure"))
    for name in report.models:
        table.add_column(Text(model_name(name, lang)), justify="right")
    for row in headline(report):
        label = Text(f"{row_name(row, lang, report.models[0])} {ARROWS[row.direction]}")
        table.add_row(label, *(_terminal_cell(cell, row, t) for cell in row.cells))
    return table


def _terminal_cell(cell: Cell | None, row: Row, t: Callable[..., str]) -> Text:
    if cell is None:
        return Text(t("dash"))
    colour = {"better": "green", "worse": "red", "unclear": "", "": ""}[cell.verdict]
    return Text(f"{show(cell.value, row.unit)} {bracket(cell.interval, row.unit)} {SIGNS[cell.verdict]}".strip(), style=colour)


def _code(line: str) -> Markup:
    """A sentence, escaped, with `such words` as code."""
    parts = line.split("`")
    if len(parts) % 2 == 0:  # an odd backtick opens nothing
        return escape(line)
    return Markup("").join(Markup("<code>{}</code>").format(part) if k % 2 else escape(part) for k, part in enumerate(parts))


def duration(seconds: float) -> str:
    """
    >>> duration(7.25), duration(125), duration(4000)
    ('7.2 s', '2 min 5 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _sentences(report: ReportInput, lang: str) -> list[str]:
    """One sentence for each step from a model to the next, by the main judge."""
    t, out = words(lang), []
    for b, a in zip(report.models, report.models[1:], strict=False):
        if win := report.win(a, b):
            key = {"better": "sentence_clear_up", "worse": "sentence_clear_down", "unclear": "sentence_unclear"}
            out.append(t(key[against_half(win.interval)], a=model_name(a, lang), b=model_name(b, lang),
                         rate=show(win.rate, "share"), interval=bracket(win.interval, "share")))
    return out


def _win_groups(report: ReportInput) -> list[tuple[str, list[WinRate]]]:
    """Win rates by judge, the main judge first."""
    groups: dict[str, list[WinRate]] = {}
    for win in report.win_rates:
        groups.setdefault(win.judge, []).append(win)
    return list(groups.items())


def _win_track(win: WinRate, lang: str) -> Markup:
    title = words(lang)("versus", a=model_name(win.a, lang), b=model_name(win.b, lang))
    return Markup(_rate_track(title, win.interval, "win-" + against_half(win.interval), bar=True))


def _task_track(title: str, interval) -> Markup:
    return Markup(_rate_track(title, interval, "win-" + against_half(interval), bar=True))


def _rate_track(title: str, interval, style: str, *, bar: bool) -> str:
    mark = plots.Mark(value=interval.estimate, low=interval.low, high=interval.high, style=style,
                      title=f"{title}: {show(interval.estimate, 'share')} {bracket(interval, 'share')}")
    return plots.track([mark], high=1.0, half=0.5, bar=bar)


def _task_cards(report: ReportInput, style: Mapping[str, str], lang: str) -> list[dict[str, Any]]:
    """One card a metric: its tasks as rows, its models as marks, one scale."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model in report.models:
        for score in report.task_scores[model] if model in report.task_scores else ():
            found.setdefault(score.metric, {}).setdefault(score.task, {})[model] = score
    cards = []
    for metric, tasks in found.items():
        unit, direction = UNIT_AND_DIRECTION[metric]
        highest = max((s.interval.high if s.interval else s.value) for by_model in tasks.values() for s in by_model.values())
        scale = plots.ticks(0, min(100 * highest, 100) if unit == "share" else highest or 1, about=4)
        top = scale[-1] / 100 if unit == "share" else scale[-1]
        rows = [(task, Markup(plots.track([
            plots.Mark(value=s.value, low=s.interval.low if s.interval else None, high=s.interval.high if s.interval else None,
                       style=style[m], title=f"{model_name(m, lang)}: {show(s.value, unit)} {bracket(s.interval, unit)}")
            for m, s in by_model.items()], high=top))) for task, by_model in tasks.items()]
        cards.append({"metric": metric, "direction": direction, "unit": unit, "rows": rows,
                      "axis": Markup(plots.axis(scale, high=scale[-1], suffix="%" if unit == "share" else ""))})
    return cards


def _safety_rows(report: ReportInput, style: Mapping[str, str], lang: str) -> list[tuple[str, Markup, list[tuple[str, Any]]]]:
    out = []
    for name in ("harmful_answered", "over_refused"):
        rates = [(m, getattr(report.safety[m], name)) for m in report.models if m in report.safety]
        rates = [(m, rate) for m, rate in rates if rate is not None]
        if rates:
            marks = [plots.Mark(value=i.estimate, low=i.low, high=i.high, style=style[m],
                                title=f"{model_name(m, lang)}: {show(i.estimate, 'share')} {bracket(i, 'share')}")
                     for m, i in rates]
            out.append((name, Markup(plots.track(marks, high=1.0)), rates))
    return out


def _curves(report: ReportInput, t: Callable[..., str]) -> list[tuple[str, Markup]]:
    """(title, plot) for each run and each figure that its rows hold."""
    out = []
    for k, (run, rows) in enumerate(report.curves.items()):
        for name, (train, held_out, unit) in CURVES.items():
            title = f"{run}: {t('curve_' + name)}"
            lines = [plots.Line(name=t("series_train"), points=curve(rows, train), style=f"c{k % STYLES}"),
                     plots.Line(name=t("series_eval"), points=curve(rows, held_out), style="held", marks=True)]
            if plot := plots.line_plot(lines, x_label=t("step"), y_label=t("unit_" + unit), title=title):
                out.append((title, Markup(plot)))
    return out


def _calibration(report: ReportInput, t: Callable[..., str]) -> Markup | None:
    card = report.reward_model
    if card is None or not card.reliability:
        return None
    rows = [(row.probability, row.outcome.estimate, row.outcome.low, row.outcome.high, row.n) for row in card.reliability]
    low = 0.5 if min(row.low for row in card.reliability) >= 0.5 else 0.0
    return Markup(plots.reliability_plot(rows, x_label=t("rm_plot_x"), y_label=t("rm_plot_y"), title=t("rm_plot"), low=low))


def _sides(report: ReportInput) -> list[tuple[str, list[dict[str, Any]]]]:
    """Prompts with every model's answer, by task; picked by id, which is a digest, so that nobody picked them."""
    answers = {m: {r.prompt_id: r for r in report.responses[m]} for m in report.models if m in report.responses}
    beats = {(w.a, v.prompt_id): w.b for w in report.win_rates if w.judge == report.judge and _follows(report, w)
             for v in w.per_prompt if v.score == 1}
    tasks: dict[str, list[Prompt]] = {}
    for prompt in report.prompts:
        tasks.setdefault(prompt.tag("task") or "other", []).append(prompt)
    out = []
    for task, prompts in tasks.items():
        picked = sorted(prompts, key=lambda p: p.id)[:report.sides_per_task]
        cards = [{"prompt": p, "answers": [
            {"model": m, "response": by_id[p.id],
             "refused": m in report.safety and p.id in report.safety[m].refused,
             "beats": beats.get((m, p.id), "")}
            for m, by_id in answers.items() if p.id in by_id]} for p in picked]
        if cards and any(card["answers"] for card in cards):
            out.append((task, cards))
    return out


def _follows(report: ReportInput, win: WinRate) -> bool:
    """True where `win.b` is the model just before `win.a`."""
    models = list(report.models)
    return models.index(win.a) - models.index(win.b) == 1


def _prompt_counts(report: ReportInput) -> list[tuple[str, int]]:
    tasks = [prompt.tag("task") or "other" for prompt in report.prompts]
    return [(task, tasks.count(task)) for task in dict.fromkeys(tasks)]


def _all_scores(report: ReportInput) -> list[tuple[str, str, list[Any]]]:
    """(task, metric, score or None for each model) for the long table."""
    by_model = [{(s.task, s.metric): s for s in report.task_scores[m]} if m in report.task_scores else {}
                for m in report.models]
    keys = dict.fromkeys(key for scores in by_model for key in scores)
    return [(*key, [scores.get(key) for scores in by_model]) for key in keys]
