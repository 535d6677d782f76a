"""How devices and processes are laid out."""

from __future__ import annotations

import dataclasses

from zoomearth_jax.errors import UserError

STATE_BYTES = 16  # of a parameter in training: float32 master, gradient, and AdamW's two moments
DEVICE_BYTES = 4e9  # that a device should spend on them: a quarter of the smallest TPU's memory


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes along the mesh axes, and how several processes find each other.

    Attributes:
        data: groups of devices that each hold all parameters; 0 for what fsdp and tensor leave.
        fsdp: devices that share out one group's parameters and optimizer state; 0 for as few as keep a device's part of
            them under 4 GB in training (1 for nano; 16 for the 3B, 64 for the 7B, where there are that many).
        tensor: devices that share out each layer's heads and MLP.
        gather: in rollouts each device gathers the weights of its tensor group once per rollout, in the compute type. Without
            it they are gathered layer by layer for every token: slow, for models that don't fit otherwise.
        sampler: devices that share out the weights while tokens are written; rows and their caches are then spread over all
            devices. 1 is the layout of training; 0 for what an estimate finds fastest on devices that are known (TPUs,
            some GPUs), 1 on others.
        coordinator: HOST:PORT of process 0, the same for all processes; `auto` asks the cluster's environment (SLURM, MPI,
            Kubernetes, Cloud TPU). Cloud TPU pods need nothing.
        processes: how many there are, with HOST:PORT.
        process: this one's number, with HOST:PORT.
    """

    data: int = 0
    fsdp: int = 0
    tensor: int = 1
    gather: bool = True
    sampler: int = 0
    coordinator: str = ""
    processes: int = 0
    process: int = 0

    def __post_init__(self):
        if self.data < 0 or self.fsdp < 0 or self.tensor < 1:
            raise UserError("mesh config: data and fsdp must be positive, or 0 to be chosen; tensor must be positive")
        if self.sampler < 0:
            raise UserError("mesh config: sampler must be a number of devices, or 0 to be chosen")
        if self.coordinator in ("", "auto"):
            if self.processes or self.process:
                raise UserError("mesh config: processes and process go with a coordinator HOST:PORT")
        elif ":" not in self.coordinator or not 0 <= self.process < self.processes:
            raise UserError("mesh config: coordinator HOST:PORT needs processes, and process from 0 to processes - 1")

    def shape(self, devices: int, parameters: int, slices: int = 1) -> tuple[int, int, int]:
        """Sizes along (data, fsdp, tensor) for that many devices.

        Args:
            parameters: number of the model's parameters, which decides fsdp where it is 0.
            slices: number of slices of a TPU system; only data spans them.

        Raises:
            UserError: sizes that don't make up the devices.
        """
        data, fsdp, tensor = self.data, self.fsdp, self.tensor
        left = devices // tensor
        if not fsdp:
            room = left // data if data else left // slices
            wanted = parameters * STATE_BYTES / tensor / DEVICE_BYTES
            sizes = [size for size in range(1, room + 1) if room % size == 0]
            fsdp = room if data else next((size for size in sizes if size >= wanted), max(room, 1))
        data = data or left // fsdp
        if data * fsdp * tensor != devices or data % slices:
            across = f" in {slices} slices, which data must be a multiple of" if slices > 1 else ""
            raise UserError(
                f"mesh config: data {data} x fsdp {fsdp} x tensor {tensor} is not the {devices} devices{across}"
            )
        return data, fsdp, tensor
