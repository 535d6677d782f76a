"""`zoomearth pretrain-nano`: trains the nano base model that ships with the package.

Binding a colour's name to a place has a long plateau under plain fine-tuning. What gets over it: all sites of a scene are
asked about from one shared image prefix, beside counting, season and stripe-reading questions, with auxiliary losses
through heads that are thrown away: visual tokens tell their sites' colours, corners and stripes, and the question's tokens
the corners of the site that they name. The base doesn't speak the episode protocol; SFT teaches that.

The base of nested scenes starts from the shipped one, and learns beside this to find a site's badge in a crop of the site, again
with an auxiliary loss, and to read the badge's stripes in a crop of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoomearth_jax.configs.io import write_yaml
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.procedural import nested_questions, scene_questions
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.data_pipeline.questions.scenes import (
    COLORS,
    ORIENTATIONS,
    Scene,
)
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.data_pipeline.text.protocol import is_correct
from zoomearth_jax.errors import UserError
from zoomearth_jax.files import check_writable, write_file
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.rl.policy import Segment, reply_hidden, token_logprobs
from zoomearth_jax.rl.rewards.boxes import box_iou
from zoomearth_jax.rl.rewards.episodes import box_arrays
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.metrics import MetricsLog
from zoomearth_jax.runs.models import load_model, save_model
from zoomearth_jax.verbs.pretrain_batches import make_batch


@dataclasses.dataclass(frozen=True)
class PretrainNanoConfig:
    """Settings of the nano base model's training.

    Attributes:
        out: directory to write the checkpoint to.
        nested: train the base of nested scenes, `nano-nested`, from the shipped base.
        steps: most optimizer steps.
        stop_x1_loss: stop when the smoothed loss of a box's first number falls below this, so that the base still has
            something to learn; when binding happens varies by seed, so a step count alone won't do.
        scenes: scenes (and as many crops) per step.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        first_number_weight: weight of a box's first number in the loss.
        aux_weight: weight of the auxiliary losses.
        seed: random seed of parameters and scenes.
    """

    out: Path = Path("runs/nano")
    nested: bool = False
    steps: int = 1500
    stop_x1_loss: float = 1.8
    scenes: int = 16
    lr: float = 2e-3
    warmup: int = 50
    first_number_weight: float = 3.0
    aux_weight: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.warmup < self.steps or self.scenes < 1:
            raise UserError("pretrain-nano: give at least one scene, and more steps than warmup, which isn't negative")

    @property
    def preset(self) -> str:
        """The preset of the model."""
        return "nano_nested" if self.nested else "nano"


def _group_loss(model, part):
    """Visual tokens, states that predict each slot, the weighted cross-entropy, and the cross-entropy of only the first numbers."""
    ids, valid, images = part["prompt"]
    reply_ids, reply_valid, weight, first, _ = part["reply"]
    features = model.encode_views(images)
    hidden = reply_hidden(model, Segment(ids, valid, features, images.grids), Segment(reply_ids, reply_valid))
    logp, _ = token_logprobs(model, hidden, reply_ids, 1.0)
    first_loss = -(logp * first).sum() / jnp.maximum(first.sum(), 1)
    return features, hidden, -(logp * weight).sum() / weight.sum(), first_loss


def _token_loss(out, targets):
    """Auxiliary losses of visual tokens: whether each kind of box has its centre in the token, and the corners of those that do.

    Args:
        out: outputs of a head, [pictures, tokens, kinds x 5]. targets: those of `_token_targets`, stacked.
    """
    present, corners = targets
    out = out.reshape(*present.shape, 5)
    present_loss = optax.sigmoid_binary_cross_entropy(out[..., 0], present).sum((-1, -2)).mean()
    corner_error = jnp.abs(out[..., 1:] - corners).sum(-1) * present
    return present_loss, corner_error.sum() / jnp.maximum(present.sum(), 1)


def _stripe_loss(logits, ways, grids):
    """Cross-entropy of every visual token's guess at the stripes' orientation."""
    seen = jnp.arange(logits.shape[1]) < grids.prod(-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, ways[:, None])
    return (loss * seen).sum() / seen.sum()


def _loss(state, graph, batch, aux_weight):
    model, heads = nnx.merge(graph, state)
    features, hidden, scene_loss, x1_loss = _group_loss(model, batch["scenes"])
    crop_features, _, crop_loss, badge_x1_loss = _group_loss(model, batch["crops"])
    present_loss, corner_loss = _token_loss(heads["sites"](features), batch["tokens"]["sites"])
    named = batch["scenes"]["reply"][-1]
    named_error = jnp.abs(heads["named"](hidden) - batch["named_corners"][:, None]).sum(-1)
    named_loss = (named_error * named).sum() / named.sum()
    ways = batch["stripes"]
    stripe_loss = _stripe_loss(heads["stripes"](crop_features), ways["crops"], batch["crops"]["prompt"][2].grids)
    metrics = {
        "loss": scene_loss + crop_loss,
        "x1_loss": x1_loss,
        "crop_loss": crop_loss,
        "present_loss": present_loss,
        "corner_loss": corner_loss,
        "named_loss": named_loss,
        "stripe_loss": stripe_loss,
    }
    total = scene_loss + crop_loss + aux_weight * (0.1 * present_loss + corner_loss + named_loss + 2 * stripe_loss)
    if "badges" in batch:
        badge_features, _, badge_loss, _ = _group_loss(model, batch["badges"])
        present_loss, corner_loss = _token_loss(heads["badge"](crop_features), batch["tokens"]["badge"])
        grids = batch["badges"]["prompt"][2].grids
        stripe_loss = _stripe_loss(heads["stripes"](badge_features), ways["badges"], grids)
        total = total + badge_loss + aux_weight * (present_loss + corner_loss + 2 * stripe_loss)
        metrics |= {"badge_x1_loss": badge_x1_loss, "badge_loss": badge_loss, "badge_corner_loss": corner_loss}
        metrics |= {"badge_present_loss": present_loss, "badge_stripe_loss": stripe_loss}
    return total, metrics


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A window of a scene as an image of its own."""

    scene: Scene
    box: Box

    @property
    def frame(self) -> Frame:
        return Frame(round(self.box.x2 - self.box.x1), round(self.box.y2 - self.box.y1))

    def window(self, box: Box, size: Frame, exact: bool = False) -> np.ndarray:
        x, y = self.box.x1, self.box.y1
        return self.scene.window(Box(box.x1 + x, box.y1 + y, box.x2 + x, box.y2 + y, self.scene.frame), size)


def score_base(
    model: VisionLanguageModel, rows: RowBuilder, seed: int = 0, count: int = 512, nested: bool = False
) -> dict[str, float]:
    """Greedy scores on held-out scenes in the form of pre-training: location IoU, and accuracy of the other questions."""
    make = nested_questions if nested else scene_questions
    scenes = [q.image for q in make("test", seed, 0, count) if isinstance(q.image, Scene)]
    sites = [scene.sites[0] for scene in scenes]
    cuts = [_Cut(scene, rows.window(scene.box(site), scene.frame)) for scene, site in zip(scenes, sites, strict=True)]
    asked = {
        "stripes": [("Which way do the stripes run?", site.orientation) for site in sites],
        "color": [("Which color is the site?", site.color) for site in sites],
        "count": [("How many sites are there?", str(len(scene.sites))) for scene in scenes],
        "season": [("Which season is it?", scene.season) for scene in scenes],
    }
    engine, params, key = RolloutEngine(model, rows), nnx.state(model, nnx.Param), jax.random.key(seed)
    scores = {}
    for name, pairs in asked.items():
        images: Sequence[ImageSource] = cuts if name in ("stripes", "color") else scenes
        questions = [Question(image, *pair, "global") for image, pair in zip(images, pairs, strict=True)]
        episodes = engine(params, questions, key).episodes
        scores[name] = float(
            np.mean([is_correct(e.texts[0], q.answer) for e, q in zip(episodes, questions, strict=True)])
        )
    located = {
        "location_iou": [
            Question(scene, f"Where is the {site.color} site?", "", "object", (Look(scene.box(site)),))
            for scene, site in zip(scenes, sites, strict=True)
        ]
    }
    if nested:
        boxes = [
            _part(cut, cut.scene.badge_box(site.badge)) for cut, site in zip(cuts, sites, strict=True) if site.badge
        ]
        located["badge_iou"] = [
            Question(cut, "Where is the badge?", "", "object", (Look(box),))
            for cut, box in zip(cuts, boxes, strict=True)
        ]
    for name, questions in located.items():
        episodes = engine(params, questions, key).episodes
        predicted, reference, applies = box_arrays(questions, [e.box for e in episodes])
        scores[name] = float((np.asarray(box_iou(predicted, reference)) * applies).mean())
    return {name: round(value, 4) for name, value in scores.items()}


def _part(cut: _Cut, box: Box) -> Box:
    """A box of the scene in px of a cut."""
    x, y = cut.box.x1, cut.box.y1
    return Box(box.x1 - x, box.y1 - y, box.x2 - x, box.y2 - y, cut.frame)


def _quiet_branches(model: Qwen2_5_VL, scale: float = 0.2) -> None:
    """Scales what each layer adds to the residual stream at the start, so that a colour's word stays readable in it."""
    layers = model.decoder.layers
    for linear in (layers.o_proj, layers.mlp.down_proj):
        linear.kernel[...] = linear.kernel[...] * scale


def _start_from_nano(model: Qwen2_5_VL, rows: RowBuilder) -> None:
    """Gives a model the shipped base's parameters, and its new tokens the mean of all embeddings."""
    nano = load_model("nano")
    before, after = nano.rows.tokenizer.get_vocab(), rows.tokenizer.get_vocab()
    state = nnx.to_pure_dict(nnx.state(nano.model, nnx.Param))
    table = state["decoder"]["embed"]["embedding"]
    places = np.full(len(rows.tokenizer), -1)  # some ids stand for no token: their text is another one's too
    for token, place in after.items():
        places[place] = before.get(token, -1)
    state["decoder"]["embed"]["embedding"] = jnp.where((places >= 0)[:, None], table[places], table.mean(0))
    own = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(own, state)
    nnx.update(model, own)


def pretrain_nano(config: PretrainNanoConfig) -> Path:
    """Trains and writes the base checkpoint; returns its directory."""
    check_writable(config.out, directory=True)
    model_config, episode = preset(config.preset)
    rows = RowBuilder(build_nano_tokenizer(config.nested), episode, model_config.merged_px)
    rngs = nnx.Rngs(config.seed)
    model = nnx.jit(lambda rngs: Qwen2_5_VL(model_config, rngs=rngs))(rngs)
    if config.nested:
        _start_from_nano(model, rows)
    else:
        _quiet_branches(model)
    sizes = {"sites": 5 * len(COLORS), "named": 4, "stripes": len(ORIENTATIONS)}
    sizes |= {"badge": 5} if config.nested else {}
    heads = nnx.Dict({name: nnx.Linear(model_config.text.width, size, rngs=rngs) for name, size in sizes.items()})
    graph, state = nnx.split((model, heads))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup, config.steps, config.lr / 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    opt_state = optimizer.init(state)

    @jax.jit
    def train_step(state, opt_state, batch):
        grads, metrics = jax.grad(_loss, has_aux=True)(state, graph, batch, config.aux_weight)
        updates, opt_state = optimizer.update(grads, opt_state, state)
        return optax.apply_updates(state, updates), opt_state, metrics

    smoothed = None
    with MetricsLog(config.out, total=config.steps, label="pretrain-nano") as log:
        for step in range(config.steps):
            batch = make_batch(
                rows,
                model_config,
                step,
                count=config.scenes,
                seed=config.seed,
                nested=config.nested,
                first_number_weight=config.first_number_weight,
            )
            state, opt_state, metrics = train_step(state, opt_state, batch)
            x1_loss = max(float(metrics[name]) for name in ("x1_loss", "badge_x1_loss") if name in metrics)
            smoothed = x1_loss if smoothed is None else 0.95 * smoothed + 0.05 * x1_loss
            log.write(step + 1, metrics)
            if smoothed < config.stop_x1_loss:
                break
    nnx.update(model, nnx.state(nnx.merge(graph, state)[0]))
    save_model(config.out, model, rows, "bfloat16")
    written = load_model(config.out).model  # is what is scored
    write_yaml(config.out / "run.yaml", config)
    scores = {"steps": step + 1, **score_base(written, rows, config.seed, nested=config.nested)}
    write_file(config.out / "scores.json", json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores))
    return config.out
