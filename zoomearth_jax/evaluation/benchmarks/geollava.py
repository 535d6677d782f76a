"""GeoLLaVA-8K's figures: they are of XLRS-Bench-lite, since no test split of its own is published."""

from __future__ import annotations

from typing import ClassVar

from zoomearth_jax.evaluation.benchmarks.xlrs_bench import XlrsBench


class GeoLlava(XlrsBench):
    """An unofficial adapter: files of XLRS-Bench's form, by XLRS-Bench-lite's rule."""

    name = "geollava"
    title = "GeoLLaVA-8K (unofficial adapter: files and rule of XLRS-Bench-lite)"
    where = "GeoLLaVA-8K is evaluated on lmms-eval's task xlrs-lite: " + XlrsBench.where
    published: ClassVar[dict] = {
        "ZoomEarth 3B, 1024 px": {"official": 38.61},
        "ZoomEarth 3B, 1024 px, without crops": {"official": 34.30},
        "VLM-R3": {"official": 34.74},
        "InternVL3 8B": {"official": 37.60},
        "Qwen2.5-VL-3B": {"official": 34.64},
    }
