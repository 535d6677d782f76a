"""What `zoomearth demo` and `zoomearth ablate` teach: to find a site with one look, or with two looks a badge inside of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.mixture import NESTED
from zoomearth_jax.data_pipeline.questions.procedural import nested_questions, scene_questions
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.evaluation.play import play
from zoomearth_jax.evaluation.summary import summarize
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.tools.tool import Tool
from zoomearth_jax.tools.zoom import Masked


class Played(NamedTuple):
    """The episodes of a stage on the held-out questions: greedy, greedy with grey in place of pictures, at T = 1; and greedy on
    questions on the whole scene."""

    greedy: Sequence[Episode]
    masked: Sequence[Episode]
    sampled: Sequence[Episode]
    whole: Sequence[Episode]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        base: the shipped model that it starts from.
        questions: as `scene_questions` makes them.
        sft, grpo: what the runs' settings change of the defaults.
        scores: (local questions, questions on the whole scene, what was played, the episode's settings) -> figures by name.
        rows: the table's rows: name of a figure -> label.
        title, note: of the report.
    """

    base: str
    questions: Callable[..., list[Question]]
    sft: Mapping[str, Any]
    grpo: Mapping[str, Any]
    scores: Callable[[Sequence[Question], Sequence[Question], Played, EpisodeConfig], dict[str, float]]
    rows: Mapping[str, str]
    title: str
    note: str


def play_stage(
    engine: RolloutEngine,
    params,
    local: Sequence[Question],
    whole: Sequence[Question],
    tool: Tool,
    *,
    seed: int,
    batch_size: int,
) -> Played:
    """Plays held-out questions, and those on the whole scene, with some parameters; `tool` makes the pictures."""
    key = jax.random.key(seed)

    def run(questions, temperature, tool=tool):
        sampling = SamplingConfig(temperature=temperature)
        return play(engine, params, questions, key, sampling=sampling, tool=tool, batch_size=batch_size)

    return Played(run(local, 0.0), run(local, 0.0, Masked(tool)), run(local, 1.0), run(whole, 0.0))


def _one_look(
    local: Sequence[Question], whole: Sequence[Question], played: Played, episode: EpisodeConfig
) -> dict[str, float]:
    greedy, masked, sampled = (summarize(local, episodes, episode) for episodes in played[:3])
    overall = summarize(whole, played.whole, episode)
    return {
        "accuracy": greedy["accuracy"],
        "accuracy_masked_crop": masked["accuracy"],
        "apo_iou": greedy["apo_iou"],
        "zoom_rate": greedy["zoom_rate"],
        "accuracy_t1": sampled["accuracy"],
        "apo_iou_t1": sampled["apo_iou"],
        "accuracy_global": overall["accuracy"],
        "zoom_rate_global": overall["zoom_rate"],
    }


def nested_scores(
    local: Sequence[Question], whole: Sequence[Question], played: Played, episode: EpisodeConfig
) -> dict[str, float]:
    """Figures of nested questions by the looks that they need: `badge` two, `site` one, `scene` none."""
    found: dict[str, float] = {}
    for category in ("badge", "site"):
        places = [place for place, question in enumerate(local) if question.category == category]
        asked = [local[place] for place in places]
        for end, episodes in (("", played.greedy), ("_t1", played.sampled), ("_masked", played.masked)):
            of_kind = summarize(asked, [episodes[place] for place in places], episode)
            names = ("accuracy",) if end == "_masked" else ("accuracy", "apo_iou", "looks")
            found |= {f"{name}_{category}{end}": of_kind[name] for name in names}
    of_whole = summarize(whole, played.whole, episode)
    return found | {"accuracy_scene": of_whole["accuracy"], "looks_scene": of_whole["looks"]}


TASKS: dict[int, Task] = {
    1: Task(
        base="nano",
        questions=scene_questions,
        sft={},
        grpo={},
        scores=_one_look,
        rows={
            "accuracy": "accuracy, greedy",
            "accuracy_masked_crop": "accuracy, crop masked",
            "apo_iou": "box IoU, greedy",
            "zoom_rate": "zoom rate",
            "accuracy_t1": "accuracy, T = 1",
            "apo_iou_t1": "box IoU, T = 1",
            "accuracy_global": "accuracy, no crop needed",
            "zoom_rate_global": "zoom rate, no crop needed",
        },
        title="ZoomEarth nano: look, zoom, answer, learn",
        note="Accuracy, IoU and zoom rate are over held-out questions on one site's stripes, which the overview doesn't show: four "
        "answers, so 0.25 is chance. The last two rows are over questions on the whole scene, which it does show.",
    ),
    2: Task(
        base="nano-nested",
        questions=nested_questions,
        sft={"data": (NESTED,), "questions": 1024, "steps": 200},
        grpo={"data": (NESTED,), "steps": 200},
        scores=nested_scores,
        rows={
            "accuracy_badge": "two looks needed: accuracy",
            "accuracy_badge_masked": "  pictures masked",
            "apo_iou_badge": "  box IoU",
            "looks_badge": "  looks",
            "accuracy_badge_t1": "  accuracy, T = 1",
            "apo_iou_badge_t1": "  box IoU, T = 1",
            "accuracy_site": "one look needed: accuracy",
            "looks_site": "  looks",
            "accuracy_site_t1": "  accuracy, T = 1",
            "looks_site_t1": "  looks, T = 1",
            "accuracy_scene": "no look needed: accuracy",
            "looks_scene": "  looks",
        },
        title="ZoomEarth nano: look, look closer, answer, learn",
        note="Half of the held-out questions are on the stripes of a site's badge: the overview doesn't show where in its site it "
        "is, and a crop of the site doesn't show its stripes, so they need two looks. The others need one, and those on the whole "
        "scene none. Stripes run in four ways, so 0.25 is chance.",
    ),
}
