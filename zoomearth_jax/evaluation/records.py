"""What is kept of each question of an evaluation: a line of JSON, which can be scored again without the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, crop_window
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.records import turn_record


@dataclasses.dataclass(frozen=True)
class Item:
    """A question of a benchmark.

    Attributes:
        id: as in the official file, unique within the benchmark.
        question: what is asked, in the benchmark's own form; its `answer` is the official one.
        image: the image's name in the official file.
        choices: the official choices, "(A) …"; they stand in the question's text already.
        extra: what else the official scorer or its tables need, in JSON's types.
    """

    id: str
    question: Question
    image: str = ""
    choices: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """One question with what was predicted. Boxes and windows are x1, y1, x2, y2 in px of the original.

    Attributes:
        benchmark, id, config: what the record is of; `config` is the hash of all that decides a prediction (model, words, views,
            sampling, seed, baseline). Together they are its key.
        image, width, height: the image's name and size in px.
        question, reference, level, category, choices, extra: as of `Item`; `reference` is the official answer.
        reference_box: box of the last look of the reference; None where the overview is enough.
        reference_window: what the model's zoom would show for it.
        turns: each with `text`, and where it has them `box`, `source` and `window`, and `picture`, the file of a thumbnail.
        output: the text of the last turn, the whole of it.
        answer: what stands between <answer> and </answer>; None where nothing does.
        box, window: those of the last picture that was shown; without a picture, `box` is the last one that was named.
        box_reason: why no valid box was named; "absent" where none was tried.
        truncated: whether a turn ran out of room.
        tokens, visual_tokens: tokens written, and visual tokens read.
        seconds: duration of the batch, divided by its questions.
        fault: why the image can't be read; then nothing was predicted, and the record doesn't count.
    """

    benchmark: str
    id: str
    config: str = ""
    image: str = ""
    width: int = 0
    height: int = 0
    question: str = ""
    reference: str = ""
    level: str = "global"
    category: str = ""
    choices: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference_box: tuple[float, ...] | None = None
    reference_window: tuple[float, ...] | None = None
    turns: tuple[Mapping[str, Any], ...] = ()
    output: str = ""
    answer: str | None = None
    box: tuple[float, ...] | None = None
    window: tuple[float, ...] | None = None
    box_reason: str = ""
    truncated: bool = False
    tokens: int = 0
    visual_tokens: int = 0
    seconds: float = 0.0
    fault: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """The record's key: (benchmark, id, config)."""
        return self.benchmark, self.id, self.config

    @property
    def zoomed(self) -> bool:
        """Whether a picture was shown beside the overview."""
        return any("window" in turn for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        """Returns plain data, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record of `to_json`; what is unknown is ignored, so that other programs may add to a line.

        Raises:
            TypeError, ValueError: a field that must be there isn't, or can't be what it should.
        """
        known = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}
        lists = {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
        return cls(**known | lists)


def record_of(
    benchmark: str, config: str, item: Item, episode: Episode, rules: EpisodeConfig, **measured: Any
) -> Record:
    """The record of a question that was played.

    Args:
        rules: how a reference box becomes its window.
        measured: tokens, visual_tokens, seconds.
    """
    question, frame = item.question, item.question.image.frame
    return dataclasses.replace(
        unread(benchmark, config, item),
        reference_window=None
        if question.box is None
        else _whole(crop_window(question.box, rules.least_window(question.looks[-1].source), rules.crop)),
        turns=tuple(turn_record(turn, frame) for turn in episode.turns),
        output=episode.turns[-1].text,
        answer=episode.answer,
        box=None if episode.box is None else _rounded(episode.box.to(frame)),
        window=None if episode.window is None else _whole(episode.window),
        box_reason=episode.box_reason,
        truncated=episode.truncated,
        **measured,
    )


def unread(benchmark: str, config: str, item: Item, fault: str = "") -> Record:
    """The record of a question without a prediction."""
    question = item.question
    return Record(
        benchmark=benchmark,
        id=item.id,
        config=config,
        image=item.image,
        width=question.image.frame.width,
        height=question.image.frame.height,
        question=question.asked,
        reference=question.answer,
        level=question.level,
        category=question.category,
        choices=item.choices,
        extra=dict(item.extra),
        reference_box=None if question.box is None else _rounded(question.box),
        fault=fault,
    )


def _rounded(box: Box) -> tuple[float, ...]:
    return tuple(round(c, 1) for c in box.corners)


def _whole(box: Box) -> tuple[float, ...]:
    return tuple(int(c) for c in box.corners)
