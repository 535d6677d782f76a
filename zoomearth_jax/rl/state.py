"""What a training run carries from step to step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.errors import UserError
from zoomearth_jax.models.family import VisionLanguageModel
from zoomearth_jax.models.lora import has_lora
from zoomearth_jax.models.sharding import cast_kernels, param_shardings


class TrainState(NamedTuple):
    """All that a step changes or needs: parameters with and without gradients, optimizer state, steps done; and with
    self-distillation the moving average of the trainable parameters, float32."""

    trainable: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState
    step: jax.Array
    average: nnx.State | None = None

    @property
    def params(self) -> nnx.State:
        """All parameters, for the rollout."""
        return nnx.merge_state(self.trainable, self.frozen)


def init_state(
    model: VisionLanguageModel,
    optimizer: optax.GradientTransformation,
    *,
    freeze_vision: bool,
    mesh: Mesh | None = None,
):
    """The model's structure and a fresh TrainState; what is frozen has no optimizer state and no backward.

    Of a model with adapters only these train; otherwise all parameters train, those of a frozen vision encoder excepted.
    The state takes the model's arrays over, and a step gives its state's memory away: load the model anew to use it after.

    Args:
        mesh: where the state goes, optimizer state beside its parameters; the default device without one.

    Raises:
        UserError: adapters in a frozen vision encoder.
    """
    if freeze_vision and has_lora(model.vision):
        raise UserError(
            "lora config: pattern matches layers of the frozen vision encoder; narrow it or unfreeze vision"
        )

    adapted = has_lora(model)

    def is_frozen(path, variable):
        if adapted:
            return not isinstance(variable, nnx.LoRAParam)
        return freeze_vision and path[0] == "vision"

    graph, *parts = nnx.split(model, is_frozen, ...)
    frozen, trainable = parts
    if mesh is None:
        state = TrainState(trainable, frozen, optimizer.init(trainable), jnp.zeros((), jnp.int32))
        return graph, jax.device_put(state, jax.devices()[0])  # all committed, as a step's results are: one compilation
    trainable, frozen, step = (
        jax.device_put(part, param_shardings(part, mesh)) for part in (trainable, frozen, np.zeros((), np.int32))
    )
    shardings = param_shardings(jax.eval_shape(optimizer.init, trainable), mesh)
    return graph, TrainState(trainable, frozen, jax.jit(optimizer.init, out_shardings=shardings)(trainable), step)


def reference_policy(state: TrainState, dtype: str):
    """A copy of the trainable parameters that stays as it is, its kernels in the compute type."""
    return jax.tree.map(jnp.copy, cast_kernels(state.trainable, dtype))
