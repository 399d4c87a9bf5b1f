"""The small SDXL that ships and the pictures it learns from: `--model tiny`, `--data tiny`."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Its pipeline folder, which jobs.tiny.recipe makes; nobody may write into it."""
