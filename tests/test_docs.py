"""The documents keep their word: commands run, links lead somewhere, and every metric that is logged is explained."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys

from tutelage.cli import parse
from tutelage.commands.init import init
from tutelage.core.words import Label, Preference, Prompt
from tutelage.data import starter
from tutelage.judges.rules import FunctionJudge
from tutelage.recipes import BUILT_IN, assignments, known_recipes
from tutelage.rollout.int8 import can_int8
from tutelage.store.runs import Run
from tutelage.training.classify import ClassifyConfig, classify, to_labels
from tutelage.training.cost import CostConfig, cost
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.prefer import PreferConfig, prefer
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rl import ALGORITHMS, rl
from tutelage.training.sft import SFTConfig, sft

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def fenced(path: Path) -> list[str]:
    """Lines of the shell blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        line.strip().removeprefix("$ ")
        for _, kind, body in FENCE.findall(text)
        if kind in ("", "bash", "sh", "shell", "console")
        for line in body.splitlines()
    ]


def commands(path: Path, *begin: str) -> list[str]:
    return [line for line in fenced(path) if line.startswith(begin)]


def usages() -> list[tuple[str, str]]:
    """(page, command) of every `tutelage ...` line in a shell block of the documents."""
    return [(path.name, line) for path in PAGES for line in commands(path, "tutelage ")]


def is_a_form(line: str) -> bool:
    """A line that shows the form of a command ([--run NAME], a | b, ...) and is none to type."""
    return bool(re.search(r"\[[A-Z-]|\s\|\s|\.\.\.|…", line.split("#")[0]))


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


# -- commands ------------------------------------------------------------------------------------------------------


def test_the_documents_show_commands():
    assert len([line for page, line in usages() if page == "README.md"]) >= 8
    assert {page for page, _ in usages()} >= {"README.md", "README.zh.md"}


@pytest.mark.parametrize("page, line", [(page, line) for page, line in usages() if not is_a_form(line)])
def test_every_tutelage_line_is_understood_by_the_command_line(page, line, tmp_path):
    words = shlex.split(line, comments=True)
    assert words[0] == "tutelage"
    args = parse(words[1:])
    assert args.command
    if args.command in ("sft", "reward", "rl", "classify"):
        faults: list[str] = []
        assignments([word for word in args.words if "=" in word], faults)
        recipes = [word for word in args.words if "=" not in word]
        assert not faults
        known = known_recipes(init(tmp_path / "w"))  # those that come along, and what `tutelage init` writes
        assert all(name in known for name in recipes), f"{page}: no recipe {recipes}"


def test_every_tutelage_line_of_a_recipe_is_understood():
    found = 0
    for path in sorted(BUILT_IN[0].glob("*.yaml")):
        for line in re.findall(r"^# +(tutelage .*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert parse(shlex.split(line)[1:]).command
            found += 1
    assert found >= len(list(BUILT_IN[0].glob("*.yaml")))


def test_every_make_line_names_a_target_that_exists():
    targets = makefile_targets()
    assert {"install", "demo", "demo-seeds", "test", "test-kill"} <= targets
    found = [(path.name, line) for path in PAGES for line in commands(path, "make ")]
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for page, line in found if page == "README.md"}
    for page, line in found:
        words = [word for word in shlex.split(line, comments=True)[1:] if "=" not in word and not word.startswith("-")]
        assert words and set(words) <= targets, f"{page}: {line}"


def test_what_make_calls_is_understood_too():
    lines = re.findall(r"\$\(BIN\)/tutelage (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert lines
    for line in lines:
        assert parse(shlex.split(re.sub(r"\$\(\w+\)", "en", line))).command


@pytest.mark.parametrize("line", sorted({line for path in PAGES for line in commands(path, "python examples/")}))
def test_every_example_line_is_understood(line):
    words = shlex.split(line, comments=True)
    script = ROOT / words[1]
    options = set(re.findall(r'add_argument\("(--[\w-]+)"', script.read_text(encoding="utf-8")))
    assert {word.split("=")[0] for word in words[2:] if word.startswith("--")} <= options


CHEAP = ("tutelage runs", "tutelage data inspect", "tutelage init", "tutelage data import answers.jsonl")


def cheap_lines() -> list[str]:
    """Commands of the README that take seconds: those of the model `test`, and those that train nothing."""
    lines = [line for line in commands(ROOT / "README.md", "tutelage ") if not is_a_form(line)]
    named = lambda line: [
        word for word in shlex.split(line, comments=True) if word.removeprefix("model=") == "test" or word.startswith("tiny_")
    ]
    return [line for line in lines if line.startswith(CHEAP) or named(line) and " demo" not in line]


def test_the_cheap_commands_of_the_readme_run(tmp_path):
    """In order, in an empty folder, as a reader would type them."""
    place = tmp_path
    (place / "answers.jsonl").write_text(
        "".join(f'{{"instruction": "What is {n} + 1?", "output": "It is {n + 1}."}}\n' for n in range(30))
    )
    lines = cheap_lines()
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "tutelage", *words[1:]], cwd=place, capture_output=True, text=True, timeout=300, input=""
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if words[1] == "init" and len(words) > 2:  # the next line of the tour is `cd`
            (place / "answers.jsonl").replace(place / words[2] / "answers.jsonl")
            place = place / words[2]


# -- links ---------------------------------------------------------------------------------------------------------


def links(path: Path) -> list[str]:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [target for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower().replace("`", "")).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in links(path):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name}: {target}"
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), f"{path.name}: {target}"


def test_the_index_lists_every_page_and_every_page_is_there():
    listed = {target for target in links(DOCS / "index.md") if "/" not in target}
    assert listed == {path.name for path in DOCS.glob("*.md")} - {"index.md"}


def test_every_package_has_its_page():
    pages = {path.stem for path in DOCS.glob("*.md")}
    packages = {path.parent.name for path in (ROOT / "src" / "tutelage").glob("*/__init__.py")} - {"core", "commands"}
    without = {"store": "resume"}  # the page of a run's folder
    assert {without[name] if name in without else name for name in packages} <= pages


def test_nothing_tells_of_the_machine_that_it_was_written_on():
    for path in [*PAGES, *sorted((ROOT / "recipes").glob("*")), ROOT / "Makefile"]:
        found = re.search(r"/(?:work|home|root|tmp)/\S*", path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found[0]}"


def test_the_import_table_of_the_page_is_the_one_that_is_tested():
    page = re.search(r"MAY_IMPORT = (\{.*?\n    \})", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    tests = re.search(r"MAY_IMPORT = (\{.*?\n\})", (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"), re.DOTALL)[
        1
    ]
    assert eval(page) == eval(tests)  # noqa: S307 - two literals with set() in them


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (
        text.lstrip().startswith("Apache License")
        and "END OF TERMS AND CONDITIONS" in text
        and "[name of copyright owner]" in text
    )


# -- metrics -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, set[str]]:
    """Keys of real metrics.jsonl files, by kind of run."""
    place, here = tmp_path_factory.mktemp("runs"), {"model": "test", "device": "cpu", "dtype": "float32"}
    short = LoopConfig(max_steps=1, rows_per_step=4)
    chats = [toys.chat(f"q{n}", "ab"[n % 2]) for n in range(8)]
    prompts = [toys.ask(f"q{n}") for n in range(4)]
    pairs = [Preference(prompt=p, chosen=toys.reply(p, "yes"), rejected=toys.reply(p, "no", index=1)) for p in prompts]
    labelled = to_labels([Prompt(messages=p.messages, label="ab"[n % 2]) for n, p in enumerate(prompts)], "label")
    sft(SFTConfig(loop=short, **here), train=chats, val=chats[:2], folder=place / "sft")
    reward(RewardConfig(loop=short, **here), train=pairs, val=pairs[:2], folder=place / "reward")
    classify(ClassifyConfig(loop=short, **here), train=labelled, val=labelled[:2], folder=place / "classify")
    unsafe = [replace(pair, chosen_unsafe=False, rejected_unsafe=True) for pair in pairs]
    cost(CostConfig(loop=short, **here), train=unsafe, val=unsafe[:2], folder=place / "cost")
    thumbs = [Label(prompt=pair.prompt, response=pair.chosen, desirable=True) for pair in pairs]
    for method, rows in (("dpo", pairs), ("kto", [*pairs, *thumbs])):
        prefer(PreferConfig(method=method, loop=short, **here), train=rows, val=rows[:2], folder=place / f"prefer-{method}")
    few = {"steps": 1, "prompts_per_step": 2, "max_tokens": 3, "normalise_on": 0, "missing_eos": None, "lora": LoraConfig(rank=0), **here}
    own = {"ppo": {"minibatches": 1, "ptx_coef": 0.1}, "ppo_lagrangian": {"cost": "rule:length"}, "grpo": {"dynamic_sampling": 1},
           "a2c": {"rollout_weights": "int8"} if can_int8(torch.device("cpu")) else {}}
    for name, algorithm in ALGORITHMS.items():
        rl(algorithm.config(**few, **own.get(name, {})), prompts=prompts, folder=place / f"rl-{name}", pretrain=chats,
           judge=FunctionJudge(lambda ps, rs: [sum(r.token_ids) / 1000 for r in rs]))
    kinds = ("sft", "reward", "classify", "cost", "prefer", "rl")
    return {kind: {key for folder in place.glob(f"{kind}*") for row in Run(folder).metrics() for key in row} for kind in kinds}


def explained() -> dict[str, set[str]]:
    """Metric -> kinds of run, from the table of the glossary whose first column names runs."""
    out: dict[str, set[str]] = {}
    for line in (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 5 and re.fullmatch(r"[a-z, ]+", cells[0]) and cells[1].startswith("`"):
            assert cells[2] and cells[3] and cells[4] in ("↑", "↓", "↕"), line
            for key in re.findall(r"`(\w+)`", cells[1]):
                out.setdefault(key, set()).update(kind.strip() for kind in cells[0].split(","))
    return out


@pytest.mark.parametrize("kind", ["sft", "reward", "classify", "cost", "prefer", "rl"])
def test_every_metric_that_a_run_logs_is_in_the_glossary(logged, kind):
    told = explained()
    missing = {key for key in logged[kind] if kind not in told.get(key, ())}
    assert not missing, f"{kind}: add to docs/glossary.md: {sorted(missing)}"


def test_the_glossary_explains_nothing_that_is_not_logged(logged):
    for key, kinds in explained().items():
        if key == "effective" and not can_int8(torch.device("cpu")):
            continue
        for kind in kinds:
            assert key in logged[kind], f"{key} is told of {kind} runs, which do not log it"


def test_the_counts_of_the_starter_data_in_the_readme_are_right():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(starter.instructions())} instructions" in text and f"{len(starter.preferences())} pairs" in text
    assert f"{len(starter.evaluation())}\nheld-out" in text or f"{len(starter.evaluation())} held-out" in text.replace(
        "\n", " "
    )
