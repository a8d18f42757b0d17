"""What can be typed: the parser of the command line, command by command.  Standard library only, so that --help is quick."""

import argparse
from typing import Any, NoReturn

from tutelage import __version__
from tutelage.commands.feedback_arguments import add_feedback
from tutelage.core.errors import UserError

ABOUT = "Instruction tuning and RLHF with people in the loop, on one machine, with evidence."
GROUPS = """\
start
  demo        the whole loop on the starter data: SFT, reward model, PPO, report
  init        make a workspace with a first recipe

data
  data        import, inspect, annotate, split or expand instructions and preferences

train (each takes a recipe and overrides: tutelage sft RECIPE key=value ...)
  sft         teach a model to answer, from conversations
  reward      train a reward model, from preferences or ratings
  cost        train a cost model, from answers flagged safe and unsafe
  span-reward train a reward model of spans, from answers with marked errors
  prefer      train a model on preferences directly: DPO, IPO, KTO, ORPO, SimPO
  rl          improve a model against a reward (PPO)
  classify    train a text classifier
  check       look for what is wrong with a recipe before it is trained
  plan        how much memory and time a recipe will take, and which micro-batch fits

use and judge
  respond     answer prompts and write the answers to a file
  chat        talk to a model
  eval        score models on held-out prompts, with intervals
  compare     how often a judge prefers one model's answers to another's
  score       a reward model's scores and hidden states of answers, for planning what to ask
  blend       several runs of one base as one model, by weights
  report      write report.html again, in English or Chinese
  runs        list runs, show one, verify their files

people
  web         the web app in which people judge answers
  feedback    ask people, import and export judgements, report, plan, snapshot, verify

tutelage COMMAND --help says more."""

TRAINING_COMMANDS = ("sft", "reward", "cost", "span-reward", "prefer", "rl", "classify")
DATA_COMMANDS = ("import", "inspect", "annotate", "split", "expand")
DATA_NAMES = "a snapshot, a file, hf:NAME, starter:NAME or feedback:PROJECT"


class _Parser(argparse.ArgumentParser):
    """argparse with our way of saying what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\nSee: {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="tutelage",
        description=ABOUT,
        epilog=GROUPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="tutelage COMMAND [options]",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"tutelage {__version__}")
    commands = top.add_subparsers(
        dest="command", metavar="COMMAND", help=argparse.SUPPRESS, parser_class=_Parser, prog="tutelage"
    )
    _add_demo(commands)
    _add_init(commands)
    _add_data(commands)
    _add_training(commands)
    _add_answering(commands)
    _add_judging(commands)
    add_feedback(commands, _command, _Parser)
    _add_web(commands)
    return top


def _command(commands: Any, name: str, about: str, *examples: str, workspace: bool = True) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    out = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.set_defaults(parser=out)  # to name the nearest option to an unknown one
    out.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output and nothing else there"
    )
    if workspace:
        out.add_argument(
            "--workspace", metavar="DIR", help="default: the nearest folder upwards with a tutelage.yaml, else here"
        )
    return out


def _add_demo(commands: Any) -> None:
    p = _command(
        commands,
        "demo",
        "The whole loop on the starter data: clean, SFT, respond, reward model, PPO, evaluate, report.",
        "tutelage demo",
        "tutelage demo --lang zh",
        "tutelage demo --model test     # seconds, learns nothing",
        workspace=False,
    )
    p.add_argument(
        "folder",
        nargs="?",
        default="demo",
        help="where everything goes (default: demo); an unfinished demo there is resumed",
    )
    p.add_argument("--model", help="default: the embedded smollm2-135m")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the report")
    p.add_argument("--fresh", action="store_true", help="refuse to go on with what stands in the folder")


def _add_init(commands: Any) -> None:
    p = _command(
        commands,
        "init",
        "Make a workspace: tutelage.yaml, folders, and a first recipe.",
        "tutelage init my-project",
        workspace=False,
    )
    p.add_argument("folder", nargs="?", default=".", metavar="DIR")


def _add_data(commands: Any) -> None:
    about = "Import, inspect, annotate, split or expand instructions and preferences."
    data = commands.add_parser("data", help=about, description=about, allow_abbrev=False)
    actions = data.add_subparsers(dest="action", metavar="|".join(DATA_COMMANDS), required=True, parser_class=_Parser)
    p = _command(
        actions,
        "import",
        "Read files of any known format into an immutable snapshot of the workspace.",
        "tutelage data import alpaca.json",
        "tutelage data import a.jsonl b.csv.gz --name mine --license CC-BY-4.0",
        "tutelage data import odd.csv --map prompt=question answer=reply_text",
        "tutelage data import chat.jsonl --clean unicode,exact,near=0.8,pii,min_chars=5,languages=en+zh",
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="files, folders or hf:NAME")
    p.add_argument("--name", help="of the snapshot (default: the first file's)")
    p.add_argument("--format", help="say the format instead of finding it out, for instance alpaca or sharegpt")
    p.add_argument(
        "--as-kind",
        choices=("examples", "preferences", "labels", "prompts"),
        help="read the same content as another kind",
    )
    p.add_argument(
        "--map", nargs="+", metavar="OURS=THEIRS", default=[], help="fields by our name and theirs (a dotted path)"
    )
    p.add_argument("--license", default="", help="of the data; stands in the snapshot and in every record")
    p.add_argument(
        "--clean",
        metavar="STEPS",
        default="unicode,exact",
        help="unicode, exact, near[=0.8], min_chars=N, max_chars=N, languages=en+zh, tag_language, "
        "toxicity=flag|drop, pii, contamination=FILE; or none (default: unicode,exact)",
    )
    p.add_argument(
        "--split", metavar="TRAIN/VAL/TEST", default="90/5/5", help="percent (default: 90/5/5), by conversation"
    )
    p.add_argument("--seed", type=int, default=0, help="of the split")
    p = _command(
        actions,
        "inspect",
        "Show what is in a file or snapshot: counts, examples, lengths, and what was quarantined.",
        "tutelage data inspect starter:instructions",
        "tutelage data inspect mine.jsonl --tokens --model smollm2-135m",
    )
    p.add_argument("data", help=DATA_NAMES)
    p.add_argument("--show", type=int, default=3, metavar="N", help="how many records to print (default 3)")
    p.add_argument(
        "--tokens", action="store_true", help="colour what is trained on, as a model's tokenizer and template see it"
    )
    p.add_argument("--model", default="test", help="whose tokenizer --tokens uses (default: test)")
    p = _command(
        actions,
        "annotate",
        "Words, parts of speech and length statistics (English and Chinese): the classic preprocessing step.",
        "tutelage data annotate starter:instructions --out words.jsonl",
    )
    p.add_argument("data", help=DATA_NAMES)
    p.add_argument("--out", metavar="FILE", help="write the words and tags of every record here as JSON lines")
    p.add_argument("--model", help="also count tokens with this model's tokenizer")
    p = _command(
        actions,
        "split",
        "Split anew into train, val and test, as a new snapshot; a conversation never stands on two sides.",
        "tutelage data split mine --split 80/10/10 --name mine-80",
    )
    p.add_argument("data", help=DATA_NAMES)
    p.add_argument("--split", metavar="TRAIN/VAL/TEST", default="90/5/5", help="percent (default: 90/5/5)")
    p.add_argument("--name", help="of the new snapshot (default: NAME-split)")
    p.add_argument("--seed", type=int, default=0)
    p = _command(
        actions,
        "expand",
        "New instructions and answers from old ones by a model (self-instruct), filtered, as a new snapshot.",
        "tutelage data expand starter:instructions --model smollm2-135m --wanted 50",
    )
    p.add_argument("data", help=f"the seeds: {DATA_NAMES}")
    p.add_argument("--model", help="who writes them: a model, a folder or a run (default: the workspace's)")
    p.add_argument("--wanted", type=int, default=50, metavar="N", help="how many to keep (default 50)")
    p.add_argument(
        "--similarity",
        type=float,
        default=0.7,
        help="ROUGE-L above which a new one is too close to an old one (default 0.7)",
    )
    p.add_argument("--max-tokens", type=int, default=256, help="of an answer (default 256)")
    p.add_argument("--name", help="of the new snapshot (default: NAME-expanded)")
    p.add_argument("--seed", type=int, default=0)


def _add_training(commands: Any) -> None:
    for name, about, examples in (
        (
            "sft",
            "Supervised fine-tuning on conversations.",
            (
                "tutelage sft",
                "tutelage sft sft_starter loop.epochs=3 optim.learning_rate=1e-5",
                "tutelage sft my.yaml --run first --track tensorboard",
                "tutelage sft --run first --resume",
            ),
        ),
        (
            "reward",
            "Train a reward model on preferences (Bradley-Terry) or ratings.",
            ("tutelage reward", "tutelage reward reward_starter model=sft-0001"),
        ),
        (
            "cost",
            "Train a cost model on answers flagged safe and unsafe: above 0 unsafe, below 0 safe.",
            ("tutelage cost", "tutelage cost cost_starter model=sft-0001"),
        ),
        (
            "span-reward",
            "Train a reward model of spans on answers in which people marked errors.",
            ("tutelage span-reward data=marked.jsonl", "tutelage span-reward data=marked.jsonl model=sft-0001 loop.epochs=3"),
        ),
        (
            "prefer",
            "Train a model on judged answers directly: DPO, cDPO, robust DPO, IPO, KTO, ORPO, SimPO.",
            (
                "tutelage prefer dpo_starter model=sft-0001",
                "tutelage prefer kto_starter data=votes.jsonl",
                "tutelage prefer dpo_starter method=cdpo label_smoothing=0.1 lora.rank=16",
            ),
        ),
        (
            "rl",
            "Improve a model against a reward with PPO.",
            (
                "tutelage rl ppo_starter model=sft-0001 reward=reward-0001",
                "tutelage rl reward=rule:length steps=20",
                "tutelage rl reward=python:my_reward.py:score",
                "tutelage rl ppo_lagrangian_starter model=sft-0001 reward=reward-0001 cost=cost-0001",
            ),
        ),
        (
            "classify",
            "Fine-tune an encoder or decoder to classify texts.",
            (
                "tutelage classify classify_task",
                "tutelage classify model=hf:google-bert/bert-base-uncased data=mine.csv",
            ),
        ),
    ):
        p = _command(commands, name, about, *examples)
        p.usage = f"tutelage {name} [RECIPE] [key=value ...] [options]"
        p.add_argument(
            "words",
            nargs="*",
            metavar="RECIPE key=value",
            help="a recipe (file or name; none: the defaults), then settings that override it, by dotted path",
        )
        p.add_argument("--run", metavar="NAME", help=f"folder of the run in runs/ (default: {name}-0001, -0002, ...)")
        p.add_argument(
            "--resume",
            action="store_true",
            help="go on with an unfinished run (--run NAME, or the newest), with its own configuration",
        )
        p.add_argument(
            "--dry-run", action="store_true", help="check everything, print what would be done, and do nothing"
        )
        p.add_argument(
            "--track",
            metavar="NAME",
            default=[],
            action="append",
            help="also send metrics to tensorboard, trackio, wandb or mlflow",
        )
        p.add_argument("--no-check", action="store_true", help="train whatever `tutelage check` would say")
    _add_check(commands)
    _add_plan(commands)


def _add_check(commands: Any) -> None:
    p = _command(
        commands,
        "check",
        "Look for what is wrong with a recipe before it is trained: masks, templates, tokens, rewards, memory, ...",
        "tutelage check ppo_starter model=sft-0001 reward=reward-0001",
        "tutelage check my.yaml --for sft",
    )
    p.usage = "tutelage check [RECIPE] [key=value ...] [options]"
    p.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE key=value",
        help="a recipe (file or name), then settings that override it, by dotted path",
    )
    p.add_argument(
        "--for",
        dest="command_for",
        choices=TRAINING_COMMANDS,
        help="the training command that the recipe is for (default: the one that its first lines or its keys name)",
    )
    p.add_argument("--no-cache", action="store_true", help="look again, though the same was checked before")


def _add_plan(commands: Any) -> None:
    p = _command(
        commands,
        "plan",
        "How much memory and time a run will take, from its first steps, and which micro-batch fits into what there is.",
        "tutelage plan ppo_starter model=sft-0001 reward=reward-0001",
        "tutelage plan my.yaml --for sft --memory 8",
    )
    p.usage = "tutelage plan [RECIPE] [key=value ...] [options]"
    p.add_argument("words", nargs="*", metavar="RECIPE key=value", help="a recipe (file or name), then settings that override it")
    p.add_argument("--for", dest="command_for", choices=TRAINING_COMMANDS, help="the training command that the recipe is for")
    p.add_argument("--memory", type=float, metavar="GB", help="what the run may take (default: what is free)")
    p.add_argument("--trial", metavar="FILE", help=argparse.SUPPRESS)  # this process makes the trial, and writes what it measured


def _sampling(p: argparse.ArgumentParser, *, temperature: float, max_tokens: int) -> None:
    p.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        help=f"0 = always the likeliest token (default {temperature:g})",
    )
    p.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens that hold this share (default 1 = all)",
    )
    p.add_argument("--max-tokens", type=int, default=max_tokens, help=f"of an answer (default {max_tokens})")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    p.add_argument("--device", default="auto")


def _add_answering(commands: Any) -> None:
    p = _command(
        commands,
        "respond",
        "Answer prompts and write the answers to a file.",
        'tutelage respond --prompt "What is a reward model?"',
        "tutelage respond sft-0001 --data starter:evaluation --out answers.jsonl",
        "tutelage respond sft-0001 --data questions.csv -n 4 --temperature 0.8",
        "tutelage respond sft-0001 --data questions.csv --best-of 4 --judge reward-0001 --temperature 0.8",
        'tutelage respond "http://localhost:8000/v1#their-model" --data questions.csv',
    )
    p.add_argument("model", nargs="?", help="a model, a folder, a run or an address (default: the workspace's)")
    p.add_argument("--data", help=f"prompts: {DATA_NAMES}")
    p.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be given several times")
    p.add_argument("-n", type=int, default=1, metavar="N", help="answers to each prompt (default 1)")
    p.add_argument("--best-of", type=int, metavar="N", help="draw N answers to each prompt and keep the one that --judge likes best")
    p.add_argument("--judge", metavar="PATH", help="for --best-of: a reward model, rule:NAME or python:FILE.py:FUNCTION")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    p.add_argument("--out", metavar="FILE", help="default: responses.jsonl, or the terminal for --prompt")
    _sampling(p, temperature=0.0, max_tokens=128)
    p = _command(
        commands,
        "chat",
        "Talk to a model; /reset forgets, /quit leaves.",
        "tutelage chat sft-0001",
        "echo Hello | tutelage chat",
    )
    p.add_argument("model", nargs="?", help="a model, a folder, a run or an address (default: the workspace's)")
    p.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    _sampling(p, temperature=0.7, max_tokens=192)


def _add_judging(commands: Any) -> None:
    p = _command(
        commands,
        "eval",
        "Score models on held-out prompts: every figure with its 95 % interval.",
        "tutelage eval smollm2-135m sft-0001",
        "tutelage eval sft-0001 rl-0001 --judge reward-0002",
    )
    p.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="models, folders or runs, the oldest first (default: the workspace's)",
    )
    p.add_argument("--data", default="starter:evaluation", help=f"prompts: {DATA_NAMES} (default: starter:evaluation)")
    p.add_argument(
        "--judge",
        metavar="PATH",
        help="a reward model (folder or run), rule:NAME or python:FILE.py:FUNCTION: adds win rates",
    )
    p.add_argument("--limit", type=int, metavar="N", help="only N prompts, spread over the set")
    p.add_argument("--lang", choices=("en", "zh"), default="en", help="of the report")
    p.add_argument("--out", metavar="DIR", help="where report.html goes (default: reports/eval-<models>)")
    _sampling(p, temperature=0.0, max_tokens=96)
    p = _command(
        commands,
        "compare",
        "How often a judge prefers model A's answers to model B's, with its interval.",
        "tutelage compare sft-0001 smollm2-135m --judge reward-0002",
    )
    p.add_argument("a", metavar="A", help="a model, a folder, a run, or a file that `tutelage respond` wrote")
    p.add_argument("b", metavar="B")
    p.add_argument(
        "--judge",
        required=True,
        metavar="PATH",
        help="a reward model (folder or run), rule:NAME or python:FILE.py:FUNCTION",
    )
    p.add_argument("--data", default="starter:evaluation", help=f"prompts: {DATA_NAMES} (default: starter:evaluation)")
    p.add_argument("--limit", type=int, metavar="N", help="only N prompts, spread over the set")
    _sampling(p, temperature=0.0, max_tokens=96)
    p = _command(
        commands,
        "score",
        "A reward model's score and hidden state of each answer of a project, for `feedback plan --features`.",
        "tutelage score reward-0001 --project duel --out features.npz",
        "tutelage score smollm2-135m --project duel --out features.npz    # before there is a reward model",
    )
    p.add_argument("model", metavar="MODEL", help="a reward model (folder or run), or any model for its hidden states alone")
    p.add_argument("--project", required=True, metavar="P", help="whose answers")
    p.add_argument("--database", metavar="WHERE", help="as for `tutelage feedback`")
    p.add_argument("--out", required=True, metavar="FILE", help=".npz or .jsonl: id, features, and score where there is one")
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    p.add_argument("--device", default="auto")
    p = _command(
        commands,
        "blend",
        "Several runs of one base model as one: interpolate their adapters (or whole weights) by the given weights.",
        "tutelage blend --weights helpful=0.7,harmless=0.3",
        "tutelage blend --weights rl-0001=0.5,rl-0002=0.5 --run both",
    )
    p.add_argument("--weights", required=True, metavar="NAME=W,NAME=W", help="runs or folders with their weights, which sum to 1")
    p.add_argument("--run", metavar="NAME", help="folder of the blend in runs/ (default: blend-0001, -0002, ...)")
    p.add_argument("--method", choices=("weights", "factors"), default="weights",
                   help="of adapters: interpolate their updates (default), or A and B one by one, which keeps the rank")
    p.add_argument("--unnormalised", action="store_true", help="allow weights below 0 and sums other than 1")
    p = _command(
        commands,
        "report",
        "Write report.html again from what a demo, an evaluation or a run left.",
        "tutelage report demo --lang zh",
        "tutelage report sft-0001",
    )
    p.add_argument("folder", metavar="FOLDER", help="of a demo, an evaluation or a run; or the name of a run")
    p.add_argument("--lang", choices=("en", "zh"), default="en")
    p.add_argument("--out", metavar="FILE", help="default: report.html in the folder (report.zh.html for Chinese)")
    p = _command(
        commands,
        "runs",
        "List runs, show one, or verify their files against their checksums.",
        "tutelage runs",
        "tutelage runs sft-0001",
        "tutelage runs verify",
    )
    p.add_argument("words", nargs="*", metavar="NAME | verify [NAME]")


def _add_web(commands: Any) -> None:
    p = _command(
        commands,
        "web",
        "The web app in which people judge answers: sign-in, projects, queue, agreement, exports.",
        "tutelage web",
        "tutelage web --port 0 --database study.db",
        "tutelage web --database postgresql+psycopg://localhost/judgements --workers 4",
        "tutelage web --link ann-07          # a new one-time sign-in link for a person",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    p.add_argument("--port", type=int, default=8080, metavar="N", help="default: %(default)s; 0 takes a free one")
    p.add_argument(
        "--database",
        metavar="WHERE",
        help="a file or postgresql+psycopg://... (default: people.db of the workspace, or TUTELAGE_DATABASE)",
    )
    p.add_argument("--workers", type=int, default=1, metavar="N", help="server processes (default: %(default)s)")
    p.add_argument("--link", metavar="PERSON", help="print a one-time sign-in link for a person, and end")
