"""The small SDXL that ships and the pictures it learns from: `--model tiny`, `--data tiny`."""
