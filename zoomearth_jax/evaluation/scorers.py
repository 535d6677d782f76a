"""Rules by which benchmarks score answers: pure functions of texts, the official rule and a strict one for each.

The official rules do what the benchmarks' own programs do, with what is odd about them; each docstring names it. They get the
payload of <answer>, never its tags: those would be read as the letters A and E (`payload`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from zoomearth_jax.data_pipeline.text.protocol import normalize
from zoomearth_jax.evaluation.records import Record
from zoomearth_jax.rl.rewards.answers import SAME, answer_scores
from zoomearth_jax.rl.rewards.wordnet import wordnet

# As the official programs have them: two lines lack their comma there, so two prefixes each are one that nobody writes.
PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
LETTERS = "ABCDE"
_LONG = 10  # words; a longer text without a capital letter of a choice is no answer


def payload(record: Record) -> str:
    """What a scorer gets: the answer, or where the model wrote no <answer> all of its last text."""
    return record.output if record.answer is None else record.answer


def one_letter(text: str, choices: Sequence[str]) -> tuple[str, bool]:
    """MME-RealWorld's reading: the letter of a text, and whether the text says it.

    Known prefixes go, then the first capital A to E counts; without one the first choice that contains the text, in lower
    case. What is odd: an empty text is in every choice, so it is read as the first (A); "Best answer: C" is read as B.
    """
    text = _without_prefixes(text)
    found = re.search(f"[{LETTERS}]", text)
    if found:
        return found[0], True
    if len(text.split()) > _LONG:
        return "", False
    chosen = next((choice for choice in choices if text.lower() in choice.lower()), "")
    return chosen[1:2], bool(chosen) and bool(text.strip())


def letters(text: str) -> frozenset[str]:
    """XLRS-Bench's reading: the set of letters of a text.

    Known prefixes go. Letters in parentheses count; without those all letters a to e in any case, those inside words too,
    if there is a capital one among them: "B and C" is read as A, B, C and D.
    """
    text = _without_prefixes(text)
    if not re.search(f"[{LETTERS}]", text):
        return frozenset()
    found = re.findall(r"\(([a-eA-E])\)", text) or re.findall("[a-eA-E]", text)
    return frozenset(letter.upper() for letter in found)


def _without_prefixes(text: str) -> str:
    text = text.strip()
    for prefix in PREFIXES:
        text = text.replace(prefix, "")
    return text


def listed_letters(text: str) -> frozenset[str]:
    """The strict reading of several letters: capital letters A to E with blanks or commas between and nothing else."""
    parts = [part for part in re.split(r"[\s,]+", text.strip()) if part]
    return frozenset(parts) if parts and all(part in LETTERS and len(part) == 1 for part in parts) else frozenset()


def are_alike(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """LRS-VQA's rule, bool [N]: equal in lower case, or a WordNet path similarity above 0.8, without lemmatising.

    As in WordNet's own look-up, words are still reduced to base forms there. Texts of several words have no synsets.
    """
    given, wanted = [a.lower() for a in answers], [r.lower() for r in references]
    same = np.array([a == w for a, w in zip(given, wanted, strict=True)], bool)
    return same | (wordnet().path_similarity(given, wanted) > SAME)


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The one of the choices, texts without letters, that an answer names: by its text up to case, outer blanks and a final
    dot, or by its letter ("B", "(B)", "B. text"); None where it names none."""
    given = normalize(answer)
    for choice in choices:
        if normalize(choice) == given:
            return choice
    found = re.fullmatch(r"\(?([A-Za-z])(?:[).:]+\s*(.*))?", answer.strip(), re.DOTALL)
    if found is None:
        return None
    place = ord(found[1].upper()) - ord("A")
    if place < len(choices) and (not found[2] or normalize(found[2]) == normalize(choices[place])):
        return choices[place]
    return None


def free_form(records: Sequence[Record], match: str) -> np.ndarray:
    """float [N]: 1 where the answer agrees with the reference by `match` (see `answer_scores`); the text outside of <answer>
    doesn't count."""
    return answer_scores(match, [r.answer for r in records], [r.reference for r in records]) == 1.0
