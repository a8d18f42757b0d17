import pytest

from tutelage.core.errors import ConfigError, DamagedError, UserError, nearest


@pytest.mark.parametrize("word, known, said", [
    ("kl_betta", ["kl_beta", "gamma"], '; did you mean "kl_beta"?'),
    ("BETA", ["gamma", "alpha"], "; known: alpha, gamma"),  # nothing near: all of them, sorted
    ("x", [], ""),
])
def test_nearest(word, known, said):
    assert nearest(word, known) == said
    assert nearest(word, iter(known)) == said


def test_a_config_error_counts_and_lists_every_fault():
    error = ConfigError(["first", "second"], where="recipe sft.yaml")
    assert str(error) == "recipe sft.yaml: 2 fault(s)\n  - first\n  - second"
    assert error.faults == ("first", "second")


def test_what_the_user_can_mend_is_a_user_error_and_a_value_error():
    for kind in (ConfigError, DamagedError):
        assert issubclass(kind, UserError) and issubclass(kind, ValueError)
