"""How sharp a model's loss is, and over which rho: `hf-sharpness rho`."""
