"""Every fault that is made again is caught, by the code that is meant for it; the page holds the same tables."""

import re
from pathlib import Path

import pytest
from faults import FAULTS, Fault

from tutelage.preflight.check import CHECKS, COMMANDS, check
from tutelage.preflight.findings import CODES

PAGE = Path(__file__).parents[2] / "docs" / "preflight.md"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.make.__name__)
def test_the_fault_is_caught(fault: Fault, tmp_path):
    findings = check(**fault.make(tmp_path))
    found = [finding for finding in findings if finding.code == fault.code]
    assert found, f"not caught: {fault.what}; found {[finding.code for finding in findings]}"
    assert found[0].cause and found[0].cure


def test_at_least_twenty_faults_come_from_issues_and_all_differ():
    assert len({fault.what for fault in FAULTS}) == len({fault.make for fault in FAULTS}) == len(FAULTS)
    assert sum("#" in fault.reported for fault in FAULTS) >= 20


def test_every_code_is_caught_by_a_fault_and_reported_by_a_check():
    assert {fault.code for fault in FAULTS} == set(CODES)
    reported = {code for each in CHECKS for code in each.codes} | {"memory"}  # memory is looked at before all others
    assert reported == set(CODES)


def table(title: str) -> list[list[str]]:
    """Cells of the table that stands under a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


def test_the_page_lists_the_faults():
    assert table("Faults that were made again") == [[fault.what, fault.reported, fault.code] for fault in FAULTS]


def test_the_page_lists_the_codes():
    commands = {code: [name for each in CHECKS if code in each.codes for name in each.commands] for code in CODES}
    commands["memory"] = list(COMMANDS)
    want = [[code, about, ", ".join(dict.fromkeys(commands[code]))] for code, about in CODES.items()]
    assert table("What is looked for") == want
