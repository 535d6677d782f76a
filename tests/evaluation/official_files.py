"""Small files in the official form of every benchmark, with images, made by hand."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CHOICES = ["(A) red", "(B) green", "(C) blue", "(D) grey", "(E) This image doesn't feature the color."]


def picture(path: Path, size=(200, 100), color=(200, 30, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def jpeg(size=(200, 100), color=(200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG", quality=95)
    return file.getvalue()


def mme_row(number, **changes) -> dict:
    row = {
        "Question_id": f"perception/remote_sensing/color/{number:04}",
        "Image": f"remote_sensing/{number % 2}.png",
        "Text": "What color is the roof?",
        "Question Type": "Multiple Choice",
        "Answer choices": CHOICES,
        "Ground truth": "C",
        "Category": "color",
        "Subtask": "Remote Sensing",
        "Task": "Perception",
        "Dataset": "DOTA",
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def write_mme(folder: Path, rows) -> Path:
    for name in "01":
        picture(folder / "remote_sensing" / f"{name}.png")
    (folder / "MME_RealWorld.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return folder


def xlrs_row(number, **changes) -> dict:
    return {
        "index": number,
        "path": f"{number}.jpg",
        "question": "Which classes are there?",
        "multi-choice options": ["(A) road", "(B) water", "(C) field", "(D) town"],
        "answer": "A",
        "category": "Object properties/Object color",
        "l2-category": "Object properties",
        "image": [{"bytes": jpeg(), "path": f"{number}.jpg"}],
    } | changes


def write_xlrs(folder: Path, rows, row_group_size=2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", row_group_size=row_group_size)
    return folder


def lrs_vqa_row(number, **changes) -> dict:
    row = {
        "question_id": f"FAIR_{number}",
        "image": "LRS_VQA/image/0.png",
        "category": "count",
        "text": "How many ships are there?",
        "ground_truth": "2",
        "image_size": [200, 100],
        "hbox": [10, 20, 60, 80],
        "rbox": [10, 20, 60, 20, 60, 80, 10, 80],
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def write_lrs_vqa(folder: Path, rows) -> Path:
    picture(folder / "image" / "0.png")
    (folder / "LRS_VQA_merged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def lrs_gro_row(number, **changes) -> dict:
    row = {
        "question_id": f"LRS-GRO-{number}",
        "image_name": "a.tif",
        "category": "Object color / pattern",
        "question": f"What color is roof {number}?",
        "ground_truth": "red",
        "bbox": [100, 200, 300, 400],
        "type": "object",
        "split": "test",
        "higher_level": "perception",
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def write_lrs_gro(folder: Path, rows) -> Path:
    picture(folder / "images" / "a.tif", (2048, 1024))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
