"""Where questions come from: folders, which are finite, and procedural scenes, made as they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.procedural import nested_questions, scene_questions
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError

ENDLESS = 2**31  # more questions than any run asks for


@dataclasses.dataclass(frozen=True)
class SceneQuestions(Sequence[Question]):
    """Procedural questions as a sequence: each follows only from its index (see `scene_questions`)."""

    split: str
    seed: int
    global_share: float
    count: int = ENDLESS  # type: ignore[assignment]  # a sequence has a method of that name

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Question:  # type: ignore[override]  # no slices
        if not 0 <= index < self.count:
            raise IndexError(index)
        return scene_questions(self.split, self.seed, index, 1, self.global_share)[0]


@dataclasses.dataclass(frozen=True)
class NestedQuestions(SceneQuestions):
    """Those on nested scenes (see `nested_questions`), whose references take at most `most_looks` looks."""

    most_looks: int = 2

    def __getitem__(self, index: int) -> Question:  # type: ignore[override]  # no slices
        if not 0 <= index < self.count:
            raise IndexError(index)
        question = nested_questions(self.split, self.seed, index, 1, self.global_share)[0]
        return dataclasses.replace(question, looks=question.looks[: self.most_looks])


SCENES, NESTED = "scenes", "nested"  # the names of procedural questions in `data` settings


@dataclasses.dataclass(frozen=True)
class Source:
    """Questions by number, and the name that messages give them. Pickles to workers: images as paths, scenes as seeds."""

    name: str
    questions: Sequence[Question]

    @property
    def endless(self) -> bool:
        """Whether there is no end to it; nothing is shuffled then."""
        return len(self.questions) >= ENDLESS

    def digest(self) -> str:
        """A hash that changes with any question, or for procedural questions with their settings."""
        if isinstance(self.questions, SceneQuestions):
            said = repr(self.questions)
        else:
            said = "\n".join(
                repr((q.asked, q.answer, q.level, q.looks, q.thought) + ((q.boxes,) if q.boxes else ()))
                for q in self.questions
            )
        return hashlib.sha256(said.encode()).hexdigest()


def open_sources(
    data: Sequence[str],
    split: str,
    *,
    seed: int,
    global_share: float,
    questions: int = ENDLESS,
    images: ImageConfig = ImageConfig(),
    strict: bool = False,
    looks: int = 2,
) -> list[Source]:
    """The sources that the `data` setting names.

    Args:
        data: `scenes`, `nested`, folders with questions.jsonl and images, or several of them.
        split: sft, grpo or test, of scenes and of folders that hold several.
        seed, global_share, questions: which procedural scenes, and how many.
        images: how the folders' image files become RGB.
        strict: refuse images that can't be read, instead of leaving their questions out.
        looks: that there is room for; longer references of procedural questions are cut, those of folders stay.

    Raises:
        UserError: nothing named, or a folder that can't be read.
    """
    if not data or isinstance(data, str):
        raise UserError(f"data: give a sequence of folders, `{SCENES}` among them or alone, not {data!r}")
    made = {
        SCENES: SceneQuestions(split, seed, global_share, questions),
        NESTED: NestedQuestions(split, seed, global_share, questions, looks),
    }
    return [Source(name, made[name] if name in made else read_questions(name, split, images, strict)) for name in data]
