"""What can be typed after `tutelage feedback`.  Standard library only, as all of the front door's parser."""

import argparse
from collections.abc import Callable
from typing import Any

FEEDBACK_COMMANDS = ("ask", "import", "export", "report", "plan", "snapshot", "verify")
# Of pairs and answers as rows, through data/writers.py; of the others all but oasst keep who said what.
ROW_FORMATS = ("trl", "kto", "hh", "sharegpt", "openai", "alpaca", "csv", "parquet", "native")
VOTE_FORMATS = ("judgements", "label-studio", "argilla", "spans", "oasst")
DATA_SETS = ("preferences", "examples", "labels", "safety", "prompts")


def add_feedback(commands: Any, command: Callable[..., argparse.ArgumentParser], parser_class: type) -> None:
    """Add the commands; `command` and `parser_class` are those of arguments.py."""
    about = "Ask people, import and export their judgements, and see how far to believe them."
    group = commands.add_parser("feedback", help=about, description=about, allow_abbrev=False)
    actions = group.add_subparsers(dest="action", metavar="|".join(FEEDBACK_COMMANDS), required=True, parser_class=parser_class)

    def add(name: str, about: str, *examples: str, project: bool = True) -> argparse.ArgumentParser:
        p = command(actions, name, about, *examples)
        if project:
            p.add_argument("--project", required=True, metavar="P", help="name of the project")
        p.add_argument("--database", metavar="WHERE", help="a file or postgresql+psycopg://... (default: people.db of the workspace, "
                       "or the environment's TUTELAGE_DATABASE)")
        return p

    _add_asking(add)
    _add_results(add)


def _add_asking(add: Callable[..., argparse.ArgumentParser]) -> None:
    p = add("ask", "Put answers before people: pairs, sets or single answers, as items of a project.",
            "tutelage feedback ask old.jsonl new.jsonl --project duel      # A against B, from `tutelage respond`",
            "tutelage feedback ask four_each.jsonl --project order --rubric ranking",
            "tutelage feedback ask pairs.json --project again --overlap 3 --share 0.5")
    p.add_argument("files", nargs="+", metavar="FILE", help="answers that `tutelage respond` wrote, or pairs of any known format")
    p.add_argument("--rubric", metavar="R", help="what is asked, for instance pairwise, ranking, good-bad or helpful@3 (default: pairwise)")
    p.add_argument("--kind", choices=("pair", "set", "single", "demonstration"), help="default: by the rubric's questions")
    p.add_argument("--overlap", type=int, metavar="K", help="judgements wanted for the share of items that gets several (default 3)")
    p.add_argument("--share", type=float, metavar="X", help="that share, from 0 to 1 (default 0.2)")
    p.add_argument("--title", default="", help="of a project that is made")
    p.add_argument("--batch", type=int, default=0, metavar="N", help="lower batches are handed out first (default 0)")
    p.add_argument("--actor", default="command-line", help="who asks, for the log")
    p = add("import", "Take over judgements that were made elsewhere, each with its annotator.",
            "tutelage feedback import pandalm.json --project pandalm",
            "tutelage feedback import export.json --project mine --format label-studio")
    p.add_argument("files", nargs="+", metavar="FILE", help="files or folders")
    p.add_argument("--rubric", metavar="R", help="of a project that is made (default: pairwise, or good-bad for single answers)")
    p.add_argument("--format", help="say the format instead of finding it out; also judgements, label-studio and argilla")
    p.add_argument("--map", nargs="+", metavar="OURS=THEIRS", default=[], help="fields by our name and theirs (a dotted path)")
    p.add_argument("--title", default="", help="of a project that is made")
    p.add_argument("--actor", default="command-line", help="who imports, for the log")


def _add_results(add: Callable[..., argparse.ArgumentParser]) -> None:
    p = add("export", "Write judgements, or what was folded from them, to a file.",
            "tutelage feedback export --project duel --format trl --out pairs.jsonl",
            "tutelage feedback export --project duel --format judgements --out everything.jsonl")
    p.add_argument("--format", required=True, choices=(*VOTE_FORMATS, *ROW_FORMATS))
    p.add_argument("--out", required=True, metavar="FILE", help=".jsonl or .json; .csv or .tsv; .parquet")
    p.add_argument("--what", choices=DATA_SETS, help="which rows (default: by the format)")
    p.add_argument("--actor", default="command-line", help="who exports, for the log")
    _folding(p)
    p = add("report", "Agreement, annotators, bias and win rates, each with its interval.",
            "tutelage feedback report --project duel",
            "tutelage feedback report --project duel --lang zh --out report.md")
    p.add_argument("--lang", choices=("en", "zh"), default="en")
    p.add_argument("--out", metavar="FILE", help=".html or .md (default: reports/feedback-P.html)")
    p.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    p = add("plan", "How many more labels, of what and from whom.",
            "tutelage feedback plan --project duel --half-width 0.03",
            "tutelage feedback plan --project duel --curve curve.csv --accuracy 0.75",
            "tutelage feedback plan --project duel --features features.npz --choose 200   # what to ask next: see tutelage score")
    p.add_argument("--half-width", type=float, default=0.03, metavar="H", help="wanted of the win rate's interval (default 0.03)")
    p.add_argument("--curve", metavar="FILE", help="CSV with columns labels, accuracy: a reward model at four sizes or more")
    p.add_argument("--accuracy", type=float, default=0.75, metavar="A", help="wanted of the reward model (default 0.75)")
    p.add_argument("--level", type=float, default=0.8, help="of gold accuracy below which people are trained (default 0.8)")
    p.add_argument("--show", type=int, default=10, metavar="N", help="items to list for one more vote (default 10)")
    p.add_argument("--features", metavar="FILE", help="vectors of a reward model by response or item (`tutelage score` writes them): "
                   "tells whether choosing beats random so far")
    p.add_argument("--choose", type=int, metavar="N", help="put the next N pairs before the others, a fifth of them drawn at random")
    p.add_argument("--method", choices=("auto", "random", "d-optimal"), default="auto",
                   help="of --choose; auto: random until the project's own judgements show that d-optimal beats it (default)")
    p.add_argument("--out", metavar="FILE", help="also write what was chosen to this .jsonl: item and arm")
    p.add_argument("--actor", default="command-line", help="who chooses, for the log")
    p.add_argument("--seed", type=int, default=0)
    p = add("snapshot", "Freeze what was folded as snapshots under data/: recipes may name them, or feedback:P@ROW.",
            "tutelage feedback snapshot --project duel")
    p.add_argument("--split", metavar="TRAIN/VAL/TEST", default="90/5/5", help="percent (default: 90/5/5), by conversation")
    p.add_argument("--actor", default="command-line", help="for the log")
    _folding(p)
    p = add("verify", "Check the log: every row, and that every judgement stands in it.",
            "tutelage feedback verify", "tutelage feedback verify --anchor 1234:9f86d0...", project=False)
    p.add_argument("--anchor", metavar="ROW:HASH", help="of an earlier verification, kept elsewhere: shows a log that was built anew")


def _folding(p: argparse.ArgumentParser) -> None:
    p.add_argument("--upto", type=int, metavar="ROW", help="as it stood at this row of the log (default: now)")
    p.add_argument("--reliability", choices=("none", "overlap", "gold"), default="none",
                   help="weigh votes by how reliable people are: told from overlapping votes, or from gold items (default none)")
    p.add_argument("--seed", type=int, default=0, help="of the split")
