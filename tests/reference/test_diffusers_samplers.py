"""Whole trajectories of every sampler equal those of the diffusers scheduler that implements the same method.

A fixed network, a function of xt and t, takes the place of a trained one, in float64. diffusers rounds its tables, and
in some schedulers the samples at every step, to float32: here it gets the tables in float64, and rounds to float64.
"""

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from ldmlab.diffusion.predictions import PREDICTIONS, Preconditioned
from ldmlab.diffusion.samplers import (
    DDIM,
    DDPM,
    PLMS,
    DPMpp1,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp3M,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
)
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, ScaledLinear, expand

SHAPE = (2, 3, 4, 4)
STEPS = [1, 2, 7, 50, 1000]
PAIR = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# diffusers, as the authors' code, puts the divided difference of second order in place of the second derivative, which
# is twice that; the paper's Taylor expansion (Lu et al. 2022b, eq. 8) has the derivative, and is of third order
PublishedDPMpp3M = partial(DPMpp3M, curvature=0.5)


def network(x, t, channels=1):
    """Something smooth, not linear, that depends on the time and mixes positions."""
    out = torch.tanh(0.7 * x + 0.3 * x.roll(1, -1) + torch.cos(3 * t)) - 0.2 * x
    return torch.cat([out, torch.sin(x + t)], dim=1) if channels == 2 else out


@dataclass(frozen=True)
class Given:
    """A grid of given times."""

    times: tuple

    def __call__(self, steps, schedule):
        return torch.tensor(self.times, dtype=torch.float64)


class DoubleTorch:
    """torch for a module of diffusers, that rounds to float32 what this one rounds to float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.schedulers.") and getattr(module, "torch", None) is torch:
            monkeypatch.setattr(module, "torch", DoubleTorch())


def start():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draws():
    generator = torch.Generator().manual_seed(1)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def walk(sampler, schedule, prediction, learned=False):
    """(what the network saw at each evaluation, the sample; at which times) of ours."""
    seen, times = [], []

    def denoise(xt, t):
        alpha, sigma = schedule.coefficients(t)
        scaled = xt * expand(prediction.input_scale(alpha, sigma), xt)
        seen.append(scaled)
        times.append(t[0].item())
        if not learned:
            return prediction.to_prediction(network(scaled, t[0]), xt, alpha, sigma)
        output, variance = network(scaled, t[0], 2).chunk(2, dim=1)
        told = prediction.to_prediction(output, xt, alpha, sigma)
        return type(told)(told.x0, told.noise, (variance + 1) / 2)

    seen.append(sampler(denoise, start(), schedule, draws()))
    return seen, times


def theirs(scheduler, steps, times, x, learned=False, **options):
    """The same of diffusers'; its network is asked at our times, which must be its own but for rounding to integers."""
    seen = []
    for t, timestep in zip(times, scheduler.timesteps, strict=True):
        scaled = scheduler.scale_model_input(x, timestep)
        seen.append(scaled)
        x = scheduler.step(network(scaled, torch.tensor(t), 1 + learned), timestep, x, **options).prev_sample
    return [*seen, x]


def chain_scheduler(kind, schedule, prediction, steps, **options):
    """A scheduler of diffusers on our chain, its table in float64."""
    name = "squaredcos_cap_v2" if isinstance(schedule, Cosine) else "linear"
    scheduler = kind(1000, 1e-4, 0.02, name, prediction_type=PAIR[prediction], **options)
    scheduler.alphas_cumprod = schedule.alphas[1:] ** 2
    scheduler.set_timesteps(steps)
    return scheduler


def assert_same(ours, others):
    assert len(ours) == len(others)
    for step, (a, b) in enumerate(zip(ours, others, strict=True)):
        torch.testing.assert_close(a, b.double(), msg=lambda text, step=step: f"step {step}: {text}", **CLOSE)


def assert_on_chain(times, scheduler):
    np.testing.assert_allclose(np.array(times) * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-6)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PAIR)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta, prediction, steps):
    # "leading": with "trailing" and steps that do not divide 1000 diffusers steps to timestep - 1000 // steps, which is
    # not the time at which it goes on; the paper (eq. 12) has the same sequence on both sides
    scheduler = chain_scheduler(DDIMScheduler, Linear(), prediction, steps, clip_sample=False)
    ours, times = walk(DDIM(steps, "leading", eta=eta), Linear(), PREDICTIONS[prediction])
    assert_on_chain(times, scheduler)
    generator = torch.Generator().manual_seed(1)
    assert_same(ours, theirs(scheduler, steps, times, start(), eta=eta, generator=generator))


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_ddim_from_the_end_of_the_path(steps):
    schedule = Linear(zero_terminal_snr=True)
    scheduler = chain_scheduler(
        DDIMScheduler, schedule, "v", steps, clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    ours, times = walk(DDIM(steps, "trailing"), schedule, PREDICTIONS["v"])
    assert_on_chain(times, scheduler)
    assert_same(ours, theirs(scheduler, steps, times, start()))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PAIR)
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=lambda schedule: type(schedule).__name__)
def test_ddpm(schedule, variance, prediction, steps):
    kind = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]
    scheduler = chain_scheduler(DDPMScheduler, schedule, prediction, steps, clip_sample=False, variance_type=kind)
    learned = variance == "learned"
    ours, times = walk(DDPM(steps, "leading", variance), schedule, PREDICTIONS[prediction], learned)
    assert_on_chain(times, scheduler)
    generator = torch.Generator().manual_seed(1)
    assert_same(ours, theirs(scheduler, steps, times, start(), learned, generator=generator))


def plms(prediction, steps):
    scheduler = chain_scheduler(PNDMScheduler, Linear(), prediction, steps, skip_prk_steps=True, set_alpha_to_one=True)
    ours, times = walk(PLMS(steps, "leading", "noise_level"), Linear(), PREDICTIONS[prediction])
    assert_on_chain(times, scheduler)
    assert len(times) == steps + (steps > 1)
    return ours, theirs(scheduler, steps, times, start())


@pytest.mark.parametrize("steps", STEPS)
def test_plms(steps):
    assert_same(*plms("epsilon", steps))


@pytest.mark.parametrize("steps", [7, 50])
def test_plms_of_a_v_model_follows_the_paper_where_diffusers_does_not(steps):
    # the paper (Liu et al. 2022, eq. 9 and 12) averages epsilon; diffusers averages what the network says, here v, over
    # times at which alpha and sigma differ
    with pytest.raises(AssertionError, match="not close"):
        assert_same(*plms("v", steps))


# diffusers starts a ramp of one noise level at the smallest; the paper (Karras et al. 2022, eq. 5) at the largest
RAMPS = {"karras": {"use_karras_sigmas": True}, "logsnr": {"use_exponential_sigmas": True}}
GRIDS_AND_STEPS = [("trailing", {}, steps) for steps in STEPS] + [
    (grid, options, steps) for grid, options in RAMPS.items() for steps in STEPS[1:]
]


@pytest.mark.parametrize("prediction", PAIR)
@pytest.mark.parametrize(("grid", "options", "steps"), GRIDS_AND_STEPS)
def test_euler(grid, options, prediction, steps):
    check_in_noise_levels(EulerDiscreteScheduler, Euler(steps, grid), prediction, steps, **options)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_euler_ancestral(prediction, steps):
    check_in_noise_levels(
        EulerAncestralDiscreteScheduler, EulerAncestral(steps, "trailing"), prediction, steps, stochastic=True
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("grid", "options", "steps"), GRIDS_AND_STEPS)
def test_heun(grid, options, prediction, steps):
    check_in_noise_levels(
        HeunDiscreteScheduler, Heun(steps, grid, variables="noise_level"), prediction, steps, **options
    )


def check_in_noise_levels(kind, sampler, prediction, steps, stochastic=False, **options):
    """diffusers' samplers after k-diffusion keep xt / alpha; what their network sees is xt."""
    schedule = ScaledLinear()
    # the ends of the ramps that `options` ask for are those of the evenly spaced levels: "linspace" is the whole chain
    spacing = "linspace" if options else "trailing"
    scheduler = kind(
        1000, 0.0015, 0.0195, "scaled_linear", prediction_type=PAIR[prediction], timestep_spacing=spacing, **options
    )
    scheduler.alphas_cumprod = schedule.alphas[1:] ** 2
    scheduler.set_timesteps(steps)
    exact_levels(scheduler, sampler, schedule)
    ours, times = walk(sampler, schedule, PREDICTIONS[prediction])
    if not options:
        assert_on_chain(times, scheduler)
    first = sampler.points(schedule)[0]
    told = {"generator": torch.Generator().manual_seed(1)} if stochastic else {}
    assert_same(ours, theirs(scheduler, steps, times, start() / first.alpha, **told))


def exact_levels(scheduler, sampler, schedule):
    """Gives diffusers the noise levels in float64, after a look that they are the same."""
    levels = torch.tensor([point.nsr for point in sampler.points(schedule)], dtype=torch.float64)
    if isinstance(sampler, Heun):
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    torch.testing.assert_close(levels, scheduler.sigmas.double(), rtol=2e-4, atol=1e-6)
    scheduler.sigmas = levels


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PAIR)
@pytest.mark.parametrize(("sampler", "order"), [(DPMpp1, 1), (DPMpp2M, 2), (PublishedDPMpp3M, 3)])
@pytest.mark.parametrize(
    ("grid", "options"),
    [("trailing", {}), ("karras", {"use_karras_sigmas": True}), ("logsnr", {"use_lu_lambdas": True})],
)
def test_dpm_solver(grid, options, sampler, order, prediction, steps):
    options = {**options, "solver_order": order, "algorithm_type": "dpmsolver++"}
    check_in_logsnr(DPMSolverMultistepScheduler, sampler(steps, grid), prediction, steps, **options)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PAIR)
def test_dpm_solver_sde(prediction, steps):
    check_in_logsnr(
        DPMSolverMultistepScheduler,
        DPMpp2MSDE(steps, "karras"),
        prediction,
        steps,
        stochastic=True,
        algorithm_type="sde-dpmsolver++",
        use_karras_sigmas=True,
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PAIR)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("grid", "options"), [("trailing", {}), ("karras", {"use_karras_sigmas": True})])
def test_unipc(grid, options, order, prediction, steps):
    options = {**options, "solver_order": order, "final_sigmas_type": "zero"}
    check_in_logsnr(UniPCMultistepScheduler, UniPC(steps, grid, order), prediction, steps, **options)


def check_in_logsnr(kind, sampler, prediction, steps, stochastic=False, **options):
    """diffusers' exponential integrators keep xt itself."""
    schedule = Linear()
    scheduler = chain_scheduler(kind, schedule, prediction, steps, timestep_spacing="trailing", **options)
    exact_levels(scheduler, sampler, schedule)
    ours, times = walk(sampler, schedule, PREDICTIONS[prediction])
    told = {"generator": torch.Generator().manual_seed(1)} if stochastic else {}
    assert_same(ours, theirs(scheduler, steps, times, start(), **told))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_the_rectified_flow(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    # given its levels, as its own grid stops one step early (diffusers#13243)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    ours, times = walk(Euler(steps), RectifiedFlow(shift), PREDICTIONS["velocity"])
    scheduler.sigmas = RectifiedFlow(shift).coefficients(torch.tensor([*times, 0.0], dtype=torch.float64))[1]
    assert_same(ours, flow(scheduler, times))


@pytest.mark.parametrize("steps", STEPS)
def test_heun_on_the_rectified_flow(steps):
    scheduler = FlowMatchHeunDiscreteScheduler(1000)
    scheduler.set_timesteps(steps)
    levels = [*scheduler.sigmas[:1].tolist(), *scheduler.sigmas[1:-1:2].tolist(), 0.0]
    ours, times = walk(Heun(steps, Given(tuple(levels))), RectifiedFlow(), PREDICTIONS["velocity"])
    ours[0], first = start(), ours[0]  # it starts with unscaled noise, which a path entered at t = 1 has
    torch.testing.assert_close(ours[0], first)
    assert_same(ours, flow(scheduler, times))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("kind", "sampler", "options"),
    [
        (DPMSolverMultistepScheduler, DPMpp2M, {"solver_order": 2}),
        (DPMSolverMultistepScheduler, PublishedDPMpp3M, {"solver_order": 3}),
        (UniPCMultistepScheduler, UniPC, {"solver_order": 2}),
    ],
)
def test_multistep_on_the_rectified_flow(kind, sampler, options, steps):
    scheduler = kind(1000, prediction_type="flow_prediction", use_flow_sigmas=True, **options)
    scheduler.set_timesteps(steps)
    # its flows start just below t = 1, where log(alpha / sigma) is finite
    levels = scheduler.sigmas.double()
    ours, times = walk(sampler(steps, Given(tuple(levels.tolist()))), RectifiedFlow(), PREDICTIONS["velocity"])
    scheduler.sigmas = levels
    assert_same(ours, flow(scheduler, times, ours[0]))


def flow(scheduler, times, x=None):
    """The trajectory of a flow-matching scheduler, which scales nothing."""
    seen, x = [], start() if x is None else x
    scheduler.set_begin_index(0)  # it would look for its place by times rounded to integers, which can be the same
    for t, timestep in zip(times, scheduler.timesteps, strict=True):
        seen.append(x)
        x = scheduler.step(network(x, torch.tensor(t)), timestep, x).prev_sample
    return [*seen, x]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("kind", "sampler", "options"),
    [
        (EDMEulerScheduler, Euler, {}),
        (EDMDPMSolverMultistepScheduler, DPMpp2M, {"solver_order": 2}),
        (EDMDPMSolverMultistepScheduler, PublishedDPMpp3M, {"solver_order": 3}),
    ],
)
def test_edm_with_its_preconditioned_network(kind, sampler, options, steps):
    schedule = EDM()
    scheduler = kind(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, **options)
    scheduler.set_timesteps(steps)
    exact_levels(scheduler, sampler(steps), schedule)
    ours, times = walk(sampler(steps), schedule, Preconditioned(0.5))
    first = sampler(steps).points(schedule)[0]
    assert_same(ours, theirs(scheduler, steps, times, start() * np.hypot(1, first.sigma)))
