"""Holds a results.json of `zoomearth demo` against what the demo must show: python tests/check_demo.py FILE [SECONDS]."""

import json
import sys

SECONDS = 240  # a quiet machine with 2 cores


def failures(results: dict, seconds: float = SECONDS) -> list[str]:
    """What falls short, in words."""
    base, sft, grpo = (results[stage] for stage in ("base", "sft", "grpo"))
    bars = {
        "at least 1,000 questions": grpo["questions"] >= 1000,
        f"at most {seconds:.0f} s": results["seconds"]["total"] <= seconds,
        "base below SFT": base["accuracy"] < sft["accuracy"],
        "SFT masked accuracy 0.20-0.30": 0.20 <= sft["accuracy_masked_crop"] <= 0.30,
        "GRPO masked accuracy 0.20-0.30": 0.20 <= grpo["accuracy_masked_crop"] <= 0.30,
        "SFT greedy accuracy >= 0.80": sft["accuracy"] >= 0.80,
        "GRPO gains >= 0.12 accuracy at T = 1": grpo["accuracy_t1"] - sft["accuracy_t1"] >= 0.12,
        "GRPO gains >= 0.05 IoU at T = 1": grpo["apo_iou_t1"] - sft["apo_iou_t1"] >= 0.05,
        "GRPO loses <= 0.01 greedy accuracy": grpo["accuracy"] - sft["accuracy"] >= -0.01,
        "GRPO loses <= 0.01 greedy IoU": grpo["apo_iou"] - sft["apo_iou"] >= -0.01,
    }
    return [name for name, met in bars.items() if not met]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        missed = failures(json.load(file), *map(float, sys.argv[2:]))
    print("demo: all bars met" if not missed else "demo: missed: " + "; ".join(missed))
    sys.exit(bool(missed))
