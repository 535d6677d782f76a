"""Path similarity and lemmas of the shipped graph: nltk's numbers; with WordNet's files at hand nltk itself."""

import random
import time
from pathlib import Path

import numpy as np
import pytest

from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.rewards.wordnet import build, reader, wordnet

SOURCE = Path("/usr/share/wordnet")  # of Debian's wordnet-base and wordnet-sense-index

# nltk 3.10.4 on WordNet 3.0: the largest path similarity of any two synsets
NLTK = {
    ("dog", "cat"): 1 / 5,
    ("blue", "dark"): 1.0,
    ("straight", "flat"): 1.0,
    ("urban", "rural"): 1 / 3,  # adjectives meet in the simulated root alone
    ("3", "5"): 1 / 3,
    ("yes", "no"): 1 / 12,
    ("run", "river"): 1 / 3,
    ("quickly", "slowly"): 1 / 3,
    ("parking_lot", "road"): 1 / 11,
    ("einstein", "physicist"): 1 / 2,  # an instance
    ("be", "green"): 1 / 3,
    ("large ship", "ship"): 0.0,  # a blank is no underscore
    ("qlarge", "large"): 0.0,
}


def test_similarities_of_nltk():
    np.testing.assert_array_equal(wordnet().path_similarity(*zip(*NLTK, strict=True)), list(NLTK.values()))
    swapped = [(b, a) for a, b in NLTK] * 40  # more than a chunk
    np.testing.assert_array_equal(wordnet().path_similarity(*zip(*swapped, strict=True)), list(NLTK.values()) * 40)
    assert wordnet().path_similarity([], []).shape == (0,)


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        ("geese", "goose"),
        ("ships", "ship"),
        ("women", "woman"),
        ("us", "u"),
        ("churches", "church"),
        ("qlarge", "qlarge"),
    ],
)
def test_lemmas_of_nltk(word, lemma):
    assert wordnet().lemmatize(word) == lemma


def test_it_loads_quickly():
    def seconds():
        wordnet.cache_clear()
        begin = time.thread_time()  # other tests' threads may still be at work
        wordnet()
        return time.thread_time() - begin

    assert min(seconds() for _ in range(3)) < 0.3


def test_a_folder_without_wordnet_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no data\.noun"):
        build(tmp_path, tmp_path / "out.npz")


@pytest.mark.parity
@pytest.mark.skipif(not SOURCE.is_dir(), reason="needs Debian's wordnet-base and wordnet-sense-index")
def test_all_lemmas_and_random_pairs_against_nltk(tmp_path):
    corpus = reader(SOURCE)
    build(SOURCE, tmp_path / "again.npz")
    ours, words = wordnet(), list(corpus._lemma_pos_offset_map)
    with (
        np.load(tmp_path / "again.npz") as again,
        np.load(Path(reader.__code__.co_filename).with_suffix(".npz")) as own,
    ):
        assert all(np.array_equal(again[name], own[name]) for name in own)
    random.Random(0).shuffle(words)
    words += [word + "s" for word in words[:20_000]]
    assert [ours.lemmatize(w) for w in words] == [min(corpus._morphy(w, "n"), key=len, default=w) for w in words]

    def similarity(a, b):
        values = (s.path_similarity(t) for s in corpus.synsets(a) for t in corpus.synsets(b))
        return max((value for value in values if value is not None), default=0.0)

    left, right = words[:4000], words[4000:8000]
    want = [similarity(a, b) for a, b in zip(left, right, strict=True)]
    np.testing.assert_array_equal(ours.path_similarity(left, right), want)
