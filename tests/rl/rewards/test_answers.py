"""Agreement of answers: exact, graded by WordNet, and by kind."""

import numpy as np
import pytest

from zoomearth_jax.rl.rewards.answers import answer_scores


def test_graded_answers():
    answers = ["Ships. ", "a qlarge ship", None, "blue", "rural", "", "x", "ship..", "ship ."]
    references = ["ship", "a large ship", "ship", "dark", "Urban", "ship", "", "ship", "ship"]
    want = [1, 0, 0, 1, 1 / 3, 0, 0, 1, 0]  # a blank before the dot stays, as in the release
    np.testing.assert_allclose(answer_scores("wordnet", answers, references), want, rtol=1e-6)
    np.testing.assert_array_equal(answer_scores("exact", ["Ship.", "rural", None], ["ship", "urban", ""]), [1, 0, 0])


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("3", "5", 0),  # 1/3 by WordNet
        ("Three.", "3", 1),
        ("3.0", "3", 1),
        ("1,200", "1200", 1),
        ("twenty", "20", 1),
        ("three", "trio", 0),  # a synonym, but a number
        ("Yes", "yes", 1),
        ("yes", "no", 0),
        ("no", "yes", 0),
        ("yes", "yeah", 0),
        ("rural", "urban", 0),  # 1/3 by WordNet
        ("cars", "automobile", 1),
        ("dog", "wolf", 0),
        ("parking road", "parking lot", 0),
        ("parking area", "Parking lot.", 1),
        ("car  park", "parking lots", 1),  # multi-word lemmas, the plural too
        ("large ship", "a large ship", 0),
        ("", "", 0),
        (None, "ship", 0),
        ("", "ship", 0),
        ("9" * 5000, "8" * 5000, 0),
    ],
)
def test_typed_answers(answer, reference, score):
    assert answer_scores("typed", [answer], [reference]).tolist() == [score]


def test_typed_answers_in_a_batch():
    got = answer_scores("typed", ["3", "ship", "no", None], ["3", "vessel", "no", "no"])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [1, 0, 1, 0])
    assert answer_scores("typed", [], []).shape == (0,)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("8", "8", 1),
        ("7", "8", 1 - 1 / 4),  # 8^(2/3) = 4
        ("ten", "Eight.", 1 - 2 / 4),
        ("12", "8", 0),
        ("4", "8", 0),
        ("900", "1,000", 0),  # 100 off, of 1000^(2/3) = 100
        ("1010", "1000", 0.9),
        ("-7", "-8", 0.75),
        ("0", "0", 1),
        ("1", "0", 0),
        ("zero", "0", 1),
        ("about 8", "8", 0),
        ("9" * 5000, "8", 0),
        ("9" * 5000, "8" * 5000, 0),
        ("9" * 5000, "9" * 5000, 1),
        ("Red.", "red", 1),
        ("8", "red", 0),
        ("car", "automobile", 0),
        (None, "8", 0),
    ],
)
def test_counts(answer, reference, score):
    """max(0, 1 - |d| / truth^(2/3)), and the rest exactly."""
    np.testing.assert_allclose(answer_scores("count", [answer], [reference]), [score], atol=1e-7)
