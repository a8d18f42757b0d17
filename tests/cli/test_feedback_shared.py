"""The public records with several annotators, imported and reported on: the figures of docs/feedback.md."""

import gzip
import json

import pytest
from feedback_calls import call

pytestmark = pytest.mark.shared


def report(shared_data, workspace, name: str) -> tuple[dict, dict]:
    here = ["--workspace", workspace, "--project", name, "--json"]
    done = call("import", shared_data / "preference" / f"{name}.jsonl.gz", *here)
    assert done.code == 0, done.err
    told = call("report", *here)
    assert told.code == 0, told.err
    return done.json["files"][0], told.json


def near(interval: dict, estimate: float, low: float, high: float, *, within: float = 0.0006) -> bool:
    return all(abs(interval[key] - wanted) < within for key, wanted in (("estimate", estimate), ("low", low), ("high", high)))


def by_hand(shared_data) -> float:
    """Share of pairs of annotators who said the same, straight from the file."""
    with gzip.open(shared_data / "preference" / "pandalm_3annotators.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kept = [row for row in rows if all(isinstance(row[name], str) and row[name].strip() for name in ("response1", "response2"))
            and row["response1"].strip() != row["response2"].strip()]
    same = [row[f"annotator{a}"] == row[f"annotator{b}"] for row in kept for a, b in ((1, 2), (1, 3), (2, 3))]
    return sum(same) / len(same)


def test_pandalms_three_annotators(shared_data, tmp_path):
    facts, told = report(shared_data, tmp_path, "pandalm_3annotators")
    assert (facts["new"], facts["items"], facts["people"]) == (1875, 625, 3)
    assert facts["quarantined"] == {"empty field": 39, "wrong type": 6}
    found = told["agreement"]["preference"]
    assert found["raw"]["value"] == pytest.approx(by_hand(shared_data)) and near(found["raw"]["interval"], 0.908, 0.876, 0.935)
    assert found["alpha"]["value"] == pytest.approx(0.853, abs=5e-4)
    assert near(told["left"], 0.473, 0.382, 0.564) and near(told["longer"], 0.609, 0.488, 0.729)
    assert len(told["win_rates"]) == 10 and next(iter(told["scores"])) == "model:llama-7b"


def test_tulus_sixteen_raters(shared_data, tmp_path):
    facts, told = report(shared_data, tmp_path, "tulu_pairwise_annotations")
    assert (facts["new"], facts["items"], facts["people"]) == (717, 634, 16)
    assert facts["quarantined"] == {"same answer": 20, "judged twice": 3}
    found = told["agreement"]["preference"]
    assert found["raw"]["n"] == 70 and found["raw"]["value"] == pytest.approx(0.600, abs=5e-4)
    assert found["alpha"]["value"] == pytest.approx(0.407, abs=5e-4)
    [win] = [each for each in told["win_rates"] if (each["a"], each["b"]) == ("model:chatgpt", "model:tulu_65B")]
    assert (win["wins"], win["ties"], win["losses"], win["raters"]) == (98, 76, 74, 15) and near(win["rate"], 0.547, 0.489, 0.605)


def test_finegrainedrlhfs_six_comparisons(shared_data, tmp_path):
    facts, told = report(shared_data, tmp_path, "finegrained_qa_feedback")
    assert (facts["new"], facts["items"], facts["people"], facts["quarantined"]) == (2172, 2172, 1, {})
    assert told["agreement"]["preference"]["raw"]["undefined"] == "no unit was rated by two raters or more"
    assert (told["comparisons"], told["ties"]) == (2172, 287) and near(told["left"], 0.602, 0.574, 0.631)
    assert near(told["cycles"], 0.012, 0.008, 0.020)
