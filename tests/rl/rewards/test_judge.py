"""A judge behind HTTP: what it is sent, what is kept, and that nothing that it does ends a run."""

import contextlib
import http.server
import json
import math
import re
import shutil
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from tests.episodes import made_episode
from tests.processes import ROOT
from tests.rl.rewards.test_rewards import episode, play
from tests.runs.test_training_on_meshes import train
from zoomearth_jax.cli import main
from zoomearth_jax.configs.judge import JudgeConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.reward import RewardSpec
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.rl.metrics import rollout_metrics
from zoomearth_jax.rl.rewards.judge import Judge
from zoomearth_jax.runs.checkpoints import Checkpoints
from zoomearth_jax.runs.metric_rows import read_metrics
from zoomearth_jax.verbs.grpo import _open_judge, grpo

ONE = Question(types.SimpleNamespace(), "How many?", "three", "global", choices=("two", "three"), category="Counting")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the server's `reply`, and remembers the items that it was sent."""

    def do_POST(self):
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        self.server.asked.append(items)
        status, body = self.server.reply(items)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have gone
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def by_length(items):
    """A hundredth of each answer's length."""
    return 200, json.dumps({"scores": [len(item["answer"]) / 100 for item in items]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("zoomearth_jax.rl.rewards.judge._WAIT_S", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.asked, made.reply = [], by_length
        made.address = f"http://127.0.0.1:{made.server_port}/judge"
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def judged(server, tmp_path, monkeypatch):
    """Scores of answers by a fresh judge, its scores saved; `server` answers."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which a judge isn't asked through

    def scores(*answers, resume=False, process=0, reads="answer", **how):
        spec = RewardSpec(judge=server.address, judge_reads=reads)
        with Judge(spec, JudgeConfig(**how), tmp_path / "judge", process, resume) as judge:
            got = judge.scores([ONE] * len(answers), [made_episode("look", answer=answer) for answer in answers])
            judge.save()
            return got

    return scores


def test_what_a_judge_is_sent_and_what_becomes_of_its_scores(server, judged):
    got = judged("abc", None, "x" * 50, "abc", batch_size=1)
    np.testing.assert_allclose(got["judge"], [0.03, 0, 0.5, 0.03])
    np.testing.assert_array_equal(got["judge_failed"], [0, np.nan, 0, 0])
    np.testing.assert_array_equal(got["perf/judge_cached"], [0, np.nan, 0, 0])
    assert [len(items) for items in server.asked] == [1, 1]  # equal answers are asked once, missing ones not at all
    item = {"question": "How many?", "choices": ["two", "three"], "reference": "three", "answer": "abc"}
    assert item | {"level": "global", "category": "Counting"} in [items[0] for items in server.asked]
    judged("abc", reads="turns")
    assert server.asked[-1][0]["turns"] == ["look"]


def test_batches_are_asked_at_the_same_time(server, judged):
    barrier = threading.Barrier(3, timeout=20)

    def together(items):
        barrier.wait()
        return by_length(items)

    server.reply = together
    got = judged(*["x" * n for n in range(1, 7)], batch_size=2, parallel=3)
    np.testing.assert_allclose(got["judge"], np.arange(1, 7) / 100)
    assert not got["judge_failed"].any()


def test_scores_are_kept_in_the_run(server, judged, tmp_path):
    first = judged("a", "bb", process=1)
    file = tmp_path / "judge" / "scores-1.jsonl"
    with open(file, "a") as cut:
        cut.write('\n{"key": "abc", "sco')  # a crash
    judged("ccc", resume=True, process=1)
    assert len(server.asked) == 2
    server.reply = lambda items: (500, b"")
    again = judged("a", "bb", "ccc", resume=True)  # another process
    np.testing.assert_array_equal(again["judge"][:2], first["judge"])
    np.testing.assert_allclose(again["judge"][2], 0.03)
    assert again["perf/judge_cached"].all()
    assert len(server.asked) == 2
    assert np.isnan(judged("a", retries=0)["judge"]).all()  # a run that starts anew asks anew


def test_a_judge_that_fails_twice_and_then_answers(server, judged, capsys):
    replies = iter([(500, b""), (503, b"busy")])
    server.reply = lambda items: next(replies, None) or by_length(items)
    np.testing.assert_allclose(judged("abc")["judge"], [0.03])
    assert capsys.readouterr().err == ""


NONSENSE = {
    "not JSON": (b"<html>", "no JSON object"),
    "no text": (b"\xff\xfe", "no JSON object"),
    "nested": (b"[" * 100_000, "no JSON object"),
    "a list": (b"[0.5]", "no JSON object"),
    "no scores": (b"{}", "no JSON object"),
    "a number": (b'{"scores": 1}', "1 items with something that is no list"),
    "too many": (b'{"scores": [0.5, 0.5]}', "1 items with 2 scores"),
    "too few": (b'{"scores": []}', "1 items with 0 scores"),
    "nan": (b'{"scores": [NaN]}', "score of NaN, which is no number from 0 to 1"),
    "a text": (b'{"scores": ["1"]}', 'score of "1"'),
    "true": (b'{"scores": [true]}', "score of true"),
    "a list as score": (b'{"scores": [[1]]}', "score of [1]"),
    "10^400": (b'{"scores": [1' + b"0" * 400 + b"]}", "score of 1000"),
    "1e400": (b'{"scores": [1e400]}', "score of Infinity"),
    "5,000 digits": (b'{"scores": [' + b"1" * 5000 + b"]}", "no JSON object"),
    "above 1": (b'{"scores": [1.01]}', "score of 1.01"),
    "below 0": (b'{"scores": [-0.01]}', "score of -0.01"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_no_score(server, judged, capsys, kind):
    body, said = NONSENSE[kind]
    server.reply = lambda items: (200, body)
    got = judged("abc", retries=1)
    assert np.isnan(got["judge"]).all()
    assert got["judge_failed"].tolist() == [1]
    first, last = capsys.readouterr().err.splitlines()
    assert said in first
    assert last == "zoomearth: judge: 1 of 1 scores that were asked for failed"
    server.reply = by_length
    assert judged("abc", resume=True)["judge"] == np.float32(0.03)  # failures aren't kept


def test_null_is_not_applicable_and_one_bad_score_spoils_no_other(server, judged, capsys):
    server.reply = lambda items: (200, json.dumps({"scores": [None, 2, 0, 1]}).encode())
    got = judged("a", "b", "c", "d")
    np.testing.assert_array_equal(got["judge"], [np.nan, np.nan, 0, 1])
    np.testing.assert_array_equal(got["judge_failed"], [0, 1, 0, 0])
    assert "score of 2" in capsys.readouterr().err
    assert math.isnan(judged("a", resume=True)["judge"][0])
    assert len(server.asked) == 1  # null is kept


@pytest.mark.parametrize("kind", ["slow", "drips", "huge", "redirect", "down"])
def test_what_never_becomes_an_answer(server, judged, capsys, monkeypatch, kind):
    monkeypatch.setattr("zoomearth_jax.rl.rewards.judge.MAX_BYTES", 1000)
    gone = threading.Event()

    def slow(items):
        gone.wait(10)
        return by_length(items)

    replies = {"slow": slow, "huge": lambda items: (200, b" " * 10_000), "redirect": lambda items: (302, b"")}
    server.reply = replies.get(kind, by_length)
    if kind == "drips":
        monkeypatch.setattr(Handler, "wbufsize", 0)
        monkeypatch.setattr(Handler, "do_POST", _drip)
    if kind == "down":
        server.address = "http://127.0.0.1:9/judge"
    began = time.monotonic()
    got = judged("abc", "de", retries=0, timeout_s=0.3 if kind in ("slow", "drips") else 20)
    assert time.monotonic() - began < 8
    gone.set()
    assert np.isnan(got["judge"]).all()
    assert got["judge_failed"].all()
    said = {"slow": "took longer than 0.3 s", "huge": "more than 1,000 bytes", "redirect": "status 302"}
    first, last = capsys.readouterr().err.splitlines()
    assert said.get(kind, said["slow"] if kind == "drips" else "can't be reached") in first
    assert last.endswith("2 of 2 scores that were asked for failed")


def _drip(self):
    """Sends a byte now and then, so that no single wait is long."""
    self.send_response(200)
    self.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(100):
            self.wfile.write(b" ")
            time.sleep(0.05)


def test_the_judge_s_part_of_the_total(server, tmp_path):
    spec = RewardSpec(judge=server.address, judge_weight=2.0)
    assert spec.describe().endswith(f" + 2 judge ({server.address})")
    _, played, scored = play(episode(answer="a" * 50), episode(answer=None))
    with Judge(spec, JudgeConfig(), tmp_path) as judge:
        rewards = scored(spec, judge)
    np.testing.assert_allclose(rewards["judge"], [0.5, 0])
    np.testing.assert_allclose(rewards["total"], scored(RewardSpec())["total"] + [1, 0], rtol=1e-6)
    table = {name: rewards[part] for name, part in (("reward_total", "total"), ("judge_failed", "judge_failed"))}
    table |= dict.fromkeys(("tokens", "has_reference"), np.ones(2))
    assert rollout_metrics(table, 2)["judge_failed"] == 0
    assert played.episodes[1].answer is None


def test_the_documentation_s_judge(judged, server):
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import json.*?)ThreadingHTTPServer\(\(", page, re.DOTALL)[1]
    named: dict = {}
    exec(compile(code, "docs/rewards.md", "exec"), named)
    named["Judge"].log_message = lambda *_: None
    server.RequestHandlerClass = named["Judge"]
    with Judge(RewardSpec(judge=server.address), JudgeConfig(), Path("nowhere")) as judge:
        judge.check()
    np.testing.assert_array_equal(judged("It is Three.", "two")["judge"], [1, 0])


@pytest.mark.parametrize(
    "address", ["ftp://x/y", "file:///etc/passwd", "http://", "localhost:80", "http://[", "http://x:y", "http://a b"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="judge must be an address"):
        RewardSpec(judge=address)


@pytest.mark.parametrize("how", [{"batch_size": 0}, {"parallel": 0}, {"retries": -1}, {"timeout_s": math.inf}])
def test_impossible_ways_to_ask_are_refused(how):
    with pytest.raises(UserError, match="judge config"):
        JudgeConfig(**how)


def test_a_run_without_its_judge_doesn_t_begin(tmp_path, capsys, server):
    out = ["grpo", "--model", "nano-grpo", "--out", str(tmp_path / "run"), "--reward.judge"]
    assert main([*out, "http://127.0.0.1:9/judge"]) == 2
    server.reply = lambda items: (404, b"")
    assert main([*out, server.address]) == 2
    said = capsys.readouterr().err
    assert said.count("leave reward.judge out") == 2
    assert "answered with status 404" in said
    assert not (tmp_path / "run").exists()


def test_processes_that_share_questions_are_refused_with_a_judge(monkeypatch):
    monkeypatch.setattr("zoomearth_jax.verbs.grpo.process_share", lambda mesh: (0, 1))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    config = GRPOConfig(reward=RewardSpec(judge="http://127.0.0.1:9/judge"))
    with pytest.raises(UserError, match="keep tensor groups within a process"), _open_judge(config, None):
        pass
    with _open_judge(GRPOConfig(), None) as judge:
        assert judge is None


@pytest.mark.slow
def test_each_of_two_processes_asks_for_its_own_episodes(tmp_path, server):
    how = ["--reward.judge", server.address]
    train(tmp_path / "one", "grpo", 2, 1, *how)
    train(tmp_path / "two", "grpo", 2, 2, "--mesh.fsdp", 2, *how, processes=2)
    one, two = (
        [row["reward_judge"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")
    )
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert min(one) > 0
    kept = [(tmp_path / "two" / "judge" / f"scores-{process}.jsonl").read_text() for process in (0, 1)]
    assert all(len(lines.split()) > 2 for lines in kept)


@pytest.mark.slow
def test_a_run_that_goes_on_asks_for_nothing_again(tmp_path, server):
    """With a judge whose scores differ each time, and with episodes played ahead."""
    rng = np.random.default_rng(0)

    def moody(items):
        return 200, json.dumps({"scores": rng.random(len(items)).tolist()}).encode()

    server.reply = moody
    config = GRPOConfig(
        model="nano-grpo",
        steps=4,
        prompts=2,
        group=4,
        out=tmp_path / "whole",
        reward=RewardSpec(judge=server.address),
        rollout=RolloutConfig(ahead=True),
        objective=ObjectiveConfig(kl_weight=0.0, importance_cap=2.0),
        checkpoint_every=2,
        panel_every=0,
    )
    grpo(config)
    out, asked = shutil.copytree(config.out, tmp_path / "cut"), len(server.asked)
    with Checkpoints(out) as checkpoints:
        checkpoints._manager.delete(4)  # as if the run had died after step 3
    grpo(GRPOConfig(**{**vars(config), "out": out, "resume": True}))
    assert len(server.asked) == asked + 1  # whether it is there
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run / "metrics.jsonl")]
        for run in (config.out, out)
    ]
    assert rows[0] == rows[1]
    assert rows[0][0]["reward_judge"] > 0
