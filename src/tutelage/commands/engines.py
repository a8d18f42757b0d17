"""Models that answer, prompts that are asked, judges that decide: what respond, chat, eval and compare share."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

from tutelage.commands.database import resolve
from tutelage.core.errors import UserError
from tutelage.core.files import read_jsonl
from tutelage.core.protocols import Judge, Progress, silent
from tutelage.core.words import Prompt, Response, Sampling
from tutelage.data.snapshot import load_rows
from tutelage.models.load import load
from tutelage.recipes import model_of, read_settings, short_name
from tutelage.remote.address import is_address
from tutelage.remote.openai_client import OpenAIEngine
from tutelage.rollout.local import LocalEngine
from tutelage.training.rl import judge_by_name

Tell = Callable[[str], None]


def model_name(given: str | None, workspace: Path) -> str:
    return given or read_settings(workspace).model


def open_engine(
    name: str,
    workspace: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    kind: type[LocalEngine] = LocalEngine,
    progress: Progress = silent,
) -> LocalEngine | OpenAIEngine:
    """An engine on this machine for a model, a folder or a run, whose policy is the name that was given; or for an address."""
    if is_address(name):
        return OpenAIEngine(name)
    loaded = load(model_of(name, workspace), dtype=dtype, device=device, progress=progress)
    return kind(loaded.model, loaded.tokenizer, policy=short_name(name))


def open_judge(name: str, workspace: Path, *, dtype: str = "auto", device: str = "auto") -> Judge:
    """A reward model by folder or run, `rule:NAME` or `python:FILE.py:FUNCTION`."""
    return judge_by_name(model_of(name, workspace), dtype=dtype, device=device)


def read_prompts(data: str, workspace: Path, *, held_out: bool, tell: Tell = lambda line: None) -> list[Prompt]:
    """The distinct prompts behind a data name.  `held_out`: the test split, else the validation split, where there is one."""
    rows = load_rows(resolve(data, workspace, command="rl", tell=tell), workspace, kind="prompts", tell=tell)
    splits = [rows.splits[split] for split in ("train", "val", "test")]
    if held_out:
        which = next((split for split in ("test", "val") if rows.splits[split]), None)
        if which is None:
            tell(
                f"{data} has no held-out split; all of its prompts are used, and a model may have been trained on them"
            )
        elif any(rows.splits[split] for split in ("train", "val", "test") if split != which):
            tell(f"{data}: the {which} split is used ({len(rows.splits[which])} prompts)")
        splits = [rows.splits[which]] if which else splits
    prompts = list({prompt.id: prompt for split in splits for prompt in split}.values())
    if not prompts:
        raise UserError(f"{data} holds no prompts")
    return prompts


def spread_out(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
    """`limit` of the prompts, evenly over the list, so that every task of a sorted set stays in."""
    if limit is None or limit >= len(prompts):
        return prompts
    if limit < 1:
        raise UserError(f"--limit must be at least 1; got {limit}")
    return [prompts[at * len(prompts) // limit] for at in range(limit)]


def sampling_of(args: Namespace, *, n: int = 1) -> Sampling:
    try:
        return Sampling(n=n, max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def write_answer_rows(prompts: Iterable[Prompt], responses: Iterable[Response]) -> list[dict]:
    """Rows of responses.jsonl: each response with its prompt, in the order of the prompts."""
    by_prompt: dict[str, list[Response]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    return [
        {**response.to_dict(), "prompt": prompt.to_dict()}
        for prompt in prompts
        for response in sorted(by_prompt.get(prompt.id, ()), key=lambda each: each.index)
    ]


def read_answers(path: Path) -> tuple[list[Prompt], list[Response]]:
    """Prompts and first answers of a file that `tutelage respond` wrote."""
    prompts, responses = {}, {}
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            prompt = Prompt.from_dict(row["prompt"])
            response = Response.from_dict({key: value for key, value in row.items() if key != "prompt"})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, line {number}: not an answer as `tutelage respond` writes them ({error})"
            ) from error
        prompts[prompt.id] = prompt
        if prompt.id not in responses or response.index < responses[prompt.id].index:  # of --best-of, only one is there
            responses[prompt.id] = response
    return list(prompts.values()), list(responses.values())
