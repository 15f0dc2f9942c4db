"""Code that a test puts before code for a fresh interpreter: `peak()`, the most memory that it ever held, in kB."""
from pathlib import Path

PEAK = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tools.limits import peak
"""
