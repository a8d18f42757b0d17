"""Every public file of the shared folder is read, with exactly the counts of the checked-in table.

`python tests/data/test_shared_files.py` writes the table anew (look at the difference before you commit it).
"""

import json
import os
import sys
from pathlib import Path

import pytest

from tutelage.data.reading import Quarantined, Reading

TABLE = Path(__file__).with_name("shared_counts.json")
FOLDERS = ("sft", "preference", "task", "formats")
COUNTS = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}

pytestmark = pytest.mark.shared


def read(path):
    """(what the table holds of a file, its records)"""
    reading = Reading([path])
    records = [item for item in reading if not isinstance(item, Quarantined)]
    (facts,) = reading.files
    return {
        "format": facts.format,
        "kind": reading.kind,
        "rows": facts.rows,
        "kept": facts.kept,
        "quarantined": dict(sorted(reading.reasons.items())),
    }, records


def files_of(folder):
    return [f"{part}/{path.name}" for part in FOLDERS for path in sorted((folder / part).iterdir())]


def test_the_table_names_every_file(shared_data):
    assert files_of(shared_data) == list(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_kept_and_quarantined_are_those_of_the_table(shared_data, name):
    found, records = read(shared_data / name)
    assert found == COUNTS[name]
    assert found["kept"] > 0 and sum(found["quarantined"].values()) <= 0.07 * found["rows"]
    for record in records[:: max(1, len(records) // 50)]:  # a record survives its JSON form
        assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_every_row_of_the_manifest_was_seen(shared_data):
    manifest = json.loads((shared_data / "MANIFEST.json").read_text(encoding="utf-8"))
    records = {entry.get("file", entry.get("path")): entry["records"] for entry in manifest["files"]}
    seen = {name: COUNTS[name]["rows"] for name in COUNTS if not name.startswith("formats/")}
    assert seen == {name: records[name] for name in seen}


if __name__ == "__main__":
    home = Path(os.environ.get("TUTELAGE_SHARED", Path(__file__).resolve().parents[3] / "shared" / "data"))
    table = {name: read(home / name)[0] for name in files_of(home)}
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in table.items())
    TABLE.write_text("{\n" + body + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{len(table)} files, {sum(facts['kept'] for facts in table.values())} records\n")
