"""`tutelage span-reward`, and a run of RL that names what it made."""

from calling import QUICK, call, write_lines

from tutelage.core.files import read_json
from tutelage.store.runs import Run

STEPS = ["model=test", "device=cpu", "dtype=float32", "loop.max_steps=2", "loop.rows_per_step=4", "optim.learning_rate=1e-4"]


def marked(count: int = 30) -> list[dict]:
    """Every other answer has a wrong second sentence."""
    return [{"prompt": f"Question {at}?", "response": f"Yes {at}. No.",
             "spans": [{"start": len(f"Yes {at}. "), "end": len(f"Yes {at}. No."), "label": "wrong"}] if at % 2 else []}
            for at in range(count)]


def test_a_model_of_spans_and_a_run_that_names_it(workspace):
    write_lines(workspace / "marked.jsonl", marked())
    done = call("span-reward", "data=marked.jsonl", *STEPS)
    assert done.code == 0, done.err
    assert "Made runs/span-reward-0001/final" in done.out and "% of the validation sentences" in done.out
    assert "tutelage rl ppo_starter model=test reward=span-reward-0001" in done.out
    manifest = read_json(workspace / "runs" / "span-reward-0001" / "final" / "manifest.json")
    assert manifest["labels"] == ["none", "wrong"] and manifest["parents"][-1].startswith("marked.jsonl@")
    done = call("rl", "tiny_ppo", "reward=span-reward-0001", *QUICK, "steps=1", "max_tokens=6", "normalise_on=2")
    assert done.code == 0, done.err
    assert "reward/spans" in Run(workspace / "runs" / "rl-0001").metrics()[0]


def test_a_run_is_checked_first_and_a_stopped_one_goes_on(workspace):
    write_lines(workspace / "marked.jsonl", marked())
    done = call("check", "--for", "span-reward", "data=marked.jsonl", *STEPS, "optim.learning_rate=1")
    assert done.code in (1, 2) and "learning_rate" in done.out + done.err
    done = call("check", "--for", "span-reward", "data=marked.jsonl", *STEPS)
    assert done.code == 0 and "span-reward" in done.out, done.out + done.err
    assert call("span-reward", "data=marked.jsonl", *STEPS, "--run", "s").code == 0
    write_lines(workspace / "marked.jsonl", marked(29))
    again = call("span-reward", "--run", "s", "--resume")
    assert again.code == 2 and "was begun on marked.jsonl@" in again.err


def test_what_is_wrong_with_the_file_is_said(workspace):
    done = call("span-reward", *STEPS)
    assert done.code == 2 and "data must name a file of answers with marked spans" in done.err
    done = call("span-reward", "data=none.jsonl", *STEPS)
    assert done.code == 2 and "there is no file none.jsonl" in done.err
    rows = marked(4)
    rows[2]["spans"] = [{"start": 3, "end": 99, "label": "wrong"}]
    write_lines(workspace / "marked.jsonl", rows)
    done = call("span-reward", "data=marked.jsonl", *STEPS)
    assert done.code == 2 and "marked.jsonl, line 3: no answer with spans: the span 3 to 99 leaves the answer" in done.err
    write_lines(workspace / "marked.jsonl", [{**row, "spans": []} for row in marked()])
    done = call("span-reward", "data=marked.jsonl", *STEPS)
    assert done.code == 2 and "none of the" in done.err and "has a marked span" in done.err
