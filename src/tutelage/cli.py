"""The front door: what is typed, and which command it calls.

Only this file is read for `tutelage --help`: a command's module, and with it torch, is imported once the command is known.
Exit codes: 0 done, 1 something that was checked does not hold, 2 the user can mend it (`error: ...`), 130 stopped by Ctrl-C.
"""

import argparse
import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from tutelage.commands.arguments import DATA_COMMANDS, parser
from tutelage.commands.feedback_arguments import FEEDBACK_COMMANDS
from tutelage.core.errors import UserError, nearest

MODULES = {  # command -> module of tutelage.commands
    "demo": "demo",
    "init": "init",
    "sft": "sft",
    "reward": "reward",
    "cost": "cost",
    "span-reward": "span_reward",
    "prefer": "prefer",
    "rl": "rl",
    "classify": "classify",
    "check": "check",
    "plan": "plan",
    "respond": "respond",
    "chat": "chat",
    "eval": "evaluate",
    "compare": "compare",
    "score": "score",
    "blend": "blend",
    "report": "report",
    "runs": "runs",
    "web": "web",
    "feedback": "feedback",
    "data import": "data",
    "data inspect": "inspect",
    "data annotate": "annotate",
    "data split": "data",
    "data expand": "expand",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, options and words in any order.  UserError names the nearest command to an unknown one."""
    known = sorted({name.split()[0] for name in MODULES})
    _check_word(argv[:1], known, "command")
    if argv[:1] == ["data"]:
        _check_word(argv[1:2], DATA_COMMANDS, "data command")
    if argv[:1] == ["feedback"]:
        _check_word(argv[1:2], FEEDBACK_COMMANDS, "feedback command")
    args, rest = parser().parse_known_args(argv)
    if not rest:
        return args
    many = next((name for name in ("words", "models", "files") if hasattr(args, name)), None)
    for word in rest:
        if word.startswith("-") or many is None:
            known = sorted(set(re.findall(r"(?<![-\w])--[a-z-]+", args.parser.format_help())))
            hint = nearest(word.split("=")[0], known) if word.startswith("--") else ""
            raise UserError(
                f'{args.parser.prog}: do not know what to do with "{word}"{hint}\nSee: {args.parser.prog} --help'
            )
    setattr(args, many, [*getattr(args, many), *rest])  # argparse gives up on words that stand behind an option
    return args


def _check_word(words: Sequence[str], known: Sequence[str], what: str) -> None:
    if words and not words[0].startswith("-") and words[0] not in known:
        raise UserError(f'unknown {what} "{words[0]}"{nearest(words[0], known)}')


def module_of(args: argparse.Namespace) -> str:
    """The module of tutelage.commands that does this.  A look at data loads a tokenizer only where one is asked for."""
    name = args.command if args.command != "data" else f"data {args.action}"
    wants_tokens = (name == "data inspect" and args.tokens) or (name == "data annotate" and args.model)
    return "tokens" if wants_tokens else MODULES[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    json_only = "--json" in argv
    try:
        args = parse(argv)
        if args.command is None:
            parser().print_help()
            return 0
    except UserError as error:
        import_module("tutelage.terminal").fail(str(error), json_only=json_only)
        return 2
    except SystemExit as done:  # --help, --version
        return int(done.code or 0)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    shown = import_module("tutelage.terminal")
    terminal = shown.Terminal(json_only=args.json)
    if not sys.warnoptions:  # what libraries tell their developers is no news to our users
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    try:
        return import_module(f"tutelage.commands.{module_of(args)}").run(args, terminal) or 0
    except KeyboardInterrupt as stop:
        reason = str(stop) or "stopped"
        print(f"\n{reason}{f'; go on with: {terminal.resume}' if terminal.resume else ''}", file=sys.stderr, flush=True)
        return 130
    except UserError as error:
        shown.fail(str(error), json_only=args.json)
        return 2
    except BrokenPipeError:  # `tutelage runs | head`: the reader has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM):
            raise
        where = f" ({error.filename})" if error.filename else ""
        then = f"; then go on with: {terminal.resume}" if terminal.resume else ""
        shown.fail(
            f"{error.strerror}{where}. Free some space, or choose a folder that you may write to{then}",
            json_only=args.json,
        )
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; naming the class would import torch
            raise
        shown.fail(
            "the accelerator is out of memory. Lower loop.token_budget (rl: token_budget), which changes no result, "
            f"set gradient_checkpointing=true, or use lora.rank=16 ({str(error).splitlines()[0]})",
            json_only=args.json,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
