"""On-policy self-distillation: what its teacher, a moving average of the policy, reads of a rollout.

The teacher scores the policy's own tokens. It reads the same rows, but for the picture before the last turn, which shows the
window of the reference box; `objective.distilled_advantages` makes advantages of what it finds likelier than the policy did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import Replies, RowBuilder, Views
from zoomearth_jax.rl.episode import Episode


def averaged(trainable):
    """A copy of the trainable parameters to start their moving average from, in float32."""
    return jax.tree.map(lambda x: jnp.copy(x.astype(jnp.float32)), trainable)


def distilled_episodes(
    gate: str, asked: Sequence[Question], episodes: Sequence[Episode], answer_rewards: np.ndarray
) -> np.ndarray:
    """Which episodes are distilled, bool [B]; see `ObjectiveConfig.distill_gate`.

    Args:
        asked: each episode's question.
        answer_rewards: [B], 1 where an answer is right.
    """
    applies = np.array([q.box is not None and e.zoomed for q, e in zip(asked, episodes, strict=True)], bool)
    if gate == "all":
        return applies
    return applies & ((answer_rewards >= 1) == (gate == "right"))


def distilled_slots(
    layout: RowLayout, episodes: Sequence[Episode], target: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """The tokens that are distilled: those of the last turn of the chosen episodes, bool [B, written slots].

    Args:
        target: bool [B, reply_len], what the policy wrote.
        chosen: bool [B].
    """
    last = np.zeros_like(target)
    for row in np.flatnonzero(chosen).tolist():
        last[row, layout.turn(len(episodes[row].turns) - 1)] = True
    return (last & target)[:, layout.written()]


def reference_pictures(
    rows: RowBuilder, asked: Sequence[Question], chosen: np.ndarray, read_all: Callable = map
) -> dict[int, np.ndarray]:
    """By chosen episode, the window of its question's reference box as the policy would see it, uint8 [h, w, 3].

    Args:
        asked: each episode's question. chosen: bool [B].
        read_all: `map`, or that of an executor; each question's picture is read once.
    """
    places = np.flatnonzero(chosen).tolist()
    questions = {id(asked[row]): asked[row] for row in places}

    def read(question: Question) -> np.ndarray:
        assert question.box is not None
        return rows.crop(question.image, rows.window(question.box, question.image.frame, question.looks[-1].source))

    pictures = dict(zip(questions, read_all(read, questions.values()), strict=True))
    return {row: pictures[id(asked[row])] for row in places}


def teacher_replies(
    rows: RowBuilder, episodes: Sequence[Episode], replies: Replies, references: Mapping[int, np.ndarray]
) -> Replies:
    """What the teacher reads after the prompt: some episodes' last picture is another one.

    Args:
        references: by episode, each of which saw a picture, the one that the teacher sees, uint8 [h, w, 3].
    """
    ids, valid = replies.ids.copy(), replies.valid.copy()
    pictures = Views(*(array.copy() for array in replies.pictures))
    for row, picture in references.items():
        turns = episodes[row].turns
        k = max(k for k, turn in enumerate(turns) if turn.picture is not None)
        view = rows.views([picture], rows.layout.picture_side)
        place = row * rows.layout.num_pictures + k
        pictures.pixels[place], pictures.grids[place] = view.pixels[0], view.grids[0]
        slots = rows.layout.picture(k)
        (ids[row, slots],), (valid[row, slots],) = rows.picture_slots(view.grids, notes=[turns[k].note])
    return Replies(ids, valid, replies.target, pictures)
