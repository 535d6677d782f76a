"""Official files as they are published, good and bad; summaries against counting by hand."""

import dataclasses
import json

import numpy as np
import pytest

from tests.evaluation.official_files import (
    jpeg,
    lrs_gro_row,
    lrs_vqa_row,
    mme_row,
    write_lrs_gro,
    write_lrs_vqa,
    write_mme,
    write_xlrs,
    xlrs_row,
)
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.sources import whole
from zoomearth_jax.data_pipeline.images.tile_build import build_store
from zoomearth_jax.data_pipeline.images.tiles import StoreSettings
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.benchmarks import BENCHMARKS
from zoomearth_jax.evaluation.benchmarks.xlrs_bench import rescaled
from zoomearth_jax.evaluation.figures import scored
from zoomearth_jax.evaluation.records import Record, unread


def opened(name, data, images=None, config=ImageConfig()):
    return BENCHMARKS[name].open(data, images, config)


def answered(item, answer, name="x", **more) -> Record:
    said = {"answer": answer, "output": f"<answer>{answer}</answer>", "turns": ({"text": "t"},)}
    return dataclasses.replace(unread(name, "", item), **said | more)


def test_every_benchmark_says_what_it_is():
    assert set(BENCHMARKS) == {"lrs-gro", "mme-realworld-rs", "xlrs-bench", "lrs-vqa", "geollava", "questions"}
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.title
        assert name == "questions" or "hf download" in benchmark.where
        for values in benchmark.published.values():
            assert all(1 < value < 100 for value in values.values())


@pytest.mark.parametrize("name", ["lrs-gro", "mme-realworld-rs", "xlrs-bench", "lrs-vqa", "geollava"])
def test_absent_files_are_said_to_be_fetched(name, tmp_path):
    with pytest.raises(UserError, match="hf download") as error:
        opened(name, tmp_path / "nothing")
    assert "\n" not in str(error.value)


def test_mme_realworld_takes_its_rows_on_remote_sensing(tmp_path):
    rows = [mme_row(0), mme_row(1, Subtask="Monitoring"), mme_row(2, Category="count")]
    found = opened("mme-realworld-rs", write_mme(tmp_path, rows))
    assert (found.total, found.faults) == (2, [])
    item = found.items[1]
    assert item.id == "perception/remote_sensing/color/0002"
    assert item.image == "remote_sensing/0.png"
    assert item.question.answer == "C"
    assert item.question.category == "count"
    assert item.question.image.frame == Frame(200, 100)
    assert item.question.asked.startswith("What color is the roof?\n(A) red\n(B) green\n")
    assert item.question.asked.count("(E) This image") == 1
    assert item.choices[1] == "(B) green"
    assert len(opened("mme-realworld-rs", tmp_path / "MME_RealWorld.json", tmp_path).items) == 2


def test_mme_realworld_bad_rows_are_named_and_the_rest_goes_on(tmp_path):
    rows = [
        mme_row(0),
        mme_row(2, Text=...),
        mme_row(4, **{"Ground truth": "F"}),
        mme_row(6, Image="remote_sensing/9.png"),
        mme_row(8, **{"Answer choices": "(A) red"}),
        mme_row(10, Subtask=...),
        mme_row(0),
        mme_row(12, Image="../x.png"),
        "row",
    ]
    found = opened("mme-realworld-rs", write_mme(tmp_path, rows))
    assert len(found.items) == 1
    assert found.total == 9
    says = [
        ("row 2", "field 'Text' is missing"),
        ("row 3", "field 'Ground truth' is 'F', which is none of the choices"),
        ("row 4", "image 'remote_sensing/9.png' is missing"),
        ("row 5", "field 'Answer choices' must be a list of texts"),
        ("row 6", "field 'Subtask' is missing"),
        ("row 7", "is there twice"),
        ("row 8", "is not inside the folder"),
        ("row 9", "not an object"),
    ]
    assert len(found.faults) == len(says)
    for fault, (row, what) in zip(found.faults, says, strict=True):
        assert fault.startswith(f"MME_RealWorld.json {row}: ")
        assert what in fault


@pytest.mark.parametrize("text", ["[1, 2", "{}", "[]", '[{"a": NaN}]', "[" * 100_000, '[{"Question_id": "a"}]', ""])
def test_what_is_no_file_of_mme_realworld_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "MME_RealWorld.json").write_text(text)
    with pytest.raises(UserError) as error:
        opened("mme-realworld-rs", tmp_path)
    assert "MME_RealWorld.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_mme_realworld_averages(tmp_path):
    categories = ["position", "color", "color", "color"]
    rows = [mme_row(i, Category=category) for i, category in enumerate(categories)]
    items = opened("mme-realworld-rs", write_mme(tmp_path, rows)).items
    answers = ["C", "The answer is C", "B", ""]
    summary = scored(BENCHMARKS["mme-realworld-rs"], list(map(answered, items, answers)))
    assert summary["official"] == 2 / 4  # Avg
    assert summary["official_macro"] == pytest.approx((1 + 1 / 3) / 2)  # Avg-C
    assert summary["strict"] == 1 / 4
    assert summary["unparsed"] == 1 / 4
    color = summary["by_category"]["color"]
    assert (color["official"], color["strict"], color["count"]) == (1 / 3, 0.0, 3)


def test_an_empty_answer_is_right_where_the_first_choice_is(tmp_path):
    items = opened("mme-realworld-rs", write_mme(tmp_path, [mme_row(0, **{"Ground truth": "A"})])).items
    summary = scored(BENCHMARKS["mme-realworld-rs"], [answered(items[0], "")])
    assert (summary["official"], summary["strict"], summary["unparsed"]) == (1.0, 0.0, 1.0)


def test_xlrs_reads_parquet_without_decoding(tmp_path, monkeypatch):
    several = "Land use classification/Overall Land use classification"
    rows = [xlrs_row(i, image=[{"bytes": jpeg((200 + i, 100), (10 * i, 0, 0)), "path": "x"}]) for i in range(21)]
    rows[2] |= {"category": several, "answer": "AC"}
    write_xlrs(tmp_path / "data", rows, row_group_size=10)  # which are read eight at a time

    def refuse(*_):
        raise AssertionError("decoded")

    with monkeypatch.context() as patched:
        patched.setattr("zoomearth_jax.data_pipeline.images.embedded._unpacked", refuse)
        found = opened("xlrs-bench", tmp_path)
    assert (len(found.items), found.total, found.faults) == (21, 21, [])
    assert [item.question.image.frame.width for item in found.items] == [200 + i for i in range(21)]
    assert "several" in found.items[2].question.asked
    assert "several" not in found.items[1].question.asked
    for i in (20, 0, 19, 8, 10):  # any order, across groups of rows
        image = found.items[i].question.image
        assert np.abs(image.window(whole(image), Frame(10, 5)).astype(int)[..., 0] - 10 * i).max() <= 3


def test_xlrs_bad_rows_and_bombs_are_named(tmp_path):
    rows = [
        xlrs_row(0),
        xlrs_row(1, image=[{"bytes": b"no image", "path": "x"}]),
        xlrs_row(2, image=[]),
        xlrs_row(3, answer="G"),
        xlrs_row(4, category=None),
        xlrs_row(5, image=[{"bytes": jpeg((300, 300)), "path": "x"}]),
        xlrs_row(6, image=[{"bytes": None, "path": "x"}]),
    ]
    found = opened("xlrs-bench", write_xlrs(tmp_path, rows), config=ImageConfig(max_pixels=40_000))
    assert (len(found.items), found.total) == (1, 7)
    says = ["not a readable image", "holds no image", "none of the choices", "field 'category' is null"]
    says += ["over the limit of 40,000", "no image"]
    for i, (fault, what) in enumerate(zip(found.faults, says, strict=True), 2):
        assert fault.startswith(f"train-00000-of-00001.parquet row {i}: ")
        assert what in fault


@pytest.mark.parametrize("name", ["mme-realworld-rs", "xlrs-bench", "lrs-vqa", "geollava", "lrs-gro"])
def test_the_file_of_another_benchmark_is_refused(name, tmp_path):
    parquet = next(write_xlrs(tmp_path / "x", [xlrs_row(0)]).iterdir())
    no_images = next(write_xlrs(tmp_path / "y", [{"index": 0, "question": "?"}]).iterdir())
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(parquet.read_bytes()[:-100])
    mme = write_mme(tmp_path / "m", [mme_row(0)]) / "MME_RealWorld.json"
    lrs_vqa = write_lrs_vqa(tmp_path / "l", [lrs_vqa_row(0)]) / "LRS_VQA_merged.jsonl"
    own = {"mme-realworld-rs": mme, "lrs-vqa": lrs_vqa, "lrs-gro": None}.get(name, parquet)
    for file in (parquet, no_images, cut, mme, lrs_vqa):
        if file != own:
            with pytest.raises(UserError) as error:
                opened(name, file)
            assert file.name in str(error.value)
            assert "\n" not in str(error.value)


def test_images_may_be_in_a_tile_store(tmp_path):
    write_mme(tmp_path, [mme_row(0)])
    build_store([tmp_path / "remote_sensing" / "0.png"], tmp_path / "tiles", StoreSettings(), workers=1)
    (tmp_path / "remote_sensing" / "0.png").unlink()
    found = opened("mme-realworld-rs", tmp_path)
    assert found.items[0].question.image.frame == Frame(200, 100)


def test_xlrs_broken_pixels_are_named_when_they_are_looked_at(tmp_path):
    write_xlrs(tmp_path, [xlrs_row(0, image=[{"bytes": jpeg((400, 400))[:-900], "path": "x"}])])
    image = opened("xlrs-bench", tmp_path).items[0].question.image
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet row 1: ") as error:
        image.window(whole(image), Frame(28, 28))
    assert "/tmp" not in str(error.value)


def test_xlrs_two_images_are_seen_side_by_side(tmp_path):
    images = [{"bytes": jpeg((100, 60), (200, 0, 0)), "path": "x"}, {"bytes": jpeg((60, 80), (0, 0, 200)), "path": "y"}]
    image = opened("xlrs-bench", write_xlrs(tmp_path, [xlrs_row(0, image=images)])).items[0].question.image
    assert image.frame == Frame(160, 80)
    shown = image.window(whole(image), Frame(160, 80)).astype(int)
    assert np.abs(shown[:60, :100] - [200, 0, 0]).max() < 6
    assert np.abs(shown[:, 100:] - [0, 0, 200]).max() < 6
    assert (shown[60:, :100] == 127).all()


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (
            "Image resolution: 400 x 200. Bounding box: [40, 20, 100, 60]. How many?",
            "Image resolution: 200 x 100. Bounding box: [20, 10, 50, 30]. How many?",
        ),
        (
            "Bounding Box: [[40,20],[100,60]] in this picture. Image resolution: 400 x 50",
            "Bounding Box: [[20,40],[50,120]] in this picture. Image resolution: 200 x 100",
        ),
        ("How many of 400 x 200?", "How many of 400 x 200?"),
        ("Bounding box: [40, 20, 100, 60].", "Bounding box: [40, 20, 100, 60]."),
        (
            "Image resolution: 0 x 0. Bounding box: [1, 2, 3, 4].",
            "Image resolution: 0 x 0. Bounding box: [1, 2, 3, 4].",
        ),
    ],
)
def test_boxes_in_questions_are_rescaled_to_the_image(question, said):
    assert rescaled(question, Frame(200, 100)) == said


def test_xlrs_headline_is_over_tasks_for_lite_and_over_questions_for_the_full_set(tmp_path):
    tasks = ["Counting/Overall counting", *["Object properties/Object color"] * 3]
    items = opened("xlrs-bench", write_xlrs(tmp_path, [xlrs_row(i, category=t) for i, t in enumerate(tasks)])).items
    records = [answered(item, answer) for item, answer in zip(items, ["A", "(A)", "B", "A C"], strict=True)]
    lite = scored(BENCHMARKS["xlrs-bench"], records)
    assert lite["official"] == pytest.approx((1 + 1 / 3) / 2)
    assert lite["official_micro"] == 2 / 4
    assert lite["strict"] == pytest.approx((1 + 0) / 2)
    full = scored(BENCHMARKS["geollava"], [dataclasses.replace(r, extra={"form": "full"}) for r in records])
    assert full["official"] == 2 / 4
    assert full["official_macro"] == lite["official"]
    assert items[0].extra["form"] == "lite"


def test_lrs_vqa_rows(tmp_path):
    rows = [
        lrs_vqa_row(0),
        lrs_vqa_row(1, hbox=..., image="image/0.png"),
        lrs_vqa_row(2, ground_truth=" "),
        lrs_vqa_row(3, hbox=[1, 2, 3]),
        lrs_vqa_row(4, hbox=[300, 0, 400, 50]),
    ]
    found = opened("lrs-vqa", write_lrs_vqa(tmp_path, rows))
    assert [item.id for item in found.items] == ["FAIR_0", "FAIR_1", "FAIR_4"]
    assert found.items[0].question.box.corners == (10, 20, 60, 80)
    assert [item.question.level for item in found.items] == ["object", "global", "global"]
    assert found.total == 5
    assert "line 3: field 'ground_truth' is empty" in found.faults[0]
    assert "line 4: field 'hbox' must be" in found.faults[1]


def test_lrs_vqa_averages(tmp_path):
    kinds = [("count", "2"), ("color", "ship"), ("color", "Red")]
    rows = [lrs_vqa_row(i, category=kind, ground_truth=answer) for i, (kind, answer) in enumerate(kinds)]
    items = opened("lrs-vqa", write_lrs_vqa(tmp_path, rows)).items
    summary = scored(BENCHMARKS["lrs-vqa"], list(map(answered, items, ["3", "ships", "red"])))
    assert summary["official"] == pytest.approx(2 / 3)  # OA
    assert summary["official_macro"] == pytest.approx(1 / 2)  # AA
    assert summary["strict"] == pytest.approx(1 / 3)
    assert summary["apo_iou"] == 0.0  # boxes are asked for, none was named


def test_lrs_gro_by_level_and_type_with_boxes(tmp_path):
    rows = [
        lrs_gro_row(0),
        lrs_gro_row(1),
        lrs_gro_row(2, type="region", category="Counting", ground_truth="3"),
        lrs_gro_row(3, type="global", category="Counting", bbox=[], ground_truth="4"),
        lrs_gro_row(4, ground_truth=" "),
        lrs_gro_row(5, question=...),
        lrs_gro_row(0),
    ]
    found = opened("lrs-gro", write_lrs_gro(tmp_path, rows))
    assert found.total == 7
    assert [item.extra["question_id"] for item in found.items] == [f"LRS-GRO-{i}" for i in (0, 1, 2, 3, 0)]
    assert len({item.id for item in found.items}) == 5
    assert found.items[0].id == "a.tif: What color is roof 0?"
    assert any("line 5" in fault and "answer is empty" in fault for fault in found.faults)
    assert any("line 6" in fault and "field 'question' is missing" in fault for fault in found.faults)
    box = found.items[0].question.box
    assert box.corners == (200, 400, 600, 800)  # px of the original, whose longest side is twice 1024

    looked = {"turns": ({"text": "t", "box": (), "window": ()}, {"text": "u"}), "reference_window": (0, 0, 100, 100)}
    records = [
        answered(found.items[0], "Red.", box=box.corners, window=(0, 0, 100, 100), **looked),  # right, by a right box
        answered(found.items[1], "red", box=(200, 400, 300, 800), window=(0, 0, 50, 100), **looked),  # right, IoU 1/4
        answered(found.items[2], "4", box_reason="absent", reference_window=(0, 0, 100, 100)),  # wrong, without a look
        answered(
            found.items[3], "fourth", box=(0, 0, 9, 9), **looked | {"reference_window": None}
        ),  # looks for nothing
        answered(found.items[4], "red", box_reason="absent", reference_window=(0, 0, 100, 100)),  # right, without one
    ]
    summary = scored(BENCHMARKS["lrs-gro"], records)
    assert summary["official"] == 3 / 5
    assert {name: row["official"] for name, row in summary["by_level"].items()} == {
        "global": 0,
        "region": 0,
        "object": 1,
    }
    assert list(summary["by_type"]) == ["global: Counting", "region: Counting", "object: Object color / pattern"]
    assert summary["apo_iou"] == pytest.approx((1 + 1 / 4) / 4)
    assert summary["apo_iou_window"] == pytest.approx((1 + 1 / 2) / 4)
    assert summary["zoom_rate"] == 3 / 5
    assert summary["zoom_precision"] == pytest.approx(2 / 3)
    assert summary["zoom_recall"] == 2 / 4
    assert summary["right_answer_wrong_box"] == pytest.approx(2 / 3)
    assert summary["wrong_answer_right_box"] == 0.0
    for name, value in summary.items():
        if isinstance(value, float):
            low, high = summary[f"{name}_interval"]
            assert low <= value <= high, name


def test_lrs_gro_match_is_a_setting(tmp_path):
    items = opened("lrs-gro", write_lrs_gro(tmp_path, [lrs_gro_row(0, ground_truth="ship")])).items
    records = [answered(items[0], "ships")]
    assert scored(BENCHMARKS["lrs-gro"], records)["official"] == 1.0
    assert scored(BENCHMARKS["lrs-gro"], records)["strict"] == 0.0
    assert scored(dataclasses.replace(BENCHMARKS["lrs-gro"], match="exact"), records)["official"] == 0.0


def test_before_and_after_the_crop(tmp_path):
    items = opened("lrs-gro", write_lrs_gro(tmp_path, [lrs_gro_row(i) for i in range(5)])).items
    after = list(map(answered, items, ["red", "red", "blue", "red", "red"]))
    before = list(map(answered, items, ["blue", "red", "red", "blue", "red"]))[:4]
    before[1] = dataclasses.replace(before[1], fault="broken")
    crops = scored(BENCHMARKS["lrs-gro"], after, before[::-1])["crops"]
    assert (crops["questions"], crops["fixed"], crops["broken"]) == (3, 2, 1)
    assert (crops["before"], crops["after"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert "crops" not in scored(BENCHMARKS["lrs-gro"], after)


def test_records_with_faults_do_not_count(tmp_path):
    items = opened("lrs-gro", write_lrs_gro(tmp_path, [lrs_gro_row(i) for i in range(2)])).items
    summary = scored(
        BENCHMARKS["lrs-gro"], [answered(items[0], "red"), unread("lrs-gro", "", items[1], "a.tif: broken")]
    )
    assert (summary["questions"], summary["unreadable"], summary["official"]) == (1, 1, 1.0)


def test_questions_of_a_folder_and_of_scenes(tmp_path):
    rows = [
        {"image": "a.tif", "question": "Which roof?", "answer": "red", "level": "object", "choices": ["red", "blue"]},
        {"image": "a.tif", "question": "Which season?", "answer": "summer", "level": "global"},
    ]
    write_lrs_gro(tmp_path, [])
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = opened("questions", tmp_path)
    assert [item.choices for item in found.items] == [("red", "blue"), ()]
    assert found.items[0].question.asked == "Which roof? Choices: red; blue"
    summary = scored(BENCHMARKS["questions"], list(map(answered, found.items, ["A", "Summer."])))
    assert (summary["official"], summary["strict"]) == (1.0, 0.5)
    assert "by_category" not in summary

    scenes = dataclasses.replace(BENCHMARKS["questions"], count=3, seed=5).open("scenes", None, ImageConfig())
    assert (scenes.total, len({item.id for item in scenes.items})) == (3, 3)
    (tmp_path / "questions.jsonl").write_text('{"image": "a.tif"}\n')
    with pytest.raises(UserError, match=r"line 1"):
        opened("questions", tmp_path)
