"""A GRPO step in its parts: play, update; and the next step's episodes played while the update runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import Prompts, Replies, RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.family import Sizes, VisionLanguageModel
from zoomearth_jax.models.lora import add_lora, has_lora
from zoomearth_jax.models.sharding import constrain, local_rows, shard_batch
from zoomearth_jax.rl.batches import GRPOBatch, RowBatch, row_batch, split_batch
from zoomearth_jax.rl.distillation import (
    averaged,
    distilled_episodes,
    distilled_slots,
    reference_pictures,
    teacher_replies,
)
from zoomearth_jax.rl.objective import disagreeing, group_advantages, kl_estimate
from zoomearth_jax.rl.policy import group_places
from zoomearth_jax.rl.rewards.episodes import episode_rewards
from zoomearth_jax.rl.rewards.judge import Judge
from zoomearth_jax.rl.rollout.engine import RolloutEngine, SentPrompts, Trajectories, anywhere
from zoomearth_jax.rl.rollout.refill import picked_groups, refilled_places, replace_groups
from zoomearth_jax.rl.rollout.scored import play_scored, send_parts
from zoomearth_jax.rl.state import init_state, reference_policy
from zoomearth_jax.rl.steps import make_grpo_step, make_scorer


class Asked(NamedTuple):
    """What a step plays: A questions, what they show first as `send` gives it, the number of steps before it; and which refill of
    the step these are, 0 for its first questions."""

    questions: Sequence[Question]
    looks: Sequence[SentPrompts]
    step: int
    refill: int = 0


class Round(NamedTuple):
    """Episodes of a step that were played together, whether they are trained on or not, and what their rewards wait for."""

    prompts: Prompts
    replies: Replies
    scores: Future[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Played:
    """A step's episodes.

    Attributes:
        questions: the A questions that were played.
        episodes: A x G.
        scores: what `rewards` waits for.
        rows: what the learner trains on, on the devices.
        rounds: all that the step played, its first questions and its refills.
    """

    questions: Sequence[Question]
    episodes: Trajectories
    scores: Future[dict[str, np.ndarray]]
    rows: RowBatch
    rounds: Sequence[Round]

    @property
    def rewards(self) -> Mapping[str, np.ndarray]:
        """Rewards of each episode by name, [A x G]; waits until they are known."""
        return self.scores.result()

    def correct(self, group: int) -> np.ndarray:
        """Correct answers to each question of all rounds, of `group`, int [rounds x A]."""
        answers = [one.scores.result()["answer"].reshape(-1, group) for one in self.rounds]
        return (np.concatenate(answers) == 1).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Updated:
    """The optimizer steps on a rollout, which the devices may still be at work on.

    Attributes:
        batch: what they were made on.
        advantages: of each episode within its group, [A x G].
        kl: the estimated KL of each episode by the name `kl`, where it is in the reward; else empty.
        steps: metrics of each optimizer step, on the devices.
        passes: how often they went over the batch.
    """

    batch: GRPOBatch
    advantages: np.ndarray
    kl: Mapping[str, np.ndarray]
    steps: Sequence[Mapping[str, jax.Array]]
    passes: int

    def metrics(self) -> dict[str, float]:
        """Waits for the steps; see `update_metrics`."""
        return update_metrics(self.steps, self.passes)


class GRPO:
    """A policy in training: its state, the reference policy, and the programs of a step.

    Attributes:
        state: parameters and optimizer state; replaced by `update`, or from a checkpoint.
        reference: parameters of the reference policy; None where no KL is asked for.
        engine: plays the policy.
        freezes_vision, adapted: whether the vision encoder is frozen, and whether adapters train.
    """

    def __init__(
        self,
        config: GRPOConfig,
        model: VisionLanguageModel,
        rows: RowBuilder,
        mesh: Mesh,
        sampler: Mesh | None = None,
        judge: Judge | None = None,
    ):
        """Takes the model's arrays over; errors as of `init_state` and `RolloutEngine`, and for self-distillation without pictures.

        Args:
            sampler: see `RolloutEngine`.
            judge: that of `reward.judge`, needed where one is named.
        """
        objective = config.objective
        rows = rows.playing(config.rollout.of(rows.episode))
        if objective.distill_weight and not rows.layout.num_pictures:
            raise UserError(
                "objective.distill_weight: rows of one turn show no picture; give two or more --layout.turn-lens"
            )
        add_lora(model, config.lora, nnx.Rngs(config.seed))
        if rows.episode.gate == "box" and config.rollout.turn_ids == "sampled":
            rows = rows.replaced(
                gate="unanswered"
            )  # the other gate cuts texts, and what is trained on must have been sampled
        self._config, self._mesh, self._sizes, self.rows, self._judge = config, mesh, model.config, rows, judge
        optimizer = config.optimizer.build(config.steps * config.optimizer_steps)
        self.engine = RolloutEngine(model, rows, mesh, config.mesh.gather, config.rollout, sampler)
        graph, self.state = init_state(model, optimizer, freeze_vision=config.freeze_vision, mesh=mesh)
        self.reference = reference_policy(self.state, config.compute.dtype) if objective.kl_weight else None
        if objective.distill_weight:
            self.state = self.state._replace(average=averaged(self.state.trainable))
        self.freezes_vision, self.adapted = "vision" not in self.state.trainable, has_lora(model)
        scoring: dict[str, Any] = {
            "temperature": config.temperature,
            "banned_ids": rows.tokens.banned_ids,
            "objective": objective,
            "accumulate": config.accumulate,
        }
        self._train_step = make_grpo_step(graph, optimizer, rows.layout, **scoring)
        self._score = make_scorer(graph, rows.layout, **scoring)
        # in a first optimizer step the policy is the old one
        self._scores_old = objective.old_by_trainer and config.optimizer_steps > 1
        self._refilled = False

    @property
    def scorings(self) -> int:
        """Forward passes over a rollout ahead of its updates, without the teacher's."""
        return self._scores_old + self._config.objective.kl_in_reward

    def send(self, prompts: Prompts) -> list[SentPrompts]:
        """A step's prompts on the devices, in the parts that it is played in."""
        return send_parts(self.engine, prompts, self._config.rollout.batches)

    def play(self, asked: Asked) -> Played:
        """Plays and scores the questions of a step; what is drawn follows from the seed and the step's number."""
        played = self._play(asked, self.state.params)
        wait([played.scores])
        return played

    def _play(self, asked: Asked, params, meanwhile: Callable[[], None] | None = None) -> Played:
        episodes, scores = self._scored(asked, params, meanwhile)
        rounds = [Round(episodes.prompts, episodes.replies, scores)]
        return Played(asked.questions, episodes, scores, self._rows(episodes), rounds)

    def _scored(self, asked: Asked, params, meanwhile: Callable[[], None] | None = None):
        """What `play_scored` gives for the questions."""
        config = self._config
        return play_scored(
            self.engine,
            params,
            asked.questions,
            asked.looks,
            jax.random.fold_in(jax.random.key(config.seed), asked.step),
            sampling=SamplingConfig(temperature=config.temperature),
            group=config.group,
            score=lambda asked, played: episode_rewards(config.reward, asked, played.episodes, self.rows, self._judge),
            meanwhile=meanwhile,
            refill=asked.refill,
        )

    def _rows(self, episodes: Trajectories) -> RowBatch:
        return learner_rows(episodes, self._sizes, self._config.freeze_vision, self._mesh, self._config.compact)

    def refill(self, played: Played, draw: Callable[[int], Asked]) -> Played:
        """Plays further questions, up to `refill` times, until no group's rewards agree in any process; groups that teach take
        the places of those that don't, on the process that played them.

        Args:
            draw: the number of a refill, from 1, -> what to play; called for as many as are played.
        """
        if not self._refilled:  # so that it compiles with the other programs, whenever it comes to be needed
            self._refilled = True
            replace_groups(played.episodes, played.episodes, np.arange(len(played.questions)), self._mesh)
        weights = None
        for number in range(1, self._config.refill + 1):
            teaches = self._teaches(played.rewards)
            if not anywhere(not teaches.all()):
                break
            weights = weights or self.engine.weights(self.state.params)
            asked = draw(number)
            episodes, scores = self._scored(asked, weights)
            places = refilled_places(teaches, self._teaches(scores.result()))
            played = dataclasses.replace(
                played,
                questions=[[*played.questions, *asked.questions][place] for place in places],
                episodes=replace_groups(played.episodes, episodes, places, self._mesh),
                scores=_known(picked_groups(played.rewards, scores.result(), places)),
                rounds=[*played.rounds, Round(episodes.prompts, episodes.replies, scores)],
            )
        return dataclasses.replace(played, rows=self._rows(played.episodes)) if weights else played

    def _teaches(self, rewards: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether the rewards of each group differ, bool [A]."""
        return disagreeing(rewards["total"], self._config.group)[:: self._config.group]

    def update(self, played: Played, following: Asked | None = None) -> tuple[Updated, Played | None]:
        """Takes the optimizer steps on a rollout, without waiting for them; and plays `following`, if any, on the parameters
        from before them.

        One thread sends everything to the devices, so that all processes do it in the same order: first the first turns of
        `following`, meanwhile the rewards of `played` are computed; then the steps, meanwhile the tools of `following` run.
        """
        if following is None:
            return self._update(played), None
        updates: list[Updated] = []
        upcoming = self._play(following, self._held_weights(), lambda: updates.append(self._update(played)))
        return updates[0], upcoming

    def _held_weights(self):
        """The sampler's weights as of now, none of them an array of the state, whose memory an update gives away."""
        params = self.state.params
        own = {id(x) for x in jax.tree.leaves(params)}
        return jax.tree.map(lambda x: jnp.copy(x) if id(x) in own else x, self.engine.weights(params))

    def _advantages(self, played: Played) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Advantages [A x G] within each group; and where the KL is in the reward, its estimate of each episode as `kl`."""
        objective, total, more = self._config.objective, played.rewards["total"], {}
        if objective.kl_in_reward:
            ref_logp = local_rows(self._score(self.reference, self.state.frozen, played.rows))
            written = self.rows.layout.written()
            kl_sum, more["kl"] = sampled_kl(objective.kl, played.episodes, ref_logp, written)
            total = total - objective.kl_weight * kl_sum
        return group_advantages(total, self._config.group, objective.advantage), more

    def _update(self, played: Played) -> Updated:
        advantages, kl = self._advantages(played)
        config, drops = self._config, self._config.objective.flat_groups == "drop"
        kept = disagreeing(played.rewards["total"], config.group) if drops else None
        batch = shard_batch(GRPOBatch(played.rows, played.episodes.logprobs, advantages, kept), self._mesh)
        if self._scores_old:
            batch = batch._replace(old_logp=self._score(self.state.trainable, self.state.frozen, batch.rows))
        if config.objective.distill_weight:
            batch = batch._replace(**self._distilled(played))
        batches = [batch] if config.minibatches == 1 else minibatches(batch, config.minibatches)
        steps = []
        for one in batches * config.updates:
            self.state, metrics = self._train_step(self.state, self.reference, one)
            steps.append(metrics)
        return Updated(batch, advantages, kl, steps, config.updates)

    def _distilled(self, played: Played) -> dict[str, jax.Array]:
        """What the loss reads of self-distillation's teacher; see `GRPOBatch`."""
        episodes, replies = played.episodes.episodes, played.episodes.replies
        asked = [q for q in played.questions for _ in range(self._config.group)]
        chosen = distilled_episodes(self._config.objective.distill_gate, asked, episodes, played.rewards["answer"])
        seen = reference_pictures(self.rows, asked, chosen, self.engine.readers.map)
        replies = teacher_replies(self.rows, episodes, replies, seen)
        parts = self._config.compact
        rows = played.rows._replace(
            reply_ids=replies.ids,
            reply_valid=replies.valid,
            pictures=self._sizes.prepare(*replies.pictures),
            picture_grids=replies.grids,
            places=group_places(played.episodes.prompts.valid, replies.valid, parts) if parts else None,
        )
        slots = distilled_slots(self.rows.layout, episodes, replies.target, chosen)
        rows, distilled = shard_batch((rows, slots), self._mesh)
        return {"teacher_logp": self._score(self.state.average, self.state.frozen, rows), "distilled": distilled}


def _known(rewards: dict[str, np.ndarray]) -> Future[dict[str, np.ndarray]]:
    """Rewards that nobody has to wait for."""
    future: Future[dict[str, np.ndarray]] = Future()
    future.set_result(rewards)
    return future


def learner_rows(
    played: Trajectories, sizes: Sizes, freeze_vision: bool, mesh: Mesh | None = None, compact: int = 0
) -> RowBatch:
    """What the learner trains on: the sampled ids, and with a frozen encoder the very visual tokens of the rollout."""
    overviews, pictures = (played.overview_features, played.picture_features) if freeze_vision else (None, None)
    return shard_batch(row_batch(played.prompts, played.replies, sizes, overviews, pictures, compact), mesh)


def sampled_kl(kind: str, played: Trajectories, ref_logp, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sampler's estimated KL against the reference in each episode: summed over its tokens, and per token, float32 [A x G].

    Args:
        ref_logp: log-probabilities of the reference, [A x G, slots].
        slots: the slots that the policy writes.
    """
    mask = played.replies.target[:, slots]
    estimate = np.asarray(kl_estimate(kind, np.where(mask, played.logprobs, 0.0), np.where(mask, ref_logp, 0.0)))
    total = (estimate * mask).sum(axis=1)
    return total, total / np.maximum(mask.sum(axis=1), 1)


@functools.partial(jax.jit, static_argnames="parts")
def minibatches(batch: GRPOBatch, parts: int) -> list[GRPOBatch]:
    """A rollout cut into batches of whole groups, every row on its device."""
    cut = split_batch(batch, len(batch.rows.prompt_ids), parts)

    def part(i):
        return jax.tree.map(lambda x: constrain(x[i], "batch", *[None] * (x.ndim - 2)), cut)

    return [part(i) for i in range(parts)]


def update_metrics(steps: Sequence[Mapping[str, jax.Array]], passes: int) -> dict[str, float]:
    """The metrics of a rollout's optimizer steps: means over the last pass (a step that is not finite stands for all, so that
    it is seen), and the gap to the sampler before the first step, of its batch."""
    metrics = jax.device_get(steps)
    gap = {name: x for name, x in metrics[0].items() if name.startswith("sampler_gap")}
    broken = [one for one in metrics if not np.isfinite(one["loss"] + one["grad_norm"] + one["update_ratio"])]
    last = broken[:1] or metrics[-(len(metrics) // passes) :]
    merge = {name: np.max if name.endswith("_max") else np.mean for name in metrics[0]}
    return {name: merge[name]([one[name] for one in last]) for name in merge} | gap
