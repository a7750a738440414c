"""Every training mode that needs a GPU, run for real: see ``scripts/gpu_checks.py``."""
