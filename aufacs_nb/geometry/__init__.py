"""Meshes in space: the canonical face, the z-buffer, rotations."""
