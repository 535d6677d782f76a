"""Alarms, compilations, throughput, and the stop of a run that breaks, whose batch gives the same NaN again."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoomearth_jax.errors import UserError
from zoomearth_jax.flops import RowCounts
from zoomearth_jax.metrics import MetricsLog, read_metrics
from zoomearth_jax.monitor import Alarms, Compilations, Monitor, load_replay, save_replay, throughput

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
    with monitor(tmp_path, profile=True) as watched:
        for step, x in watched.steps(iter(range(6))):
            assert bool(list((tmp_path / "profile").rglob("*.xplane.pb"))) == (step >= 5)  # steps 3, 4 and 5
            jnp.sin(float(x)).block_until_ready()
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"StepTrace" in trace.read_bytes() or b"step" in trace.read_bytes()


def test_a_profile_of_a_run_that_stops_is_closed(tmp_path):
    with monitor(tmp_path, total=2, profile=True) as watched:
        assert [step for step, _ in watched.steps(iter(range(1)))] == [0]
    jax.profiler.start_trace(tmp_path / "other")  # one at a time
    jax.profiler.stop_trace()


def test_a_broken_step_stops_the_run(tmp_path):
    saved = []
    batch = {"x": jnp.arange(6.0).reshape(3, 2), "features": jnp.ones((3, 2), jnp.bfloat16) * 1.5}
    with monitor(tmp_path) as watched:
        watched.stop_if_broken(1, {"loss": 1.0, "grad_norm": 2.0}, batch, saved.append)
        with pytest.raises(
            UserError, match=r"step 2: grad_norm nan; the batch and the state before it are in .*replay"
        ):
            watched.stop_if_broken(2, {"loss": 1.0, "grad_norm": math.nan}, batch, saved.append)
    assert saved == [tmp_path / "replay"]
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (row["grad_norm"], row["alarms"]) == (None, ["not_finite"])
    path = tmp_path / "replay" / "step_000002_0.npz"
    again = load_replay(path, jax.tree.map(np.zeros_like, batch))
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
