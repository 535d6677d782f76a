"""What the tests of the server share: the shipped model, and a scene with a question."""

import pytest

from tests.serving.servers import NAME, scene_file
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.evaluation.asking import load


@pytest.fixture(scope="module")
def policy():
    """The model, ready to be asked."""
    return load(NAME)


@pytest.fixture(scope="module")
def question():
    """A question with its scene."""
    return scene_questions("test", 5, 0, 1)[0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory, question):
    """The scene as a file."""
    return scene_file(tmp_path_factory.mktemp("scene"), question.image)
