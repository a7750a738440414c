"""How sharp a model's loss is, and over which rho: `hf-sharpness measure`, a callback, and `hf-sharpness rho`.

`surface` is the loss as a function of the weights; `ball`, `critical`, `hessian` and `lines` look at it. The files that
begin with `rho_` are the range test.
"""
