"""TensorFlow Datasets builders `lrs_gro` and `uhr_tiles`; they need no tensorflow. Nothing else here imports them.

    builder = LrsGro(data_dir="~/tfds")
    prepare(builder, manual_dir="path/to/LRS-GRO")       # once; array_record files
    rows = builder.as_data_source(split="rl")            # random access, for grain: rows[0]["question"]

After the import `tfds.data_source("lrs_gro", ...)` works as well. `tfds.load` wants tensorflow (extra `tf`) and files of its
own kind: `tfds.load("lrs_gro", builder_kwargs={"file_format": "tfrecord"}, ...)`. On a cluster (extra `beam`):
`prepare(builder, manual_dir, beam_runner="DataflowRunner", beam_options=["project=NAME"])`.
"""

from zoomearth_jax.data_pipeline.tfds_builders.base import prepare
from zoomearth_jax.data_pipeline.tfds_builders.lrs_gro import LrsGro
from zoomearth_jax.data_pipeline.tfds_builders.uhr_tiles import UhrTiles

__all__ = ["LrsGro", "UhrTiles", "prepare"]
