import gzip
import json
import sys
import types
import zipfile

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import UserError
from tutelage.data import raw
from tutelage.data.raw import Broken, Row
from tutelage.data.sources import read_rows

ROWS = [{"instruction": "Say hi.", "output": "Hi."}, {"instruction": "问好。", "output": "你好。\n第二行"}]


def values(path):
    return [item.value for item in read_rows(path)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_xlsx(path, rows):
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append(list(row.values()))
    book.save(path)


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".parquet"])
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path, ending, packed):
    path = tmp_path / f"rows{ending}"
    if ending == ".xlsx":
        write_xlsx(path, ROWS)
    elif ending == ".parquet":
        write_parquet(path, ROWS)
    elif ending == ".jsonl":
        path.write_bytes(lines(ROWS))
    elif ending == ".json":
        path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    else:
        mark = "\t" if ending == ".tsv" else ","
        body = "".join(f'{row["instruction"]}{mark}"{row["output"]}"\n' for row in ROWS)
        path.write_text(f"instruction{mark}output\n{body}", encoding="utf-8-sig")  # with a byte-order mark
    if packed:
        gz = tmp_path / (path.name + ".gz")
        gz.write_bytes(gzip.compress(path.read_bytes()))
        path = gz
    assert values(path) == ROWS


def test_what_a_file_is_its_content_says_not_its_ending(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS))  # an array
    (tmp_path / "b.json").write_bytes(lines(ROWS))  # lines
    (tmp_path / "c.csv").write_bytes(gzip.compress(b"instruction,output\nSay hi.,Hi.\n"))  # packed
    write_parquet(tmp_path / "d.txt", ROWS)
    assert values(tmp_path / "a.jsonl") == values(tmp_path / "b.json") == values(tmp_path / "d.txt") == ROWS
    assert values(tmp_path / "c.csv") == ROWS[:1]


def test_a_broken_line_is_yielded_with_its_number_and_reason_and_the_rest_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"a": 1}\n\n{"a": \n\xff\xfe{"a": 2}\n{"a": NaN}\n{"a": "\\ud800"}\n' + b"[" * 100_000 + b'\n{"a": 3}'
    )
    found = list(read_rows(path))
    assert [(item.line, type(item).__name__) for item in found] == [
        (1, "Row"),
        (3, "Broken"),
        (4, "Broken"),
        (5, "Broken"),
        (6, "Broken"),
        (7, "Broken"),
        (8, "Row"),
    ]
    reasons = [item.reason for item in found if isinstance(item, Broken)]
    for reason, start in zip(
        reasons,
        ["not JSON", "not UTF-8: byte 1 is 0xff", "not JSON: NaN", "not JSON: holds half", "not JSON: nested"],
        strict=True,
    ):
        assert reason.startswith(start)
    assert found[1].raw == '{"a":'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a": 1},\n{"a": 2', 3),  # never closed
        ('[\n{"a": 1}\n{"a": 2}\n]', 3),  # comma missing
        ('[\n{"a": 1},\n{"a": x}\n]' + " " * 100, 3),  # not JSON
        ('[{"a": 1}]\nmore', 2),
        ('{"a": 1,\n "b": }', 2),
        ('[{"a": 1},', 1),
    ],
)
def test_a_json_file_broken_as_a_whole_is_refused_naming_file_and_line(tmp_path, text, line):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"bad\.json, line {line}: "):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.json", b"  \n ", "white space"),
        ("x.json", b"hello", "not JSON"),
        ("x.jsonl", b"\x00\x01\x02" * 50, "binary"),
        ("x.csv", b"\x80\x04\x95pickle", "binary"),
        ("x.pdf", b"%PDF-1.7", "binary"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 5000, mtime=0)[:60], "damaged or cut off"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("x.csv", b"a,a\n1,2\n", "same name"),
        ("x.doc", b"some text", "unknown kind of file"),
        ("x.parquet", b"PAR1" + b"junk" * 20, "Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused_with_its_name(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        list(read_rows(path))
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path, says in ((tmp_path / "none.json", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=says):
            read_rows(path)


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "BOMB_BYTES", 1 << 18)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\n" * (4 << 20)))
    with pytest.raises(UserError, match="zip bomb"):
        list(read_rows(bomb))
    sound = tmp_path / "sound.jsonl.gz"  # beyond the size, but packed no tighter than text is
    sound.write_bytes(
        gzip.compress(b"".join(b'{"a": "%d words that repeat, words that repeat"}\n' % n for n in range(12_000)))
    )
    assert len(values(sound)) == 12_000
    book = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b" " * (1 << 20))
    with pytest.raises(UserError, match="zip bomb"):
        list(read_rows(book))
    plain = tmp_path / "other.zip"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="no Excel workbook"):
        list(read_rows(plain))


def test_a_record_over_the_limit_is_broken_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "MAX_RECORD_BYTES", 1000)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 5000 + b'"}\n{"a": "y"}\n')
    long, short = read_rows(path)
    assert isinstance(long, Broken) and long.reason.startswith("too long") and len(long.raw) <= 2048
    assert short == Row(2, {"a": "y"})


def test_tables_with_other_separators_quoted_lines_and_faults(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(
        'text;label\n"a;b\nc";x\nonly one\nd;y\n\ng\xe9;z\n'.encode("latin-1") + 'é;"never closed\n'.encode()
    )
    found = list(read_rows(path))
    assert [(item.line, item.value) for item in found if isinstance(item, Row)] == [
        (2, {"text": "a;b\nc", "label": "x"}),
        (5, {"text": "d", "label": "y"}),
    ]
    assert [(item.line, item.reason.split(":")[0]) for item in found if isinstance(item, Broken)] == [
        (4, "wrong number of cells"),
        (7, "not UTF-8"),
        (8, "not CSV"),
    ]


def test_a_table_without_a_header_keeps_its_first_row(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("How do I pay my bill today?\tpay_bill\nWhere is my card?\tcard\n")
    assert values(path)[0] == {"column1": "How do I pay my bill today?", "column2": "pay_bill"}


def test_rows_inside_a_json_object_are_found(tmp_path):
    path = tmp_path / "o.json"
    cases = [
        ({"version": "1", "data": [{"a": 1}, {"a": 2}]}, [({"a": 1}, None), ({"a": 2}, None)]),
        ({"train": [["x", "y"]], "oos_val": [["z", "w"]]}, [(["x", "y"], "train"), (["z", "w"], "oos_val")]),
        ({"rows": [{"row_idx": 0, "row": {"a": 1}}]}, [({"a": 1}, None)]),
        ({"a": ["p", "q"], "b": ["r", "s"]}, [({"a": "p", "b": "r"}, None), ({"a": "q", "b": "s"}, None)]),
        (
            {"a": {"0": "p", "1": "q"}, "b": {"0": "r", "1": "s"}},
            [({"a": "p", "b": "r"}, None), ({"a": "q", "b": "s"}, None)],
        ),
        ({"id1": {"a": 1}, "id2": {"a": 2}}, [({"a": 1}, None), ({"a": 2}, None)]),
        ({"prompt": "x", "chat": {"turn_1": {}}}, [({"prompt": "x", "chat": {"turn_1": {}}}, None)]),
    ]
    for content, wanted in cases:
        path.write_text(json.dumps(content))
        assert [(item.value, item.split) for item in read_rows(path)] == wanted, content


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), json_values, max_size=3),
        min_size=1,
        max_size=6,
    ),
    indent=st.sampled_from([None, 1, 4]),
)
def test_a_streamed_array_holds_what_json_itself_reads(tmp_path_factory, rows, indent):
    text = json.dumps(rows, indent=indent)
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(text)
    found = list(read_rows(path))
    assert [item.value for item in found] == json.loads(text)
    if indent:
        opening = [
            number for number, line in enumerate(text.splitlines(), start=1) if line.startswith(" " * indent + "{")
        ]
        assert [item.line for item in found] == opening


def test_array_elements_larger_than_the_reading_buffer_are_whole(tmp_path):
    rows = [{"a": "é" * 200_000}, 12345678, {"b": ['\\"' * 50_000]}, "x"]
    path = tmp_path / "big.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert values(path) == rows


def test_a_hub_set_is_streamed_split_by_split(monkeypatch):
    asked = []

    def load_dataset(name, config, streaming):
        asked.append((name, config, streaming))
        return {"train": [{"text": "a"}], "test": [{"text": "b"}]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [(item.line, item.value, item.split) for item in read_rows("hf:org/name:small")] == [
        (1, {"text": "a"}, "train"),
        (2, {"text": "b"}, "test"),
    ]
    assert asked == [("org/name", "small", True)]

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=offline))
    with pytest.raises(UserError, match="hf:org/name.*no route"):
        list(read_rows("hf:org/name"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"tutelage\[hub\]"):
        list(read_rows("hf:org/name"))
