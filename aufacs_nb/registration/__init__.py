"""Faces found, followed and turned to the front, in 3D or in the plane (§3.1)."""
