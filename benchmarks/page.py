"""docs/benchmarks.md and its picture, from the newest kept result of each row."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from rows import ROWS, Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first

plt.rcParams["svg.hashsalt"] = "tutelage"  # the same picture from the same figures

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- figures: begin (written by `make bench`) -->", "<!-- figures: end -->"


def key(row: Row) -> tuple[str, str, str]:
    return row.work, row.ours, row.peer


def newest(kept: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The last record of each row."""
    return {name: records[-1] for name, records in history(kept).items()}


def history(kept: Path) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """All records of each row, oldest first."""
    out: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in map(json.loads, kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ()):
        out.setdefault((each["work"], each["setting"], each["against"]), []).append(each)
    return out


def reached(row: Row, record: dict[str, Any]) -> bool:
    return ((row.faster is None or record["faster"] >= row.faster) and (row.memory is None or record["memory"] <= row.memory))


def line(row: Row, record: dict[str, Any]) -> str:
    ours, peer = record["ours"], record["peer"]
    wanted = "" if row.faster is None else f", wanted {row.faster:g}x"
    memory = "" if row.memory is None else f" (wanted {row.memory:g}x)"
    verdict = "" if row.faster is None else ": reached" if reached(row, record) else ": MISSED"
    return (f"{row.work} {row.ours} against {row.peer}: {ours['median']:.3g} to {peer['median']:.3g} {record['unit']} = "
            f"{record['faster']:.2f}x{wanted}; memory {ours['peak_gb']:.2f} to {peer['peak_gb']:.2f} GB = {record['memory']:.2f}x"
            f"{memory}{verdict}")


def table(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    out = ["| work | against | ours, median (min-max) | peer, median (min-max) | ratio | wanted | GB, ours | GB, peer | ratio | wanted | |",
           "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in ROWS:
        record = found.get(key(row))
        if record is None:
            out.append(f"| {row.work} | {row.peer} | not measured | | | {wanted(row.faster, 'x')} | | | | {wanted(row.memory, 'x')} | |")
            continue
        ours, peer = record["ours"], record["peer"]
        verdict = "" if row.faster is None else "reached" if reached(row, record) else "**missed**"
        out.append(f"| {row.work} | {row.peer} | {spread(ours)} {record['unit']} | {spread(peer)} | {record['faster']:.2f} | "
                   f"{wanted(row.faster, 'x')} | {ours['peak_gb']:.2f} | {peer['peak_gb']:.2f} | {record['memory']:.2f} | "
                   f"{wanted(row.memory, 'x')} | {verdict} |")
    notes = [f"- {row.work} against {row.peer}: {found[key(row)]['same']}{'; ' + row.note if row.note else ''} "
             f"({found[key(row)]['ours']['steps']} steps counted here, {found[key(row)]['peer']['steps']} there; "
             f"{found[key(row)]['date'][:10]}, {found[key(row)]['commit']}, {found[key(row)]['machine']}, "
             f"{found[key(row)]['ours']['threads']} threads; "
             + ", ".join(f"{name} {version}" for name, version in found[key(row)]["peer"]["versions"].items()) + ")"
             for row in ROWS if key(row) in found]
    return "\n".join([*out, "", "The work, asserted to be the same on both sides:", "", *notes])


def wanted(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:g}{unit}"


def spread(side: dict[str, Any]) -> str:
    return f"{side['median']:.3g} ({side['min']:.3g}-{side['max']:.3g})"


def put(begin: str, end: str, text: str) -> None:
    """`text` in place of what stands between two marks of docs/benchmarks.md."""
    place = DOCS / "benchmarks.md"
    before, _, rest = place.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    place.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def write(found: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    """The part between the marks of docs/benchmarks.md, and the picture."""
    if not found:
        return
    put(BEGIN, END, f"{table(found)}\n\n![ratios to the peers](images/benchmarks.svg)")
    rows = [row for row in ROWS if key(row) in found][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2))
    for at, row in enumerate(rows):
        ratio = found[key(row)]["faster"]
        colour = "#888888" if row.faster is None else "#1b7837" if reached(row, found[key(row)]) else "#b2182b"
        axes.barh(at, ratio, color=colour, height=0.6)
        axes.text(ratio, at, f" {ratio:.2f}x", va="center", zorder=4,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85})
        if row.faster:
            axes.plot([row.faster, row.faster], [at - 0.4, at + 0.4], color="black", linewidth=2)
    axes.set_yticks(range(len(rows)), [f"{row.work}\n{row.peer}" for row in rows], fontsize=8)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times the peer's speed (black: what must be reached)")
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "benchmarks.svg", metadata={"Date": None})
