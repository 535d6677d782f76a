"""`zoomearth bench full-size`: loads a checkpoint and answers a question about one view; seconds and host memory.

Without weights at hand, those of a preset are drawn at random, with the nano model's tokenizer: the same arithmetic, and
words that mean nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import nnx

from zoomearth_jax.bench.random_checkpoint import write_random_checkpoint
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import copy_side_files, load_model, resolve


@dataclasses.dataclass(frozen=True)
class FullSizeConfig:
    """Loading a checkpoint and answering a question about one view: seconds and host memory.

    Attributes:
        model: an HF directory; random weights of `preset` by default (7.5 GB of disk for the 3B).
        preset: model size of the random weights.
        tokens: the most tokens that a turn may write.
        compute: number types and backends.
        json: print JSON.
    """

    model: Path | None = None
    preset: str = "qwen2_5_vl_3b"
    tokens: int = 16
    compute: ComputeConfig = ComputeConfig(dtype="bfloat16", param_dtype="bfloat16")
    json: bool = False

    def __post_init__(self):
        if self.tokens < 1:
            raise UserError("bench full-size: tokens must be positive")


def bench_full_size(config: FullSizeConfig) -> list[dict]:
    """Rows `what, seconds, peak_gb`: memory of this process that no file backs, at its highest up to then.

    `over_gb` of loading is that peak less what the process had before and the parameters themselves.
    """
    with contextlib.ExitStack() as stack:
        directory = config.model
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _write_random(directory, config.preset)
        return _measure(directory, config)


def _write_random(directory: Path, name: str) -> None:
    """A preset's sizes with the nano model's special ids, and its tokenizer."""
    (model, _), (nano, _) = preset(name), preset("nano")
    ids = {f.name: getattr(nano, f.name) for f in dataclasses.fields(nano) if f.name.endswith("_id")}
    write_random_checkpoint(directory, dataclasses.replace(model, **ids))
    copy_side_files(resolve("nano"), directory)
    (directory / "episode.json").unlink()  # a published checkpoint has none, and gets 512 px views


def _measure(directory: Path, config: FullSizeConfig) -> list[dict]:
    jax.block_until_ready(jax.numpy.zeros(1))
    rows, before = [], _anonymous_gb()
    with _watched_memory() as peak_gb:

        def timed(what: str, function, **more):
            began = time.perf_counter()
            result = function()
            rows.append({"what": what, "seconds": time.perf_counter() - began, "peak_gb": peak_gb(), **more})
            return result

        loaded = timed("load", lambda: load_model(directory, config.compute))
        params = nnx.state(loaded.model, nnx.Param)
        size = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9
        rows[0] |= {"parameters_gb": size, "over_gb": peak_gb() - before - size}
        rows_of = loaded.rows.replaced(turn_lens=(config.tokens, config.tokens))
        engine = RolloutEngine(loaded.model, rows_of, config=RolloutConfig(bucket=0))  # as `ask` does
        questions = scene_questions("test", 0, 0, 1, 0.0)
        for what in ("first answer, with compilation", "answer"):
            played = timed(what, lambda: engine(params, questions, jax.random.key(0)))
            rows[-1]["tokens"] = int(played.replies.target.sum())
    return rows


def _anonymous_gb() -> float:
    """Memory of this process that no file backs; only on Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        raise UserError("bench full-size reads /proc/self/status, which this system doesn't have") from None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024 / 1e9


@contextlib.contextmanager
def _watched_memory() -> Iterator:
    """Yields a function that gives the highest `_anonymous_gb` since then, sampled every 10 ms."""
    highest, stop = [_anonymous_gb()], threading.Event()

    def watch():
        while not stop.wait(0.01):
            highest[0] = max(highest[0], _anonymous_gb())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(highest[0], _anonymous_gb())
    finally:
        stop.set()
        thread.join()
