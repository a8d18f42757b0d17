"""The page: every section in both languages, the numbers of the input, nothing loaded from outside, nothing hostile alive."""

import dataclasses
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.evals.inputs import bracket, headline, show
from tutelage.evals.plots import Line, line_plot, ticks
from tutelage.evals.report import ReportInput, print_table, render
from tutelage.evals.safety import SafetyScores
from tutelage.evals.tasks import TaskScore
from tutelage.evals.winrate import WinRate
from tutelage.evals.words import CATALOGUES, METRICS, MODELS, TASKS
from tutelage.stats.intervals import wilson

SECTIONS = ["glance", "wins", "not_improved", "next", "sides", "tasks", "safety", "training", "reward_model", "judged",
            "settings", "glossary"]
HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>{{ 7*7 }}\"'>"
HOSTILE += "<a href=javascript:alert(3)>"


class Page(HTMLParser):
    """Tags with their attributes, text, and the numbers of <data>."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.data, self.open = [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "data":
            self.data.append(float(dict(attrs)["value"]))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module", params=["en", "zh"])
def page(request, made_up_report):
    html = render(made_up_report, lang=request.param)
    return request.param, html, Page(html)


def test_every_section_is_there_with_its_heading(page):
    lang, _, parsed = page
    ids = [attrs["id"] for tag, attrs in parsed.tags if tag == "section"]
    assert sorted(ids) == sorted(SECTIONS)
    for key in SECTIONS:
        assert CATALOGUES[lang][key] in parsed.text


def test_nothing_is_loaded_from_anywhere(page):
    _, html, parsed = page
    for tag, attrs in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "base", "form"), tag
        assert "src" not in attrs and not any(name.startswith("on") for name in attrs)
        if "href" in attrs:
            assert attrs["href"].startswith("#")
    assert not re.search(r"url\(|@import|@font-face|https?:", html)
    policy = [attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")


def test_numbers_of_the_page_are_those_of_the_input(page, made_up_report):
    _, _, parsed = page
    wanted = [cell.value for row in headline(made_up_report) for cell in row.cells if cell]
    wanted += [score.value for scores in made_up_report.task_scores.values() for score in scores]
    wanted += [w.rate for w in made_up_report.win_rates] + list(made_up_report.timings.values())
    wanted += [made_up_report.reward_model.accuracy.estimate, made_up_report.reward_model.ece]
    assert len(wanted) > 60 and set(wanted) <= set(parsed.data)
    for row in headline(made_up_report):
        for cell in row.cells:
            if cell:
                assert f"{show(cell.value, row.unit)} {bracket(cell.interval, row.unit)}" in parsed.text
    for win in made_up_report.win_rates:
        assert str(win.wins) in parsed.text


def test_curves_bars_and_calibration_are_drawn(page, made_up_report):
    _, html, parsed = page
    plots = [attrs for tag, attrs in parsed.tags if tag == "svg" and "plot" in (attrs.get("class") or "")]
    assert len(plots) == 1 + 2 + 4 + 1  # SFT loss; reward loss, accuracy; PPO reward, KL, entropy, length; calibration
    bars = [attrs for tag, attrs in parsed.tags if tag == "rect" and attrs.get("class") == "bar"]
    main = made_up_report.win_rates[0]
    assert bars[0]["width"] == f"{100 * main.rate:.3f}%"
    assert f'class="half" x1="50.000%"' in html  # noqa: F541
    assert "NaN" not in html and "nan" not in {a.get("points", "") for _, a in parsed.tags}


def test_judge_simulated_and_cut_off_are_told(page, made_up_report):
    lang, html, parsed = page
    words = CATALOGUES[lang]
    assert words["held_out_yes"] in parsed.text and words["simulated"] in parsed.text
    assert "<code>simulated:*</code>" in html  # from backticks
    assert words["cut_off"] in parsed.text and words["refusal"] in parsed.text
    other = Page(render(dataclasses.replace(made_up_report, judge_held_out=False), lang=lang))
    assert words["held_out_no"] in other.text and words["held_out_yes"] not in other.text


def test_hostile_text_is_harmless_wherever_it_comes_from():
    prompt = Prompt(messages=(Message(role="user", text=HOSTILE),), references=(HOSTILE,), tags=(f"task:{HOSTILE}",))
    rate = wilson(6, 10)
    html = render(ReportInput(
        title=HOSTILE, models=("base", HOSTILE), prompts=[prompt],
        win_rates=[WinRate(a=HOSTILE, b="base", wins=6, ties=0, losses=4, interval=rate, judge=HOSTILE,
                           by_task={HOSTILE: rate})],
        task_scores={HOSTILE: [TaskScore(task=HOSTILE, metric="f1", value=0.6, interval=rate, n=10, direction="up")]},
        safety={HOSTILE: SafetyScores(harmful_answered=rate, over_refused=None, refused=frozenset([prompt.id]), judge=HOSTILE)},
        notes=[HOSTILE, f"`{HOSTILE}`"], settings={HOSTILE: HOSTILE},
        responses={m: [Response(prompt_id=prompt.id, text=HOSTILE, policy=m)] for m in ("base", HOSTILE)},
        curves={HOSTILE: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}, timings={HOSTILE: 1.0}, next_steps=[HOSTILE],
        not_improved=[HOSTILE], created=HOSTILE))
    parsed = Page(html)
    assert not any(tag in ("script", "img") for tag, _ in parsed.tags)
    assert not any(name.startswith("on") or str(value).startswith("javascript") for _, attrs in parsed.tags
                   for name, value in attrs.items())
    assert parsed.text.count(HOSTILE) >= 10  # shown as it is, "{{ 7*7 }}" not computed
    assert "49" not in parsed.text.replace("149", "")


def test_an_almost_empty_report_says_what_was_not_measured():
    parsed = Page(render(ReportInput(title="Empty", models=("base",))))
    assert parsed.text.count("not measured") >= 5 and "No training curves" in parsed.text


def test_strangers_and_unknown_languages_are_refused():
    with pytest.raises(UserError, match="figures for dpo, but models are base"):
        ReportInput(title="t", models=("base",), task_scores={"dpo": []})
    with pytest.raises(UserError, match="en, zh; got 'fr'"):
        render(ReportInput(title="t", models=("base",)), lang="fr")


def test_table_for_the_terminal_has_the_same_figures(made_up_report):
    for lang in ("en", "zh"):
        out = io.StringIO()
        Console(file=out, width=220).print(print_table(made_up_report, lang=lang))
        for row in headline(made_up_report):
            for cell in row.cells:
                assert cell is None or f"{show(cell.value, row.unit)} {bracket(cell.interval, row.unit)}" in out.getvalue()


def test_both_catalogues_have_the_same_keys_and_places():
    en, zh = CATALOGUES["en"], CATALOGUES["zh"]
    assert set(en) == set(zh)
    for key in en:
        assert set(re.findall(r"{(\w+)}", en[key])) == set(re.findall(r"{(\w+)}", zh[key])), key
        assert zh[key].strip() and en[key].strip()
    for table in (METRICS, TASKS, MODELS):
        assert all(set(entry) == {"en", "zh"} for entry in table.values())


def test_ticks_are_round_and_enclose():
    for low, high in ((0.13, 0.92), (-3.2, 17), (0, 0.004), (5, 5), (1e6, 3e6)):
        marks = ticks(low, high)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
    assert ticks(0, 100) == [0, 25, 50, 75, 100]


def test_a_plot_of_nothing_or_of_nan_is_no_plot():
    plot = lambda points: line_plot([Line(name="x", points=points, style="c0")], x_label="step", y_label="nats", title="t")
    assert plot([]) == "" and plot([(1, float("nan"))]) == ""
    assert "nan" not in plot([(1, 1.0), (2, float("nan")), (3, 2.0)]) and "<circle" in plot([(1, 1.0)])


def test_evals_stats_and_judges_load_no_torch():
    modules = ["evals.report", "evals.winrate", "judges.ensemble", "judges.metrics", "stats.bradley_terry"]
    code = "import sys\n" + "".join(f"import tutelage.{m}\n" for m in modules) + \
        "bad = {m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers')}\n" \
        "bad |= {m for m in sys.modules if m.startswith(('tutelage.training', 'tutelage.rollout'))}\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)
