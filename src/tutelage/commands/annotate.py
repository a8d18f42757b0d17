"""`tutelage data annotate`: words, parts of speech and lengths, the classic preprocessing step.  No torch here."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tutelage.core.files import write_jsonl
from tutelage.data.annotate import annotate, english_tagger, token_statistics
from tutelage.data.language import detect_language
from tutelage.data.records import Kept
from tutelage.data.reword import parts
from tutelage.data.snapshot import SPLITS, load_rows
from tutelage.recipes import find_workspace
from tutelage.terminal import Terminal


def annotated(records: Iterable[Kept], counts: Counter, skipped: Counter) -> Iterator[dict[str, Any]]:
    """Words and tags of each record; counts the tags by (language, tag), and the languages that have no tagger."""
    for number, record in enumerate(records, start=1):
        question, answers = parts(record)
        lang = detect_language("\n".join([*question, *answers]))
        if lang not in ("en", "zh", "und"):
            skipped[lang] += 1
            continue
        tagged = {
            "question": [annotate(text, lang) for text in question],
            "answers": [annotate(text, lang) for text in answers],
        }
        counts.update((lang, token.tag) for texts in tagged.values() for text in texts for token in text)
        yield {
            "record": number,
            "lang": lang,
            **{key: [[list(token) for token in text] for text in texts] for key, texts in tagged.items()},
        }


def annotate_data(args: Namespace, terminal: Terminal, *, tokenize: Callable[[str], list[int]] | None = None) -> int:
    """`tutelage data annotate`, with token counts where there is a tokenizer."""
    rows = load_rows(args.data, find_workspace(args.workspace), tell=terminal.note)
    records = [record for split in SPLITS for record in rows.splits[split]]
    statistics = token_statistics(records, tokenize)
    counts, skipped = Counter(), Counter()
    made = annotated(records, counts, skipped)
    if args.out:
        write_jsonl(args.out, made)
    else:
        for _ in made:
            pass
    tables = [name for name in ("chars", "words", "tokens", "answer_chars") if getattr(statistics, name)]
    terminal.head(f"{args.data}: {len(records)} {rows.kind}")
    terminal.table(
        ["size", "language", "records", "mean", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "most"],
        right=range(2, 11),
        rows=[
            (
                name.replace("_", " "),
                group,
                statistics.records[group],
                f"{each.mean:.1f}",
                each.p5,
                each.p25,
                each.p50,
                each.p75,
                each.p95,
                each.p99,
                each.most,
            )
            for name in tables
            for group, each in sorted(getattr(statistics, name).items(), key=lambda item: item[0] != "all")
        ],
    )
    for lang, rate in statistics.chars_per_token.items():
        terminal.say(f"  {rate:.2f} characters a token ({lang})")
    langs = sorted({lang for lang, _ in counts})
    terminal.say()
    terminal.table(
        ["part of speech", *langs],
        right=range(1, len(langs) + 1),
        rows=[(tag, *(counts[lang, tag] for lang in langs)) for tag in sorted({tag for _, tag in counts})],
    )
    if "en" in langs:
        terminal.note(
            f"  English is tagged by {english_tagger()}"
            + ("; the extra `pos` brings a better tagger" if english_tagger() == "rules" else "")
        )
    for lang, count in skipped.most_common():
        terminal.warn(f"{count} records in language {lang!r} have no tagger and were left out of the words")
    if args.out:
        terminal.say(f"Wrote {args.out}", style="green")
    terminal.result(
        {
            "data": args.data,
            "kind": rows.kind,
            "statistics": statistics.to_dict(),
            "skipped": dict(skipped),
            "path": args.out,
            "tags": {lang: {tag: count for (each, tag), count in counts.items() if each == lang} for lang in langs},
        }
    )
    return 0


def run(args: Namespace, terminal: Terminal) -> int:
    return annotate_data(args, terminal)
