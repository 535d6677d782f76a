"""Writes tests/goldens anew from HF transformers (`make goldens`): tiny checkpoints and HF's outputs."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tiny_hf import hf_greedy, hf_outputs, tiny_model
from tests.tiny_inputs import batch

HERE = Path(__file__).parent / "goldens"


def main():
    for tied in (True, False):
        directory = HERE / ("tied" if tied else "untied")
        model = tiny_model(kv_heads=2 if tied else 1, tied=tied)
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        arrays = {}
        for side in ("left", "right"):
            inputs = batch(side)
            logits, features, positions = hf_outputs(model, *inputs)
            arrays |= {f"{side}_logits": logits, f"{side}_positions": positions.astype(np.int16)}
        arrays |= {"features": features, "greedy": hf_greedy(model, *batch("left"), count=12)}
        np.savez_compressed(directory / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
