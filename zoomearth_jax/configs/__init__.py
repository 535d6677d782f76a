"""Frozen dataclasses of settings, presets, and YAML in and out."""
