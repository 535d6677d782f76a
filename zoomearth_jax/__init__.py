"""ZoomEarth in JAX: a vision-language policy that looks, zooms into an ultra-high-resolution image, and answers.

    import zoomearth_jax as ze

    model = ze.load("nano-grpo")
    answer = model.ask("scene.png", "Which way do the stripes of the red site run?")

docs/python.md describes all names. What they need is imported when they are first used.
"""

import os as _os
from importlib import import_module as _import_module

__version__ = "0.1.0"

_PLACES = {  # name -> module, and what it is called there
    "load": ("evaluation.asking", "load"),
    "LoadedPolicy": ("evaluation.asking", "LoadedPolicy"),
    "Answer": ("evaluation.asking", "Answer"),
    "Image": ("data_pipeline.images.given", "Image"),
    "Question": ("data_pipeline.questions.question", "Question"),
    "Box": ("data_pipeline.images.boxes", "Box"),
    "Frame": ("data_pipeline.images.boxes", "Frame"),
    "find_model": ("runs.models", "existing"),
    "Qwen2_5_VL": ("models.qwen2_5_vl.model", "Qwen2_5_VL"),
    "Processor": ("data_pipeline.text.processor", "Processor"),
    "ComputeConfig": ("configs.compute", "ComputeConfig"),
    "MeshConfig": ("configs.mesh", "MeshConfig"),
    "LayoutConfig": ("configs.episode", "LayoutConfig"),
    "UserError": ("errors", "UserError"),
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, called = _PLACES[name]
    _os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which isn't needed
    value = globals()[name] = getattr(_import_module(f"{__name__}.{module}"), called)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PLACES))
