"""Whether an answer agrees with its reference: exactly, by WordNet as the paper's release scores it, or by its kind."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from decimal import Decimal

import numpy as np

from zoomearth_jax.data_pipeline.text.protocol import is_correct, normalize
from zoomearth_jax.rl.rewards.wordnet import wordnet

SAME = 0.8  # path similarity from which on two words count as one (paper); below 1 the next is 1/2, of parent and child
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")
_ONE_TO_TWENTY = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty"""
_NUMBER_WORDS = ["zero", *_ONE_TO_TWENTY.split()]


def answer_scores(match: str, answers: Sequence[str | None], references: Sequence[str]) -> np.ndarray:
    """Agreement of answers with their references, 0 to 1; 0 without an answer.

    Args:
        match: `exact` (see `is_correct`), `wordnet` (`graded_scores`), `typed` (`typed_scores`) or `count` (`count_scores`).

    Returns:
        float32 [pairs].
    """
    kinds = {"exact": exact_scores, "wordnet": graded_scores, "typed": typed_scores, "count": count_scores}
    return kinds[match](answers, references)


def exact_scores(answers: Sequence[str | None], references: Sequence[str]) -> np.ndarray:
    """Exact agreement, float32 [pairs]: 1 where nothing but case, outer blanks and a final dot differs."""
    return np.array([is_correct(a, r) for a, r in zip(answers, references, strict=True)], np.float32)


def graded_scores(answers: Sequence[str | None], references: Sequence[str]) -> np.ndarray:
    """Graded agreement as the paper's release scores it (paper, Method: r_answer).

    Both without outer blanks, in lower case, without final dots: equal ones score 1. Else each whole answer is lemmatised as
    a noun, and scores the largest path similarity of their synsets, where 0.8 and more are 1. No answer, or an empty
    reference, scores 0.

    Returns:
        float32 [pairs].
    """
    graph, tidied = wordnet(), functools.cache(lambda text: text.strip().lower().rstrip("."))
    given, wanted = [tidied(a or "") for a in answers], [tidied(r) for r in references]
    scores = graph.path_similarity([graph.lemmatize(w) for w in given], [graph.lemmatize(w) for w in wanted])
    scores[scores >= SAME] = 1.0
    scores[[a == w for a, w in zip(given, wanted, strict=True)]] = 1.0
    scores[[not w for w in wanted]] = 0.0
    return scores.astype(np.float32)


def typed_scores(answers: Sequence[str | None], references: Sequence[str]) -> np.ndarray:
    """1 or 0 by the kind of the answer (not in the paper, whose score gives 1/3 to any two numbers).

    After `normalize`, equal ones score 1. Numbers, in digits or as words up to twenty, agree only with the same number, yes
    and no only with themselves. The rest agrees where a synset is shared (path similarity of at least 0.8, lemmatised as a
    noun); words of several parts are looked up with underscores.

    Returns:
        float32 [pairs].
    """
    pairs = [(normalize(a or ""), normalize(r)) for a, r in zip(answers, references, strict=True)]
    scores = np.array([bool(r) and a == r for a, r in pairs], np.float32)
    kinds = [(_literal(a), _literal(r)) for a, r in pairs]
    words = [i for i, kind in enumerate(kinds) if kind == (None, None) and all(pairs[i])]
    for i, (given, wanted) in enumerate(kinds):
        if given is not None and given == wanted:
            scores[i] = 1.0
    graph = wordnet()
    lemmas = [[graph.lemmatize("_".join(pairs[i][side].split())) for i in words] for side in (0, 1)]
    scores[words] = np.maximum(scores[words], graph.path_similarity(*lemmas) >= SAME)
    return scores


def count_scores(answers: Sequence[str | None], references: Sequence[str]) -> np.ndarray:
    """Where the reference is a number, how near the answer is to it; elsewhere as `exact_scores`.

    max(0, 1 - |answer - reference| / |reference|^(2/3)) (GeoVista, arXiv 2605.14475, the released `get_answer_reward`). With
    the reference 0 only 0 scores. Numbers are whole answers, in digits or as words up to twenty; the release takes the first
    digits of a text.

    Returns:
        float32 [pairs].
    """
    scores = exact_scores(answers, references)
    for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        given, wanted = _literal(normalize(answer or "")), _literal(normalize(reference))
        if isinstance(given, Decimal) and isinstance(wanted, Decimal):
            scores[i] = _nearness(given, wanted)
    return scores


def _nearness(given: Decimal, wanted: Decimal) -> float:
    if given == wanted:
        return 1.0
    apart, scale = abs(float(given) - float(wanted)), abs(float(wanted)) ** (2 / 3)
    return max(0.0, 1 - apart / scale) if scale and math.isfinite(apart) else 0.0


def _literal(text: str) -> Decimal | str | None:
    """What agrees only with itself: the number that a text is, or yes or no; None for other texts."""
    if _NUMBER.fullmatch(text):
        return Decimal(text.replace(",", ""))
    if text in _NUMBER_WORDS:
        return Decimal(_NUMBER_WORDS.index(text))
    return text if text in ("yes", "no") else None
