"""Our filters against the logits processors of HF's `generate`, and saved end tokens as transformers reads them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="make parity installs torch")

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402
from transformers.generation.logits_process import (  # noqa: E402
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zoomearth_jax.configs.sampling import SamplingConfig  # noqa: E402
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder  # noqa: E402
from zoomearth_jax.rl.policy import masked_logits  # noqa: E402
from zoomearth_jax.rl.rollout.sampling import filtered_logits, mark_seen  # noqa: E402
from zoomearth_jax.runs.models import save_model  # noqa: E402

VOCAB, BANNED = 300, (3, 17, 299)


def theirs(logits, ids, temperature, top_k, top_p, penalty):
    """Scores, with the processors in the order of `GenerationMixin._get_logits_processor`."""
    chain = [
        *([RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []),
        SuppressTokensLogitsProcessor(list(BANNED)),
        TemperatureLogitsWarper(temperature),
        *([TopKLogitsWarper(top_k)] if top_k else []),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ]
    scores = torch.tensor(logits)
    for processor in chain:
        scores = processor(torch.tensor(ids), scores)
    return scores.numpy()


def ours(logits, ids, temperature, top_k, top_p, penalty):
    filters = SamplingConfig(top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    seen = None
    if penalty != 1:
        seen = mark_seen(jnp.zeros(logits.shape, bool), jnp.array(ids), jnp.ones(ids.shape, bool))
    tempered = masked_logits(jnp.array(logits) / temperature, BANNED)
    return np.asarray(filtered_logits(tempered, filters, seen))


@pytest.mark.parametrize(
    "settings",
    list(itertools.product([0.3, 1.0, 1.7], [0, 1, 20, 1000], [1.0, 0.95, 0.5, 0.01], [1.0, 1.05, 3.0, 0.7])),
    ids=str,
)
def test_the_filtered_distribution_is_that_of_generate(settings):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(16, VOCAB)).astype(np.float32) * np.linspace(0.5, 6, 16, dtype=np.float32)[:, None]
    ids = rng.integers(0, VOCAB, (16, 40))
    want, got = theirs(logits, ids, *settings), ours(logits, ids, *settings)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(jax.nn.softmax(got), jax.nn.softmax(want), atol=1e-6)


def test_transformers_reads_the_end_tokens_of_a_saved_model(nano, tmp_path):
    rows = RowBuilder(nano.rows.tokenizer, nano.rows.episode, 28, {"eos_token_id": [7], "repetition_penalty": 1.05})
    save_model(tmp_path / "saved", nano.model, rows)
    read = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "saved").generation_config
    assert read.eos_token_id == [rows.stop_id, rows.pad_id, 7]
    assert (read.pad_token_id, read.repetition_penalty) == (rows.pad_id, 1.05)
