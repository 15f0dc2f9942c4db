"""Generators that give a face any action unit intensities (§3.2)."""
