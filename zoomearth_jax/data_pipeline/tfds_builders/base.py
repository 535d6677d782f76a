"""What both builders share: array_record files, and Beam where the download config names a runner or options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from zoomearth_jax.errors import UserError

CITATION = """@article{liu2025zoomearth,
  title={ZoomEarth: Active Perception for Ultra-High-Resolution Geospatial Vision-Language Tasks},
  author={Liu, Ruixun and Fu, Bowen and Song, Jiayi and Li, Kaiyu and Li, Wanchen and Xue, Lanxuan and Qiao, Hui and
    Zhang, Weizhan and Meng, Deyu and Cao, Xiangyong},
  journal={arXiv preprint arXiv:2511.12267},
  year={2025}
}"""


class FolderBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder over a folder that the user downloaded."""

    def __init__(self, *, file_format="array_record", **kwargs):
        """See `tfds.core.GeneratorBasedBuilder`; array_record, which tensorflow isn't needed for, unless said otherwise."""
        super().__init__(file_format=file_format, **kwargs)
        self._on_beam = False

    def _generate_splits(self, dl_manager, download_config):
        self._on_beam = bool(download_config.beam_runner or download_config.beam_options)
        return super()._generate_splits(dl_manager, download_config)

    def _spread(self, items: Iterable, examples: Callable[..., Iterator[tuple]]):
        """(key, example) pairs of all items: in this process, or as a Beam transform; `examples` must pickle then."""
        if not self._on_beam:
            return (pair for item in items for pair in examples(item))
        import apache_beam as beam

        # One item each to the workers: an item is an image to decode, or trivial.
        return beam.Create(list(items)) | beam.Reshuffle() | beam.FlatMap(examples)


def prepare(builder: tfds.core.DatasetBuilder, manual_dir, beam_runner=None, beam_options: Sequence[str] = ()) -> None:
    """Writes a builder's files from a folder of downloaded data; nothing if they are there.

    Args:
        manual_dir: the folder, see the builder's MANUAL_DOWNLOAD_INSTRUCTIONS.
        beam_runner: name of an Apache Beam runner, such as DirectRunner, or one itself; without it or options, this process
            does the work.
        beam_options: options of the runner without their dashes, such as "project=name".

    Raises:
        UserError: no such folder, Beam isn't installed, or what the builder says of the data.
    """
    manual_dir = Path(manual_dir)
    if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        raise UserError(f"{manual_dir}: no such folder, or it is empty. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    options = None
    if beam_runner or beam_options:
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError:
            raise UserError("Apache Beam isn't installed: pip install 'zoomearth_jax[beam]'") from None
        options = PipelineOptions([f"--{option}" for option in beam_options])
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir, beam_runner=beam_runner, beam_options=options, try_download_gcs=False
    )
    builder.download_and_prepare(download_config=config)
