"""Groups of further questions in the places of those that teach nothing (dynamic sampling; Yu et al. 2025, DAPO)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoomearth_jax.models.sharding import constrain, process_share, shard_batch
from zoomearth_jax.rl.rollout.engine import Trajectories

HOST = ("prompts", "replies", "logprobs")  # the arrays of episodes that are not on the devices


def refilled_places(teaches: np.ndarray, further: np.ndarray) -> np.ndarray:
    """Which of 2A groups, those that are there and then those played further, make up the batch: int [A].

    A group that teaches keeps its place. The others' are taken by further groups that teach, in their order, as long as there are
    any.

    Args:
        teaches, further: whether each group teaches, bool [A] each.
    """
    places, found = np.arange(len(teaches)), len(teaches) + np.flatnonzero(further)
    flat = np.flatnonzero(~teaches)[: len(found)]
    places[flat] = found[: len(flat)]
    return places


def picked_groups(played, further, places: np.ndarray):
    """The groups at `places` of two trees of equal arrays [A x n, ...], a group's rows one after the other."""

    def one(x, y):
        return np.concatenate([_grouped(x, places), _grouped(y, places)])[places].reshape(x.shape)

    return jax.tree.map(one, played, further)


def replace_groups(played: Trajectories, further: Trajectories, places: np.ndarray, mesh: Mesh | None) -> Trajectories:
    """The episodes of the groups at `places` of two batches of one shape; visual tokens stay on the devices.

    Args:
        places: as `refilled_places` gives them, of this process's A groups. All processes must call it at the same time.
        mesh: where the batches lie.
    """

    def chosen(name: str) -> list:
        groups = [_in_groups(getattr(one, name), len(places)) for one in (played, further)]
        return [x for place in places for x in (groups[0] + groups[1])[place]]

    mine, theirs = ({name: getattr(one, name) for name in HOST} for one in (played, further))
    arrays = picked_groups(mine, theirs, places)
    index, shares = process_share(mesh)
    own = (
        np.where(places < len(places), index, shares + index - 1) * len(places) + places
    )  # among all processes' groups
    features = [(one.overview_features, one.picture_features) for one in (played, further)]
    overviews, pictures = _picked_features(*features, shard_batch(own.astype(np.int32), mesh))
    return Trajectories(
        **arrays,
        overview_features=overviews,
        picture_features=pictures,
        episodes=chosen("episodes"),
        overviews=chosen("overviews"),
    )


@jax.jit
def _picked_features(played, further, places):
    def one(x, y):
        picked = jnp.concatenate([_grouped(x, places), _grouped(y, places)])[places]
        return constrain(picked.reshape(x.shape), "batch", *[None] * (x.ndim - 1))

    return jax.tree.map(one, played, further)


def _grouped(x, places):
    """An array [A x n, ...] as [A, n, ...]."""
    return x.reshape(len(places), len(x) // len(places), *x.shape[1:])


def _in_groups(items: list, groups: int) -> list[list]:
    """A list in equal parts."""
    size = len(items) // groups
    return [items[i : i + size] for i in range(0, len(items), size)]
