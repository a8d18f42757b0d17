"""The commands, one module each, as part of the front door: each is imported by `cli.py` once it was asked for.

`run(args, terminal) -> exit code` reads the command line; what it does stands beside it as functions that `api.py` calls.
"""
