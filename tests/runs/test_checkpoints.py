"""Checkpoints: written in the background, checked when read, kept by age and by score, on any number of devices."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.processes import address, result, start
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.state import TrainState
from zoomearth_jax.runs import saved_steps
from zoomearth_jax.runs.checkpoints import Checkpoints, load_run_model
from zoomearth_jax.runs.models import copy_side_files, load_model, resolve
from zoomearth_jax.verbs.convert import ConvertConfig, convert

SCRIPT = "runs/checkpoint_check.py"


def state(value, size=6000):
    """A state whose arrays all depend on the value, of several types and ranks."""
    x = jnp.arange(size, dtype=jnp.float32) + value
    trainable = {"w": jnp.sin(x).reshape(3, -1), "b": x.astype(jnp.bfloat16)}
    optimizer, average = {"m": jnp.exp(jnp.sin(x)), "count": jnp.int32(value)}, {"w": jnp.cos(2 * x)}
    return TrainState(trainable, {"f": jnp.cos(x)}, optimizer, jnp.int32(value), average)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def saved(directory, steps, **options):
    with Checkpoints(directory, keep=9, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
    return directory / "checkpoints"


def biggest(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def change_byte(file, place=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    file.write_bytes(data)


def remove(folder):
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    folder.rmdir()


def test_saving_goes_on_in_the_background_while_steps_donate_the_state(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    now = step(state(1, 3_000_000))
    wanted = jax.tree.map(lambda x: np.array(x, copy=True), now)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, now)
        assert checkpoints.latest is None  # the call is back before the step is there
        for _ in range(3):
            now = step(now)
        jax.block_until_ready(now)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(state(0, 3_000_000)), wanted)


DAMAGES = {
    "a changed byte": lambda step: change_byte(biggest(step / "params")),
    "a truncated file": lambda step: os.truncate(biggest(step / "training"), 100),
    "no item training": lambda step: remove(step / "training"),
    "no record": lambda step: remove(step / "run"),
    "a changed record": lambda step: change_byte(step / "run" / "metadata", 0.3),
    "nothing at all": lambda step: [remove(step), step.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_passed_over_with_one_warning(damage, tmp_path, capfd):
    folder = saved(tmp_path, (1, 2))
    DAMAGES[damage](folder / "2")
    given = state(0)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(given), state(1))
        checkpoints.save(2, state(2))  # there is room for it
    said = capfd.readouterr().err.strip()
    assert said.startswith(f"zoomearth: warning: {folder}: step 2 can't be read (")
    assert "\n" not in said
    assert all(x.is_deleted() for x in jax.tree.leaves(given))  # one state at a time
    assert sorted(p.name for p in folder.iterdir() if p.name[0].isdigit()) == ["1", "2", "2.unreadable"]
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(state(0)), state(2))


def test_where_no_step_can_be_read_none_is_touched(tmp_path, capfd):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no complete checkpoint"):
        checkpoints.restore(state(0))
    folder = saved(tmp_path, (1, 2))
    for step in (1, 2):
        change_byte(biggest(folder / str(step)))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no step can be read"):
        checkpoints.restore(state(0))
    assert saved_steps.numbers(folder) == [1, 2]
    assert capfd.readouterr().err.count("\n") == 2


def test_what_an_interrupted_write_left_is_removed(tmp_path, capfd):
    folder = saved(tmp_path, (1,))
    (folder / "1").rename(folder / "2.orbax-checkpoint-tmp")
    saved(tmp_path, (1,))
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(state(0)), state(1))
    assert "2.orbax-checkpoint-tmp: half-written; removed" in capfd.readouterr().err
    assert not saved_steps.half_written(folder)


def test_another_model_or_reference_is_refused(tmp_path):
    folder = saved(tmp_path, (1,), run={"start": "here"})
    with (
        Checkpoints(tmp_path, run={"start": "there"}) as checkpoints,
        pytest.raises(UserError, match="has changed since"),
    ):
        checkpoints.restore(state(0))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"they differ in w"):
        checkpoints.restore(
            state(0)._replace(trainable={"w": jnp.zeros((4, 1500)), "b": jnp.zeros(6000, jnp.bfloat16)})
        )
    assert saved_steps.numbers(folder) == [1]


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.7, 5: 0.2, 6: 0.3}
    for steps in ((1, 2, 3), (4, 5, 6)):  # in two runs: scores are read from the steps
        with Checkpoints(tmp_path, keep=1, keep_best=2) as checkpoints:
            for step in steps:
                checkpoints.save(step, state(step), score=scores[step])
        assert saved_steps.numbers(tmp_path / "checkpoints") == {3: [1, 2, 3], 6: [2, 4, 6]}[steps[-1]]


def test_scores_of_something_else_choose_nothing(tmp_path):
    """As where a run goes on with validation that began without."""
    with Checkpoints(tmp_path, keep=1, keep_best=1, best_by="reward_total") as checkpoints:
        for step, score in {1: 9.0, 2: 8.0}.items():
            checkpoints.save(step, state(step), score=score)
    with Checkpoints(tmp_path, keep=1, keep_best=1, best_by="validation/accuracy") as checkpoints:
        for step, score in {3: 0.2, 4: 0.1}.items():
            checkpoints.save(step, state(step), score=score)
    assert saved_steps.numbers(tmp_path / "checkpoints") == [3, 4]


def test_a_write_that_fails_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand more")

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(
            UserError, match=r"a checkpoint can't be written \(RESOURCE_EXHAUSTED: No space left on device\)$"
        ):
            checkpoints.save(1, state(1))


def test_hashes_notice_what_sums_miss():
    def hashes(x):
        return saved_steps.describe({"item": {"x": jnp.asarray(x)}})["item"]["x"]["hash"]

    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    swapped, signs = x[::-1].copy(), x.copy()
    signs[1, 2:4] *= -1
    assert len({hashes(x), hashes(swapped), hashes(signs), hashes(x.T)}) == 4
    assert hashes(x) == hashes(x.copy())


@pytest.fixture(scope="module")
def model_run(tmp_path_factory):
    """A run's folder with the shipped model at step 1 and a changed one at step 2."""
    folder = tmp_path_factory.mktemp("run")
    model = load_model("nano").model
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_params(1, model)
        nnx.update(model, jax.tree.map(lambda x: x + 1, nnx.state(model, nnx.Param)))
        checkpoints.save_params(2, model)
    (folder / "config.json").write_text((resolve("nano") / "config.json").read_text())
    copy_side_files(resolve("nano"), folder)
    return folder


def params(model):
    return jax.tree.leaves(nnx.state(model, nnx.Param))


@pytest.mark.slow
def test_a_model_is_checked_in_another_number_type_too(model_run, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(saved_steps, "GROUP_BYTES", 1_000_000)
    narrow = ComputeConfig(param_dtype="bfloat16")
    wanted = params(load_run_model(model_run, ComputeConfig(), step=2))
    for ours, theirs in zip(params(load_run_model(model_run, narrow)), wanted, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16))
    file = biggest(model_run / "checkpoints" / "2" / "params")
    before = file.read_bytes()
    change_byte(file)
    first = params(load_run_model(model_run, narrow))  # evaluate, ask and the next stage pass over it
    file.write_bytes(before)
    assert all(
        np.array_equal(x, y.astype(jnp.bfloat16)) for x, y in zip(first, params(load_model("nano").model), strict=True)
    )
    assert "step 2 can't be read (params: " in capfd.readouterr().err
    assert saved_steps.numbers(model_run / "checkpoints") == [1, 2]


def test_any_step_can_be_exported(model_run, tmp_path, capsys):
    convert(ConvertConfig(model_run, tmp_path / "first", step=1, dtype="bfloat16", json=True))
    assert json.loads(capsys.readouterr().out)["step"] == 1
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (
        resolve("nano") / "model.safetensors"
    ).read_bytes()
    convert(ConvertConfig(model_run, tmp_path / "last", dtype="bfloat16"))
    assert (tmp_path / "last" / "model.safetensors").read_bytes() != (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()
    for source, message in ((model_run, "no step 3; there are 1, 2"), (resolve("nano"), "is no run")):
        with pytest.raises(UserError, match=message):
            convert(ConvertConfig(source, tmp_path / "none", step=3))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_two_processes_of_4_devices_save_and_fewer_restore(tmp_path):
    """Onto two processes, which both pass over a step that one of them can't read, onto 2 devices and onto 1."""
    where = address()
    both = [result(process) for process in [start(SCRIPT, 4, "save", tmp_path, where, number) for number in (0, 1)]]
    assert [found["restored"] for found in both] == [1, 1]
    assert [found["warned"] for found in both] == [1, 0]  # the first process alone speaks
    assert [found["equal"] for found in both] == [True, True]
    assert result(start(SCRIPT, 2, "restore", tmp_path)) == [{"restored": 1, "equal": True}] * 2
    with Checkpoints(tmp_path) as checkpoints:
        record = saved_steps.read_record(checkpoints.directory / "1")
    assert dataclasses.asdict(ComputeConfig()) == record["run"]["settings"]
    assert (record["devices"], record["processes"]) == (8, 2)
