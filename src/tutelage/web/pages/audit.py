"""The log: who did what when, and whether its chain is whole."""

import json
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from tutelage.store import ledger
from tutelage.web.auth import Admin, Checked, Visit, limit
from tutelage.web.page import page

router = APIRouter(include_in_schema=False)
PAGE = 50
BRIEF = 300  # characters of a row's content that are shown


@router.get("/audit")
def audit(visit: Admin, before: Annotated[int, Query(ge=0, le=2**62)] = 0, kind: str = "", actor: str = "",
          subject: str = "") -> Response:
    return _page(visit, before, *(each.replace("\0", "").strip() for each in (kind, actor, subject)))


def _page(visit: Visit, before: int = 0, kind: str = "", actor: str = "", subject: str = "",
          verdict: ledger.Verdict | None = None) -> Response:
    rows = ledger.audit(visit.db, after=before, limit=PAGE, kind=kind or None, actor=actor or None, subject=subject or None,
                        newest_first=True)
    return page(visit, "audit.html", rows=[(row, _brief(row)) for row in rows], kind=kind, actor=actor, subject=subject,
                verdict=verdict, older=rows[-1].seq if len(rows) == PAGE else 0)


def _brief(row: ledger.Entry) -> str:
    content = "" if row.content is None else json.dumps(row.content, ensure_ascii=False)
    return content if len(content) <= BRIEF else content[:BRIEF] + " ..."


@router.post("/audit/verify")
def verify(visit: Admin, form: Checked) -> Response:
    """Reads the whole log."""
    limit(visit, "verify", tries=10)
    return _page(visit, verdict=ledger.verify(visit.db))
