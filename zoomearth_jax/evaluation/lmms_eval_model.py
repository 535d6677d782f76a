"""ZoomEarth as a model of lmms-eval, which finds it by the entry point `lmms_eval.models` (docs/lmms_eval.md).

Only lmms-eval imports this module: it needs lmms-eval and torch, and nothing else in the package does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import PIL.Image
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

import zoomearth_jax as ze

MANIFEST = ModelManifest(model_id="zoomearth", simple_class_path=f"{__name__}.ZoomEarth")


class ZoomEarth(lmms):
    """A policy that looks at an image, zooms in, and answers; both looks are taken for every question of a task."""

    is_simple = True  # tasks give a text and images, not a chat

    def __init__(
        self,
        model: str = "nano-grpo",
        batch_size: int | str = 1,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        prompt_len: int | None = None,
        param_dtype: str = "float32",
    ):
        """Loads the model; lmms-eval gives what stands in --model_args, and --batch_size.

        Args:
            model: see `load`.
            batch_size: questions asked at once.
            temperature, top_k, top_p, repetition_penalty, seed: see `LoadedPolicy.ask`.
            prompt_len: tokens of overview and question, other than the model's own.
            param_dtype: number type of the parameters.

        Raises:
            UserError: as of `load`, or a batch size that is no positive number.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ze.UserError(f"batch_size: {batch_size!r}; give a positive number")
        self._batch_size, self._seed = int(batch_size), seed
        self._sampling = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
        }
        compute, layout = ze.ComputeConfig(param_dtype=param_dtype), ze.LayoutConfig(prompt_len=prompt_len)
        self._policy = ze.load(model, compute=compute, layout=layout)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers requests in their order: the answers themselves, or the last text of an episode without one.

        The tasks' own generation settings are left aside: the model's episode says how long a turn is and where it ends.

        Args:
            requests: lmms-eval's, with arguments (text, generation settings, function that gives the images of a
                document, its number, task, split).

        Raises:
            UserError: a document without an image or with several, or what `LoadedPolicy.ask` refuses.
        """
        texts: list[str] = []
        for start in tqdm(range(0, len(requests), self._batch_size), desc="zoomearth", disable=self.rank != 0):
            batch = requests[start : start + self._batch_size]
            images = [self._image(*request.args[2:6]) for request in batch]
            questions = [request.args[0].replace("<image>", "").strip() for request in batch]
            missing = self._batch_size - len(batch)  # of a last batch, which is filled up: one shape is compiled
            answers = self._policy.ask(
                images + images[:1] * missing,
                questions + questions[:1] * missing,
                seed=self._seed + start,
                **self._sampling,
            )
            for request, answer in zip(batch, answers, strict=False):
                texts.append(answer.turns[-1].text if answer.answer is None else answer.answer)
                self.cache_hook.add_partial("generate_until", request.args[:2], texts[-1])
        return texts

    def _image(self, visuals_of, number, task: str, split: str) -> PIL.Image.Image:
        """The one image of a document."""
        visuals = visuals_of(self.task_dict[task][split][number])
        if len(visuals) != 1 or not isinstance(visuals[0], PIL.Image.Image):
            raise ze.UserError(f"{task}, document {number}: zoomearth takes one image, not {len(visuals)} visuals")
        return visuals[0].convert("RGB")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuses: a text is written over several looks, so a given one has no likelihood of its own."""
        raise NotImplementedError("zoomearth has no loglikelihood; take tasks of output type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses: the looks are the model's own, a task has no further ones."""
        raise NotImplementedError("zoomearth has no rounds; take tasks of output type generate_until")
