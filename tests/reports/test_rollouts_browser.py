"""The page of a run's rollouts in a real Chromium: filters, order, groups side by side, texts that stay texts, its speed."""

import time

import numpy as np
import pytest

from tests.reports.dumps import dumped, played, questions, table
from tests.reports.evaluations import texture
from tests.reports.test_episodes import HOSTILE
from tests.reports.test_episodes_browser import ANSWERS_MS, _answers
from zoomearth_jax.reports.rollout_page import write_rollout_page
from zoomearth_jax.reports.rollouts import RolloutDump

OPENS_S = 3.0  # with 16,640 episodes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of two steps of two groups of three episodes."""
    out = tmp_path_factory.mktemp("run")
    dumped(out, (5, 10))
    write_rollout_page(out / "r.html", out)
    return out / "r.html"


def shown(page):
    """The steps and groups of the cards, in their order."""
    texts = [text.split(" · ")[:2] for text in page.locator("#grid .meta").all_text_contents()]
    return [(int(step[5:]), int(group[6:])) for step, group in texts]


ALL = [(10, 1), (10, 0), (5, 1), (5, 0)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"from": "6"}, ALL[:2]),
        ({"to": "9"}, ALL[2:]),
        ({"text": "DRY? 1"}, [(10, 1), (5, 1)]),
        ({"level": "object"}, [(10, 0), (5, 0)]),
        ({"by": "total", "least": "2"}, ALL),
        ({"by": "total", "least": "2.1"}, []),
        ({"by": "total", "least": "0.5", "most": "0.9"}, []),  # no one episode lies in between
        ({"by": "own", "most": "0.25"}, ALL),
        ({"by": "advantage", "least": "1", "to": "5"}, ALL[2:]),
        ({"group": "mixed"}, ALL),
        ({"group": "flat"}, []),
        ({"group": "right"}, []),
        ({"sort": "step"}, [(5, 1), (5, 0), (10, 1), (10, 0)]),
        ({"sort": "spread", "order": "down"}, ALL),
    ],
    ids=str,
)
def test_filters_and_order(chosen, expected, small, opened):
    page = opened(small)
    assert shown(page) == ALL
    for name, value in chosen.items():
        field = page.locator(f"[name={name}]")
        field.select_option(value) if field.evaluate("e => e.tagName") == "SELECT" else field.fill(value)
    assert shown(page) == expected
    assert page.text_content("#count") == f"{len(expected)} of 4 groups"
    page.reload()
    assert page.locator("#grid li").count() == len(expected)  # the address keeps the filters


def test_a_group_side_by_side(small, opened):
    page = opened(small)
    page.fill("[name=least]", "2")
    rows = page.locator("#grid li").nth(1).locator(".samples tbody tr")
    assert [text.strip() for text in rows.all_text_contents()] == [
        "02.00+1.00✓ yes",
        "11.000.00✗ no",
        "20.00-1.00✗ (none)",
    ]
    assert [rows.nth(i).get_attribute("class") for i in range(3)] == ["differ", None, None]
    frame = page.locator("#grid li").nth(1).locator(".frame")
    boxes = frame.locator(".mark:not(.under)").evaluate_all(
        "all => all.map(e => [e.classList[1], e.getBBox().x, e.getBBox().width])"
    )
    assert boxes == [["reference", 200, 200], ["predicted-0", 200, 200], ["predicted-1", 200, 200]]
    page.locator("#grid .open").nth(1).click()
    sections = page.locator("#view section")
    assert sections.count() == 3
    assert [sections.nth(i).locator(".badge").first.text_content() for i in range(3)] == [
        "✓ right",
        "✗ wrong",
        "✗ wrong",
    ]
    assert "advantage +1.00" in sections.nth(0).locator(".badges").text_content()
    assert [sections.nth(i).locator("img").count() for i in range(3)] == [2, 2, 1]
    tops = [sections.nth(i).bounding_box()["y"] for i in range(3)]
    assert len(set(tops)) == 1
    page.keyboard.press("j")
    assert page.text_content("#view-title") == "Is it dry? 1"


@pytest.mark.parametrize("width", [375, 1920])
def test_texts_stay_texts_and_nothing_sticks_out(width, opened, tmp_path):
    dumped(tmp_path, (1,), text=HOSTILE + "w" * 300)
    write_rollout_page(tmp_path / "r.html", tmp_path)
    page = opened(tmp_path / "r.html", width)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.fill("[name=text]", "onerror=alert(2)")
    assert page.text_content("#count") == "2 of 2 groups"
    page.click("#grid .meta")
    assert page.evaluate("(v => v.scrollWidth - v.clientWidth)(document.querySelector('#view'))") <= 0
    assert "onerror=alert(2)" in page.locator("#view .said").first.text_content()


@pytest.mark.slow
def test_speed(opened, tmp_path):
    """130 steps of 128 episodes; prints the figures (-rP)."""
    random = np.random.default_rng(0)
    text = " ".join(random.choice(["road", "field", "river", "two", "roofs", "pond"], 80))
    textures, asked = [texture(random, 504) for _ in range(40)], questions(43)
    wrote = 0.0
    for step in range(1, 131):
        seen = played(
            asked, text, lambda side, number, step=step: np.roll(textures[number % 40], (step, number), (0, 1))
        )
        began = time.perf_counter()
        with RolloutDump(tmp_path, 1, 128, step - 1) as dump:
            dump.add(step, asked, seen, table(43))
        wrote += time.perf_counter() - began
    began = time.perf_counter()
    groups, episodes = write_rollout_page(tmp_path / "r.html", tmp_path)
    made = time.perf_counter() - began
    began = time.perf_counter()
    page = opened(tmp_path / "r.html")
    opens = time.perf_counter() - began
    choices = [
        ("from", "100"),
        ("group", "mixed"),
        ("least", "1.5"),
        ("sort", "spread"),
        ("text", "pond? 7"),
        ("by", "iou"),
    ]
    answers = {f"{name} {value}": min(_answers(page, name, value) for _ in range(3)) for name, value in choices}
    size = (tmp_path / "r.html").stat().st_size / 1e6
    kept = sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir()) / 1e6
    print(f"{episodes:,} episodes of {groups:,} groups, {size:.1f} MB, page made in {made:.1f} s")
    print(
        f"dumped in {1e3 * wrote / episodes:.2f} ms an episode, {kept:.1f} MB; {page.locator('.note').all_text_contents()}"
    )
    print(f"opens in {opens:.2f} s, answers in ms {answers}")
    assert episodes == 130 * 129
    assert opens < OPENS_S
    assert max(answers.values()) < 2 * ANSWERS_MS
