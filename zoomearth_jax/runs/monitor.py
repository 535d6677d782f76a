"""What a training run watches about itself: where its time goes, compilations, memory, alarms, a stop on NaN, a profile."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

from zoomearth_jax.configs.io import to_dict
from zoomearth_jax.configs.training import TrainingConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.chips import chip
from zoomearth_jax.hardware.flops import RowCounts, mfu
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.rl.state import TrainState
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metrics import MetricsLog
from zoomearth_jax.runs.replay import save_replay
from zoomearth_jax.runs.saved_steps import together
from zoomearth_jax.runs.sinks import open_sinks
from zoomearth_jax.terminal.progress import say

WARM_UP = 2  # steps of a process in which programs may compile
PROFILED = 3  # steps in a trace


class Compilations:
    """Programs that XLA has compiled, or taken from its cache, since this was made."""

    def __init__(self):
        self.names: list[str] = []
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **more) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(more.get("fun_name", "a program"))
            self.seconds += duration_secs

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


class Alarms:
    """Alarms that are said when they begin and when they end."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._on: set[str] = set()

    def update(self, step: int, messages: Mapping[str, str | None]) -> list[str]:
        """Takes each alarm's message, None where it is off; gives the names of those that are on."""
        on = {name for name, message in messages.items() if message}
        for name in sorted(on - self._on):
            self._say(f"step {step}: alarm {name}: {messages[name]}")
        for name in sorted(self._on - on):
            self._say(f"step {step}: alarm {name} is over")
        self._on = on
        return sorted(on)


class Monitor:
    """Follows the steps of a run and logs them. Use as a context manager:

    for step, batch in monitor.steps(batches):  # from 0; counts the wait for data
        with monitor.phase("update"):
            ...
        monitor.stop_if_broken(step + 1, metrics, batch, state)
        monitor.log(step + 1, metrics, counts, flops)
    """

    def __init__(
        self,
        log: MetricsLog,
        out: Path,
        *,
        start: int,
        total: int,
        chips: int = 1,
        shares: int = 1,
        peak_flops: float | None = None,
        profile: bool = False,
        shapes_vary: bool = False,
    ):
        """Takes the run's log, which it closes, and its directory.

        Args:
            start, total: the last step already done, and the run's last step.
            chips: number of chips that the run uses, over all processes.
            shares: equal shares that processes cut a batch into; what is logged per second is this process's figure times that.
            peak_flops: FLOP/s of a chip; without it there is no MFU.
            profile: write an XProf trace of a few steps.
            shapes_vary: programs may compile at any step (packed rows).
        """
        self._metrics, self._out, self._start = log, Path(out), start
        self._chips, self._shares, self._peak_flops = chips, shares, peak_flops
        self._warm = math.inf if shapes_vary else start + WARM_UP
        first = min(start + WARM_UP, max(total - 1, start)) + 1
        self._profiled = range(first, min(first + PROFILED, total + 1)) if profile else range(0)
        self._alarms = Alarms(say if jax.process_index() == 0 else lambda line: None)
        self._compilations = Compilations()
        self._phases: dict[str, float] = {}
        self._compiled: list[str] = []
        self._done, self._last = (0, 0.0), time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._compilations.close()
        self._metrics.__exit__(*error)

    def steps(self, batches: Iterator) -> Iterator[tuple[int, Any]]:
        """Yields (steps done before, batch), and traces the steps that are to be profiled."""
        step, batches, ended, traces = self._start, iter(batches), object(), False
        try:
            while True:
                if self._profiled and step + 1 == self._profiled[0]:
                    jax.profiler.start_trace(self._out / "profile")
                    traces = True
                with jax.profiler.StepTraceAnnotation("step", step_num=step + 1):
                    with self.phase("data_wait"):
                        batch = next(batches, ended)
                    if batch is ended:
                        return
                    yield step, batch
                step += 1
                if traces and step == self._profiled[-1]:
                    jax.profiler.stop_trace()
                    traces = False
        finally:
            if traces:  # the run ends early
                jax.profiler.stop_trace()

    @contextmanager
    def phase(self, name: str, may_compile: bool = False) -> Iterator[None]:
        """Adds up the seconds of a part of the step, and notes what compiles in it though nothing should."""
        began, known = time.perf_counter(), len(self._compilations.names)
        with jax.profiler.TraceAnnotation(name):
            yield
        self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - began
        self._compiled += [] if may_compile else self._compilations.names[known:]

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        counts: RowCounts,
        flops: float,
        alarms: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        """Logs a step with what it cost.

        Args:
            step: 1 is the first.
            counts, flops: counts and FLOPs of this process's rows.
            alarms: message of each alarm, None where it is off.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        cost = {f"perf/{name}_s": value for name, value in self._phases.items()}
        cost |= throughput(counts, flops, seconds, self._shares, self._chips, self._peak_flops)
        names, total = self._compilations.names, self._compilations.seconds
        cost |= {"perf/compiles": len(names) - self._done[0], "perf/compile_s": total - self._done[1]}
        late = self._compiled if step > self._warm else []
        recompiled = f"{len(late)} programs compiled again, {', '.join(sorted(set(late))[:3])}" if late else None
        on = self._alarms.update(step, {"recompile": recompiled, **alarms})
        self._metrics.write(step, {**metrics, "perf/seconds": seconds, **cost, **memory()}, on)
        self._phases, self._compiled, self._done = {}, [], (len(names), total)

    def picture(self, step: int, path: Path) -> None:
        """Shows a panel in the log's sinks."""
        self._metrics.picture(step, "panel", path)

    def stop_if_broken(self, step: int, metrics: Mapping[str, float], batch, state: TrainState) -> None:
        """Stops the run where a step's loss, gradient or update is not finite.

        The batch goes to OUT/replay/step_N_P.npz (process P's rows), to be replayed with `load_replay`, and the state, which a
        broken step leaves as it is, to OUT/replay/checkpoints.

        Raises:
            UserError: something is not finite.
        """
        broken = [name for name in ("loss", "grad_norm", "update_ratio") if not math.isfinite(metrics.get(name, 0.0))]
        if not broken:
            return
        folder = self._out / "replay"
        together("found a step that is not finite")
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
        together("made room for its batch")
        save_replay(folder / f"step_{step:06d}_{jax.process_index()}.npz", batch)
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(step - 1, state)
        self._metrics.write(step, metrics, ["not_finite"])
        values = ", ".join(f"{name} {float(metrics[name])}" for name in broken)
        raise UserError(
            f"step {step}: {values}; the batch and the state before it are in {folder}; lower the learning rate, or look "
            "for the cause there"
        )


def open_monitor(
    config: TrainingConfig,
    label: str,
    start: int,
    mesh: Mesh,
    shown: tuple[str, ...] = ("loss",),
    shapes_vary: bool = False,
    before: Mapping[str, float] = MappingProxyType({}),
) -> Monitor:
    """The monitor of a training run's settings `out`, `steps`, `log` and `profile`; see `Monitor` and `MetricsLog`."""

    def sinks():
        return open_sinks(config.log, config.out, start, to_dict(config))

    known = chip(mesh.devices.flat[0].device_kind)
    return Monitor(
        MetricsLog(config.out, total=config.steps, label=label, start=start, shown=shown, sinks=sinks, before=before),
        config.out,
        start=start,
        total=config.steps,
        chips=mesh.size,
        shares=process_share(mesh)[1],
        peak_flops=known and known.peak_flops,
        profile=config.profile,
        shapes_vary=shapes_vary,
    )


def throughput(
    counts: RowCounts, flops: float, seconds: float, shares: int, chips: int, peak_flops: float | None
) -> dict[str, float]:
    """Work per second and chip; MFU where the chip's peak is known."""
    share = shares / (seconds * chips)
    rates = {
        "perf/tokens_per_s": counts.tokens * share,
        "perf/written_tokens_per_s": int(counts.scored_B.sum()) * share,
        "perf/images_per_s": counts.images * share,
        "perf/samples_per_s": counts.samples * share,
        "perf/model_tflops": flops * share / 1e12,
    }
    return rates | ({"perf/mfu": mfu(flops * shares, seconds, chips, peak_flops)} if peak_flops else {})


def memory() -> dict[str, float]:
    """Highest memory so far, in GB: of this process, and of the fullest of its devices where the platform tells."""
    unit = 1 if sys.platform == "darwin" else 1024
    highest = {"perf/host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return highest | ({"perf/device_memory_gb": max(peaks) / 1e9} if peaks else {})
