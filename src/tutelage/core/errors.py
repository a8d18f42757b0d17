"""Errors that teach: what is wrong, where, what came, what was wanted, and what to do next."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user can mend.  The command line prints it without a traceback and exits with 2."""


class ConfigError(UserError):
    """All faults of one configuration, reported together."""

    def __init__(self, faults: Iterable[str], *, where: str = "configuration"):
        self.faults = tuple(faults)
        super().__init__(f"{where}: {len(self.faults)} fault(s)\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class RewardError(UserError):
    """A reward or cost that the user wrote raised an error of its own."""


class DamagedError(UserError):
    """A file on disk does not match its checksum or cannot be read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean "beta"?' or the list of known words, to stand at the end of an error message.

    >>> nearest("betta", ["beta", "gamma"])
    '; did you mean "beta"?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(known)}" if known else ""
