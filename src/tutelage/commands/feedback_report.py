"""`tutelage feedback report`: the figures as a page (HTML or Markdown) and in the terminal, in English or Chinese.

One list of sections is made and shown in three ways.  Names of people and models come from outside: HTML escapes them.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from markupsafe import escape

from tutelage.commands.feedback_data import opened
from tutelage.commands.feedback_words import WORDS
from tutelage.core.errors import UserError
from tutelage.core.files import write_atomic
from tutelage.recipes import find_workspace
from tutelage.stats.agreement import Agreement
from tutelage.stats.intervals import Interval
from tutelage.store.figures import Figures, figures
from tutelage.terminal import Terminal

MOST_SHOWN = 40  # rows of a table in the terminal


class Section(NamedTuple):
    title: str
    lines: list[str]
    columns: list[str]
    rows: list[list[str]]


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    out = Path(args.out) if args.out else workspace / "reports" / f"feedback-{args.project}{'' if args.lang == 'en' else '.zh'}.html"
    if out.suffix.lower() not in (".html", ".md"):
        raise UserError(f"--out {out}: a report is written to .html or .md")
    with opened(args.database, workspace) as db:
        found = figures(db, args.project, seed=args.seed)
    made = sections(found, lang=args.lang)
    title = WORDS["title"][args.lang].format(project=found.project.title or found.project.name)
    write_atomic(out, html(title, made, lang=args.lang) if out.suffix.lower() == ".html" else markdown(title, made))
    show(title, made, terminal)
    terminal.say()
    terminal.say(f"Wrote {out}", style="green")
    terminal.result({"path": str(out), "project": args.project, "lang": args.lang, **facts(found)})
    return 0


# -- figures as text ------------------------------------------------------------------------------------------------


def percent(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval.estimate:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def number(interval: Interval) -> str:
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _agreed(found: Agreement, *, as_percent: bool) -> str:
    if found.value is None:
        return "–"
    scale, digits = (100, 1) if as_percent else (1, 3)
    text = f"{scale * found.value:.{digits}f}{' %' if as_percent else ''}"
    return text + (f" [{scale * found.interval.low:.{digits}f}, {scale * found.interval.high:.{digits}f}]" if found.interval else "")


def sections(found: Figures, *, lang: str) -> list[Section]:
    """The report, in order."""
    def t(key: str, **values: object) -> str:
        return WORDS[key][lang].format(**values)

    return [each for each in (_state(found, t), _questions(found, t), _annotators(found, t), _bias(found, t), _wins(found, t),
                              _scores(found, t)) if each.lines or each.rows]


def _state(found: Figures, t) -> Section:
    done = found.progress
    people = sum(each.judged > 0 for each in found.people)  # others answered gold items only
    lines = [t("state", items=done.items, judged=done.judged, wanted=done.wanted, people=people, complete=done.complete)]
    if found.imported:
        lines.append(t("imported", count=found.imported))
    if done.withdrawn or done.skipped:
        lines.append(t("withdrawn", withdrawn=done.withdrawn, skipped=done.skipped))
    if done.gold_judged:
        lines.append(t("gold", count=done.gold_judged))
    if found.seconds:
        lines.append(t("seconds", median=median(found.seconds), count=len(found.seconds)))
    return Section(t("state_title"), lines, [], [])


def _questions(found: Figures, t) -> Section:
    rows, lines = [], [t("agreement_note")]
    for each in found.questions:
        rows.append([each.question, _agreed(each.raw, as_percent=True), _agreed(each.alpha, as_percent=False), each.scale,
                     str(each.alpha.n)])
        why = dict.fromkeys(filter(None, (each.raw.undefined, each.alpha.undefined, each.alpha.note)))
        lines += [f"{each.question}: {reason}" for reason in why]
    return Section(t("agreement_title"), lines if rows else [], [t("question"), t("raw"), t("alpha"), t("scale"), t("units")], rows)


def _annotators(found: Figures, t) -> Section:
    rows = [[each.name, str(each.judged), "–" if each.seconds is None else f"{each.seconds:.0f}",
             "–" if each.agreement is None else f"{100 * each.agreement:.0f} % ({each.shared})", percent(each.gold),
             percent(each.left.rate if each.left else None), each.warning] for each in found.people]
    columns = [t("annotator"), t("judged"), t("median_seconds"), t("one_coin"), t("gold_accuracy"), t("left_rate"), t("warning")]
    return Section(t("annotators_title"), [t("annotators_note")] if rows else [], columns, rows)


def _bias(found: Figures, t) -> Section:
    lines = []
    if found.comparisons:
        lines.append(t("comparisons", count=found.comparisons, ties=found.ties, share=100 * found.ties / found.comparisons))
    if found.left:
        lines.append(t("left", rate=percent(found.left.rate), n=found.left.wins + found.left.losses))
    if found.sides_unknown:
        lines.append(t("sides_unknown", count=found.sides_unknown))
    if found.longer:
        lines.append(t("longer", rate=percent(found.longer.rate), n=found.longer.wins + found.longer.losses))
    if found.flips and found.flips.rate:
        lines.append(t("flips", rate=percent(found.flips.rate), n=found.flips.n))
    if found.cycles and found.cycles.rate:
        lines.append(t("cycles", rate=percent(found.cycles.rate), n=found.cycles.n))
    if found.imported and found.left:
        lines.append(t("sides_of_file"))
    # That "left" stood on the left every time is no news.
    lines += [note for note in (found.left.notes if found.left else ()) if "stood on" not in note]
    return Section(t("bias_title"), lines, [], [])


def _wins(found: Figures, t) -> Section:
    rows = [[a, b, percent(win.rate), str(win.wins), str(win.ties), str(win.losses), str(win.raters)] for a, b, win in found.wins]
    notes = list(dict.fromkeys(note for _, _, win in found.wins for note in win.notes))
    columns = ["A", "B", t("win_rate"), t("wins"), t("ties"), t("losses"), t("raters")]
    return Section(t("wins_title"), [t("wins_note"), *notes] if rows else [], columns, rows)


def _scores(found: Figures, t) -> Section:
    fit, styled = found.scores, found.styled
    lines = [*found.notes]
    if fit is None:
        return Section(t("scores_title"), lines, [], [])
    rows = [[name, number(score), "–".join(map(str, dict.fromkeys(fit.ranks[name]))),
             number(styled.scores[name]) if styled else "–"] for name, score in fit.scores.items()]
    lines.append(t("scores_note"))
    if fit.position:
        lines.append(t("position", nats=number(fit.position)))
    if styled:
        lines.append(t("length", nats=number(styled.style["length"])))
    frail = found.fragility
    if frail and frail.votes is not None:
        lines.append(t("fragile", leader=frail.first, rival=frail.rival, votes=frail.votes, share=100 * frail.share))
    elif frail:
        lines.append(t("firm", leader=frail.first, share=100 * frail.share))
    return Section(t("scores_title"), [*lines, *fit.notes], [t("model"), t("score"), t("rank"), t("score_length")], rows)


def facts(found: Figures) -> dict:
    """For --json: the same figures, as numbers."""
    def of(interval: Interval | None):
        return None if interval is None else {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}

    def agreed(each: Agreement):
        return {"value": each.value, "n": each.n, "undefined": each.undefined, "interval": of(each.interval), "note": each.note}

    return {
        "items": found.progress.items, "judged": found.progress.judged, "people": sum(each.judged > 0 for each in found.people),
        "comparisons": found.comparisons, "ties": found.ties,
        "agreement": {q.question: {"scale": q.scale, "raw": agreed(q.raw), "alpha": agreed(q.alpha)} for q in found.questions},
        "annotators": {p.name: {"judged": p.judged, "one_coin": p.agreement, "gold": of(p.gold),
                                "left": of(p.left.rate if p.left else None), "warning": p.warning} for p in found.people},
        "left": of(found.left.rate if found.left else None),
        "longer": of(found.longer.rate if found.longer else None),
        "cycles": of(found.cycles.rate if found.cycles else None), "flips": of(found.flips.rate if found.flips else None),
        "win_rates": [{"a": a, "b": b, "rate": of(w.rate), "wins": w.wins, "ties": w.ties, "losses": w.losses, "raters": w.raters,
                       "notes": list(w.notes)} for a, b, w in found.wins],
        "scores": {name: of(score) for name, score in found.scores.scores.items()} if found.scores else None,
        "position": of(found.scores.position if found.scores else None),
        "length": of(found.styled.style["length"] if found.styled else None)}


# -- three ways to show it ------------------------------------------------------------------------------------------


def show(title: str, made: Sequence[Section], terminal: Terminal) -> None:
    terminal.head(title)
    for section in made:
        terminal.say()
        terminal.head(section.title)
        for line in section.lines:
            terminal.say(line)
        if section.rows:
            keep = [at for at in range(len(section.columns)) if any(row[at] not in ("", "–") for row in section.rows)]
            terminal.table([section.columns[at] for at in keep],
                           [[row[at] for at in keep] for row in section.rows[:MOST_SHOWN]], right=range(1, len(keep)))
            if len(section.rows) > MOST_SHOWN:
                terminal.note(f"({len(section.rows) - MOST_SHOWN} more in the file)")


def markdown(title: str, made: Sequence[Section]) -> str:
    out = [f"# {_plain(title)}", ""]
    for section in made:
        out += [f"## {section.title}", ""]
        out += [f"- {_plain(line)}" for line in section.lines] + ([""] if section.lines else [])
        if section.rows:
            table = [section.columns, ["---"] * len(section.columns), *section.rows]
            out += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in table] + [""]
    return "\n".join(out)


def _plain(text: str) -> str:
    """One line of Markdown that is only text."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}") if mark in "\\`*<>|" else text
    return " ".join(text.split())


STYLE = """:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}th,td{padding:.3rem .7rem;border-bottom:1px solid #8886;
text-align:right;font-variant-numeric:tabular-nums}th:first-child,td:first-child,td:last-child,th:last-child{text-align:left}"""


def html(title: str, made: Sequence[Section], *, lang: str) -> str:
    """A page that loads nothing and runs nothing."""
    out = [f'<!doctype html><html lang="{lang}"><meta charset="utf-8">'
           '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">'
           f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style>'
           f"<body><h1>{escape(title)}</h1>"]
    for section in made:
        out.append(f"<section><h2>{escape(section.title)}</h2>")
        out += [f"<p>{escape(line)}</p>" for line in section.lines]
        if section.rows:
            head = "".join(f'<th scope="col">{escape(name)}</th>' for name in section.columns)
            rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in section.rows)
            out.append(f'<table tabindex="0"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>')
        out.append("</section>")
    return "\n".join([*out, "</body></html>", ""])
