"""`zoomearth convert`: both forms, number types, and what an interruption leaves behind."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl import weights as hf
from zoomearth_jax.runs.models import load_model, resolve
from zoomearth_jax.verbs import convert as convert_module
from zoomearth_jax.verbs.convert import ConvertConfig, convert

NANO = resolve("nano")


def params_of(directory):
    return jax.tree.leaves(nnx.state(load_model(directory).model, nnx.Param))


def test_hf_to_orbax_and_back_is_the_same_file(tmp_path):
    convert(ConvertConfig(NANO, tmp_path / "orbax", to="orbax"))
    assert not list((tmp_path / "orbax").glob("*.safetensors"))
    for ours, theirs in zip(params_of(tmp_path / "orbax"), params_of(NANO), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    convert(ConvertConfig(tmp_path / "orbax", tmp_path / "hf"))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "episode.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (NANO / name).read_bytes(), name


def test_number_type_on_the_way(tmp_path):
    summary = convert(ConvertConfig(NANO, tmp_path / "wide", dtype="float32"))
    before, after = (load_file(folder / "model.safetensors") for folder in (NANO, tmp_path / "wide"))
    assert summary["bytes"] == 4 * summary["parameters"] == sum(x.nbytes for x in after.values())
    assert all(x.dtype == np.float32 for x in after.values())
    assert all(np.array_equal(before[key].astype(np.float32), after[key]) for key in before)


def test_several_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 300_000)
    convert(ConvertConfig(NANO, tmp_path / "out"))
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert [file.name[-20:] for file in files[:2]] == [f"-of-{len(files):05}.safetensors"[-20:]] * 2
    assert len(files) > 3
    assert max(sum(x.nbytes for x in load_file(file).values()) for file in files) <= 300_000
    for ours, theirs in zip(params_of(tmp_path / "out"), params_of(NANO), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    files[1].unlink()
    with pytest.raises(UserError, match=f"names {files[1].name}, which is not there"):
        load_model(tmp_path / "out")


KILL = """
import os, signal, sys
from pathlib import Path
from zoomearth_jax.verbs import convert
from zoomearth_jax.models.qwen2_5_vl import weights as hf
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "hf":  # after the second file of several
    hf.SHARD_BYTES, save, count = 300_000, hf.save_file, iter(range(9))
    hf.save_file = lambda *args, **kwargs: (save(*args, **kwargs), next(count) == 1 and kill())
else:  # while orbax writes in the background
    save_params = convert.Checkpoints.save_params
    convert.Checkpoints.save_params = lambda *args: (save_params(*args), kill())
convert.convert(convert.ConvertConfig(*map(Path, sys.argv[1:3]), to=sys.argv[3], overwrite=True))
"""


@pytest.mark.parametrize(("to", "older"), [("hf", False), ("orbax", True)])
def test_a_kill_leaves_nothing_that_looks_complete(tmp_path, to, older):
    out = tmp_path / "out"
    if older:
        shutil.copytree(NANO, out)
    killed = subprocess.run([sys.executable, "-c", KILL, NANO, out, to], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any((out / ".partial").iterdir())
    if older:  # the model that was there is whole
        for ours, theirs in zip(params_of(out), params_of(NANO), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    else:
        assert not list(out.glob("*.safetensors*"))
        with pytest.raises(UserError, match=r"no config\.json"):
            load_model(out)
    convert(ConvertConfig(NANO, out, to=to, overwrite=older))  # and the next try clears up
    assert not (out / ".partial").exists()
    assert (out / "model.safetensors").exists() is (to == "hf")
    for ours, theirs in zip(params_of(out), params_of(NANO), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_targets_that_would_be_lost_are_refused(tmp_path, monkeypatch):
    copy = shutil.copytree(NANO, tmp_path / "model")
    with pytest.raises(UserError, match="holds a model; pass --overwrite"):
        convert(ConvertConfig(NANO, copy))
    with pytest.raises(UserError, match="is the source itself"):
        convert(ConvertConfig(copy, copy, overwrite=True))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        convert(ConvertConfig(NANO, tmp_path / "file"))
    (copy / "run.yaml").write_text("")
    with pytest.raises(UserError, match="holds a training run"):
        convert(ConvertConfig(NANO, copy, overwrite=True))
    with pytest.raises(UserError, match="no such model"):
        convert(ConvertConfig(Path(tmp_path / "none"), tmp_path / "out"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match=r"1 MB to write, 1 MB free"):
        convert(ConvertConfig(NANO, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_targets_that_cannot_be_made(tmp_path, monkeypatch):
    copy = shutil.copytree(NANO, tmp_path / "model")
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in (tmp_path / "file" / "out", tmp_path / "loop", tmp_path / ("x" * 300), copy / "out", tmp_path):
        with pytest.raises(UserError) as caught:
            convert(ConvertConfig(copy, out))
        assert "\n" not in str(caught.value)
    assert sorted(file.name for file in copy.iterdir()) == sorted(file.name for file in NANO.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(UserError, match=r"out: can't be written \(No space left"):
        convert(ConvertConfig(copy, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_links_into_a_cache_are_followed_and_home_is_found(tmp_path, monkeypatch):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(NANO.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setenv("HOME", str(tmp_path))
    convert(ConvertConfig(Path("~/snapshots/0123abc"), Path("~/out")))
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (NANO / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"no config\.json; give its snapshot .*0123abc"):
        load_model(tmp_path)


def test_files_of_an_older_model_do_not_mix_with_the_new_one(tmp_path):
    out = Path(shutil.copytree(NANO, tmp_path / "out"))
    (out / "chat_template.json").write_text('{"chat_template": "of the older model"}')
    (out / "notes.txt").write_text("mine")
    convert(ConvertConfig(NANO, out, overwrite=True))
    assert not (out / "chat_template.json").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_a_broken_source_leaves_no_target(tmp_path):
    copy = shutil.copytree(NANO, tmp_path / "model")
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        convert(ConvertConfig(copy, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
