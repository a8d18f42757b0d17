"""What goes out comes back: each format of `feedback export` through `feedback import`, up to what the format can hold.

The table of docs/feedback.md says what that is.  Then what is broken or hostile: named by file and line, and nothing else lost.
"""

import gzip
import json
from typing import NamedTuple

import pytest
from feedback_calls import call, item, write_lines

from tutelage.store.collected import collected
from tutelage.store.db import open_database
from tutelage.store.feedback import Settings, create_project, iter_items, load_project
from tutelage.store.imported import Imported, add_judgements, add_people, canonical_item
from tutelage.store.ledger import verify

MIXED = ['<script>alert(1)</script>', 'a "quoted"\nsecond line', "好的，当然。", "mark \u202e txt.exe", "null \x00 byte"]


@pytest.fixture
def db(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTELAGE_DATABASE", raising=False)
    (tmp_path / "tutelage.yaml").write_text("model: test\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = open_database(tmp_path / "people.db")
    yield found
    found.close()


def store(db, project: str, rubric: str, items, values, *, person: str = "ann") -> None:
    """One person's judgements, the item's first answer on the left."""
    create_project(db, project, rubric=rubric, settings=Settings(gold_share=0.0), actor="t")
    add_people(db, [person], actor="t")
    votes = [Imported(item=canonical_item(each, project=project)[0], person=person, order=tuple(range(len(each.responses))), values=said,
                      seconds=7.5) for each, said in zip(items, values, strict=True)]
    assert add_judgements(db, project, votes, actor="t", source="t").refused == []


def pairs(db, format: str) -> None:
    """Seven pairs over the whole scale, with a tie, two models, and texts that files trip over."""
    texts = [*(text.replace("\x00", "") if format == "csv" else text for text in MIXED), "plain", "other"]
    store(db, "p", "pairwise", [item(f"Why {at}? {text}", f"{text} yes", f"{text} no") for at, text in enumerate(texts)],
          [{"preference": level} for level in (-3, -2, -1, 0, 1, 2, 3)])


def verdicts(db, format: str) -> None:
    store(db, "p", "good-bad", [item(f"Why {at}?", f"{text} it is", kind="single") for at, text in enumerate(MIXED)],
          [{"verdict": [at % 2 == 0]} for at in range(len(MIXED))])


def ranking(db, format: str) -> None:
    store(db, "p", "ranking", [item(f"Why {at}?", f"a {text}", f"b {text}", f"c {text}", kind="set") for at, text in enumerate(MIXED)],
          [{"ranking": ranks} for ranks in ([1, 2, 3], [3, 1, 2], [2, 3, 1], [3, 2, 1], [1, 3, 2])])


class Kept(NamedTuple):
    """What a format holds of a judgement."""

    person: bool = False  # with time and the side of each answer
    strength: bool = True
    models: bool = False


def told(db, project: str, kept: Kept) -> set:
    """What was said, by texts: better, worse and by how much; or verdicts.  Sides, person and time where they are kept."""
    items = {each.id: each for each in iter_items(db, project)}
    out = set()
    for row in collected(db, project):
        asked = items[row.item].prompt.messages[-1].text
        shown = [items[row.item].responses[at] for at in row.order]
        who = (row.person, row.seconds, tuple(each.text for each in shown)) if kept.person else ()
        name = lambda each: (each.text, each.policy.removeprefix("model:") if kept.models else "")
        for said in row.judgements:
            by_id = dict(zip(said.responses, said.values, strict=True))
            answers = [each for each in shown if each.id in by_id]
            if said.kind == "label":
                out |= {(asked, name(each), by_id[each.id], who) for each in answers}
                continue
            for a in answers:
                for b in answers:
                    margin = (by_id[a.id] - by_id[b.id]) * (-1 if said.kind == "rank" else 1)
                    if margin > 0:
                        out.add((asked, name(a), name(b), margin if kept.strength else 1, who))
                    elif margin == 0 and a.text < b.text:
                        out.add((asked, name(a), name(b), 0, who))
    return out


ALL = Kept(person=True, models=True)
CASES = {
    "judgements": (pairs, "o.jsonl", ALL), "label-studio": (pairs, "o.json", ALL), "argilla": (pairs, "o.jsonl", ALL),
    "trl": (pairs, "o.jsonl", Kept()), "hh": (pairs, "o.jsonl", Kept()), "sharegpt": (pairs, "o.json", Kept()),
    "csv": (pairs, "o.csv", Kept()), "parquet": (pairs, "o.parquet", Kept()), "native": (pairs, "o.jsonl", Kept(models=True)),
    "kto": (verdicts, "o.jsonl", Kept()), "oasst": (ranking, "o.jsonl", Kept(strength=False, models=True)),
}


@pytest.mark.parametrize("format", CASES)
def test_what_a_format_holds_comes_back_the_same(db, tmp_path, format):
    fill, file, kept = CASES[format]
    fill(db, format)
    done = call("export", "--project", "p", "--format", format, "--out", tmp_path / file)
    assert done.code == 0, done.err
    back = call("import", tmp_path / file, "--project", "copy", "--json")
    assert back.code == 0, back.err
    assert back.json["files"][0]["quarantined"] == {}
    before = told(db, "p", kept)
    assert len(before) == {pairs: 7, verdicts: 5, ranking: 15}[fill] and told(db, "copy", kept) == before
    assert verify(db).ok and load_project(db, "copy").rubric == ("pairwise@1" if fill is ranking else load_project(db, "p").rubric)


def test_csv_says_that_it_has_no_place_for_a_null_byte(db, tmp_path):
    pairs(db, "any")
    done = call("export", "--project", "p", "--format", "csv", "--out", tmp_path / "o.csv")
    assert done.code == 2 and "record 5 cannot be written as csv: csv has no NUL characters" in done.err
    assert not (tmp_path / "o.csv").exists()


# -- broken and hostile ---------------------------------------------------------------------------------------------


GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
HOSTILE = [  # a line as it stands in the file, and the reason; none: it is data, and taken as it is
    (json.dumps({**GOOD, "chosen": "<script>fetch('//evil')</script><img src=x onerror=alert(1)>"}), None),
    (json.dumps({**GOOD, "prompt": "long", "chosen": "x" * 1_000_000}), None),
    (json.dumps({**GOOD, "prompt": "rtl \u202egnp.exe\u202c"}), None),
    (json.dumps({**GOOD, "prompt": "null \x00 byte"}), None),
    (json.dumps(GOOD).replace("Because.", "half \\ud83d pair"), "surrogate"),
    (json.dumps(GOOD)[:-9], "not JSON"),
    (json.dumps({**GOOD, "chosen": {"$ne": None}}), "missing field"),
    (json.dumps({**GOOD, "rejected": ["No."] * 3}), "wrong"),
    (json.dumps({**GOOD, "chosen": 7}), "wrong type"),
    (json.dumps({**GOOD, "rejected": ""}), "empty"),
    ("[1, 2, 3]", ""),
    ("null", ""),
    ('"text"', ""),
    ("NaN", ""),
    (json.dumps({**GOOD, "strength": "1e400"}), "strength is a finite number"),
    (json.dumps({**GOOD, "judge": "human:ann/chosen/inf"}), "wrong value"),
    ('{"prompt": ' + "[" * 5000, ""),
    ("\ufeff\u2028", ""),
]


def test_what_is_hostile_is_kept_as_text_or_named_by_line_and_nothing_saved_is_lost(db, tmp_path):
    assert call("import", write_lines(tmp_path / "first.jsonl", [{**GOOD, "prompt": "before"}]), "--project", "p").code == 0
    before, anchor = told(db, "p", ALL), verify(db)
    lines = [json.dumps({**GOOD, "prompt": "head"}), *(line for line, _ in HOSTILE), json.dumps({**GOOD, "prompt": "tail"})]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = call("import", tmp_path / "bad.jsonl", "--project", "p", "--json")
    assert done.code == 0, done.err
    [facts] = done.json["files"]
    taken = [line for line, reason in HOSTILE if reason is None]
    assert facts["new"] == len(taken) + 2
    rows = [json.loads(line) for line in open(facts["quarantine"], encoding="utf-8")]
    wanted = {number: reason for number, (_, reason) in enumerate(HOSTILE, start=2) if reason is not None}
    assert {row["line"]: row["file"] for row in rows} == dict.fromkeys(wanted, "bad.jsonl")
    for row in rows:
        assert row["reason"] and wanted[row["line"]] in row["reason"], row
        assert len(row["raw"].encode()) <= 2048
    after = told(db, "p", ALL)
    assert before <= after and len(after) == 1 + len(taken) + 2
    assert {asked for asked, *_ in after} >= {"head", "tail", "rtl \u202egnp.exe\u202c", "null \x00 byte"}
    assert any(len(better[0]) == 1_000_000 for _, better, *_ in after)
    now = verify(db, anchor=(anchor.seq, anchor.hash))
    assert now.ok and now.rows > anchor.rows


@pytest.mark.parametrize("format", ["judgements", "label-studio", "argilla"])
def test_a_hostile_record_of_a_tool_is_named_by_line_and_the_others_come_in(db, tmp_path, format):
    pairs(db, format)
    call("export", "--project", "p", "--format", format, "--out", tmp_path / "o.jsonl")
    lines = (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    deep = json.loads(lines[0])
    strange = [json.dumps({key: [] for key in deep}), json.dumps({key: "\ud83d" for key in deep}), json.dumps({key: 1e308 for key in deep}),
               "{", json.dumps(None), lines[0].replace("yes", "\\ud83d yes"), lines[0][:-20]]
    (tmp_path / "bad.jsonl").write_text("\n".join([lines[1], *strange, *lines[2:]]) + "\n", encoding="utf-8")
    done = call("import", tmp_path / "bad.jsonl", "--project", "copy", "--format", format, "--json")
    assert done.code == 0, done.err
    [facts] = done.json["files"]
    rows = [json.loads(line) for line in open(facts["quarantine"], encoding="utf-8")]
    assert [row["line"] for row in rows] == list(range(2, 2 + len(strange))) and all(row["reason"] for row in rows)
    assert facts["new"] == len(lines) - 1 and told(db, "copy", ALL) < told(db, "p", ALL) and verify(db).ok


def test_a_file_of_nothing_but_rubbish_changes_no_judgement(db, tmp_path):
    pairs(db, "any")
    before = told(db, "p", ALL)
    rubbish = {"a.jsonl": b"\x00\xff\xfe rubbish", "b.json": b"[{", "c.csv": b"\x00", "d.parquet": b"PAR1", "e.jsonl": b""}
    for name, content in rubbish.items():
        (tmp_path / name).write_bytes(content)
        done = call("import", tmp_path / name, "--project", "p")
        assert done.code == 2 and done.err.startswith("error: ") and name in done.err, (name, done.err)
    assert told(db, "p", ALL) == before and verify(db).ok


# -- public records -------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(("name", "format", "file", "least"), [
    ("hh_harmless", "hh", "o.jsonl", 290), ("oasst_ranked_trees", "oasst", "o.jsonl", 290), ("kto_en", "kto", "o.jsonl", 200),
    ("dpo_zh", "sharegpt", "o.json", 190), ("dpo_en", "trl", "o.jsonl", 190), ("dpo_zh", "csv", "o.csv", 190),
    ("dpo_en", "parquet", "o.parquet", 190), ("pandalm_3annotators", "label-studio", "o.json", 290),
    ("pandalm_3annotators", "argilla", "o.jsonl", 290)])
def test_public_records_come_back_the_same(shared_data, db, tmp_path, name, format, file, least):
    with gzip.open(shared_data / "preference" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as records:
        lines = [line for _, line in zip(range(300), records, strict=False)]
    (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    kept = {**CASES, "oasst": (None, None, Kept(strength=False, models=True))}[format][2]
    assert call("import", tmp_path / f"{name}.jsonl", "--project", "p").code == 0
    done = call("export", "--project", "p", "--format", format, "--out", tmp_path / file)
    assert done.code == 0, done.err
    back = call("import", tmp_path / file, "--project", "copy", "--json")
    assert back.code == 0 and back.json["files"][0]["quarantined"] == {}, back.out
    before = told(db, "p", kept)
    assert len(before) >= least and told(db, "copy", kept) == before
