"""Pass rates decide what is asked, a run that goes on asks the same, and an earlier run's rates count from the start."""

import dataclasses
import json

import numpy as np
import pytest

from zoomearth_jax.configs.curriculum import CurriculumConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.questions.mixture import Source
from zoomearth_jax.data_pipeline.rows.loader import LAG, Loader
from zoomearth_jax.data_pipeline.rows.workers import Place
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.runs.pass_rates import PassRates

GROUP, STEPS = 4, 48
DIGESTS = {"farm": "abc"}


def config(out, **more):
    return GRPOConfig(out=out, data=("farm",), curriculum=CurriculumConfig(**{"low": 0.1, "high": 0.9, **more}))


def correct(place, step):
    """Correct answers of a policy that gets better: the question's number and time decide."""
    return min(GROUP, (place.index * 7 + step // 12) % 6)


def run(settings, start, workers=0):
    """The places of all steps of a run, its second half's refills among them."""
    asked = []
    with PassRates(settings) as rates:
        rates.open(start, DIGESTS)
        loader = Loader(
            [Source("farm", range(256))], list, batch_size=16, seed=0, refills=1, passed_over=rates.passed_over
        )
        loader._ahead = workers + 1 or loader._ahead
        with loader:
            for step, batch in enumerate(loader.batches(start, STEPS), start):
                places = list(loader.taken(step))
                assert [place.index for place in places] == batch
                if step % 3 == 2:
                    places += [Place(0, index) for index in loader.refill(step, 1)]
                asked.append(places)
                rates.note(step + 1, places, np.array([correct(place, step) for place in places]), GROUP)
    return asked


def test_what_a_run_asks_after_a_checkpoint_follows_from_its_lines(tmp_path):
    """However many batches are made ahead."""
    settings = config(tmp_path)
    whole = run(settings, 0)
    lines = read_metrics(settings.out / "pass_rates.jsonl")
    assert [row["step"] for row in lines] == list(range(1, STEPS + 1))
    assert lines[7]["rates"] == [["farm", p.index, correct(p, 7) / GROUP] for p in whole[7]]
    for start, workers in ((3, 0), (20, LAG - 3), (31, 4)):
        assert run(settings, start, workers) == whole[start:]  # the lines after `start` are cut off
        assert read_metrics(settings.out / "pass_rates.jsonl") == lines
    plain = run(config(tmp_path / "plain", low=0.0, high=1.0), 0)
    assert plain[:LAG] == whole[:LAG]
    assert plain != whole


def test_a_question_out_of_range_is_passed_over_once_its_rate_is_old_enough(tmp_path):
    with PassRates(config(tmp_path)) as rates:
        rates.open(0, DIGESTS)
        place, other = Place(0, 5), Place(0, 6)
        rates.note(1, [place, other], np.array([4, 3]), GROUP)
        rates.note(9, [place], np.array([2]), GROUP)
        found = [rates.passed_over(place, step) for step in range(2 * LAG)]
        assert found == [LAG <= step < LAG + 8 for step in range(2 * LAG)]
        assert not any(rates.passed_over(other, step) for step in range(2 * LAG))


def test_a_lost_line_is_refused(tmp_path):
    run(config(tmp_path), 0)
    file = tmp_path / "pass_rates.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:30] + lines[31:]))
    with pytest.raises(UserError, match=r"no pass rates of step 31.*start a new run"):
        PassRates(config(tmp_path)).open(36, DIGESTS)
    PassRates(config(tmp_path)).open(30, DIGESTS)
    PassRates(config(tmp_path, low=0.0, high=1.0)).open(36, DIGESTS)  # which leaves nothing out


def test_an_earlier_run_s_last_rates_count_from_the_start(tmp_path):
    first = config(tmp_path / "first", low=0.0, high=1.0)
    asked = run(first, 0)
    (first.out / "data.json").write_text(json.dumps(DIGESTS))
    last = {place: correct(place, step) for step, places in enumerate(asked) for place in places}
    second = config(tmp_path / "second", run=first.out)
    rates = PassRates(second)
    rates.open(0, DIGESTS)
    assert {place for place in last if rates.passed_over(place, 0)} == {p for p, n in last.items() if n in (0, GROUP)}
    whole = run(second, 0)
    (first.out / "pass_rates.jsonl").unlink()  # its own file has them
    assert run(second, 20) == whole[20:]


def test_what_is_no_run_of_these_questions_is_refused(tmp_path):
    run(config(tmp_path), 0)
    with pytest.raises(UserError, match="can't tell what questions"):
        PassRates(config(tmp_path / "new", run=tmp_path)).open(0, DIGESTS)
    (tmp_path / "data.json").write_text(json.dumps({"farm": "other"}))
    with pytest.raises(UserError, match="its questions of farm are not those of this run"):
        PassRates(config(tmp_path / "new", run=tmp_path)).open(0, DIGESTS)
    with pytest.raises(UserError, match=r"no pass rates; give curriculum\.run a run of GRPO"):
        PassRates(config(tmp_path / "new", run=tmp_path / "nowhere")).open(0, DIGESTS)
    (tmp_path / "pass_rates.jsonl").write_text('{"step": 1, "rates": [["farm", 1]]}\n')
    with pytest.raises(UserError, match="not the pass rates of a run, see step 1"):
        PassRates(config(tmp_path / "new", run=tmp_path)).open(0, DIGESTS)


def test_bad_settings_are_one_line(tmp_path):
    for more in ({"low": -0.1}, {"low": 0.5, "high": 0.4}, {"high": 1.5}, {"low": float("nan")}):
        with pytest.raises(UserError, match="0 <= low <= high <= 1"):
            config(tmp_path, **more)
    with pytest.raises(UserError, match="run needs low or high"):
        CurriculumConfig(run=tmp_path)
    assert not dataclasses.replace(CurriculumConfig(), low=0.0).active
