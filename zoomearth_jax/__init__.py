"""ZoomEarth in JAX: a vision-language policy that looks, zooms into an ultra-high-resolution image, and answers."""

__version__ = "0.1.0"
