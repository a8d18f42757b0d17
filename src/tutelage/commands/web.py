"""`tutelage web`: the web app for raters, on this machine."""

import contextlib
import os
import socket
from argparse import Namespace

import uvicorn

from tutelage.commands.database import database_address
from tutelage.core.errors import UserError
from tutelage.recipes import find_workspace
from tutelage.store.db import Database, open_database
from tutelage.store.signin import first_admin_link, make_link
from tutelage.terminal import Terminal
from tutelage.web.app import DATABASE, create_app
from tutelage.web.workers import Workers


def run(args: Namespace, terminal: Terminal) -> int:
    """Open the database, take the port, print where to go, and serve until it is stopped."""
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1; got {args.workers}")
    where = database_address(args.database, find_workspace(args.workspace))
    db = open_database(where)
    if args.link:
        address = f"http://{_shown(args.host)}:{args.port}/link/{make_link(db, args.link, actor='tutelage')}"
        terminal.say(f"A one-time link for {args.link}, good for a day:\n  {address}")
        terminal.result({"person": args.link, "link": address})
        return 0
    door = _bind(args.host, args.port)
    address = f"http://{_shown(args.host)}:{door.getsockname()[1]}"
    link = first_admin_link(db)
    terminal.head(f"Tutelage is at {address}")
    terminal.say(f"  database  {db.url}")
    if link:
        terminal.say(f"  sign in   {address}/link/{link}\n            (once, as admin; then set a password)")
    terminal.note("Ctrl-C stops it.")
    terminal.result({"address": address, "admin_link": f"{address}/link/{link}" if link else None, "database": db.url})
    _serve(db, where, door, workers=args.workers)
    return 0


def _shown(host: str) -> str:
    """The host as a browser on this machine may open it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int) -> socket.socket:
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}); choose another one with --port, or 0 for any") from error
    door.listen(2048)
    door.set_inheritable(True)
    return door


def _serve(db: Database, where: str, door: socket.socket, *, workers: int) -> None:
    options = {"log_level": "warning", "access_log": False, "server_header": False}  # addresses hold one-time secrets
    if workers == 1:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is stopped; what was begun has been finished by then
            uvicorn.Server(uvicorn.Config(create_app(db), **options)).run(sockets=[door])
        db.close()
        return
    os.environ[DATABASE] = where  # to each worker, which opens the database for itself
    db.close()
    config = uvicorn.Config("tutelage.web.app:from_environment", factory=True, workers=workers, **options)
    Workers(config, sockets=[door]).run()
