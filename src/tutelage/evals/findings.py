"""What did not improve, and what to try next: sentences that follow from the numbers, by the rules written here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.evals.inputs import CURVES, ReportInput, Row, against_half, bracket, curve, headline, show
from tutelage.evals.words import metric_name, model_name, task_name, words
from tutelage.stats.intervals import Interval

# Thresholds, each a rule of thumb: beyond it, one sentence of advice.
GOOD_JUDGE = 0.70  # accuracy of a reward model below which pairs are the bottleneck
MISCALIBRATED = 0.10  # ECE
LENGTH_BOUND = 0.30  # |correlation| of score and length
FAR, STILL = 10.0, 0.05  # KL in nats from the reference: left its ground / did not move
COLLAPSED = 0.4  # entropy left, as a share of the beginning
OVERFIT = 1.02  # last held-out loss over the best
WIDE = 0.16  # width of a win rate's interval
RATE_LIMITS = {"truncated": 0.15, "repetition": 0.15}
SAFETY_LIMITS = {"harmful_answered": ("try_refusals", 0.10), "over_refused": ("try_look_alikes", 0.10)}


def row_name(row: Row, lang: str, base: str) -> str:
    """What a headline row is called."""
    if row.variant:
        return words(lang)(row.variant, **({"base": model_name(base, lang)} if row.variant == "win_row_base" else {}))
    if not row.task:
        return metric_name(row.metric, lang)
    metric, joint = metric_name(row.metric, lang), "：" if lang == "zh" else ": "
    return metric if row.task == "all" else f"{task_name(row.task, lang)}{joint}{metric}"


def _rate(interval: Interval, unit: str = "share") -> dict[str, str]:
    return {"rate": show(interval.estimate, unit), "interval": bracket(interval, unit)}


def not_improved(report: ReportInput, *, lang: str = "en") -> list[str]:
    """The caller's own lines, then win rates that do not exclude 50 %, and figures that got worse or did not clearly change."""
    t = words(lang)
    out = list(report.not_improved)
    for b, a in zip(report.models, report.models[1:], strict=False):
        win = report.win(a, b)
        if win is None:
            continue
        names = {"a": model_name(a, lang), "b": model_name(b, lang)}
        verdict = against_half(win.interval)
        if verdict == "worse":
            out.append(t("win_loss", **names, **_rate(win.interval), judge=win.judge))
        elif verdict == "unclear":
            out.append(t("no_win_gain", **names, **_rate(win.interval), judge=win.judge))
        elif win.length_matched and against_half(win.length_matched) != "better":
            out.append(t("matched_gone", **names, **_rate(win.length_matched)))
    base, last, unclear = model_name(report.models[0], lang), model_name(report.models[-1], lang), []
    for row in headline(report):
        before, after = row.cells[0], row.cells[-1]
        if row.variant or len(row.cells) < 2 or before is None or after is None or row.direction == "none":
            continue
        name = row_name(row, lang, report.models[0])
        facts = {"what": name, "before": show(before.value, row.unit), "after": show(after.value, row.unit),
                 "interval": bracket(after.interval, row.unit), "base": base, "model": last}
        if after.verdict == "worse":
            out.append(t("got_worse", **facts))
        elif after.verdict == "unclear" and (after.value - before.value) * (1 if row.direction == "up" else -1) < 0:
            out.append(t("slipped", **facts))
        elif after.verdict == "unclear":
            unclear.append(f"{name} ({facts['before']} → {facts['after']})")
    if unclear:
        out.append(t("no_clear_change", base=base, model=last, list=("；" if lang == "zh" else "; ").join(unclear)))
    measured = any(row.cells[-1] for row in headline(report)) and len(report.models) > 1
    return out or ([t("nothing_failed", base=base)] if measured else [t("not_measured")])


def next_steps(report: ReportInput, *, lang: str = "en") -> list[str]:
    """The caller's own lines, then advice where a number crosses a threshold above; the closing two hold always."""
    t = words(lang)
    out = list(report.next_steps)
    out += _of_reward_model(report, t)
    out += _of_curves(report, t)
    out += _of_answers(report, t)
    widest = max((w for w in report.win_rates if w.judge == report.judge),
                 key=lambda w: w.interval.high - w.interval.low, default=None)
    if widest and widest.interval.high - widest.interval.low > WIDE:
        width = 100 * (widest.interval.high - widest.interval.low)
        out.append(t("try_more_prompts", a=model_name(widest.a, lang), b=model_name(widest.b, lang), width=f"{width:.0f}",
                     n=4 * (widest.wins + widest.ties + widest.losses)))
    if report.notes:
        out.append(t("try_people"))
    return [*out, t("try_own_data")]


def _of_reward_model(report: ReportInput, t) -> list[str]:
    card, out = report.reward_model, []
    if card is None:
        return out
    near = card.rater_ceiling is not None and card.accuracy.high >= card.rater_ceiling.estimate
    if near and card.accuracy.estimate >= card.rater_ceiling.estimate - 0.03:
        out.append(t("try_near_ceiling", ceiling=show(card.rater_ceiling.estimate, "share")))
    elif card.accuracy.estimate < GOOD_JUDGE:
        out.append(t("try_more_pairs", **_rate(card.accuracy)))
    if card.ece is not None and card.ece > MISCALIBRATED:
        out.append(t("try_calibrate", ece=f"{card.ece:.2f}"))
    if card.length_correlation is not None and abs(card.length_correlation) > LENGTH_BOUND:
        out.append(t("try_length", r=f"{card.length_correlation:+.2f}"))
    return out


def _ends(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Means of the first and of the last fifth of a series (at least one point each)."""
    k = max(1, len(points) // 5)
    ys = [y for _, y in points]
    return math.fsum(ys[:k]) / k, math.fsum(ys[-k:]) / k


def _of_curves(report: ReportInput, t) -> list[str]:
    out = []
    for run, rows in report.curves.items():
        held_out = curve(rows, CURVES["loss"][1])
        if len(held_out) >= 3:
            step, best = min(held_out, key=lambda point: point[1])
            if held_out[-1][1] > OVERFIT * best:
                out.append(t("try_overfit", run=run, step=f"{step:g}"))
        out += _of_policy_run(report, rows, t)
    return out


def _of_policy_run(report: ReportInput, rows: Sequence[Mapping[str, Any]], t) -> list[str]:
    kl, out = curve(rows, CURVES["kl"][0]), []
    if kl:
        _, last = _ends(kl)
        if last > FAR:
            out.append(t("try_more_kl", kl=f"{last:.1f}"))
        elif last < STILL:
            out.append(t("try_less_kl", kl=f"{last:.3f}"))
    entropy = curve(rows, CURVES["entropy"][0])
    if kl and len(entropy) >= 5:
        first, last = _ends(entropy)
        if first > 0 and last < COLLAPSED * first:
            out.append(t("try_entropy", share=show(last / first, "share")))
    reward = curve(rows, CURVES["reward"][0])
    win = report.win(report.models[-1], report.models[-2]) if len(report.models) > 1 else None
    if kl and len(reward) >= 5 and win and against_half(win.interval) != "better":
        first, last = _ends(reward)
        if last > first:
            out.append(t("try_hacking"))
    return out


def _of_answers(report: ReportInput, t) -> list[str]:
    last, out = report.models[-1], []
    if last in report.safety:
        for name, (advice, limit) in SAFETY_LIMITS.items():
            rate = getattr(report.safety[last], name)
            if rate and rate.estimate > limit:
                out.append(t(advice, rate=show(rate.estimate, "share")))
    for score in report.task_scores[last] if last in report.task_scores else ():
        if score.metric in RATE_LIMITS and score.value > RATE_LIMITS[score.metric]:
            out.append(t(f"try_{score.metric}", rate=show(score.value, "share")))
    return out
