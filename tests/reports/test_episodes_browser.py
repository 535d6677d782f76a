"""The page of an evaluation in a real Chromium: filters, order, keys, the larger view, no errors, nothing loaded, its speed."""

import time

import pytest

from tests.reports.evaluations import evaluated, many, record
from tests.reports.test_episodes import HOSTILE
from zoomearth_jax.reports.episodes import write_comparison, write_report

OPENS_S, ANSWERS_MS = 3.0, 200.0  # with 2,000 episodes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page of 100 questions."""
    folder = tmp_path_factory.mktemp("small")
    run = many(100, folder / "t.jsonl")
    write_report(folder / "r.html", *run)
    return run, folder / "r.html"


def ids(page):
    """The ids of the cards, in their order."""
    return [text.split(" · ")[0] for text in page.locator("#grid .meta").all_text_contents()]


def test_filters_and_order(small, opened):
    run, path = small
    page, records = opened(path), run.records["shown"]
    right = [r.id for r in records if r.answer in ("yes", "Yes")]
    wrong = [r.id for r in records if r.answer not in ("yes", "Yes")]
    assert ids(page) == [r.id for r in records[:24]]
    expected = {
        ("verdict", "right"): right,
        ("verdict", "differs"): [r.id for r in records if r.answer == "Yes"],
        ("verdict", "unparsed"): [r.id for r in records if r.answer is None],
        ("level", "object"): [r.id for r in records if r.level == "object"],
        ("category", "count"): [r.id for r in records if r.category == "count"],
        ("zoom", "no"): [r.id for r in records if not r.zoomed],
        ("box", "right"): [r.id for r in records if r.box and r.box[0] <= 1100],
        ("box", "wrong"): [r.id for r in records if r.box and r.box[0] > 1100],
        ("box", "missing"): [r.id for r in records if not r.box],
        ("change", "first 1"): [r.id for i, r in enumerate(records) if r.id in right and i % 3],
        ("change", "second 1"): [],
    }
    for (name, value), found in expected.items():
        page.select_option(f"[name={name}]", value)
        assert ids(page) == found[:24], name
        assert page.text_content("#count") == f"{len(found)} of 100 episodes"
        page.click("[type=reset]")
        page.get_by_text("100 of 100 episodes").wait_for()
    page.select_option("[name=verdict]", "wrong")
    page.fill("[name=text]", "BARN? Q9")
    assert ids(page) == [id for id in wrong if id[1] == "9"]
    page.click("[type=reset]")
    page.get_by_text("100 of 100 episodes").wait_for()
    page.select_option("[name=sort]", "tokens")
    page.select_option("[name=order]", "down")
    assert ids(page)[:3] == ["q99", "q98", "q97"]
    page.select_option("[name=sort]", "id")
    page.select_option("[name=order]", "")
    assert ids(page)[:12] == [f"q{i}" for i in range(12)]  # as numbers: q2 before q10
    page.select_option("[name=sort]", "iou")
    assert ids(page)[0] == next(r.id for r in records if not r.box or r.box[0] > 1400)
    page.reload()
    assert page.eval_on_selector("[name=sort]", "field => field.value") == "iou"  # the address keeps the filters


def test_keys_and_the_larger_view(small, opened):
    run, path = small
    page = opened(path)
    focused = "document.activeElement.textContent"
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.evaluate(focused) == "Is there a barn? 1"
    page.keyboard.press("Enter")
    assert page.text_content("#view-title") == "Is there a barn? 1"
    assert page.evaluate("document.querySelector('#view').contains(document.activeElement)")
    for _ in range(48):
        page.keyboard.press("j")
    shown = run.records["shown"][49]
    assert page.locator("#view .said").all_text_contents() == [turn["text"] for turn in shown.turns]
    page.keyboard.press("Escape")
    for _ in range(100):  # until the dialog's event has come
        if page.evaluate(focused) != "Is there a barn? 1":
            break
        page.wait_for_timeout(20)
    assert page.evaluate(focused) == "Is there a barn? 49"  # on another page
    assert page.text_content("#page") == "page 3 of 5"
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.input_value("[name=text]") == "jk"


def test_boxes_lie_where_they_are(small, opened):
    run, path = small
    page = opened(path)
    place = next(i for i, r in enumerate(run.records["shown"]) if r.box and r.box[0] == 5000)
    frame = page.locator("#grid li").nth(place).locator(".frame")
    picture = frame.locator("img").evaluate(
        "e => ({ width: e.clientWidth, height: e.clientHeight, real: e.naturalWidth })"
    )
    assert picture == {"width": 160, "height": 120, "real": 160}
    for kind, x in (("predicted-0", 5000), ("reference", 1000)):
        box = frame.locator(f".mark.{kind}").evaluate(
            "e => { const b = e.getBBox(), f = e.ownerSVGElement.viewBox.baseVal; return [b.x, b.y, b.width, b.height, f.width] }"
        )
        assert box == [x, 1000, 400, 400, 8000]
    assert "predicted box at 5000, 1000, 5400, 1400" in frame.locator("img").get_attribute("alt")


@pytest.mark.parametrize("width", [375, 768, 1920])
def test_nothing_sticks_out(width, small, opened, tmp_path):
    long = record(0, "x" * 400, question="w" * 300, id="i" * 300, category="c" * 200)
    write_report(tmp_path / "long.html", *evaluated({"shown": [long, record(1)]}, config={"path": "p" * 500}))
    for path in (small[1], tmp_path / "long.html"):
        page = opened(path, width)
        page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.click("#grid .meta")
        assert page.evaluate("(v => v.scrollWidth - v.clientWidth)(document.querySelector('#view'))") <= 0


def test_texts_stay_texts_and_broken_data_is_shown(opened, tmp_path):
    hostile = record(0, HOSTILE, text=HOSTILE, id=HOSTILE, question=HOSTILE, level=HOSTILE, category=HOSTILE)
    nan = record(1, box=(float("nan"),) * 4)
    gone = record(2, fault=HOSTILE, width=0, height=0)
    run = evaluated({"shown": [hostile, nan, gone, record(3)]}, title=HOSTILE)
    write_report(tmp_path / "r.html", *run)
    page = opened(tmp_path / "r.html")
    assert HOSTILE.replace("\ud800", "\ufffd") in page.text_content(".open").replace("\ud800", "\ufffd")
    page.fill("[name=text]", "onerror=alert(2)")
    assert page.text_content("#count") == "2 of 4 episodes"
    page.select_option("[name=verdict]", "unread")
    assert page.locator("#grid .note").count() == 1
    page.click("#grid .meta")
    assert "alert(2)" in page.text_content("#view .note")


def test_two_runs_beside_each_other(opened, tmp_path):
    small = many(6, tmp_path / "t.jsonl")
    other = evaluated({"shown": [record(i, "no") for i in range(6)]})
    write_comparison(tmp_path / "c.html", small, other, ("base", "new"))
    page = opened(tmp_path / "c.html")
    right = [r.id for r in small.records["shown"] if r.answer in ("yes", "Yes")]
    assert ids(page)[: len(right)] == right
    page.select_option("[name=change]", "first 1")
    assert ids(page) == right
    page.click("#grid .meta")
    assert page.locator("#view .run-name").all_text_contents() == ["base", "new"]
    assert page.locator("#view .said").count() == 4


@pytest.mark.slow
@pytest.mark.parametrize("count", [2000, 10_000])
def test_speed(count, opened, tmp_path):
    """Prints the figures (-rP); the bars are those of 2,000 episodes."""
    began = time.perf_counter()
    run = many(count, tmp_path / "t.jsonl")
    made = time.perf_counter() - began
    write_report(tmp_path / "r.html", *run)
    wrote = time.perf_counter() - began - made
    began = time.perf_counter()
    page = opened(tmp_path / "r.html")
    opens = time.perf_counter() - began
    choices = [
        ("verdict", "wrong"),
        ("box", "wrong"),
        ("change", "any 1"),
        ("sort", "iou"),
        ("sort", "id"),
        ("text", "pond 77"),
    ]
    answers = {f"{name} {value}": min(_answers(page, name, value) for _ in range(3)) for name, value in choices}
    size = (tmp_path / "r.html").stat().st_size / 1e6
    print(
        f"{count:,} episodes, {size:.1f} MB: thumbnails {1e3 * made / count:.1f} ms per episode, written in {wrote:.1f} s,"
    )
    print(f"opens in {opens:.2f} s, answers in ms {answers}; {page.locator('.note').all_text_contents()}")
    if count == 2000:
        assert opens < OPENS_S
        assert max(answers.values()) < ANSWERS_MS


def _answers(page, name: str, value: str) -> int:
    """Milliseconds from an input to the frame that shows what came of it."""
    page.evaluate("document.querySelector('#filters').reset()")
    page.wait_for_timeout(300)
    return page.evaluate(
        """([name, value]) => new Promise((done) => {
            const field = document.querySelector(`[name=${name}]`), began = performance.now();
            field.value = value;
            field.dispatchEvent(new Event("input", { bubbles: true }));
            requestAnimationFrame(() => setTimeout(() => done(Math.round(performance.now() - began))));
        })""",
        [name, value],
    )
