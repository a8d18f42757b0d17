"""`tutelage runs`: what has been trained here, how far it came, and whether its files are whole."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from tutelage.core.errors import DamagedError, UserError, nearest
from tutelage.recipes import find_workspace, read_file
from tutelage.store.runs import Run, list_runs, verify_folder
from tutelage.terminal import Terminal, compact_yaml, figures

ALIVE = 120.0  # seconds since the last row of metrics after which an unfinished run counts as stopped


def status(run: Run) -> str:
    """finished, running or stopped; a run that was killed cannot say so, but it writes no more metrics."""
    if run.finished():
        return "finished"
    newest = max(
        (path.stat().st_mtime for path in (run.metrics_path, run.folder / "manifest.json") if path.exists()),
        default=0.0,
    )
    return "running" if time.time() - newest < ALIVE else "stopped"


def summary(run: Run) -> dict[str, Any]:
    """One run as plain data."""
    manifest, rows = run.manifest, run.metrics()
    last: dict[str, Any] = {}
    for row in rows:
        last.update(row)
    return {
        "run": run.id,
        "kind": manifest["kind"],
        "status": status(run),
        "steps": manifest.get("steps", last.get("step", 0)),
        "started": manifest.get("started", ""),
        "base": (manifest.get("parents") or [""])[0],
        "data": (manifest.get("parents") or [""])[-1],
        "folder": str(run.folder),
        "last": {key: value for key, value in last.items() if key != "time"},
    }


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    if args.words[:1] == ["verify"]:
        return _verify(_chosen(workspace, args.words[1:]), terminal)
    if args.words:
        for found in _chosen(workspace, args.words):
            _show(found, terminal)
        return 0
    rows = [summary(each) for each in list_runs(workspace)]
    if not rows:
        terminal.say(f"No runs in {workspace / 'runs'} yet.")
        terminal.next_steps("tutelage sft tiny_sft", "tutelage demo")
    else:
        terminal.table(
            ["run", "kind", "status", "steps", "base", "data", "last"],
            right=(3,),
            rows=[
                (
                    row["run"],
                    row["kind"],
                    row["status"],
                    row["steps"],
                    row["base"],
                    row["data"],
                    figures(row["last"], most=3),
                )
                for row in rows
            ],
        )
    terminal.result({"runs": rows})
    return 0


def _chosen(workspace: Path, names: list[str]) -> list[Run]:
    known = {each.id: each for each in list_runs(workspace)}
    for name in names:
        if name not in known:
            raise UserError(f"no run {name!r} in {workspace / 'runs'}{nearest(name, known)}")
    return [known[name] for name in names] if names else list(known.values())


def _show(found: Run, terminal: Terminal) -> None:
    facts = summary(found)
    config = read_file(found.folder / "config.yaml")
    terminal.head(f"{found.id}  {facts['kind']}, {facts['status']}")
    terminal.say(f"  started  {facts['started']}")
    terminal.say(f"  folder   {facts['folder']}")
    terminal.say(f"  base     {facts['base']}")
    terminal.say(f"  data     {facts['data']}")
    terminal.say(f"  steps    {facts['steps']}")
    terminal.say("  last metrics")
    for name, value in facts["last"].items():
        terminal.say(f"    {name:<18} {value:.6g}" if isinstance(value, (int, float)) else f"    {name:<18} {value}")
    terminal.say("  configuration")
    for line in compact_yaml(config).splitlines():
        terminal.say(f"    {line}")
    if facts["status"] == "finished":
        terminal.say(f"  model    {found.final}", style="green")
    elif facts["status"] == "stopped":
        terminal.next_steps(f"tutelage {facts['kind']} --run {found.id} --resume")
    terminal.result({**facts, "config": config})


def _verify(found: list[Run], terminal: Terminal) -> int:
    """Every checkpoint and every result against its checksums; exit code 1 where one does not hold."""
    rows = []
    for each in found:
        folders = [
            path
            for path in (each.final, each.folder / "best", *sorted(each.checkpoints.glob("[!.]*")))
            if path.is_dir()
        ]
        for folder in folders:
            try:
                files = len(verify_folder(folder))
                rows.append({"run": each.id, "folder": str(folder), "files": files, "damage": None})
                terminal.say(f"whole    {folder} ({files} files)")
            except DamagedError as error:
                rows.append({"run": each.id, "folder": str(folder), "files": None, "damage": str(error)})
                terminal.say(f"DAMAGED  {error}", style="red")
        if not folders:
            terminal.say(f"nothing  {each.folder} has no checkpoint yet")
    damaged = sum(row["damage"] is not None for row in rows)
    terminal.say(f"{len(rows)} folders checked, {damaged} damaged", style="red" if damaged else "green")
    terminal.result({"checked": rows, "damaged": damaged})
    return 1 if damaged else 0
