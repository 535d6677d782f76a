"""`zoomearth bench`: its rows, and what it says where it can't run."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio
from flax import nnx

from zoomearth_jax.bench import BENCHMARKS, device, loader, peers, rewards, scan, table
from zoomearth_jax.bench.grown import write_grown
from zoomearth_jax.bench.loader import LoaderConfig, bench_loader
from zoomearth_jax.bench.packing import PackingConfig, bench_packing
from zoomearth_jax.bench.peers import PeersConfig
from zoomearth_jax.cli import main
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.scenes import COLORS
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.rewards.wordnet import WordNet, wordnet
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model


def test_table_aligns_rows_with_different_columns():
    rows = [{"what": "load", "seconds": 12.3456}, {"what": "answer", "seconds": 1.0, "tokens": 16}]
    assert table(rows).splitlines() == ["  what  seconds  tokens", "  load     12.3        ", "answer        1      16"]


def test_json_and_table_print_the_same_rows_and_the_machine_goes_to_stderr(monkeypatch, capsys):
    rows = [{"model": "nano", "what": "train", "ours_s": 0.1, "hf_s": 0.2, "ratio": 2.0}]
    monkeypatch.setitem(BENCHMARKS, "peers", (PeersConfig, lambda config: rows))
    assert main(["bench", "peers", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == rows
    assert "cores, jax" in said.err
    assert main(["bench", "peers"]) == 0
    assert capsys.readouterr().out == "model   what  ours_s  hf_s  ratio\n nano  train     0.1   0.2      2\n"


def test_every_benchmark_can_print_json_and_has_help(capsys):
    for name, (settings, _) in BENCHMARKS.items():
        assert {"json"} <= {field.name for field in dataclasses.fields(settings)}
        assert main(["bench", name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_models_may_be_separated_by_commas():
    assert PeersConfig(("nano,100m",)).names == PeersConfig(("nano", "100m")).names == ["nano", "100m"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bench", "peerz"], "unknown benchmark 'peerz'; did you mean 'peers'?"),
        (["bench", "nothing"], "unknown benchmark 'nothing'; known: "),
        (["bench"], "Expected one of"),
        (["bench", "peers", "--threads", "0"], "must be positive"),
        (["bench", "peers", "--models", ""], "unknown models"),
        (["bench", "peers", "--models", "nanno"], "unknown models nanno; known: nano, 100m, full_width"),
        (["bench", "peers", "--repeats", "0"], "must be positive"),
        (["bench", "grpo", "--models", "200m"], "unknown models 200m; known: nano, 100m"),
        (["bench", "grpo", "--variants", "unfair"], "unknown variants unfair; known: released, fair"),
        (["bench", "grpo", "--group", "1"], "group must be at least 2"),
        (["bench", "rollout", "--models", "3b"], "unknown models 3b; known: nano, 100m"),
        (["bench", "rollout", "--repeats", "0"], "repeats must be positive"),
        (["bench", "loader", "--formats", "jpg"], "formats are png and tif"),
        (["bench", "loader", "--repeats", "0"], "counts must be positive"),
        (["bench", "packing", "--width", "96"], "width a multiple of 128"),
        (["bench", "rewards", "--pairs", "0"], "pairs and repeats must be positive"),
        (["bench", "rewards", "--source", "nowhere"], "no data.noun; give the folder of WordNet 3.0's files"),
        (["bench", "windows", "--sides", "7"], "sides must be even"),
        (["bench", "device", "--parts", "cart"], "unknown parts cart; known: card, attention, rollout, iteration"),
        (["bench", "device", "--group", "1"], "group at least 2"),
        (["bench", "device", "--accumulate", "3"], "accumulate must divide prompts"),
        (["bench", "scan", "--side", "300", "--scene", "200"], "side is a multiple of scene"),
        (["bench", "scan", "--color", "orang"], "did you mean 'orange'?"),
        (["bench", "full-size", "--tokens", "0"], "tokens must be positive"),
        (["bench", "full-size", "--preset", "nanno"], "did you mean 'nano'"),
        (["bench", "full-size", "--model", "nowhere"], "no such model"),
    ],
)
def test_bad_input_is_one_line(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["peers", "grpo"])
def test_benchmarks_against_torch_say_how_to_get_it(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["bench", name, "--models", "nano"]) == 2
    assert "pip install torch" in capsys.readouterr().err


@pytest.mark.slow
def test_full_size_measures_loading_and_answers(capsys):
    assert main(["bench", "full-size", "--preset", "nano", "--tokens", "4", "--json"]) == 0
    load, first, again = json.loads(capsys.readouterr().out)
    assert load["parameters_gb"] == pytest.approx(556_512 * 2 / 1e9)
    assert load["seconds"] > 0
    assert first["tokens"] == again["tokens"] > 0
    assert again["peak_gb"] >= load["peak_gb"] > 0


@pytest.mark.slow
def test_a_part_of_device_that_fails_is_a_row_and_the_next_one_runs(monkeypatch, capsys):
    """Here attention by cuDNN needs a GPU, and the iteration runs out of memory."""

    def full(*_):
        yield {"what": "before", "seconds": 1.0}
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 80 GiB\nlong dump")

    monkeypatch.setattr(device, "_rollout", full)
    settings = [
        "--preset",
        "nano",
        "--parts",
        "rollout",
        "attention",
        "--repeats",
        "1",
        "--compute.dtype",
        "float32",
        "--json",
    ]
    assert main(["bench", "device", *settings]) == 0
    before, failed, *attention = json.loads(capsys.readouterr().out)
    assert before == {"part": "rollout", "what": "before", "seconds": 1.0}
    assert failed["note"] == "RESOURCE_EXHAUSTED: Out of memory allocating 80 GiB"
    timed, refused = ([row for row in attention if ("note" in row) == fails] for fails in (False, True))
    assert ["cudnn" in row["what"] for row in refused] == [True, True]
    assert all("needs a GPU" in row["note"] for row in refused)
    assert ["xla" in row["what"] and row["tflop_s"] > 0 for row in timed] == [True] * 4


@pytest.mark.slow
def test_device_measures_rollout_and_iterations_beside_predictions(capsys):
    slots = ["--layout.turn-lens", "8", "4", "--prompts", "2", "--group", "2", "--accumulate", "2", "--repeats", "1"]
    parts = ["--parts", "card", "rollout", "iteration", "--compute.dtype", "float32", "--json"]
    assert main(["bench", "device", "--preset", "nano", *slots, *parts]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert not [row for row in rows if row["what"] == "failed"]
    by_name = {row["what"]: row for row in rows}
    for what in ("decode, 4 x 7 tokens", "decode, 4 x 7 tokens, int8"):
        assert by_name[what]["tokens_s"] == pytest.approx(28 / by_name[what]["seconds"])
        assert by_name[what]["ratio"] == pytest.approx(by_name[what]["seconds"] / by_name[what]["predicted_s"])
        assert by_name[what]["of_bandwidth"] > 0
    update, whole = by_name["update, all parameters"], by_name["iteration of 4 episodes, all parameters"]
    assert 0 < update["of_peak"] < 1
    assert update["predicted_s"] > 0
    rollout = by_name["rollout and rewards, all parameters"]
    assert whole["seconds"] == pytest.approx(rollout["seconds"] + update["seconds"])


@pytest.mark.slow
def test_packing_has_the_same_loss_and_less_padding():
    sizes = PackingConfig(samples=4, width=128, layers=1, repeats=1)
    (row,) = bench_packing(sizes)
    assert row["loss_gap"] < 1e-5
    assert row["rows"] == 1
    assert row["packed_padding"] < row["fixed_padding"] < 0.5
    assert row["ratio"] == pytest.approx(row["packed_tokens_s"] / row["fixed_tokens_s"])


def test_windows_times_both_kinds(capsys):
    assert main(["bench", "windows", "--preset", "nano", "--sides", "8", "16", "--repeats", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["patches"] for row in rows] == [64, 256]
    assert all(row["windows_s"] > 0 and row["whole_s"] > 0 for row in rows)


class Corpus:
    """Looks like nltk's reader, with the shipped graph behind it; `off` is what it adds to similarities."""

    def __init__(self, off=0.0):
        self.off = off

    def _morphy(self, word, part):
        return wordnet().morphy(word, "nvar".index(part))

    def synsets(self, word):
        return [Synset(word, self.off)]


@dataclasses.dataclass
class Synset:
    word: str
    off: float

    def path_similarity(self, other):
        return wordnet().path_similarity([self.word], [other.word])[0] + self.off


@pytest.mark.parametrize("off", [0.0, 0.01])
def test_rewards_counts_what_differs_from_nltk(off, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rewards, "reader", lambda source: Corpus(off))
    monkeypatch.setattr(WordNet, "lemmas", ["geese", "dog"])
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"ground_truth": "Ships."}\n{"answer": "boat"}\n{"ground_truth": "3"}\n')
    sizes = ["--boxes", "2000", "--pairs", "60", "--repeats", "1"]
    assert main(["bench", "rewards", "--answers", str(answers), *sizes, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert 0 < row["box_error"] < 1e-6
    assert row["boxes_per_s"] > 0
    assert row["wordnet_ratio"] == pytest.approx(row["wordnet_pairs_per_s"] / row["nltk_pairs_per_s"])
    assert (
        row["wordnet_mismatches"] == 0 if off == 0 else 20 < row["wordnet_mismatches"] < 60
    )  # equal answers don't differ
    assert (row["wordnet_pairs"], row["lemmas"], row["lemma_mismatches"]) == (60, 5, 0)
    answers.write_text("{}\n")
    assert main(["bench", "rewards", "--answers", str(answers)]) == 2
    assert "answers.jsonl line 1: no JSON object with ground_truth or answer" in capsys.readouterr().err


@pytest.mark.parity
def test_peers_prints_rows_of_both(capsys, monkeypatch):
    pytest.importorskip("torch", reason="make parity installs torch")
    monkeypatch.setattr(peers, "LEAST_SECONDS", 0)
    assert main(["bench", "peers", "--models", "nano", "--repeats", "5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in rows] == ["forward", "train", "train_vision", "prefill", "generate", "decode"]
    for row in rows:
        assert row["model"] == "nano"
        assert row["ours_s"] > 0
        assert row["hf_s"] > 0
        assert row["ratio"] == pytest.approx(row["hf_s"] / row["ours_s"])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("what", "message"),
    [("loss", "losses"), ("step", "gradient norms"), ("generate", "of 32 tokens")],
)
def test_peers_refuses_to_time_different_functions(what, message, monkeypatch):
    pytest.importorskip("torch", reason="make parity installs torch")
    right = getattr(peers.Ours, what)

    def wrong(self, *args):
        result = right(self, *args)
        return [2 * x for x in result] if what == "step" else result + 1

    monkeypatch.setattr(peers.Ours, what, wrong)
    with pytest.raises(UserError, match=f"nano differs in .*{message}"):
        peers.bench_peers(PeersConfig(("nano",)))


def test_loader_rows_tell_speeds_whose_ratio_they_state():
    rows = bench_loader(LoaderConfig(images=1, side=1200, prompts=1, group=2, steps=2, repeats=1))
    assert [row["images"] for row in rows] == ["png", "tif", "71% png"]
    for row in rows:
        assert row["ratio"] == row["loader_per_s"] / row["files_per_s"] > 0
    speeds = [row["files_per_s"] for row in rows]
    assert min(speeds[:2]) <= speeds[2] <= max(speeds[:2])


def test_loader_figures_are_refused_where_the_pictures_differ(monkeypatch):
    monkeypatch.setattr(loader.WholeFile, "window", lambda self, box, size: np.zeros((size.height, size.width, 3)))
    with pytest.raises(UserError, match="the store's pictures differ"):
        bench_loader(LoaderConfig(formats=("png",), images=1, side=600))


@pytest.mark.slow
def test_a_grown_policy_writes_the_same_tokens(tmp_path):
    """Sizes at which queries move to other places among the heads, and the norms divide by another width."""
    sizes = {"width": 192, "num_layers": 4, "num_heads": 8, "num_kv_heads": 2, "mlp_dim": 224}
    write_grown(tmp_path / "grown", sizes)
    questions, played = scene_questions("test", 3, 0, 4, global_share=0.5), []
    for name in ("nano-grpo", tmp_path / "grown"):
        model, rows = load_model(name)
        played.append(RolloutEngine(model, rows)(nnx.state(model, nnx.Param), questions, jax.random.key(0)))
    assert model.config.text.width == 192
    np.testing.assert_array_equal(played[0].replies.ids, played[1].replies.ids)
    np.testing.assert_allclose(played[0].logprobs, played[1].logprobs, atol=1e-4)


@pytest.mark.slow
def test_both_ways_of_evaluating_give_the_same_answers(capsys):
    counts = ["--episodes", "8", "--one-by-one", "4", "--batch-size", "8", "--repeats", "1"]
    assert main(["bench", "evaluate", *counts, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["same_answers"] == 1
    assert row["ratio"] == row["episodes_per_s"] / row["one_by_one_per_s"] > 0
    assert main(["bench", "evaluate", "--episodes", "2", "--one-by-one", "3"]) == 2
    assert "at most episodes" in capsys.readouterr().err


def test_bench_scan_writes_its_scenes_where_it_says_they_are(capsys, tmp_path, monkeypatch):
    config = scan.ScanBenchConfig(side=600, scene=200)
    sites = scan.write_mosaic(tmp_path / "a.tif", config)
    with rasterio.open(tmp_path / "a.tif") as file:
        pixels = file.read().astype(int)
        assert (file.crs.to_epsg(), file.shape) == (32633, (600, 600))
    assert len({(box.x1 // 200, box.y1 // 200) for box, _ in sites}) == 9
    for box, site in sites:
        x1, y1, x2, y2 = (round(corner) for corner in box.corners)
        mean = pixels[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean((1, 2))
        assert np.abs(mean - COLORS[site.color]).max() < 45  # stripes, and the slope across the scene

    def played(args):
        out = Path(args[args.index("--out") + 1])
        out.mkdir()
        boxes = [{"box": list(box.corners), "answer": site.orientation} for box, site in sites if site.color == "red"]
        (out / "results.json").write_text(json.dumps({"counts": {"windows": 9}, "boxes": boxes}))
        return 0.5, 2.0

    monkeypatch.setattr(scan, "measured", played)
    assert (
        main(["bench", "scan", "--side", "600", "--scene", "200", "--color", "red", "--overlaps", "0", "--json"]) == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert {row[name] for name in row if name.startswith(("recall", "precision"))} == {1.0}
    assert (row["answers"], row["elsewhere"], row["peak_gb"], row["windows"]) == (1.0, 0.0, 0.5, 9)
