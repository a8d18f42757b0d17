"""What is installed is what was written: the wheel holds every file of the package, and no tests."""

import pytest
from wheel import build, faults


@pytest.mark.slow
def test_the_wheel_holds_every_template_style_word_and_migration_and_no_tests(tmp_path):
    wheel = build(tmp_path)
    assert not faults(wheel)
