"""Schedules equal those of diffusers, an independent implementation."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from ldmlab.diffusion.grids import GRIDS
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, ScaledLinear, SigmoidBeta

CHAIN = torch.arange(1, 1001, dtype=torch.float64) / 1000
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
LATENT = {"beta_start": 0.0015, "beta_end": 0.0195}


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (Linear, "linear", BETAS),
        (ScaledLinear, "scaled_linear", LATENT),
        (ScaledLinear, "scaled_linear", STABLE),
        (Cosine, "squaredcos_cap_v2", {}),
        (SigmoidBeta, "sigmoid", BETAS),
    ],
)
def test_alphas_of_the_chain(ours, name, options, zero_snr):
    # DDIM's scheduler leaves the last alpha at 0 where DDPM's replaces it by a small number
    theirs = DDIMScheduler if name != "sigmoid" else DDPMScheduler
    scheduler = theirs(1000, beta_schedule=name, rescale_betas_zero_snr=zero_snr, **options)
    alpha, _ = ours(zero_terminal_snr=zero_snr, **options).coefficients(CHAIN)
    torch.testing.assert_close(alpha, scheduler.alphas_cumprod.double().sqrt(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 7, 50, 1000])
def test_noise_levels_of_edm(steps):
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(steps)
    _, sigma = EDM().coefficients(GRIDS["karras"](steps, EDM()))
    torch.testing.assert_close(sigma, scheduler.sigmas.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_levels_of_the_rectified_flow(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    _, sigma = RectifiedFlow(shift).coefficients(CHAIN.flip(0))
    torch.testing.assert_close(sigma, scheduler.sigmas.double(), rtol=0, atol=1e-6)
