"""`zoomearth bench rewards`: box rewards per second and their error; WordNet scores against nltk's, in speed and in value."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from zoomearth_jax.bench.timing import median_seconds, seconds_of
from zoomearth_jax.configs.reward import SPECS
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.rewards.answers import SAME, graded_scores
from zoomearth_jax.rl.rewards.boxes import box_rewards
from zoomearth_jax.rl.rewards.wordnet import reader, wordnet
from zoomearth_jax.terminal.progress import tracked

IMAGE_PX = 5000
NLTK_PAIRS = 500  # that nltk is timed on, each time: about a second
LOADING = """
import time
began = time.perf_counter()
from zoomearth_jax.rl.rewards.wordnet import wordnet
wordnet()
print(time.perf_counter() - began)
"""


@dataclasses.dataclass(frozen=True)
class RewardsConfig:
    """Box rewards per second and their error; WordNet scores against nltk's, in speed and in value.

    Attributes:
        boxes: pairs of boxes in a batch.
        answers: JSON lines with a `ground_truth` or `answer` each, such as LRS-GRO's rl.jsonl; pairs of answers are drawn
            from it. Without it they are drawn from WordNet's own words.
        source: folder of WordNet 3.0's files, for nltk.
        pairs: pairs of answers, drawn at random, that are scored by both.
        repeats: timings of each, of which the median counts.
        seed: random seed of boxes and pairs.
        json: print JSON.
    """

    boxes: int = 1_000_000
    answers: Path | None = None
    source: Path = Path("/usr/share/wordnet")
    pairs: int = 200_000
    repeats: int = 7
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        if min(self.boxes, self.pairs, self.repeats) < 1:
            raise UserError("bench rewards: boxes, pairs and repeats must be positive")


def bench_rewards(config: RewardsConfig) -> list[dict]:
    """One row: `boxes_per_s, box_error, wordnet_pairs_per_s, nltk_pairs_per_s, wordnet_ratio, wordnet_pairs,
    wordnet_mismatches, lemmas, lemma_mismatches, wordnet_load_s`.

    boxes_per_s is of IoU and region reward together, on the device; box_error the largest difference of any of both from
    float64. Both WordNet rates are of random pairs, ours with its caches emptied before. Load seconds include the import.

    Raises:
        UserError: no WordNet files, or no answers in the file.
    """
    corpus, words = reader(config.source), _answers(config.answers)  # what may be missing comes first
    rng = np.random.default_rng(config.seed)
    return [
        _boxes(config, rng) | _wordnet(config, rng, corpus, words) | {"wordnet_load_s": _load_seconds(config.repeats)}
    ]


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of 1 to 1,000 px and others near them, two arrays float32 [count, 4], in an image of 5,000 px."""
    corner, sides = rng.uniform(0, 4000, (count, 2)), rng.uniform(1, 1000, (count, 2))
    near = corner + rng.normal(0, 200, (count, 2)), sides * rng.uniform(0.5, 2, (count, 2))
    return np.stack([np.concatenate([c, c + s], axis=1) for c, s in ((corner, sides), near)]).astype(np.float32)


def box_rewards_float64(predicted, reference, alpha: float, eps: float, shape: Callable) -> np.ndarray:
    """IoU and region rewards [2, B] of boxes [B, 4] with area, in double precision."""
    a, b = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    overlap = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(axis=1)
    union = sum((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)) - overlap
    distance = np.linalg.norm((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2, axis=1)
    return np.stack([overlap / union, shape(alpha / (distance + eps))])


def _boxes(config: RewardsConfig, rng: np.random.Generator) -> dict:
    """Box rewards per second of the paper's spec, and the error of both named specs' region rewards."""
    boxes, side = random_boxes(rng, config.boxes), np.full(config.boxes, IMAGE_PX, np.float32)
    predicted, reference = boxes
    inputs = jax.device_put((*boxes, np.ones(config.boxes, bool), side))
    seconds = median_seconds(lambda: jax.block_until_ready(box_rewards(SPECS["paper"], *inputs)), config.repeats)
    shapes: dict[str, Callable] = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}
    errors = []
    for spec in (SPECS["paper"], dataclasses.replace(SPECS["reference"], iou="box")):
        want = box_rewards_float64(predicted, reference, spec.region_alpha, spec.region_eps, shapes[spec.region])
        errors.append(np.abs(np.stack(box_rewards(spec, *inputs)) - want).max())
    return {"boxes_per_s": config.boxes / seconds, "box_error": float(max(errors))}


def _wordnet(config: RewardsConfig, rng: np.random.Generator, corpus, words: list[str]) -> dict:
    pairs = [[words[i] for i in rng.integers(0, len(words), config.pairs)] for _ in range(2)]
    ours_s, nltk_s = [], []
    for _ in range(config.repeats):  # in turns, so that a busy machine slows both
        sample = rng.integers(0, config.pairs, min(NLTK_PAIRS, config.pairs))
        nltk_s.append(seconds_of(lambda: [nltk_score(corpus, pairs[0][i], pairs[1][i]) for i in sample]) / len(sample))  # noqa: B023
        wordnet().forget()
        ours_s.append(seconds_of(lambda: graded_scores(*pairs)) / config.pairs)
    scores, known = graded_scores(*pairs), {}
    mismatches = 0
    for pair in tracked(zip(*pairs, scores, strict=True), "nltk", config.pairs):
        if pair[:2] not in known:
            known[pair[:2]] = np.float32(nltk_score(corpus, *pair[:2]))
        mismatches += bool(known[pair[:2]] != pair[2])
    lemmas = [*dict.fromkeys([*wordnet().lemmas, *(tidied(word) for word in words)])]
    ours, theirs = statistics.median(ours_s), statistics.median(nltk_s)
    return {
        "wordnet_pairs_per_s": 1 / ours,
        "nltk_pairs_per_s": 1 / theirs,
        "wordnet_ratio": theirs / ours,
        "wordnet_pairs": config.pairs,
        "wordnet_mismatches": mismatches,
        "lemmas": len(lemmas),
        "lemma_mismatches": sum(wordnet().lemmatize(word) != nltk_lemma(corpus, word) for word in lemmas),
    }


def tidied(answer: str) -> str:
    """A text as the released code compares it."""
    return answer.strip().lower().rstrip(".")


def nltk_lemma(corpus, word: str) -> str:
    """What nltk's WordNetLemmatizer makes of a noun."""
    return min(corpus._morphy(word, "n"), key=len, default=word)


def nltk_score(corpus, answer: str, reference: str) -> float:
    """The release's score of an answer, by nltk's own functions."""
    answer, reference = tidied(answer), tidied(reference)
    if not reference or answer == reference:
        return float(bool(reference))
    left, right = (corpus.synsets(nltk_lemma(corpus, word)) for word in (reference, answer))
    best = max((a.path_similarity(b) or 0.0 for a in left for b in right), default=0.0)
    return 1.0 if best >= SAME else best


def _answers(file: Path | None) -> list[str]:
    """Answers of a file, in the order of its lines, or the words of WordNet."""
    if file is None:
        return wordnet().lemmas
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: can't be read ({error})") from None
    words = [_answer(line, f"{file} line {number}") for number, line in enumerate(lines, 1)]
    if not words:
        raise UserError(f"{file}: no answers")
    return words


def _answer(line: str, where: str) -> str:
    try:
        row = json.loads(line)
        return str(row["ground_truth"] if "ground_truth" in row else row["answer"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: no JSON object with ground_truth or answer") from None


def _load_seconds(repeats: int) -> float:
    """Median seconds in which a fresh process imports the graph's module and loads the graph."""
    run = [sys.executable, "-c", LOADING]
    return statistics.median(
        float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)
    )
