"""The sampler's layout: how many devices share out a model's weights while tokens are written.

A token needs all weights once, whatever the number of rows, so one chip's part of them should be small; but each layer then has
collectives, which cost their hops. `chosen` weighs the two by an estimate in closed form.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.mesh import STATE_BYTES
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import GIB, Chip
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.sharding import num_slices, process_share, sampler_mesh, uneven_weights

EXCHANGES = 5  # of a layer: q, k, v to their rows; all rows' outputs; the projection's columns; the MLP's sum, twice
STATES = 4  # times that a layer exchanges the states of a group's rows: the last three of them


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What is known about writing tokens before a run.

    Attributes:
        model: its structure, also an abstract one.
        mesh: the trainer's.
        prompts, group: questions that are played at once, and rows of each.
        slots: tokens of a row's cache.
        chip: the devices; None where they aren't known.
        trains: whether a training state lies beside it.
    """

    model: VisionLanguageModel
    mesh: Mesh
    prompts: int
    group: int
    slots: int
    chip: Chip | None
    trains: bool

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.model.compute.dtype).itemsize

    def fault(self, size: int) -> str:
        """Why groups of `size` devices can't share the weights out; empty where they can."""
        devices = self.mesh.size
        if (devices // num_slices(self.mesh.devices.flat)) % size:
            return f"groups of {size} devices don't divide the {devices} devices, or those of a slice"
        if self.prompts % devices:
            return f"{self.prompts} questions at once don't divide over {devices} devices"
        if jax.process_count() > 1 and process_share(self.mesh)[1] != jax.process_count():
            return "processes share rows; take a mesh with a smaller tensor size"
        name = uneven_weights(nnx.state(self.model, nnx.Param), size)
        return f"{name} doesn't divide by {size}" if name else ""

    def seconds(self, size: int) -> float:
        """A token's time by the estimate: weights read, states exchanged and hops; what doesn't depend on `size` is left out."""
        assert self.chip
        sizes = self.model.config
        weights = (sizes.token_flops / 2 + sizes.vocab_size * sizes.width) * self._itemsize
        read = weights / size / self.chip.hbm_bandwidth
        if size == 1:
            return read
        rows = self.prompts * self.group * size / self.mesh.size
        sent = STATES * rows * sizes.width * self._itemsize * (size - 1) / size
        rate = self.chip.link_bandwidth * (2 if self.chip.wraps else self.chip.links)
        layers = sizes.cache_shape(1, 1)[0]
        return read + layers * (sent / rate + EXCHANGES * self._hops(size) * self.chip.hop_seconds)

    def _hops(self, size: int) -> int:
        """The longest way within the first group: along each dimension of the torus, the shorter way round a closed ring."""
        assert self.chip
        devices = list(self.mesh.devices.flat)
        places = [getattr(device, "coords", None) for device in devices]
        if None in places:
            return 1
        hops, all_places = 0, np.array(places)
        for places_of_one, group in zip(all_places.T, all_places[:size].T, strict=True):
            side, extent = int(np.ptp(places_of_one)) + 1, int(np.ptp(group)) + 1
            ring = self.chip.wraps > 0 and side % self.chip.wraps == 0 and extent == side
            hops += extent // 2 if ring else extent - 1
        return hops

    def held_bytes(self, size: int) -> float:
        """Bytes of a device: the training state, weights for prompts and for tokens, and the cache."""
        parameters = sum(x.size for x in jax.tree.leaves(nnx.state(self.model, nnx.Param)))
        shared = self.mesh.shape["fsdp"] * self.mesh.shape["tensor"]
        state = parameters * (STATE_BYTES if self.trains else 4) / shared
        weights = parameters * self._itemsize
        writing = weights / size + weights / shared if size > 1 else weights / self.mesh.shape["tensor"]
        rows = self.prompts * self.group / self.mesh.size
        return state + writing + 2 * self._itemsize * math.prod(self.model.config.cache_shape(1, self.slots)) * rows

    def sizes(self) -> list[int]:
        """Sizes of groups that can share the weights out, the trainer's layout (1) first."""
        return [1, *(n for n in range(2, self.mesh.size + 1) if self.mesh.size % n == 0 and not self.fault(n))]

    def chosen(self) -> int:
        """The fastest size by the estimate, of those that fit; 1, the trainer's layout, on devices that aren't known."""
        if self.chip is None:
            return 1
        sizes = self.sizes()
        fitting = [size for size in sizes if self.held_bytes(size) <= self.chip.hbm_bytes] or [
            min(sizes, key=self.held_bytes)
        ]
        return min(fitting, key=self.seconds)


def lay_out(decoding: Decoding, size: int) -> tuple[Mesh | None, list[str]]:
    """The sampler's mesh, None for the trainer's own, and lines that are worth saying.

    Args:
        size: see `MeshConfig.sampler`.

    Raises:
        UserError: a size that can't be.
    """
    said: list[str] = []
    mesh = decoding.mesh
    if size > 1 and (fault := decoding.fault(size)):
        near = ", ".join(map(str, decoding.sizes()))
        raise UserError(f"mesh config: sampler {size}: {fault}; sizes that do: {near}, or 0 to have it chosen")
    taken = size or decoding.chosen()
    if decoding.chip is None:
        return (None if taken == 1 else sampler_mesh(mesh, taken)), said
    if not size and mesh.size > 1 and decoding.prompts % mesh.size:
        said.append(f"tokens are written in the trainer's layout: {decoding.fault(1)}")
    held, room = decoding.held_bytes(taken), decoding.chip.hbm_bytes
    if held > room:
        said.append(
            f"sampler {taken}: training state, weights and caches take about {held / GIB:.1f} GiB of a device's "
            f"{room / GIB:.1f} GiB; another --mesh.sampler, more devices along fsdp, or smaller batches take less"
        )
    return (None if taken == 1 else sampler_mesh(mesh, taken)), said
