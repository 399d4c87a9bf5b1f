"""Owns how the small SDXL is made from nothing; see __main__ for the command."""
