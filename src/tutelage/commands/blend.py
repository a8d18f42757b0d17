"""`tutelage blend --weights helpful=0.7,harmless=0.3`: several runs of one base as one model, by their weights."""

import contextlib
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from tutelage.commands.training import check_run_name, free_name
from tutelage.core.errors import UserError
from tutelage.models.blend import Method, blend, check_members, check_weights, member_of, parse_weights
from tutelage.preflight.kinds import scorer_in
from tutelage.recipes import find_workspace, model_of
from tutelage.store.runs import begin
from tutelage.terminal import Terminal

SCRATCH = ".blending"  # in the run's folder, until the blend is whole


def blend_runs(
    weights: Mapping[str, float] | str,
    *,
    workspace: Path,
    run: str | None = None,
    method: Method = "weights",
    unnormalised: bool = False,
) -> Path:
    """Blend runs (or folders) into the result of a new run; returns its folder.

    The run is begun when the blend is whole: one that fails or is killed leaves nothing that blocks its name.
    """
    check_run_name(run)
    given = parse_weights(weights) if isinstance(weights, str) else dict(weights)
    check_weights(given, unnormalised=unnormalised)
    paths = {name: model_of(name, workspace) for name in given}
    if len(set(paths.values())) < len(paths):
        raise UserError(f"two of {', '.join(given)} are one and the same model")
    members = [member_of(paths[name], weight) for name, weight in given.items()]
    for name, member in zip(given, members, strict=True):
        if found := scorer_in(member.path):
            raise UserError(f"{name} is {found}; only language models are blended (the score layer would be lost). Give several "
                            "reward models their weights in a recipe's `rewards:` instead")
    check_members(members)
    folder = workspace / "runs" / (run or free_name(workspace / "runs", "blend"))
    if (folder / "manifest.json").exists():
        raise UserError(f"a run already stands in {folder}; choose another name with --run NAME")
    config = {"weights": given, "method": method}
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # of a call that was killed
    try:
        blend(
            {paths[name]: weight for name, weight in given.items()},
            scratch,
            method=method,
            unnormalised=unnormalised,
            manifest={"run": folder.name, "config": config, "role": "policy"},
        )
        made = begin(folder, kind="blend", config=config, seed=0, parents=tuple(paths.values()))
        return made.finish(lambda place: _move(scratch, place), steps=0)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # goes only where it is empty, so where nothing came of it
            folder.rmdir()


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.rename(target / path.name)


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    weights = parse_weights(args.weights)
    path = blend_runs(weights, workspace=workspace, run=args.run, method=args.method, unnormalised=args.unnormalised)
    kind = "adapter" if (path / "adapter_config.json").exists() else "model"
    terminal.say(f"Made {path}", style="bold green")
    terminal.say(f"  one {kind} of " + ", ".join(f"{weight:g} x {name}" for name, weight in weights.items()))
    terminal.next_steps(
        f"tutelage chat {path.parent.name}", f"tutelage eval {' '.join(weights)} {path.parent.name}"
    )
    terminal.result({"run": path.parent.name, "path": str(path), "kind": kind, "weights": weights, "method": args.method})
    return 0
