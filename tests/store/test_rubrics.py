"""Versions never change, and a rubric that cannot work is refused."""

from dataclasses import replace

import pytest

from tutelage.core.errors import UserError
from tutelage.store.ledger import audit
from tutelage.store.rubrics import BUILT_IN, QUESTION_KINDS, Question, Rubric, as_rubric, list_rubrics, load_rubric, save_rubric

HELPFUL = Rubric(name="helpful", questions=(Question(name="帮助", kind="rating", low=1, high=7),), guidelines={"zh": "请仔细阅读"})


def test_a_changed_rubric_is_a_new_version_and_the_old_one_stays(db):
    first = save_rubric(db, HELPFUL, actor="boss", now=1)
    assert (first.ref, save_rubric(db, HELPFUL, actor="boss", now=2)) == ("helpful@1", first)  # the same: nothing is written
    second = save_rubric(db, replace(HELPFUL, guidelines={"en": "read\0 it"}), actor="boss", now=3)
    assert second.ref == "helpful@2"
    assert load_rubric(db, "helpful") == second and load_rubric(db, "helpful@1") == first
    assert [each.subject for each in audit(db, kind="rubric")] == ["helpful@1", "helpful@2"]
    assert first.digest != second.digest and replace(second, version=9).digest == second.digest


def test_built_in_rubrics_are_there_and_can_be_followed_by_own_versions(db):
    assert {rubric.ref for rubric in list_rubrics(db)} == {f"{name}@1" for name in BUILT_IN}
    assert save_rubric(db, BUILT_IN["safety"], actor="boss").ref == "safety@1"
    own = save_rubric(db, replace(BUILT_IN["safety"], categories=("weapons",)), actor="boss")
    assert own.ref == "safety@2" and load_rubric(db, "safety@1") == BUILT_IN["safety"]
    assert {question.kind for rubric in BUILT_IN.values() for question in rubric.questions} | {"flags"} == set(QUESTION_KINDS)


def test_json_and_back_is_the_same():
    for rubric in (*BUILT_IN.values(), HELPFUL):
        assert Rubric.from_dict(rubric.to_dict()) == rubric


@pytest.mark.parametrize("ref, told", [("helpfull", "no rubric.*did you mean|no rubric"), ("pairwise@7", "no version '7'"),
                                       ("pairwise@one", "no version"), ("", "no rubric"), ("a\0b", "no rubric")])
def test_a_rubric_that_is_not_there_is_told(file_db, ref, told):
    with pytest.raises(UserError, match=told):
        load_rubric(file_db, ref)


@pytest.mark.parametrize("values, told", [
    ({"name": "x", "questions": []}, "1 to 40 questions"),
    ({"name": "x"}, "missing field"),
    ({"name": "a b", "questions": [{"name": "q", "kind": "pair"}]}, "name of a rubric"),
    ({"name": "x", "questions": [{"name": "q", "kind": "pear"}]}, 'did you mean "pair"'),
    ({"name": "x", "questions": [{"name": "q", "kind": "pair", "levels": 5}]}, "7 or 4 levels"),
    ({"name": "x", "questions": [{"name": "q", "kind": "rating", "low": 5, "high": 1}]}, "from low up to high"),
    ({"name": "x", "questions": [{"name": "q", "kind": "spans"}]}, "needs labels"),
    ({"name": "x", "questions": [{"name": "q", "kind": "pair"}, {"name": "q", "kind": "rank"}]}, "two questions"),
    ({"name": "x", "questions": [{"name": "q\u202e", "kind": "pair"}]}, "can be seen"),
    ({"name": "x", "questions": [{"name": "q", "kind": "pair", "text": ["?"]}]}, "one text a language"),
    ({"name": "x", "questions": [{"name": "q", "kind": "pair", "colour": 1}]}, "unknown field"),
    ({"name": "x", "questions": "pair"}, "."), ({"name": "x", "questions": [1]}, "."), ([], "."),
])
def test_a_rubric_that_cannot_work_is_refused(values, told):
    with pytest.raises(UserError, match=told):
        as_rubric(values)


def test_half_a_surrogate_pair_is_refused(file_db):
    with pytest.raises(UserError, match="surrogate"):
        save_rubric(file_db, replace(HELPFUL, guidelines={"en": "\ud800"}), actor="boss")
