"""Both catalogues say everything; strangers' markdown becomes safe HTML."""

import ast
import re
import string
import time
from pathlib import Path

import pytest
from markupsafe import Markup

import tutelage.web
from tutelage.web.render import LONGEST, raw, rendered, visible
from tutelage.web.texts import LANGUAGES, catalogue, chosen

WEB = Path(tutelage.web.__file__).parent
TEMPLATES = sorted((WEB / "templates").glob("*.html"))


def fields(text):
    return sorted({name for _, name, _, _ in string.Formatter().parse(text) if name is not None})


def test_every_string_is_in_both_catalogues_with_the_same_fields():
    en, zh = catalogue("en"), catalogue("zh")
    assert list(en) == list(zh) and set(LANGUAGES) == {"en", "zh"}
    for key in en:
        assert en[key].strip() and zh[key].strip() and fields(en[key]) == fields(zh[key]), key
    same = {key for key in en if en[key] == zh[key] and not key.startswith("key.")}
    assert not same, f"not translated: {sorted(same)}"


def test_every_key_that_is_used_is_there_and_every_key_that_is_there_is_used():
    source = "\n".join(path.read_text("utf-8") for path in (*TEMPLATES, *WEB.rglob("*.py")))
    scripts = "\n".join(path.read_text("utf-8") for path in (WEB / "static").glob("*.mjs"))
    whole = set(re.findall(r"""\bt\(\s*["']([\w.-]+)["']\s*[,)]""", source))
    starts = (
        set(re.findall(r"""\bt\(\s*["']([\w.-]+\.)["']\s*~""", source))
        | {re.split(r"\{", found)[0] for found in re.findall(r"""\bt\(f"([^"]+)"\)?""", source)}
        | {"harm.", "error."}
    )
    known = set(catalogue("en"))
    assert whole <= known, f"used and not there: {sorted(whole - known)}"
    js = {f"js.{name}" for name in re.findall(r"\bwords\.(\w+)", scripts)} | {
        key for key in known if key.startswith("js.status.")
    }
    assert {key for key in js if key not in known} <= {"js.status"}, sorted(js - known)
    unused = {key for key in known - whole - js if not any(start and key.startswith(start) for start in starts)}
    assert not unused, f"there and never used: {sorted(unused)}"


def test_templates_hold_no_words_of_their_own():
    allowed = {"Tutelage", "OpenAPI", "SHA-256", "n", "prompt", "responses", "text", "policy", "model-a", "model-b", "·"}
    for path in TEMPLATES:
        text = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", " ", path.read_text("utf-8"), flags=re.S)
        text = re.sub(r"<kbd>.*?</kbd>|<[^>]*>|&\w+;", " ", text, flags=re.S)
        loose = {word for word in re.findall(r"[^\W\d_][\w-]*", text) if word not in allowed}
        assert not loose, (path.name, sorted(loose))


def test_the_apps_own_code_holds_no_inline_html_words():
    """Attributes that people hear are from the catalogue too."""
    for path in TEMPLATES:
        for value in re.findall(r'(?:aria-label|title|placeholder|alt)="([^"]*)"', path.read_text("utf-8")):
            assert value.startswith("{{"), (path.name, value)


@pytest.mark.parametrize(
    "cookie, header, lang",
    [
        (None, "", "en"),
        ("zh", "en", "zh"),
        (None, "fr;q=1, zh;q=0.5", "zh"),
        (None, "zh;q=x, en", "en"),
        ("<script>", "zh-CN", "zh"),
        (None, "," * 5000, "en"),
    ],
)
def test_the_language_is_the_chosen_one_or_the_browsers(cookie, header, lang):
    assert chosen(cookie, header) == lang


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("**a** `b`", "<p><strong>a</strong> <code>b</code></p>"),
        ("# Big", '<p class="heading h1">Big</p>'),  # no heading of the page's own outline
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
        ("![kite](http://a.b/c.png)", '<p><span class="image">[kite]</span></p>'),
        ("![<b>](http://a.b)", '<p><span class="image">[&lt;b&gt;]</span></p>'),
        ('[a](http://b.c/?x=1&y="2")', "<p>[a](http://b.c/?x=1&amp;y=&quot;2&quot;)</p>"),
        ("[a](http://b.c)", '<p><a href="http://b.c" rel="noopener noreferrer nofollow" target="_blank">a</a></p>'),
        ("[a](javascript:alert)", "<p>[a](javascript:alert)</p>"),
        ("[a](data:text/html,x)", "<p>[a](data:text/html,x)</p>"),
        ("[a](/signout)", "<p>[a](/signout)</p>"),
        ("[a](JaVaScRiPt:x)", "<p>[a](JaVaScRiPt:x)</p>"),
        ("a\u202eb", "<p>a⟦U+202E⟧b</p>"),
        ("```\n<i>\n```", "<pre><code>&lt;i&gt;\n</code></pre>"),
    ],
)
def test_markdown_becomes_safe_html(text, wanted):
    found = str(rendered(text)).strip()
    assert (
        found == wanted
        or "(http://b.c/?x" in text
        and "<a " not in found.replace('<a href="http://b.c/?x=1&amp;y=%222%22"', "")
    )


def test_a_title_of_a_link_cannot_break_out_of_its_attribute():
    html = rendered("[x](http://a.b 'q\" onmouseover=\u202ealert(1)')")
    assert "onmouseover" not in html and isinstance(html, Markup)


def test_what_is_too_long_to_render_is_escaped_as_it_is():
    assert rendered("<" * (LONGEST + 1)) == f'<div class="plain">{"&lt;" * (LONGEST + 1)}</div>'


@pytest.mark.parametrize("piece", ["[", "*a_", "`", "> ", "- ", "![", "|a", "~~", "<a", "\\", "&#", "[](", "***"])
def test_no_text_takes_long_to_render(piece):
    """The longest that is rendered, of the pieces that parsers dread."""
    start = time.process_time()
    rendered((piece * LONGEST)[:LONGEST])
    assert time.process_time() - start < 3


def test_raw_text_keeps_every_position():
    assert raw("a\r\nb\0<&") == "a&#13;\nb\ufffd&lt;&amp;" and visible("\ud800\x1b") == "\ufffd␛"


def test_the_web_room_loads_no_torch():
    names = {
        alias.name
        for path in WEB.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not any(name.startswith(("torch", "transformers")) for name in names)
