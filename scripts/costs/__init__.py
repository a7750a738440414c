"""What sharpness-aware steps cost, measured: see ``scripts/cost.py``."""
