"""Live comparison with HF transformers in torch (`make parity`)."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="make parity installs torch")

from tests.tiny_hf import hf_greedy, hf_outputs, tiny_model  # noqa: E402
from tests.tiny_inputs import IMAGE, batch  # noqa: E402
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL  # noqa: E402

TOLERANCE = 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_logits(tmp_path, heads, kv_heads, tied):
    theirs = tiny_model(heads=heads, kv_heads=kv_heads, tied=tied, seed=heads + kv_heads)
    theirs.save_pretrained(tmp_path)
    ours = Qwen2_5_VL.from_pretrained(tmp_path)
    for side in ("left", "right"):
        inputs = batch(side, seed=heads)
        ids, mask, pixels, grids = inputs
        want, _, _ = hf_outputs(theirs, *inputs)
        got = np.asarray(ours(ids, pixels, grids, mask))
        assert np.abs(got - want)[mask > 0].max() < TOLERANCE


def test_text_alone(tmp_path):
    theirs = tiny_model()
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(2, 90, (2, 11))
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    got = np.asarray(Qwen2_5_VL.from_pretrained(tmp_path)(ids))
    assert np.abs(got - want).max() < TOLERANCE


def test_greedy_generation_by_full_recomputation(tmp_path):
    theirs = tiny_model(seed=3)
    theirs.save_pretrained(tmp_path)
    ours = Qwen2_5_VL.from_pretrained(tmp_path)
    ids, mask, pixels, grids = batch("left", seed=3)
    want = hf_greedy(theirs, ids, mask, pixels, grids, 4)
    for step in range(4):
        logits = np.array(ours(ids, pixels, grids, mask))[:, -1]
        logits[:, [IMAGE, IMAGE + 1]] = -np.inf
        token = logits.argmax(-1)
        np.testing.assert_array_equal(token, want[:, step])
        ids, mask = np.concatenate([ids, token[:, None]], 1), np.concatenate([mask, np.ones_like(mask[:, :1])], 1)


def test_saved_checkpoint_loads_in_transformers_bit_for_bit(tmp_path):
    theirs = tiny_model(tied=False)
    theirs.save_pretrained(tmp_path / "hf")
    Qwen2_5_VL.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_shipped_nano_model_runs_in_transformers(nano):
    from transformers import Qwen2_5_VLForConditionalGeneration

    from zoomearth_jax.runs.models import resolve

    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(resolve("nano")).float().eval()
    rng = np.random.default_rng(0)
    ids = np.array([[1, 3, *[5] * 16, 4, 40, 41, 2]])
    pixels, grids = rng.normal(size=(64, 1176)).astype(np.float32), np.array([[1, 8, 8]])
    with torch.no_grad():
        want = theirs(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(pixels),
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=torch.tensor((ids == 5).astype(int)),
        ).logits.numpy()
    assert np.abs(np.asarray(nano.model(ids, pixels, grids)) - want).max() < TOLERANCE
