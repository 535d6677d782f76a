"""Images: boxes and frames, sources, decoding, the tile store."""
