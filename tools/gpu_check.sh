#!/usr/bin/env bash
# Checks, timings and two short trainings on a machine with one GPU, in at most --seconds (540) of wall time.
#   bash tools/gpu_check.sh --out FOLDER [--also ratio_training] [--seconds 540] [--tiny]
# All options: python tools/gpu_check.py --help. Another Python: PYTHON=/path/to/python bash tools/gpu_check.sh …
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore MPLBACKEND=Agg
[ -z "$PYTHON" ] && [ -x "$root/.venv/bin/python" ] && PYTHON="$root/.venv/bin/python"
exec "${PYTHON:-python3}" "$root/tools/gpu_check.py" "$@"
