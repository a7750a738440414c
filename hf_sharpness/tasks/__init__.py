"""Recipe-driven fine-tuning: what `hf-sharpness train RECIPE` runs.

The layers below (`vectors`, `methods`, `engine`, `arguments`, `trainer`) know nothing of this package.
"""
