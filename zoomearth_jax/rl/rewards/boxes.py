"""Jitted kernels of the rewards for boxes: IoU, and region guidance (paper, Method: r_IoU and r_RG); containment, and the IoU of
several boxes.

Kernels take boxes [..., 4], (x1, y1, x2, y2) in px of one frame. A box is four numbers with x1 < x2 and y1 < y2; what is
degenerate, inverted, NaN, infinite or beyond 1e18 px is none, and scores 0 in every reward. Parts out of the image count as
any other: it is the parser that cuts boxes at the view. With the spec's iou `reference` any four numbers are a box, inverted
ones and points too, as they are written: so the released code pays.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from zoomearth_jax.configs.reward import RewardSpec

FAR = 1e18  # px; squares of what is nearer stay finite in float32
REFERENCE_PX = 512  # of the released code's windows


def _corners(boxes):
    """x1, y1, x2, y2 [...] each: along a last axis of 2 or 4, XLA's CPU backend is ten times slower."""
    return tuple(boxes[..., i] for i in range(4))


def _area(x1, y1, x2, y2):
    return jnp.maximum(x2 - x1, 0.0) * jnp.maximum(y2 - y1, 0.0)


def is_box(boxes):
    """Which of the boxes [..., 4] are boxes at all (see the module), bool [...]."""
    x1, y1, x2, y2 = _corners(boxes)
    return (x1 > -FAR) & (x1 < x2) & (x2 < FAR) & (y1 > -FAR) & (y1 < y2) & (y2 < FAR)


def is_near(boxes):
    """Whether all numbers of boxes [..., 4] are finite, and within 1e18 px, bool [...]."""
    x1, y1, x2, y2 = map(jnp.abs, _corners(boxes))
    return (x1 < FAR) & (y1 < FAR) & (x2 < FAR) & (y2 < FAR)


def box_iou(a, b):
    """Intersection over union of boxes [..., 4]: float32 [...]; 0 where either is none."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _corners(a), _corners(b)
    overlap = _area(jnp.maximum(ax1, bx1), jnp.maximum(ay1, by1), jnp.minimum(ax2, bx2), jnp.minimum(ay2, by2))
    area_a, area_b = _area(ax1, ay1, ax2, ay2), _area(bx1, by1, bx2, by2)
    union = area_a + area_b - overlap
    real = is_box(a) & is_box(b) & (area_a > 0) & (area_b > 0)  # areas of boxes may underflow
    return jnp.where(real, overlap / jnp.where(real, union, 1.0), 0.0)


def containment(windows, boxes):
    """Share of each of the boxes [..., 4] that lies in its window [..., 4]: float32 [...]; 0 where either is none.

    It asks for a direction, as the chain-of-focus reward of GeoEyes (arXiv 2602.14201) does, which IoU doesn't: a small box in a
    large window is contained whole. GeoEyes compares each window with the one before; this is a window and the reference.
    """
    (wx1, wy1, wx2, wy2), (x1, y1, x2, y2) = _corners(windows), _corners(boxes)
    overlap = _area(jnp.maximum(wx1, x1), jnp.maximum(wy1, y1), jnp.minimum(wx2, x2), jnp.minimum(wy2, y2))
    area = _area(x1, y1, x2, y2)
    real = is_box(windows) & is_box(boxes) & (area > 0)
    return jnp.where(real, overlap / jnp.where(real, area, 1.0), 0.0)


@jax.jit
def containment_rewards(windows, boxes, applies):
    """`containment` of a batch [B, 4] each, 0 where it doesn't apply (bool [B]): float32 [B]."""
    return jnp.where(applies, containment(windows, boxes), 0.0)


@jax.jit
def greedy_iou(predicted, reference, counts):
    """IoU of several boxes with several reference boxes, each matched at most once: float32 [B].

    The pair with the largest IoU is matched first, then the largest of the boxes that are left, and so on; their sum is divided
    by the larger number of boxes, so that a box too many costs as one that is missing does. (GeoVista, arXiv 2605.14475, matches
    the same way, drops boxes that are named twice, and divides by the number of reference boxes.)

    Args:
        predicted, reference: [B, P, 4] and [B, R, 4] in px of one frame; what is no box in the places that are left over.
        counts: the larger number of boxes of each, predicted or reference, [B]; 0 gives 0.
    """
    pairs = box_iou(predicted[:, :, None], reference[:, None])
    places_P, places_R = jnp.arange(pairs.shape[1])[:, None], jnp.arange(pairs.shape[2])

    def match(_, state):
        left, total = state
        best = jnp.argmax(left.reshape(len(left), -1), axis=1)
        p, r = (x[:, None, None] for x in jnp.divmod(best, pairs.shape[2]))
        total = total + jnp.max(left, axis=(1, 2))
        return jnp.where((places_P == p) | (places_R == r), 0.0, left), total

    _, total = jax.lax.fori_loop(0, min(pairs.shape[1:]), match, (pairs, jnp.zeros(len(pairs))))
    return jnp.where(counts > 0, total / jnp.maximum(counts, 1), 0.0)


def reference_window(boxes):
    """What the released code compares in place of boxes [..., 4] in px of the original.

    Corners lose their fractions; if either side is then shorter than 512 px, as of every point and inverted box, it is the
    square of 512 px around the centre, cut only at the left and upper border (nothing is left of one wholly beyond these),
    otherwise the box as it was.
    """
    x1, y1, x2, y2 = map(jnp.trunc, _corners(boxes))
    left, top = jnp.floor((x1 + x2) / 2) - REFERENCE_PX // 2, jnp.floor((y1 + y2) / 2) - REFERENCE_PX // 2
    square = (jnp.maximum(left, 0.0), jnp.maximum(top, 0.0), left + REFERENCE_PX, top + REFERENCE_PX)
    short = (x2 - x1 < REFERENCE_PX) | (y2 - y1 < REFERENCE_PX)
    grown = jnp.where(short[..., None], jnp.stack(square, -1), boxes)
    return jnp.where(is_near(boxes)[..., None], grown, 0.0)


def centre_distance(a, b, side=None):
    """Distance between the centres of boxes [..., 4]: in px, or over `side` [...]."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _corners(a), _corners(b)
    if side is None:  # sums of corners would be rounded, by 2e-4 px in 5,000 px: 1e-6 of the reward at alpha 200
        apart = ((ax1 - bx1) + (ax2 - bx2)) / 2, ((ay1 - by1) + (ay2 - by2)) / 2
    else:  # over the side that is nothing; this form, the older, keeps resumed runs bit-equal
        apart = (ax1 + ax2) / 2 - (bx1 + bx2) / 2, (ay1 + ay2) / 2 - (by1 + by2) / 2
    # summed as an axis, since x * x + y * y is rounded once or twice depending on the batch's size
    distance = jnp.sqrt(jnp.sum(jnp.stack(apart, -1) ** 2, axis=-1))
    return distance if side is None else distance / side


def region_reward(spec: RewardSpec, a, b, side):
    """Region guidance of boxes [..., 4] by the spec's shape: float32 [...], 0 to 1; 0 where either is none.

    As printed in the paper, sigmoid(alpha / (d + eps)), it is above 0.5 for every box: its gradient lies between near and far,
    its offset in whether there is a box at all. tanh(alpha / (d + eps)), the paper's figure and the released code's, starts
    at 0.

    Args:
        side: [...], longer side of the image in px, the distance's unit if the spec says so.
    """
    distance = centre_distance(a, b, side if spec.region_unit == "side" else None)
    shape = jax.nn.sigmoid if spec.region == "sigmoid" else jnp.tanh
    counts = is_near if spec.iou == "reference" else is_box
    return jnp.where(counts(a) & counts(b), shape(spec.region_alpha / (distance + spec.region_eps)), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def box_rewards(spec: RewardSpec, predicted, reference, applies, side, windows=None):
    """IoU and region rewards of a batch.

    Args:
        predicted, reference: [B, 4] in px of the original.
        applies: bool [B], there is a predicted box and a reference; both rewards are 0 elsewhere.
        side: [B], longer side of the image in px.
        windows: windows of predicted and reference, [B, 4] each in px of the original; for the spec's iou `window`.

    Returns:
        float32 [B] each.
    """
    compared = windows if spec.iou == "window" else (predicted, reference)
    if spec.iou == "reference":
        compared = map(reference_window, compared)
    iou = jnp.where(applies, box_iou(*compared), 0.0)
    return iou, jnp.where(applies, region_reward(spec, predicted, reference, side), 0.0)
