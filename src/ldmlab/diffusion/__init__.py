"""The mathematics of diffusion, on tensors: path, prediction, loss weighting, times, samplers, guidance.

Everywhere: `x0` a clean sample, `noise` standard normal, `t` a time in [0, 1] (0 clean, 1 noise) and
`xt = alpha(t) x0 + sigma(t) noise`.
"""
