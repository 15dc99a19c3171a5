"""What a statement owes to one passage alone, on numbers that can be added up by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mechattr.audit.decisive import decisive, gain

FULL, NONE = np.array([-1.0, -2.0, -3.0, -1.0]), np.array([-5.0, -2.5, -2.0, -1.0])
"""The context does 4, .5, -1 and nothing for four tokens."""


def test_gain_is_of_the_tokens_that_the_context_helps():
    assert gain(FULL, NONE) == 4.5
    assert gain(NONE, FULL) == 1.0
    assert gain(FULL[:0], NONE[:0]) == 0


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ([4.0, 0.0, 0.0, 0.0], 4.0),
        ([2.0, 0.0, 0.0, 0.0], 2.0),  # half
        ([1.99, 0.0, 0.0, 0.0], 0.0),
        ([1.99, 0.25, 0.0, 0.0], 0.25),
        ([9.0, 0.0, 0.0, 0.0], 9.0),  # without it the others mislead
        ([0.0, 0.0, 3.0, 3.0], 0.0),  # tokens that the context doesn't help
        ([-4.0, 0.5, 0.0, 0.0], 0.5),
        ([4.0, 0.5, -1.0, 0.0], 4.5),
    ],
)
def test_decisive_is_the_sum_over_tokens_that_depend_on_it(lost, expected):
    assert decisive(FULL, NONE, FULL - np.array(lost)) == pytest.approx(expected)


def test_of_all_passages_together_it_is_the_gain():
    assert decisive(FULL, NONE, NONE) == gain(FULL, NONE)
