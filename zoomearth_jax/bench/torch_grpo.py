"""The GRPO iteration in torch with HF transformers, for `zoomearth bench grpo`; nothing else uses it."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoomearth_jax.bench.loader import HeldFile, WholeFile
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.protocol import parse_answer
from zoomearth_jax.models.families import read_config
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values
from zoomearth_jax.rl.episode import Episode, Turn
from zoomearth_jax.rl.objective import group_advantages
from zoomearth_jax.rl.rewards.episodes import episode_rewards
from zoomearth_jax.rl.rollout.engine import Trajectories
from zoomearth_jax.tools.tool import View
from zoomearth_jax.tools.zoom import Zoom


@dataclasses.dataclass
class Row:
    """One episode: its ids as the model sees them, its pictures, and the tokens of the loss: (place of the state that
    predicts one, its id)."""

    ids: list[int]
    pictures: list[np.ndarray]
    targets: list[tuple[int, int]]


class TorchGRPO:
    """Two looks by `generate`, rewards by the project's functions, one AdamW step with the k3 KL by autograd."""

    def __init__(
        self, directory: str, rows: RowBuilder, group: int, objective: ObjectiveConfig, reward: RewardSpec, lr: float
    ):
        """Loads an HF checkpoint; the vision encoder is frozen, as ours is."""
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch, self._rows, self._group, self._objective, self._reward = torch, rows, group, objective, reward
        self._zoom = Zoom(rows)
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self._model.model.visual.requires_grad_(False)
        self._vision = read_config(Path(directory)).vision
        self._reference = copy.deepcopy(self._model).requires_grad_(False)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
        self._released = False
        self.files: Sequence[Path] | None = None  # of the questions' images

    def as_variant(self, variant: str) -> TorchGRPO:
        """This object, in the released or the fair way."""
        self._released = variant == "released"
        return self

    def play(self, questions: Sequence[Question], seed: int) -> tuple[list[Row], np.ndarray]:
        """The episodes and their advantages."""
        self._torch.manual_seed(seed)
        rows, questions = self._rows, self._opened(questions)
        times = self._group if self._released else 1
        overviews = [rows.overview(q) for q in questions for _ in range(times)][::times]
        prompts = rows.prompts(questions, overviews)
        asked = [
            (q, view, ids[valid].tolist())
            for q, view, ids, valid in zip(questions, overviews, *prompts[:2], strict=True)
        ]
        asked = [one for one in asked for _ in range(self._group)]
        looks = [Row(list(ids), [view], []) for _, view, ids in asked]
        episodes = [
            self._looked(q, look, new)
            for (q, _, _), look, new in zip(asked, looks, self._generate(looks, rows.layout.turn_lens[0]), strict=True)
        ]
        zooms = [i for i, episode in enumerate(episodes) if episode.zoomed]
        batches = [[i] for i in zooms] if self._released else [zooms] if zooms else []
        for batch in batches:
            for i, new in zip(batch, self._generate([looks[i] for i in batch], rows.layout.turn_lens[1]), strict=True):
                _add_text(looks[i], new, rows.stop_ids)
                text = rows.decode(new)
                episodes[i] = Episode((*episodes[i].turns, Turn(text)), parse_answer(text), False)
        rewards = episode_rewards(self._reward, questions, episodes, rows)
        return looks, np.asarray(group_advantages(rewards["total"], self._group, self._objective.advantage))

    def _opened(self, questions: Sequence[Question]) -> list[Question]:
        """The questions with their images in files, if they are, not read yet."""
        kind = WholeFile if self._released else HeldFile
        images = [q.image for q in questions] if self.files is None else map(kind, self.files)
        return [dataclasses.replace(q, image=image) for q, image in zip(questions, images, strict=True)]

    def _looked(self, question: Question, look: Row, new: list[int]) -> Episode:
        """The episode after its first turn; the crop, if there is one, is added to its sequence."""
        rows = self._rows
        _add_text(look, new, rows.stop_ids)
        text, crop = rows.decode(new), None
        asked = self._zoom.request(text, View(question, rows.box_frame(question.image.frame)))
        if isinstance(asked, str):
            return Episode((Turn(text, None, asked),), parse_answer(text), False)
        if asked.wanted:
            crop = self._zoom.run(question.image, asked)
            self._add_crop(look, crop)
        return Episode((Turn(text, asked, "", crop),), parse_answer(text), False)

    def _add_crop(self, look: Row, crop: np.ndarray) -> None:
        ids, valid = self._rows.picture_slots(self._rows.views([crop]).grids)
        look.ids += ids[valid].tolist()
        look.pictures.append(crop)

    def sequences_of(self, played: Trajectories, questions: Sequence[Question]) -> list[Row]:
        """Episodes that our engine played."""
        rows, layout, sequences = self._rows, self._rows.layout, []
        for i, (ids, target) in enumerate(zip(played.replies.ids, played.replies.target, strict=True)):
            prompt = i // self._group
            look = Row(
                played.prompts.ids[prompt][played.prompts.valid[prompt]].tolist(), [played.overviews[prompt]], []
            )
            for k, turn in enumerate(played.episodes[i].turns):
                slots = layout.turn(k)
                _add_text(look, ids[slots][target[slots]].tolist(), rows.stop_ids)
                if turn.picture is not None:
                    self._add_crop(look, turn.picture)
            sequences.append(look)
        return sequences

    def _inputs(self, sequences: Sequence[Row]) -> dict:
        """The model's inputs, left-padded as HF's processor gives them."""
        torch = self._torch
        length = max(len(one.ids) for one in sequences)
        ids = np.full((len(sequences), length), self._rows.pad_id)
        for row, one in enumerate(sequences):
            ids[row, length - len(one.ids) :] = one.ids
        mask = np.arange(length) >= length - np.array([[len(one.ids)] for one in sequences])
        pictures = [picture for one in sequences for picture in one.pictures]
        unit = self._vision.patch_size
        grids = [[1, picture.shape[0] // unit, picture.shape[1] // unit] for picture in pictures]
        pixels = np.concatenate([np.asarray(pixel_values(picture, self._vision)) for picture in pictures])
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask.astype(np.int64)),
            "pixel_values": torch.tensor(pixels),
            "image_grid_thw": torch.tensor(grids),
            "mm_token_type_ids": torch.tensor((ids == self._rows.image_id) & mask).int(),
        }

    def _generate(self, sequences: Sequence[Row], length: int) -> list[list[int]]:
        """The ids that each episode writes, its stop token included."""
        inputs, rows = self._inputs(sequences), self._rows
        with self._torch.no_grad():
            out = self._model.generate(
                **inputs,
                max_new_tokens=length,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                suppress_tokens=list(rows.banned_ids),
                eos_token_id=list(rows.stop_ids),
                pad_token_id=rows.pad_id,
            )
        return [_until_stop(new, rows.stop_ids) for new in out[:, inputs["input_ids"].shape[1] :].tolist()]

    def _logprobs(self, model, inputs: dict, sequences: Sequence[Row]):
        """Log-probabilities of the targets [B, longest], and which of them exist."""
        torch, length = self._torch, inputs["input_ids"].shape[1]
        longest = max(len(one.targets) for one in sequences)
        places, ids = torch.zeros((2, len(sequences), longest), dtype=torch.long)
        mask = torch.zeros((len(sequences), longest))
        for row, one in enumerate(sequences):
            if one.targets:
                count = len(one.targets)
                where, what = zip(*one.targets, strict=True)
                places[row, :count] = torch.tensor(where) + length - len(one.ids)
                ids[row, :count], mask[row, :count] = torch.tensor(what), 1
        first = 0 if self._released else int(places[mask > 0].min())
        logits = model(**inputs, logits_to_keep=length - first, use_cache=False).logits
        logits[..., list(self._rows.banned_ids)] = -torch.inf
        if self._released:
            return torch.log_softmax(logits, -1)[torch.arange(len(ids))[:, None], places, ids], mask
        picked = logits[torch.arange(len(ids))[:, None], (places - first).clamp(min=0)]
        return torch.log_softmax(picked, -1).gather(-1, ids[..., None])[..., 0], mask

    def update(self, sequences: Sequence[Row], advantages: np.ndarray) -> dict[str, float]:
        """Takes one optimizer step; returns its loss and gradient norm."""
        torch, inputs = self._torch, self._inputs(sequences)
        with torch.no_grad():
            ref, _ = self._logprobs(self._reference, inputs, sequences)
        logp, mask = self._logprobs(self._model, inputs, sequences)
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1) / len(sequences)
        advantage = torch.tensor(np.asarray(advantages, np.float32))[:, None]
        ratio = torch.exp(logp - logp.detach())
        clipped = ratio.clamp(1 - self._objective.clip_low, 1 + self._objective.clip_high)
        gap = torch.where(mask > 0, ref - logp, 0.0)
        kl = torch.exp(gap) - gap - 1
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        loss = -(torch.where(mask > 0, gain - self._objective.kl_weight * kl, 0.0) * weights).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}


def _until_stop(new: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """The ids up to the first stop token, with it."""
    return new[: next((i + 1 for i, token in enumerate(new) if token in stop_ids), len(new))]


def _add_text(look: Row, new: list[int], stop_ids: tuple[int, ...]) -> None:
    """Appends sampled ids; a stop token is only a target, as in our rows."""
    for token in new:
        look.targets.append((len(look.ids) - 1, token))
        if token not in stop_ids:
            look.ids.append(token)
