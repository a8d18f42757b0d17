"""The app's own words, in English and Chinese: one flat JSON catalogue a language, the same keys in both."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文"}
FOLDER = Path(__file__).with_name("locale")


@cache
def catalogue(lang: str) -> dict[str, str]:
    return json.loads((FOLDER / f"{lang}.json").read_text(encoding="utf-8"))


def speaker(lang: str) -> Callable[..., str]:
    """The function that templates call as t(KEY, name=value)."""
    words = catalogue(lang)

    def t(key: str, **values: object) -> str:
        return words[key].format(**values) if values else words[key]

    return t


def chosen(cookie: str | None, accepted: str) -> str:
    """The language of a visit: the one that was chosen, or the first of the browser's that there is, or English.

    >>> chosen(None, "de, zh-CN;q=0.8, en;q=0.5"), chosen("en", "zh"), chosen("xx", "")
    ('zh', 'en', 'en')
    """
    if cookie in LANGUAGES:
        return cookie
    ranked = []
    for part in accepted[:1000].split(","):
        tag, _, q = part.strip().partition(";q=")
        try:
            ranked.append((-float(q or 1), len(ranked), tag.split("-")[0].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(ranked) if tag in LANGUAGES), "en")


def of_language(texts: dict[str, str], lang: str, default: str = "") -> str:
    """A rubric's text in this language, else in English, else in any, else the default."""
    return texts.get(lang) or texts.get("en") or next(iter(texts.values()), default)


def harm_word(name: str, lang: str) -> str:
    """A category of harm: the built-in ones have words in both languages, a project's own stand as they are."""
    return catalogue(lang).get(f"harm.{name}", name)
