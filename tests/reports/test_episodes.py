"""The page of an evaluation: its figures, its data, thumbnails that survive, and texts that stay texts."""

import base64
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.reports.evaluations import REFERENCE, Stub, evaluated, record
from zoomearth_jax.cli import main
from zoomearth_jax.evaluation.benchmarks import BENCHMARKS
from zoomearth_jax.reports.episode_rows import iou
from zoomearth_jax.reports.episodes import bootstrap, write_comparison, write_report
from zoomearth_jax.reports.summary_tables import summary_tables
from zoomearth_jax.reports.thumbnails import Thumbnails, read_thumbnails

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \u2028 \ud800 \u202eabc \"'& \x00"


def page_of(run, path, **settings):
    write_report(path, *run, **settings)
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The names of a page's elements and of their attributes."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def embedded(page, name="rows"):
    """What a script element of the page holds."""
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1])


def pictures(page):
    blocks = re.findall(r'<script type="application/json" class="thumbnails">(.*?)</script>', page, re.DOTALL)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for block in blocks for data in json.loads(block)]


def plain(value, side=200):
    return np.full((side, side // 2, 3), value, np.uint8)


def test_a_question_has_its_verdicts_and_iou(tmp_path):
    records = [record(0, "Yes", 200.0), record(1, None, None), record(2, fault="broken.tif: broken"), record(3, "no")]
    rows = embedded(page_of(evaluated({"shown": records}), tmp_path / "r.html"))
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    assert [row["runs"][0] and row["runs"][0]["official"] for row in rows] == [
        1,
        0,
        None,
        0,
    ]  # scores skip the broken image
    first, second = rows[0]["runs"][0], rows[1]["runs"][0]
    assert (first["strict"], first["parsed"], first["zoomed"], first["iou"]) == (0, True, True, round(1 / 3, 4))
    assert (second["parsed"], second["zoomed"], second["iou"]) == (False, False, 0)
    assert [turn["text"] for turn in first["turns"]] == ["<think>look </think>", "<answer>Yes</answer>"]
    assert rows[2]["fault"] == "broken.tif: broken"


def test_iou_by_hand():
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == round(50 / 150, 4)
    assert iou((0, 0, 10, 10), (20, 20, 30, 30)) == iou(None, REFERENCE) == iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    assert iou((-1e200, -1e200, 1e200, 1e200), (-1e200, -1e200, 1e200, 1e200)) == 0
    assert iou(REFERENCE, None) is None


def test_texts_stay_texts(tmp_path):
    hostile = record(
        0, HOSTILE, text=HOSTILE, id=HOSTILE, question=HOSTILE, level=HOSTILE, category=HOSTILE, image=HOSTILE
    )
    run = evaluated({"shown": [hostile, record(1)], HOSTILE: [hostile]}, title=HOSTILE, config={HOSTILE: HOSTILE})
    run.results["runs"]["shown"]["summary"][f"by_{HOSTILE}"] = {HOSTILE: {"official": 0.5, "count": 2}}
    run.results["published"] = {HOSTILE: {HOSTILE: 1.0}}
    page = page_of(run, tmp_path / "r.html")
    assert page.count("<script") == page.count("</script>") == 3  # settings, rows, the script itself
    elements = Elements()
    elements.feed(page)
    assert "img" not in elements.names
    assert not [name for name in elements.attributes if name.startswith("on")]
    row = embedded(page)[0]
    assert row["id"] == row["question"] == row["runs"][0]["answer"] == HOSTILE
    assert row["runs"][0]["turns"][0]["text"] == f"<think>look {HOSTILE}</think>"


def test_nothing_is_loaded_and_only_the_pages_own_script_runs(tmp_path):
    page = page_of(evaluated({"shown": [record(0)]}), tmp_path / "r.html")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; img-src data:;")
    for element, name in (("script", "script-src"), ("style", "style-src")):
        text = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"\son[a-z]+=|\sstyle=|url\(|@import|fetch\(|innerHTML|eval\(", page)


def test_numbers_that_json_lacks_become_null(tmp_path):
    run = evaluated({"shown": [record(0, box=(1.0, float("nan"), float("inf"), 2.0))]})
    assert embedded(page_of(run, tmp_path / "r.html"))[0]["runs"][0]["box"] == [1, None, None, 2]


def test_a_picture_is_stored_once_and_goes_to_its_turn(tmp_path):
    file = Thumbnails(tmp_path / "t.jsonl")
    file.add("q0", plain(10), [plain(90, 64)])
    file.add("q1", plain(10), [])
    run = evaluated({"shown": [record(0), record(1, shift=None), record(2)]}, [tmp_path / "t.jsonl"])
    page = page_of(run, tmp_path / "r.html")
    rows, shown = embedded(page), pictures(page)
    assert [image.size for image in shown] == [(80, 160), (32, 64)]  # shrunk to 160 px, never enlarged
    assert abs(int(np.asarray(shown[1].convert("RGB")).mean()) - 90) < 4
    assert [row.get("overview") for row in rows] == [0, 0, None]
    assert [turn.get("picture") for turn in rows[0]["runs"][0]["turns"]] == [1, None]


def test_thumbnails_go_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "deep" / "t.jsonl"
    Thumbnails(path).add("q0", plain(10), [])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "q1", "overv')
    assert list(read_thumbnails(path)[0]) == ["q0"]
    again = Thumbnails(path)
    again.add("q1", plain(10), [plain(50)])
    assert path.read_bytes().startswith(whole + b'{"id": "q1"')
    episodes, shown = read_thumbnails(path, tmp_path / "none.jsonl")
    assert episodes["q0"].overview == episodes["q1"].overview
    assert len(shown) == 2
    assert path.read_text().count(shown[episodes["q0"].overview]) == 1


def test_thumbnails_beyond_the_size_are_left_out_and_counted(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "t.jsonl"
    file = Thumbnails(path)
    for i in range(20):
        file.add(f"q{i}", random.integers(0, 255, (160, 160, 3), np.uint8), [])
    run = evaluated({"shown": [record(i) for i in range(20)]}, [path])
    whole = len(page_of(run, tmp_path / "r.html"))
    assert "without thumbnails" not in (tmp_path / "r.html").read_text()
    limit = 200_000 + 100_000
    page = page_of(run, tmp_path / "r.html", max_bytes=limit)
    kept = len(pictures(page))
    assert 0 < kept < 20
    assert f"{20 - kept} of 20 episodes are without thumbnails" in page
    assert len(page) < limit < whole


def test_a_comparison_pairs_by_id_and_puts_differences_first(tmp_path):
    a = evaluated({"shown": [record(0), record(1), record(2, "no"), record(3, "no"), record(8)]}, seed=0, commit="c")
    b = evaluated(
        {"shown": [record(9), record(3, "yes"), record(2, "no"), record(1, "no"), record(0)]}, seed=1, commit="c"
    )
    write_comparison(tmp_path / "c.html", a, b, ("base", "new"))
    page = (tmp_path / "c.html").read_text()
    rows = embedded(page)
    assert [row["id"] for row in rows] == ["q1", "q3", "q0", "q2"]
    assert [[run["official"] for run in row["runs"]] for row in rows] == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert rows[1]["runs"][1]["turns"][1]["text"] == "<answer>yes</answer>"  # both runs' texts
    assert "4 questions that both have; 1 are right only in base, 1 only in new" in page
    assert "left out: 1 that only base has, 1 that only new has" in page
    assert re.search(r'class="differ"><th scope="row">seed</th><td>0</td><td>1</td>', page)
    assert re.search(r'<tr><th scope="row">commit</th>', page)


def test_the_paired_difference_has_the_interval_of_its_spread():
    values = np.repeat([1.0, 0.0, -1.0], [60, 300, 40])
    low, high = bootstrap(values)
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.004)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.004)
    assert bootstrap(np.ones(5)) == (1, 1)


def test_tables_of_any_summary():
    summary = {
        "official": {"value": 0.5, "low": 0.4, "high": 0.6}, "strict": 0.25, "questions": 1200, "apo_iou": None,
        "zoom_rate": 0.5, "zoom_rate_interval": [0.25, 0.75], "crops": {"before": 0.125, "fixed": 3},
        "by_level": {
            "object": {"official": 0.75, "official_interval": [0.5, 1.0], "strict": 0.5, "count": 8},
            "global": {"official": 1.0, "count": 2},
        },
    }  # fmt: skip
    published = {"Paper 3B": {"official": 46.9, "by_level.object": 44, "by_level.region": 45, "other": 1.5}}
    first, levels = summary_tables({"shown": {"summary": summary, "tokens_per_sample": 40.25}}, published)
    assert first.columns == ["shown", "Paper 3B"]
    assert first.rows == [
        ("official", ["50.0 % [40.0, 60.0]", "46.90 %"]),
        ("strict", ["25.0 %", ""]),
        ("questions", ["1,200", ""]),
        ("APO IoU", ["", ""]),
        ("zoom rate", ["50.0 % [25.0, 75.0]", ""]),
        ("crops before", ["12.5 %", ""]),
        ("crops fixed", ["3", ""]),
        ("other", ["", "1.50 %"]),
        ("tokens per question", ["40.2", ""]),
    ]
    assert levels == (
        "By level",
        ["official", "strict", "count", "Paper 3B"],
        [
            ("object", ["75.0 % [50.0, 100.0]", "50.0 %", "8", "44.00 %"]),
            ("global", ["100.0 %", "", "2", ""]),
            ("region", ["", "", "", "45.00 %"]),
        ],
    )


def test_bars_and_histogram_stand_where_they_should(tmp_path):
    run = evaluated({"shown": [record(0), record(2, shift=200.0), record(4, shift=None)], "masked": [record(0, "no")]})
    run.results["runs"]["shown"]["summary"]["by_level"] = {
        "object": {"official": 0.5, "official_interval": [0.25, 0.75], "count": 3}
    }
    page = page_of(run, tmp_path / "r.html")
    assert 'd="M90.0 23.0H270.0' in page  # the whisker from a quarter to three quarters of 360
    assert "counts: no box 1; 0.0 0; 0.1 0; 0.2 0; 0.3 1; 0.4 0; 0.5 0; 0.6 0; 0.7 0; 0.8 0; 0.9 1" in page
    assert "object, shown 100.0 %, n = 3; object, masked 0.0 %, n = 1" in page


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves records as an evaluation's folder."""
    monkeypatch.setitem(BENCHMARKS, "stub", Stub())

    def save(name, runs, tail="", **results):
        for crops, records in runs.items():
            folder = tmp_path / name / ("" if crops == "shown" else crops)
            folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(r.to_json()) + "\n" for r in records)
            (folder / "records.jsonl").write_text(lines + tail)
        about = {"benchmark": "stub", "title": "Stub", "runs": {crops: {"summary": {}} for crops in runs}} | results
        (tmp_path / name / "results.json").write_text(json.dumps(about))
        return tmp_path / name

    return save


def test_the_verb_makes_the_page_anew(saved, tmp_path, capsys):
    text = "</script><script>alert(1)</script>"
    old, new = record(0, "no"), record(0, text)
    run = saved("run", {"masked": [record(0, "no")], "shown": [old, record(1), new]}, tail='{"id": "q2", "ques')
    Thumbnails(run / "thumbnails-0.jsonl").add("q1", plain(3), [])
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    rows = embedded(page)
    assert embedded(page, "data")["names"] == ["shown", "masked"]
    runs = {row["id"]: row["runs"] for row in rows}
    assert set(runs) == {"q0", "q1"}  # not the line that was cut off
    assert (runs["q0"][0]["answer"], runs["q0"][1]["answer"]) == (text, "no")  # the last line of a question counts
    assert runs["q1"][1] is None
    assert len(pictures(page)) == 1


def test_the_verb_compares_two(saved, tmp_path, capsys):
    a, b = saved("a", {"shown": [record(0)]}), saved("b", {"shown": [record(0, "no")]})
    assert main(["report", str(a), str(b), "--out", str(tmp_path / "c.html")]) == 0
    page = (tmp_path / "c.html").read_text()
    assert "b minus a, points" in page
    assert "-100.0 [-100.0, -100.0]" in page


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda run: (run / "results.json").unlink(), "results.json: can't be read (No such file"),
        (lambda run: (run / "results.json").write_text("{"), "results.json: not JSON"),
        (lambda run: (run / "results.json").write_text("[]"), "not the results of an evaluation"),
        (lambda run: (run / "results.json").write_text('{"benchmark": "stubb"}'), "did you mean 'stub'?"),
        (lambda run: (run / "records.jsonl").unlink(), "records.jsonl: "),
        (lambda run: (run / "records.jsonl").write_text('{"id": "q0"}\n'), "records.jsonl"),
    ],
)
def test_what_is_no_evaluation_is_one_line(break_it, told, saved, tmp_path, capsys):
    run = saved("run", {"shown": [record(0)]})
    break_it(run)
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("size", ["0", "inf", "nan"])
def test_a_size_that_no_page_has_is_one_line(size, tmp_path, capsys):
    assert main(["report", str(tmp_path), "--max-mb", size]) == 2
    error = capsys.readouterr().err
    assert "--max-mb" in error
    assert error.count("\n") == 1


def test_only_evaluations_of_the_same_questions_are_compared(saved, monkeypatch, capsys):
    a, b = saved("a", {"shown": [record(0)]}), saved("b", {"shown": [record(1)]})
    monkeypatch.setitem(BENCHMARKS, "other", Stub())
    c = saved("c", {"shown": [record(0, benchmark="other")]}, benchmark="other")
    for other, told in ((b, "no question in common"), (c, "is of stub"), (a, "given twice")):
        assert main(["report", str(a), str(other)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
