"""The plug-in of lmms-eval: declared, out of the way, and where lmms-eval is installed a run with results."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from PIL import Image

from tests.processes import ROOT
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.evaluation.asking import load

PLUGIN = "zoomearth_jax.evaluation.lmms_eval_model"
CHOICES = " Choices: horizontal; vertical; rising; falling"
TASK = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
task: three_scenes
test_split: test
output_type: generate_until
doc_to_visual: !function reading.images
doc_to_text: !function reading.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
process_results: !function reading.results
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
READING = """
from PIL import Image

def images(doc):
    return [Image.open(doc["image"])]

def text(doc, lmms_eval_specific_kwargs=None):
    return "<image>" + doc["question"]

def results(doc, results):
    return {"accuracy": float(results[0] == doc["answer"])}
"""


def test_the_entry_point_is_declared():
    """In setup.py itself: what is installed may be older."""
    said = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'"lmms_eval.models": ["zoomearth={PLUGIN}:MANIFEST"]' in said
    assert find_spec(PLUGIN) is not None


def test_nothing_else_imports_the_plugin():
    """The package must run without lmms-eval and torch."""
    package = ROOT / "zoomearth_jax"
    others = [file for file in package.rglob("*.py") if file.stem != "lmms_eval_model"]
    assert others
    assert not [file for file in others if "lmms_eval" in file.read_text(encoding="utf-8")]


@pytest.mark.parity
def test_lmms_eval_runs_a_task_of_local_files(tmp_path):
    """Batches of two with one left over; each answer is what `ask` gives, so both looks were taken."""
    if find_spec("lmms_eval") is None:
        pytest.skip("needs lmms-eval (docs/lmms_eval.md)")
    questions, docs = scene_questions("test", 5, 0, 3), []
    for number, question in enumerate(questions):
        frame, file = question.image.frame, tmp_path / f"{number}.png"
        Image.fromarray(question.image.window(Box(0, 0, frame.width, frame.height, frame), frame)).save(file)
        docs.append(
            {"image": str(file), "question": question.text + CHOICES * (number == 0), "answer": question.answer}
        )
    (tmp_path / "docs.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "three_scenes.yaml").write_text(TASK.format(data=tmp_path / "docs.json"))
    (tmp_path / "task" / "reading.py").write_text(READING)
    command = "-m lmms_eval --model zoomearth --tasks three_scenes --batch_size 2 --log_samples"
    command += " --model_args model=nano-grpo,prompt_len=96"
    more = ["--include_path", str(tmp_path / "task"), "--output_path", str(tmp_path / "out")]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub"), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, *command.split(), *more], env=surroundings, capture_output=True, text=True)
    written = [*(tmp_path / "out").rglob("*results.json"), *(tmp_path / "out").rglob("*samples*.jsonl")]
    assert len(written) == 2, ran.stderr[-3000:]  # lmms-eval ends with 0 after errors too
    results, samples = written
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    got = [one["filtered_resps"] for one in sorted(logged, key=lambda one: one["doc_id"])]
    policy = load("nano-grpo", layout=LayoutConfig(prompt_len=96))
    answers = policy.ask([doc["image"] for doc in docs], [doc["question"] for doc in docs])
    assert got == [answer.answer or answer.turns[-1].text for answer in answers]
    assert len(answers[-1].turns) == 2
    share = sum(a == doc["answer"] for a, doc in zip(got, docs, strict=True)) / 3
    assert json.loads(results.read_text())["results"]["three_scenes"]["accuracy,none"] == pytest.approx(share)
