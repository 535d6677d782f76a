"""Evaluations made by hand, with thumbnails."""

import numpy as np

from zoomearth_jax.evaluation.benchmarks.benchmark import Scores
from zoomearth_jax.evaluation.records import Record
from zoomearth_jax.reports.episode_rows import Evaluated
from zoomearth_jax.reports.thumbnails import Thumbnails

REFERENCE = (1000.0, 1000.0, 1400.0, 1400.0)


def record(number: int, answer: str | None = "yes", shift: float | None = 0.0, text="", **changed) -> Record:
    """A record about an image of 8,000 x 6,000 px whose reference is yes; its box is `shift` px right of the reference, None is no
    box and no zoom."""
    box = None if shift is None else (REFERENCE[0] + shift, 1000.0, REFERENCE[2] + shift, 1400.0)
    first = {"text": f"<think>look {text}</think>"} | (
        {} if box is None else {"box": box, "window": tuple(map(int, box))}
    )
    last = {"text": f"<answer>{answer}</answer>"}
    values = {
        "benchmark": "stub", "id": f"q{number}", "image": f"{number}.tif", "width": 8000, "height": 6000,
        "question": f"Is there a barn? {number}", "reference": "yes", "level": ("object", "region")[number % 2],
        "category": ("presence", "count", "color")[number % 3], "reference_box": REFERENCE, "turns": (first, last),
        "output": last["text"], "answer": answer, "box": box, "window": first.get("window"), "tokens": 40 + number,
        "visual_tokens": 324, "box_reason": "absent" if box is None else "",
    }  # fmt: skip
    return Record(**values | changed)


class Stub:
    """A benchmark whose official rule goes past case, and whose strict one doesn't."""

    name = "stub"

    def score(self, records) -> Scores:
        official = [float((r.answer or "").lower() == r.reference) for r in records]
        strict = [float(r.answer == r.reference) for r in records]
        return Scores(np.array(official), np.array(strict), np.array([r.answer is not None for r in records]))


def evaluated(records: dict[str, list[Record]], thumbnails=(), **results) -> Evaluated:
    """An evaluation of records, scored by `Stub`."""
    scores = {name: Stub().score([r for r in own if not r.fault]) for name, own in records.items()}
    runs = {
        name: {"summary": {"official": float(scores[name].official.mean())}, "tokens_per_sample": 41.5}
        for name in records
    }
    return Evaluated({"benchmark": "stub", "title": "Stub", "runs": runs} | results, records, scores, thumbnails)


def many(count: int, path, seed: int = 0) -> Evaluated:
    """Many records with distinct thumbnails of noisy pictures, which are written to `path`."""
    random, file, records = np.random.default_rng(seed), Thumbnails(path), []
    words = ["road", "crosses", "field", "north", "river", "beside", "two", "white", "roofs", "and", "a", "pond"]
    textures = [texture(random, 504) for _ in range(40)]
    for number in range(count):
        answer, shift = ("yes", "no", "Yes", None)[random.integers(4)], random.choice([0.0, 100.0, 390.0, 4000.0, None])
        records.append(record(number, answer, shift, " ".join(random.choice(words, 40))))
        overview = np.roll(textures[number % 40], (number, number // 100), (0, 1))
        file.add(f"q{number}", overview[:378], [] if shift is None else [overview[:336, :336]])
    masked = [record(i, "no", None) if i % 3 else r for i, r in enumerate(records)]
    return evaluated({"shown": records, "masked": masked}, [path])


def texture(random, side: int) -> np.ndarray:
    """A noisy picture, coarse and fine, that compresses about as a photograph does."""
    coarse = random.integers(40, 200, (side // 28, side // 28, 3)).repeat(28, 0).repeat(28, 1)
    fine = random.integers(-30, 30, (side // 7, side // 7, 3)).repeat(7, 0).repeat(7, 1)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)
