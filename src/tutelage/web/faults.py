"""What went wrong, in the visitor's language, for the cases that an annotator can meet.

The other rooms and programs know English alone, so a message is known by its words; a test raises every one of them where
it comes from.  A message that is not known stays as it is.
"""

import re
from collections.abc import Callable

FAULTS = {name: re.compile(pattern, re.DOTALL) for name, pattern in {
    "needed": r"question (?P<question>.+): an answer is needed",
    "nothing": r"nothing was answered; answer a question, or skip the item",
    "short": r"question (?P<question>.+): a text of at least (?P<least>\d+) characters; got \d+",
    "unfit": r"question (?P<question>.+?): (?P<rest>.+)",
    "lease": r"no such lease.*",
    "undo_old": r"only your last (?P<count>\d+) judgements can be undone; this one is older",
    "undo_gone": r"others have judged this item since you skipped it",
    "too_long": r"the (?:answers|draft): (?P<length>\d+) characters are too many; at most (?P<most>\d+)",
    "closed": r"(?P<name>\S+) cannot judge in (?P<project>\S+): .+",
    "no_project": r"no project is named .+",
    "signin": r"sign in first",
    "old_form": r"this form is from an older session; load the page again",
    "other_site": r"this form was sent from another site",
    "role": r"this needs a role that may (?P<action>\w+); yours is (?P<role>\w+)",
    "tries": r"too many tries; wait a minute",
    "password": r"name or password is wrong",
    "locked": r"too many wrong passwords; try again in (?P<minutes>\d+) minute\(s\), or ask an admin for a one-time link",
    "link": r"this link was used before, is too old, or is incomplete; ask for a new one",
    "password_length": r"a password has (?P<least>\d+) to (?P<most>\d+) characters; a sentence of four words is easy to remember",
    "password_weak": r"this password is too easy to guess; a sentence of four words is easy to remember",
    "nowhere": r"there is nothing here|Not Found",
}.items()}
_CHINESE = re.compile("[\u4e00-\u9fff]")


def in_words(message: str, t: Callable[..., str]) -> str:
    """The message in the language of `t`.

    >>> from tutelage.web.texts import speaker
    >>> in_words("others have judged this item since you skipped it", speaker("zh"))
    '您跳过之后，其他人已评判此条目'
    """
    for name, pattern in FAULTS.items():
        if found := pattern.fullmatch(message):
            return t(f"fault.{name}", **found.groupdict())
    return message


def language_of(message: str) -> str:
    """What a screen reader should read it as: messages that are not translated stand on Chinese pages too."""
    return "zh" if _CHINESE.search(message) else "en"
