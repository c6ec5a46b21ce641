"""What is the same under different names, as properties that hold for any schedule, time and network."""

from dataclasses import dataclass
from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmlab.diffusion.posterior import Posterior
from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers import DDIM, DDPM, DPMpp1, Euler, EulerAncestral
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, ScaledLinear

schedules = st.sampled_from([Linear(), ScaledLinear(), Cosine(), EDM(), RectifiedFlow(), RectifiedFlow(3.0)])
two_times = st.tuples(st.floats(0.3, 0.99), st.floats(0.05, 0.95)).map(lambda pair: (pair[0], pair[0] * pair[1]))
numbers = st.floats(-3, 3)
ONE = torch.ones(1, 1, dtype=torch.float64)


@dataclass(frozen=True)
class Given:
    """A grid of given times."""

    times: tuple

    def __call__(self, steps, schedule):
        return torch.tensor(self.times, dtype=torch.float64)


def walk(sampler, schedule, times, x0, fresh=0.0):
    """What the network sees on the way from noise 1 through `times` to 0, where it always says the same x0.

    All noise that is added is `fresh`. Only the steps before the last are looked at, which adds none.
    """
    seen = []

    def denoise(xt, t):
        seen.append(xt)
        return answer(x0, xt, t, schedule)

    sampler(len(times), Given((*times, 0.0)))(denoise, ONE, schedule, lambda x: torch.full_like(x, fresh))
    return torch.cat(seen)


def answer(x0, xt, t, schedule):
    return Prediction.from_x0(torch.full_like(xt, x0), xt, *schedule.coefficients(t))


@given(schedule=schedules, times=two_times, x0=numbers, fresh=numbers)
@settings(deadline=None)
def test_ddim_with_eta_one_takes_the_steps_of_ddpm_and_has_its_variance(schedule, times, x0, fresh):
    ddim, ddpm = (
        walk(sampler, schedule, times, x0, fresh)
        for sampler in (partial(DDIM, eta=1.0), partial(DDPM, variance="small"))
    )
    torch.testing.assert_close(ddim, ddpm, rtol=1e-6, atol=1e-9)


@given(schedule=schedules, times=two_times)
@settings(deadline=None)
def test_the_posterior_s_variance_is_that_of_bayes_rule(schedule, times):
    # q(xs | xt, x0) from q(xs | x0) and q(xt | xs): precisions add
    t, s = (schedule.coefficients(torch.tensor(time, dtype=torch.float64)) for time in times)
    posterior = Posterior.between(*t, *s)
    ratio = t[0] / s[0]
    precision = 1 / s[1] ** 2 + ratio**2 / posterior.large
    torch.testing.assert_close(posterior.small, 1 / precision, rtol=1e-6, atol=0)
    torch.testing.assert_close(posterior.xt_weight, ratio / posterior.large / precision, rtol=1e-6, atol=0)
    torch.testing.assert_close(posterior.x0_weight, s[0] / s[1] ** 2 / precision, rtol=1e-6, atol=0)


@given(schedule=schedules, times=two_times, x0=numbers)
@settings(deadline=None)
def test_ddim_is_euler_s_method_and_dpm_solver_of_first_order(schedule, times, x0):
    ddim, euler, solver = (walk(sampler, schedule, times, x0) for sampler in (DDIM, Euler, DPMpp1))
    torch.testing.assert_close(euler, ddim, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(solver, ddim, rtol=1e-6, atol=1e-9)


@given(schedule=schedules, times=two_times, x0=numbers)
@settings(deadline=None)
def test_ddim_is_euler_s_method_on_the_ode_in_noise_levels(schedule, times, x0):
    # Song et al. 2020, eq. 14: d(x / alpha) = noise d(sigma / alpha)
    t, s = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t), schedule.coefficients(s)
    here, there = walk(DDIM, schedule, times, x0)
    noise = answer(x0, here[None], t, schedule).noise[0]
    euler = here / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * noise
    torch.testing.assert_close(there / alpha_s, euler, rtol=1e-6, atol=1e-9)


@given(schedule=schedules, times=two_times, x0=numbers, fresh=numbers, eta=st.floats(0, 1))
@settings(deadline=None)
def test_euler_ancestral_is_what_k_diffusion_does(schedule, times, x0, fresh, eta):
    t, s = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t), schedule.coefficients(s)
    level_t, level_s = sigma_t / alpha_t, sigma_s / alpha_s
    here, there = walk(partial(EulerAncestral, eta=eta), schedule, times, x0, fresh)
    up = eta * (level_s**2 * (level_t**2 - level_s**2) / level_t**2).sqrt()
    down = (level_s**2 - up**2).sqrt()
    noise = answer(x0, here[None], t, schedule).noise[0]
    expected = here / alpha_t + (down - level_t) * noise + up * fresh
    torch.testing.assert_close(there / alpha_s, expected, rtol=1e-6, atol=1e-9)
