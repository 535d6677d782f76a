"""Every field of every config is read somewhere, on an object that is known to be that config."""

import dataclasses
from pathlib import Path

import pytest

import zoomearth_jax
from tests.configs.field_reads import Package
from zoomearth_jax.bench import BENCHMARKS
from zoomearth_jax.configs.episode import EpisodeConfig, LayoutConfig

# class.field -> how it is read, where the type or the name is known only as the program runs
READ_OTHERWISE = {
    **{f"{kind.__module__}.{kind.__name__}.json": "by `bench`, of any benchmark" for kind, _ in BENCHMARKS.values()},
    **{
        f"zoomearth_jax.configs.episode.LayoutConfig.{name}": "by `of`, which puts all fields into an EpisodeConfig"
        for name in ("picture_px", "turn_lens", "min_window_px", "inner_window_px", "view")
    },
    **{
        f"zoomearth_jax.configs.reward.RewardSpec.{name}_weight": "by `weights`, as f'{name}_weight'"
        for name in ("iou", "region", "answer", "pattern", "containment", "necessity", "boxes", "judge")
    },
    "zoomearth_jax.data_pipeline.text.processor.ImageConfig.temporal_patch_size": "compared with config.json, by name",
}


def unread(package: Package) -> set[str]:
    """The fields of a package's configs that nothing reads, each as module.Class.field of the class that declares it."""
    configs = [
        name
        for name, kind in package.classes.items()
        if kind.is_frozen_dataclass and name.endswith(("Config", "Spec", ".StoreSettings"))
    ]
    assert configs
    return {f"{name}.{field}" for config in configs for name, field in package.fields(config) - package.reads}


def test_every_field_is_read():
    """Fields beyond these are dead: use or remove them. One that is missing here is read by now: take it off the list."""
    assert unread(Package.of(Path(zoomearth_jax.__file__).parent)) == set(READ_OTHERWISE)


def test_a_layout_s_fields_are_those_of_an_episode():
    assert {f.name for f in dataclasses.fields(LayoutConfig)} <= {f.name for f in dataclasses.fields(EpisodeConfig)}


CONFIGS = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class PartConfig:
    a: int = 0

@dataclasses.dataclass(frozen=True)
class BaseConfig:
    a: int = 0
    part: PartConfig = PartConfig()

    def __post_init__(self):
        assert self.a + self.part.a

@dataclasses.dataclass(frozen=True)
class TopConfig(BaseConfig):
    a: int = 1

    @property
    def twice(self) -> PartConfig:
        return dataclasses.replace(self.part)

class Other:
    a: int = 0
"""
PART, BASE = "p.configs.PartConfig.a", "p.configs.BaseConfig.a"


@pytest.mark.parametrize(
    ("code", "dead"),
    [
        ("", {PART, BASE}),  # its own __post_init__ only checks
        ("def f(x): return x.a", {PART, BASE}),  # of an unknown type
        ("def f(x: c.Other): return x.a", {PART, BASE}),
        ("def f(x: c.TopConfig): return dataclasses.asdict(x)", {PART, BASE}),
        ("def f(x: c.TopConfig): return c.TopConfig(a=1)", {PART, BASE}),
        ("def f(x: c.TopConfig):\n    x = make()\n    return x.a", {PART, BASE}),
        ("def f(x: c.PartConfig): return x.a", {BASE}),
        ("def f(x: 'c.PartConfig | None' = None): return x.a if x else 0", {BASE}),
        ("def f(x: Annotated[c.PartConfig, 'text']): return x.a", {BASE}),
        ("def f(x: list[c.PartConfig]): return [one.a for one in x]", {BASE}),
        ("def f(*, x: c.BaseConfig): return x.part.a", {BASE}),
        ("def f(x: c.TopConfig): return x.a", {PART}),  # the same field, with another default
        ("def f(x: c.TopConfig): return x.twice.a", {BASE}),
        ("def f(x: c.PartConfig):\n    y = dataclasses.replace(x)\n    return lambda: y.a", {BASE}),
        ("def f(x: c.PartConfig):\n    def g():\n        return x.a\n    return g", {BASE}),
        ("def f(): return c.PartConfig().a", {BASE}),
        ("def g() -> c.PartConfig: ...\ndef f(): return g().a", {BASE}),
        ("PART = c.PartConfig()\ndef f(): return PART.a", {BASE}),
        ("def f(x: c.PartConfig): return getattr(x, 'a')", {BASE}),
        ("class K:\n    def f(self): return self._x.a\n    def __init__(self, x: c.PartConfig): self._x = x", {BASE}),
    ],
)
def test_a_read_counts_where_the_type_is_known(code, dead):
    start = "import dataclasses\nfrom typing import Annotated\nfrom p import configs as c\n"
    found = unread(Package({"p.configs": CONFIGS, "p.code": start + code}))
    assert found == dead
