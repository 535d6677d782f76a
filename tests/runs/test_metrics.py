"""metrics.jsonl is valid JSON whatever happens, and TensorBoard holds each step once."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoomearth_jax.errors import UserError
from zoomearth_jax.runs import sinks
from zoomearth_jax.runs.metric_rows import SCHEMA, read_metrics
from zoomearth_jax.runs.metrics import MetricsLog
from zoomearth_jax.runs.sinks import check_sinks, open_sinks


def log_steps(directory, first, last, scale=1.0, names=("tensorboard",)):
    start = first - 1

    def sinks():
        return open_sinks(names, directory, start, {"lr": 1e-3})

    with MetricsLog(directory, total=9, label="test", start=start, sinks=sinks) as log:
        for step in range(first, last + 1):
            log.write(step, {"loss": scale * step, "lr": 1e-7 / 3})
    return log.path


def scalars(directory, name):
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_resumed_run_logs_each_step_once(tmp_path):
    """Steps 4 and 5 were logged after the checkpoint of step 3, and come again."""
    log_steps(tmp_path, 1, 5)
    path = log_steps(tmp_path, 4, 6, scale=10.0)
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == expected
    assert scalars(tmp_path, "loss") == expected
    log_steps(tmp_path, 1, 2)  # anew
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2]
    assert len(read_metrics(path)) == 2


def test_rows_have_a_schema_and_small_numbers_survive(tmp_path):
    rows = read_metrics(log_steps(tmp_path, 1, 1, names=()))
    assert rows == [
        {"schema": SCHEMA, "step": 1, "loss": 1.0, "lr": 3.33333e-08, "perf/seconds": rows[0]["perf/seconds"]}
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_what_is_not_finite_is_null(tmp_path):
    with MetricsLog(
        tmp_path, total=1, label="test", sinks=lambda: open_sinks(("tensorboard",), tmp_path, 0, {})
    ) as log:
        log.write(1, {"loss": math.nan, "ratio": np.float32("inf"), "kl": 0.5}, alarms=["not_finite"])

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert (row["loss"], row["ratio"], row["kl"], row["alarms"]) == (None, None, 0.5, ["not_finite"])
    assert scalars(tmp_path, "kl") == [(1, 0.5)]


def test_pictures_reach_tensorboard(tmp_path):
    Image.new("RGB", (5, 3), (255, 0, 0)).save(tmp_path / "a.png")
    with MetricsLog(
        tmp_path, total=1, label="test", sinks=lambda: open_sinks(("tensorboard",), tmp_path, 0, {})
    ) as log:
        log.picture(1, "rollout", tmp_path / "a.png")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("rollout")
    assert (image.step, image.width, image.height) == (1, 5, 3)


def test_a_line_cut_short_and_a_later_schema(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"schema": 1, "st')
    assert read_metrics(path) == [{"step": 1, "loss": 2}]
    path.write_text(json.dumps({"schema": SCHEMA + 1, "step": 1}))
    with pytest.raises(UserError, match="update zoomearth_jax"):
        read_metrics(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package tensorboardX; pip install 'zoomearth_jax\[tensorboard\]'"):
        check_sinks(("tensorboard",))
    with pytest.raises(UserError, match="unknown sink 'mlflow'; known: tensorboard, wandb"):
        check_sinks(("mlflow",))


@pytest.mark.parity
def test_wandb_needs_a_key(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="wandb has no API key"):
        check_sinks(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_sinks(("wandb",))


@pytest.mark.parity
def test_wandb_offline(tmp_path, monkeypatch):
    """A run and its resumption are written under one id, for `wandb sync`."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    log_steps(tmp_path, 1, 2, names=("wandb",))
    first = (tmp_path / "wandb_id").read_text()
    with MetricsLog(
        tmp_path, total=4, label="t", start=2, sinks=lambda: open_sinks(("wandb",), tmp_path, 2, {})
    ) as log:
        log.write(3, {"loss": 1.0})
        log.picture(3, "rollout", tmp_path / "a.png")
    assert (tmp_path / "wandb_id").read_text() == first
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{first.strip()}"))
    assert runs
    assert all(next(run.glob("*.wandb")).stat().st_size > 100 for run in runs)
    log_steps(tmp_path, 1, 1, names=("wandb",))
    assert (tmp_path / "wandb_id").read_text() != first
