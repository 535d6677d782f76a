"""Holds a results.json of `zoomearth demo` against what the demo must show: python tests/check_demo.py FILE [SECONDS]."""

import json
import sys

SECONDS, NESTED_SECONDS = 240, 600  # a quiet machine with 2 cores


def failures(results: dict, seconds: float = 0) -> list[str]:
    """What falls short, in words; `seconds` in place of the bar of its time."""
    base, sft, grpo = (results[stage] for stage in ("base", "sft", "grpo"))
    if "accuracy_badge" in grpo:
        return _nested_failures(results, sft, grpo, seconds or NESTED_SECONDS)
    seconds = seconds or SECONDS
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


def _nested_failures(results: dict, sft: dict, grpo: dict, seconds: float) -> list[str]:
    bars = {
        f"at most {seconds:.0f} s": results["seconds"]["total"] <= seconds,
        "two looks: accuracy >= 0.45, 0.20 above chance": min(grpo["accuracy_badge"], grpo["accuracy_badge_t1"])
        >= 0.45,
        "two looks: GRPO gains >= 0.10 accuracy at T = 1": grpo["accuracy_badge_t1"] - sft["accuracy_badge_t1"] >= 0.10,
        "two looks: masked accuracy <= 0.32": grpo["accuracy_badge_masked"] <= 0.32,
        "one look: accuracy >= 0.80": grpo["accuracy_site"] >= 0.80,
    }
    for kind, needed in (("badge", 2), ("site", 1), ("scene", 0)):
        looks = f"looks_{kind}"
        bars[f"{kind}: looks within 0.15 of {needed}"] = abs(grpo[looks] - needed) <= 0.15
    return [name for name, met in bars.items() if not met]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        missed = failures(json.load(file), *map(float, sys.argv[2:]))
    print("demo: all bars met" if not missed else "demo: missed: " + "; ".join(missed))
    sys.exit(bool(missed))
