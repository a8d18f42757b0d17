from pathlib import Path

from tutelage.evals.tasks import UNIT_AND_DIRECTION
from tutelage.evals.words import METRICS

ARROWS = {"up": "↑", "down": "↓", "none": "↕"}
PAGE = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_every_metric_of_the_report_has_its_line_with_unit_and_direction():
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    told = {cells[0].strip("`"): cells for cells in lines}
    assert set(told) == set(METRICS)
    for metric, (unit, direction) in UNIT_AND_DIRECTION.items():
        assert told[metric][2] == unit and told[metric][3] == ARROWS[direction], metric
