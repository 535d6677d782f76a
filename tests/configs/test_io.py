"""YAML as people write it: YAML 1.2's numbers and words, and one line on everything that is no settings."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.io import at_home, load_yaml, read_yaml, write_yaml
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.training import SFTConfig
from zoomearth_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer: {lr: 1e-7}", lambda c: c.optimizer.lr == 1e-7),
        ("optimizer: {lr: 3}", lambda c: c.optimizer.lr == 3.0),
        ("optimizer: {lr: .5}", lambda c: c.optimizer.lr == 0.5),
        ("steps: 1e5", lambda c: c.steps == 100_000),
        ("steps: 010", lambda c: c.steps == 10),
        ("steps: 0x10", lambda c: c.steps == 16),
        ("model: no", lambda c: c.model == "no"),
        ("model: off", lambda c: c.model == "off"),
        ("model: 2024-01-01", lambda c: c.model == "2024-01-01"),
        ("out: 1:30", lambda c: c.out == Path("1:30")),
        ("freeze_vision: no", lambda c: not c.freeze_vision),
        ("freeze_vision: Off", lambda c: not c.freeze_vision),
        ("freeze_vision: yes", lambda c: c.freeze_vision),
        ("data: a", lambda c: c.data == ("a",)),
        ("data: [a, b]\nmix: [1, 2e0]", lambda c: c.mix == (1.0, 2.0)),
        ("# nothing", lambda c: c == SFTConfig()),
        ("\ufeffmodel: é", lambda c: c.model == "é"),
        ("x: &a 3\n".replace("x", "steps") + "batch_size: *a", lambda c: c.steps == c.batch_size == 3),
    ],
)
def test_values_as_they_are_meant(text, expected, tmp_path):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert expected(read_yaml(tmp_path / "x.yaml", SFTConfig))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1.5", "steps: expected int, got 1.5"),
        ("steps: true", "steps: expected int, got True"),
        ("steps: many", "steps: expected int, got 'many'"),
        ("model: null", "model: expected str, got null"),
        ("model: 5", "model: expected str, in quotes, got 5"),
        ("optimizer: {lrr: 1}", "optimizer: unknown key 'lrr'; did you mean 'lr'?"),
        ("optimizer: 3", "optimizer: expected a mapping of settings, got int"),
        ("optimizer: {lr: fast}", "optimizer: lr: expected float, got 'fast'"),
        ("steps: 1\nsteps: 2", "line 2: key 'steps' stands twice"),
        ("steps:\t3\n\tx: 4", r"line 1: found character '\t'"),
        ("a: [1\nb: 2", "line 2: expected ',' or ']'"),
        (b"model: \xff\xe9", "not YAML"),
        ("- 1", "expected a mapping of settings, got list"),
        ("<<: {steps: 3}", "unknown key '<<'"),
        ("1: 2", "unknown key 1"),
        ("? [1]\n: 2", "unhashable key"),
        ("steps: &a [*a]", "steps: expected int"),
        ("steps: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ('out: "a\\0b"', "out: no path"),
        ('out: "\\ud800"', "out: no path"),
        ("[" * 3000, "nested too deeply"),
        ("x" * 2**21, "over a megabyte"),
        ("steps: &a [x,x]\nlog: &b [*a,*a,*a]\nmodel: [*b,*b,*b]", "expected"),
    ],
)
def test_what_is_no_settings_is_one_line(text, message, tmp_path):
    (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_yaml(tmp_path / "x.yaml", SFTConfig)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/x.yaml: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_values_of_several_types(tmp_path):
    for text, expected in (
        ("stretch: [0, 3000]", ImageConfig(stretch=(0.0, 3000.0))),
        ("stretch: [2%, 98%]", ImageConfig(stretch=("2%", "98%"))),
        ("bands: null", ImageConfig()),
        ("bands: [3, 2, 1]", ImageConfig(bands=(3, 2, 1))),
    ):
        (tmp_path / "x.yaml").write_text(text)
        assert read_yaml(tmp_path / "x.yaml", ImageConfig) == expected
    (tmp_path / "x.yaml").write_text("bands: [1, 2]")
    with pytest.raises(UserError, match="bands: expected tuple"):
        read_yaml(tmp_path / "x.yaml", ImageConfig)


NAMES = (
    "1e-7",
    "no",
    "on",
    "007",
    "1:30",
    "~",
    "null",
    "0o7",
    ".5",
    "<<",
    "=",
    "lr[1e-3]",
    "a: b",
    "- a",
    "\udcff",
    "",
)


@given(st.text(st.characters(codec="utf-8")) | st.sampled_from(NAMES))
def test_any_text_survives(tmp_path_factory, name):
    file = tmp_path_factory.mktemp("yaml") / "x.yaml"
    config = SFTConfig(model=name, data=(name,))
    write_yaml(file, config)
    assert read_yaml(file, SFTConfig) == config
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["model"] == name  # and by other readers


def test_files_that_can_t_be_read(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "x", "/dev/zero", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match=str(path)[:60]):
            load_yaml(path)


@dataclasses.dataclass(frozen=True)
class _Required:
    needed: int
    sampling: SamplingConfig = SamplingConfig()


def test_a_missing_setting_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("sampling: {top_k: 3}")
    with pytest.raises(UserError, match="needed must be given"):
        read_yaml(tmp_path / "x.yaml", _Required)


def test_home_is_expanded_in_paths_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    config = at_home(SFTConfig(model="~/m", out=Path("~/o"), data=("scenes", "~/d"), log=("~/l",)))
    assert (config.model, config.out, config.data) == ("/home/a/m", Path("/home/a/o"), ("scenes", "/home/a/d"))
    assert config.log == ("~/l",)
    assert at_home(Path("~nobody-of-this-name/x")) == Path("~nobody-of-this-name/x")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 5)
    with pytest.raises(UserError, match="there is no home directory"):
        at_home(Path("~/o"))
