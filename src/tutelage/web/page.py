"""Templates to pages."""

import time
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tutelage.web import render, texts
from tutelage.web.assets import digest
from tutelage.web.auth import THEMES, Visit
from tutelage.web.faults import language_of

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True,
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
TEMPLATES.globals.update(languages=texts.LANGUAGES, themes=THEMES)
TEMPLATES.filters.update(
    markdown=render.rendered, raw=render.raw, visible=render.visible, lang_of=language_of,
    when=lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)), percent=lambda share: f"{100 * share:.0f} %")


class _Csrf:
    """What a form calls as csrf(): the hidden field with the session's word."""

    def __init__(self, visit: Visit):
        self.visit = visit

    def __call__(self) -> Markup:
        return Markup('<input type="hidden" name="csrf" value="{}">').format(self.visit.csrf)


def html(visit: Visit, template: str, **values: Any) -> str:
    person = visit.session.person if visit.session else None
    return TEMPLATES.get_template(template).render(
        visit=visit, t=visit.t, lang=visit.lang, digest=digest(), csrf=_Csrf(visit), person=person, **values)


def page(visit: Visit, template: str, *, status: int = 200, headers: dict[str, str] | None = None,
         **values: Any) -> HTMLResponse:
    return HTMLResponse(html(visit, template, **values), status, headers)
