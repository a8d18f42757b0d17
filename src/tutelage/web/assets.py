"""The app's own files: one stylesheet, small modules, an icon, read once."""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("static")
TYPES = {".css": "text/css; charset=utf-8", ".mjs": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    body: bytes
    type: str


@cache
def assets() -> dict[str, Asset]:
    paths = [path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES]
    return {path.name: Asset(path.read_bytes(), TYPES[path.suffix]) for path in paths}


@cache
def digest() -> str:
    """Changes with any of the files: they may be kept for ever under an address that has it."""
    return hashlib.sha256(b"".join(asset.body for asset in assets().values())).hexdigest()[:12]
