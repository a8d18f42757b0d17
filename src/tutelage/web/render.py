"""Text that strangers wrote, shown harmlessly: markdown as safe HTML, and the raw text as it is.

HTML in the text is shown as text, images are named and never loaded, links open only http, https and mailto.  Characters
that would turn the reading direction round or cannot be seen are spelled out.  `math` is left as it was typed.
"""

import re
from functools import lru_cache

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

LONGEST = 20_000  # characters that are rendered; longer texts are shown as they are (a megabyte of brackets takes minutes)
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LINK = re.compile(r"^(https?://|mailto:)", re.IGNORECASE)
_HALF = re.compile("[\ud800-\udfff]")


def _renderer() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    markdown.validateLink = lambda url: bool(_LINK.match(url.strip()))
    rules = markdown.renderer.rules

    def heading(tokens, at, options, env):  # an answer's heading must not stand in the page's outline
        return f'<p class="heading {tokens[at].tag}">' if tokens[at].nesting == 1 else "</p>\n"

    def image(tokens, at, options, env):
        return f'<span class="image">[{escape(tokens[at].content or "image")}]</span>'

    def link_open(tokens, at, options, env):
        return f'<a href="{escape(tokens[at].attrGet("href") or "")}" rel="noopener noreferrer nofollow" target="_blank">'

    rules["heading_open"] = rules["heading_close"] = heading
    rules["image"] = image
    rules["link_open"] = link_open
    return markdown


_MARKDOWN = _renderer()


def visible(text: str) -> str:
    """The text with the characters spelled out that cannot be seen or that turn the direction round.

    >>> visible("a\\u202eb\\0")
    'a⟦U+202E⟧b␀'
    """
    text = _BIDI.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text)
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 0x20 else "\ufffd", text)


@lru_cache(maxsize=256)
def rendered(text: str) -> Markup:
    """Safe HTML of a markdown text."""
    if len(text) > LONGEST:
        return Markup('<div class="plain">{}</div>').format(visible(text))
    return Markup(_MARKDOWN.render(visible(text)))


def raw(text: str) -> Markup:
    """The text for the inside of <pre> or <textarea>, character for character: a position there is a position in the text.

    A parser of HTML drops null bytes and makes one line end of CR LF, so these are written so that they survive.
    """
    kept = _HALF.sub("\ufffd", text.replace("\0", "\ufffd"))
    return Markup(str(escape(kept)).replace("\r", "&#13;"))
