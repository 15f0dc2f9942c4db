"""Scores with intervals, judgements of pictures, maps of features (§4)."""
