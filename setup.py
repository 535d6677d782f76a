"""Packaging of zoomearth_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "grain>=0.2.15",
    "tensorflow-datasets>=4.9.9",
    "importlib-resources>=6",  # tensorflow-datasets imports it without naming it
    "pyarrow>=18",
    "transformers>=5.0",
    "huggingface_hub>=1.0",
    "nltk>=3.9",
    "numpy>=2.0",
    "pillow>=11",
    "pyvips[binary]>=3.0",
    "rasterio>=1.4",
    "array-record>=0.8",
    "safetensors>=0.6",
    "tyro>=1.0",
    "jinja2>=3.1",
    "tqdm>=4.66",
    "pyyaml>=6.0",
]
TENSORBOARD = ["tensorboardX>=2.6", "tensorboard>=2.18"]
SERVE = ["starlette>=1.0", "uvicorn>=0.40", "python-multipart>=0.0.20", "pydantic>=2.10", "prometheus-client>=0.20"]
TOOLS = ["opencv-python-headless>=4.10", "scikit-image>=0.25", "onnxruntime>=1.20", "jsonschema>=4.20"]
PLOT = ["matplotlib>=3.9"]  # runs plot
MAP = ["geopandas>=1.1", "pyproj>=3.7"]  # read boxes back from the map
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "tifffile>=2025.5",
    "imagecodecs>=2025.3",
    "onnx>=1.17",
    "openai>=2",  # a client of the server
    *MAP,
    *PLOT,
    *SERVE,
    *TENSORBOARD,
    *TOOLS,
]
EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "tensorboard": TENSORBOARD,
    "tools": TOOLS,
    "wandb": ["wandb>=0.31"],
    "tf": ["tensorflow-cpu>=2.18"],
    "beam": ["apache-beam>=2.60"],
    "bench": ["torch>=2.9"],
    "lmms-eval": ["lmms-eval>=0.7.3"],  # brings torch
    "plot": PLOT,
    "plan": ["libtpu>=0.0.40"],  # the compiler alone; no TPU is needed
    "browser": [
        "playwright>=1.50",
        "axe-playwright-python>=0.1.4",
    ],  # drive an installed Chromium; without them tests are skipped
    "serve": SERVE,
    "test": TEST,
    "dev": [*TEST, "ruff>=0.12", "mypy>=2.0"],
}

setup(
    name="zoomearth_jax",
    version="0.1.0",
    description="Active perception for ultra-high-resolution satellite images in JAX: look, zoom, answer, learn.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["zoomearth_jax", "zoomearth_jax.*"]),
    package_data={
        "zoomearth_jax": [
            "configs/recipes/*.yaml",
            "models/nano*/*",
            "rl/rewards/wordnet.npz",
            "rl/rewards/LICENSE.wordnet",
            "reports/*.j2",
            "reports/*.css",
            "reports/*.js",
            "serving/page/*",
            "serving/page/openseadragon/*",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["zoomearth=zoomearth_jax.cli:main"],
        "lmms_eval.models": ["zoomearth=zoomearth_jax.evaluation.lmms_eval_model:MANIFEST"],
    },
)
