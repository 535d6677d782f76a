"""Alarms, compilations, throughput, and the stop of a run that breaks, whose batch gives the same NaN again."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.training import SFTConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.flops import RowCounts
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.state import init_state
from zoomearth_jax.rl.steps import make_sft_step
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.metrics import MetricsLog
from zoomearth_jax.runs.models import load_model
from zoomearth_jax.runs.monitor import Alarms, Compilations, Monitor, throughput
from zoomearth_jax.runs.replay import load_replay, save_replay
from zoomearth_jax.verbs.sft import sft

ONE = RowCounts(np.array([10]), np.array([20, 30]), np.array([5, 5]), np.array([[2, 2]]), np.array([[1, 2], [0, 0]]))


def monitor(directory, total=6, **settings):
    return Monitor(MetricsLog(directory, total=total, label="test"), directory, start=0, total=total, **settings)


def test_alarms_are_said_when_they_begin_and_end():
    said = []
    alarms = Alarms(said.append)
    messages = [None, "none zooms", "none zooms", None, "all zoom"]
    on = [alarms.update(step, {"zoom_rate": message}) for step, message in enumerate(messages, 1)]
    assert on == [[], ["zoom_rate"], ["zoom_rate"], [], ["zoom_rate"]]
    assert said == [
        "step 2: alarm zoom_rate: none zooms",
        "step 4: alarm zoom_rate is over",
        "step 5: alarm zoom_rate: all zoom",
    ]


def test_compilations_are_counted_until_closed():
    counted = Compilations()
    double = jax.jit(lambda x: x * 2.25)
    double(jnp.ones(3))
    known = len(counted.names)
    assert known
    assert counted.seconds > 0
    double(jnp.ones(3))
    assert len(counted.names) == known
    counted.close()
    double(jnp.ones(4))
    assert len(counted.names) == known


@pytest.mark.parametrize("shapes_vary", [False, True])
def test_a_recompile_after_warm_up_is_an_alarm(tmp_path, capsys, shapes_vary):
    lengths = [3, 3, 3, 4, 4]  # another shape in step 4

    @jax.jit
    def work(x):
        return x + 1.75

    with monitor(tmp_path, total=len(lengths), shapes_vary=shapes_vary) as watched:
        for step, length in watched.steps(lengths):
            with watched.phase("update"):
                work(np.ones(length)).block_until_ready()
            watched.log(step + 1, {"loss": 1.0}, ONE, 1e9)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row.get("alarms", []) for row in rows] == [[], [], [], [] if shapes_vary else ["recompile"], []]
    assert [row["perf/compiles"] > 0 for row in rows] == [True, False, False, True, False]
    assert all(row["perf/seconds"] >= row["perf/update_s"] + row["perf/data_wait_s"] for row in rows)
    assert rows[0]["perf/host_memory_gb"] > 0.05
    said = capsys.readouterr().err
    assert ("step 4: alarm recompile: 1 programs compiled again, jit(work)" in said) != shapes_vary


def test_throughput_counts_what_exists():
    """Half a second, two processes with equal shares, four chips: so much of each a second and chip."""
    rates = throughput(ONE, 3e12, 0.5, shares=2, chips=4, peak_flops=10e12)
    assert rates == {
        "perf/tokens_per_s": 60.0,
        "perf/written_tokens_per_s": 10.0,
        "perf/images_per_s": 2.0,
        "perf/samples_per_s": 2.0,
        "perf/model_tflops": 3.0,
        "perf/mfu": pytest.approx(0.3),
    }
    assert "perf/mfu" not in throughput(ONE, 3e12, 0.5, 1, 1, None)


def test_a_profile_covers_steps_after_warm_up(tmp_path):
    """Steps 3, 4 and 5, with their phases."""
    with monitor(tmp_path, profile=True) as watched:
        for step, x in watched.steps(iter(range(6))):
            assert bool(list((tmp_path / "profile").rglob("*.xplane.pb"))) == (step >= 5)
            with watched.phase("update"):
                jnp.sin(float(x)).block_until_ready()
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    events = [
        event for plane in ProfileData.from_file(str(path)).planes for line in plane.lines for event in line.events
    ]
    assert [dict(event.stats).get("step_num") for event in events if event.name == "step"] == [3, 4, 5]
    assert sum(event.name == "update" for event in events) == 3


def test_a_profile_of_a_run_that_stops_is_closed(tmp_path):
    with monitor(tmp_path, total=2, profile=True) as watched:
        assert [step for step, _ in watched.steps(iter(range(1)))] == [0]
    jax.profiler.start_trace(tmp_path / "other")  # one at a time
    jax.profiler.stop_trace()


def test_batches_are_saved_in_any_number_type(tmp_path):
    batch = {"x": jnp.arange(6.0).reshape(3, 2), "features": jnp.ones((3, 2), jnp.bfloat16) * 1.5}
    save_replay(tmp_path / "replay" / "step.npz", batch)
    assert [file.name for file in (tmp_path / "replay").iterdir()] == ["step.npz"]
    again = load_replay(tmp_path / "replay" / "step.npz", jax.tree.map(np.zeros_like, batch))
    assert again["features"].dtype == jnp.bfloat16
    assert jax.tree.all(jax.tree.map(np.array_equal, again, batch))


def test_replays_that_cannot_be_loaded(tmp_path):
    path = tmp_path / "step_000001_0.npz"
    with pytest.raises(UserError, match="not a batch that was saved"):
        load_replay(path, {})
    save_replay(path, {"x": jnp.ones(2)})
    with pytest.raises(UserError, match="another form; it differs in x, y"):
        load_replay(path, {"y": np.ones(2)})
    np.savez(path, x=np.array([{}], object))
    with pytest.raises(UserError, match="not a batch that was saved"):
        load_replay(path, {"x": np.ones(1)})


@pytest.mark.slow
def test_a_run_that_breaks_can_be_replayed(tmp_path, capsys):
    """A first step of absurd size makes the second one's loss NaN; its batch and the state before it give that NaN again."""
    out = tmp_path / "run"
    config = SFTConfig(
        out=out, questions=8, steps=4, batch_size=4, checkpoint_every=1, optimizer=OptimizerConfig(lr=1e15, warmup=0)
    )
    with pytest.raises(UserError, match=r"step 2: loss nan.*the batch and the state before it are in .*replay"):
        sft(config)
    rows = read_metrics(out / "metrics.jsonl")
    assert [(row["step"], row["loss"] is None) for row in rows] == [(1, False), (2, True)]
    with Checkpoints(out) as checkpoints:
        assert checkpoints.latest == 1

    model, builder = load_model("nano")
    optimizer = config.optimizer.build(config.steps)
    graph, state = init_state(model, optimizer, freeze_vision=True)
    with Checkpoints(out / "replay") as checkpoints:
        state = checkpoints.restore(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.trainable))
    like = row_batch(*builder.supervised(scene_questions("sft", 7, 0, 4, global_share=0.5)), model.config)
    batch = load_replay(out / "replay" / "step_000002_0.npz", like)
    step = make_sft_step(graph, optimizer, builder.layout)
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, jax.device_put(batch))
    assert math.isnan(metrics["loss"])
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))  # the broken step changed nothing
    _, metrics = step(after, jax.device_put(like))
    assert math.isnan(metrics["loss"])
