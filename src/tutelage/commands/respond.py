"""`tutelage respond`: prompts in, answers out, with the ids that were sampled and their log-probs."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tutelage.algos.best_of_n import kl_bound
from tutelage.commands.engines import model_name, open_engine, open_judge, read_prompts, sampling_of, write_answer_rows
from tutelage.core.errors import UserError
from tutelage.core.files import write_jsonl
from tutelage.core.protocols import Engine, Progress, silent
from tutelage.core.words import Judgement, Message, Prompt, Response, Sampling
from tutelage.recipes import find_workspace
from tutelage.remote.address import is_address
from tutelage.terminal import Terminal
from tutelage.training.best_of_n import best_responses
from tutelage.training.rollouts import judge_all


def prompt_from_text(text: str) -> Prompt:
    if not text.strip():
        raise UserError("a prompt needs some text; got none")
    return Prompt(messages=(Message(role="user", text=text),))


def respond(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, *, progress: Progress = silent
) -> list[Response]:
    """`sampling.n` answers to each prompt, in the order of the prompts and of their index."""
    order = {prompt.id: at for at, prompt in enumerate(prompts)}
    out: list[Response] = []
    for response in engine.respond([(prompt, sampling) for prompt in prompts]):
        out.append(response)
        progress("answer", len(out), len(prompts) * sampling.n)
    return sorted(out, key=lambda each: (order[each.prompt_id], each.index))


def check_best_of(args: Namespace) -> None:
    if args.best_of is None:
        if args.judge:
            raise UserError("--judge picks among several answers: say how many with --best-of N")
        return
    if args.best_of < 2:
        raise UserError(f"--best-of must be at least 2; got {args.best_of}")
    if not args.judge:
        raise UserError("--best-of keeps the answer that a judge likes best: name the judge with --judge PATH")
    if args.n > 1:
        raise UserError("give one of -n (show all answers) and --best-of (keep the best), not both")
    if args.temperature == 0:
        raise UserError("at --temperature 0 the answers to a prompt are all the same; give one above 0, for instance 0.7")


def picked_facts(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Mean value of all answers, and of the best to each prompt."""
    values = [value for judgement in judgements for value in judgement.values]
    return {"reward": fmean(values), "reward_best": fmean(max(judgement.values) for judgement in judgements)}


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    if bool(args.prompt) == bool(args.data):
        raise UserError(
            "say what to answer: --data NAME or FILE, or --prompt TEXT" + (" (not both)" if args.data else "")
        )
    check_best_of(args)
    sampling = sampling_of(args, n=args.best_of or args.n)
    if args.n > 1 and args.temperature == 0:
        terminal.warn("at --temperature 0 the answers to a prompt are all the same; give a temperature to see several")
    prompts = (
        [prompt_from_text(text) for text in args.prompt]
        if args.prompt
        else read_prompts(args.data, workspace, held_out=False, tell=terminal.note)
    )
    prompts = list({prompt.id: prompt for prompt in prompts}.values())[: args.limit]
    name = model_name(args.model, workspace)
    judge = open_judge(args.judge, workspace, dtype=args.dtype, device=args.device) if args.best_of else None
    with terminal.progress() as progress:
        engine = open_engine(name, workspace, dtype=args.dtype, device=args.device, progress=progress)
        responses = respond(engine, prompts, sampling, progress=progress)
    picked: dict[str, float] = {}
    if judge is not None and prompts:
        judgements = judge_all(judge, prompts, responses)
        responses, picked = best_responses(responses, judgements), picked_facts(judgements)
        mean, best = picked.values()
        terminal.note(
            f"Best of {args.best_of} by {judge.id}: {mean:.3g} on average, the best {best:.3g}; "
            f"at most {kl_bound(args.best_of):.2f} nats from the answers of the model itself"
        )
    rows = write_answer_rows(prompts, responses)
    out = Path(args.out) if args.out else None if args.prompt else Path("responses.jsonl")
    if out is not None:
        write_jsonl(out, rows)
    if args.prompt:
        show(prompts, responses, terminal)
    if out is not None:
        cut = sum(response.is_truncated() for response in responses)
        failed = sum(response.finish == "error" for response in responses)
        terminal.say(
            f"Wrote {out}: {len(responses)} answers of {engine.policy} to {len(prompts)} prompts"
            + (f", {cut} cut off at {args.max_tokens} tokens" if cut else ""),
            style="green",
        )
        if failed:
            filtered = ", or its filter held the answer back" if is_address(name) else ""
            terminal.warn(f"{failed} prompts have no answer: they are longer than the model's context{filtered}")
    facts = {"model": name, "prompts": len(prompts), "responses": len(responses), "path": str(out) if out else None, **picked}
    terminal.result(facts if out is not None else {**facts, "rows": rows})
    return 0


def show(prompts: Sequence[Prompt], responses: Sequence[Response], terminal: Terminal) -> None:
    for prompt in prompts:
        if len(prompts) > 1:
            terminal.note(f"> {prompt.messages[-1].text}")
        found = [response for response in responses if response.prompt_id == prompt.id]
        for response in found:
            mark = f"[{response.index + 1}] " if len(found) > 1 else ""
            terminal.say(f"{mark}{response.text.strip()}{' ...' if response.is_truncated() else ''}")
        if len(prompts) > 1:
            terminal.say()
