import pytest
import torch

from ldmlab.diffusion.predictions import PREDICTIONS, Preconditioned
from ldmlab.diffusion.schedules import EDM as EDMPath
from ldmlab.diffusion.schedules import Cosine, Linear, RectifiedFlow
from ldmlab.diffusion.uncertainty import LearnedUncertainty
from ldmlab.diffusion.weightings import EDM, P2, SNR, MinSNR, TruncatedSNR, Uniform, VariationalBound

TIMES = torch.tensor([0.01, 0.3, 0.5, 0.9], dtype=torch.float64)


def snr_of(schedule):
    alpha, sigma = schedule.coefficients(TIMES)
    return (alpha / sigma) ** 2


def weight(weighting, name, schedule=Cosine()):  # noqa: B008
    return weighting(TIMES, schedule, PREDICTIONS[name])


def test_uniform_weighting_counts_every_time_the_same():
    assert weight(Uniform(), "v").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("weighting", [SNR(), TruncatedSNR(), MinSNR(), P2(), EDM()], ids=repr)
def test_a_weighting_is_the_same_loss_for_every_prediction(weighting):
    schedule = Cosine()
    alpha, sigma = schedule.coefficients(TIMES)
    of_x0 = weighting(TIMES, schedule, PREDICTIONS["sample"])
    for prediction in PREDICTIONS.values():
        gain = prediction.x0_gain(alpha, sigma)
        torch.testing.assert_close(weighting(TIMES, schedule, prediction), of_x0 * gain**2)


def test_snr_is_uniform_for_epsilon_and_truncated_snr_is_at_least_one_for_x0():
    torch.testing.assert_close(weight(SNR(), "epsilon"), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(weight(TruncatedSNR(), "sample"), snr_of(Cosine()).clamp(min=1))


def test_min_snr_gives_the_weights_of_its_paper_for_x0_epsilon_and_v():
    snr = snr_of(Cosine())
    clipped = torch.minimum(snr, torch.full_like(snr, 5.0))
    torch.testing.assert_close(weight(MinSNR(5.0), "sample"), clipped)
    torch.testing.assert_close(weight(MinSNR(5.0), "epsilon"), clipped / snr)
    torch.testing.assert_close(weight(MinSNR(5.0), "v"), clipped / (snr + 1))


def test_edm_s_weight_is_that_of_its_table_and_uniform_for_its_output():
    sigma = EDMPath().coefficients(TIMES)[1]
    expected = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    torch.testing.assert_close(EDM(0.5)(TIMES, EDMPath(), PREDICTIONS["sample"]), expected)
    torch.testing.assert_close(EDM(0.5)(TIMES, EDMPath(), Preconditioned(0.5)), torch.ones(4, dtype=torch.float64))


def test_p2_divides_epsilon_s_weight():
    torch.testing.assert_close(weight(P2(gamma=0.5, k=1.0), "epsilon"), 1 / (1 + snr_of(Cosine())) ** 0.5)


def test_the_bound_s_weight_is_that_of_ddpm_on_epsilon():
    # Ho et al. 2020, eq. 12: beta² / (2 var alpha (1 - alpha_bar)), var being the posterior's
    schedule, k = Linear(), 500
    beta = schedule.betas()[k - 1]
    bar = [schedule.alphas[j] ** 2 for j in (k - 1, k)]
    posterior = (1 - bar[0]) / (1 - bar[1]) * beta
    expected = beta**2 / (2 * posterior * (1 - beta) * (1 - bar[1])) * 1000
    t = torch.tensor([k / 1000], dtype=torch.float64)
    torch.testing.assert_close(VariationalBound()(t, schedule, PREDICTIONS["epsilon"]), expected.reshape(1))


@pytest.mark.parametrize("schedule", [Linear(), Cosine(zero_terminal_snr=True), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", ["sample", "v", "velocity", "edm"])
@pytest.mark.parametrize("weighting", [SNR(), TruncatedSNR(), MinSNR(), EDM(), P2(), VariationalBound()], ids=repr)
def test_weights_are_finite_at_both_ends_of_the_chain(weighting, name, schedule):
    ends = weighting(torch.tensor([1e-3, 1.0]), schedule, PREDICTIONS[name])
    assert torch.isfinite(ends).all()
    assert (ends >= 0).all()


def test_learned_uncertainty_starts_as_no_change_and_learns_the_mean_loss_of_each_level():
    torch.manual_seed(0)
    uncertainty = LearnedUncertainty()
    t = torch.rand(256) * 0.98 + 0.01
    alpha, sigma = Cosine().coefficients(t)
    expected = (-4 + 6 * t).exp()  # losses that differ by a factor of 400 between noise levels
    torch.testing.assert_close(uncertainty(expected, alpha, sigma), expected)
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        noisy = expected * (0.5 + torch.rand(256))
        uncertainty(noisy, alpha, sigma).mean().backward()
        optimizer.step()
    learned = uncertainty.log_scale(alpha, sigma)
    assert (learned - expected.log()).abs().mean() < 0.25


def test_learned_uncertainty_is_finite_at_both_ends_of_any_path():
    ends = torch.tensor([0.0, 1.0])
    for schedule in (RectifiedFlow(), EDMPath(), Cosine(zero_terminal_snr=True)):
        alpha, sigma = schedule.coefficients(ends)
        assert torch.isfinite(LearnedUncertainty()(torch.ones(2), alpha, sigma)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSNR(gamma=0), "gamma: a number above 0 is needed, not 0"),
        (lambda: EDM(sigma_data="x"), "sigma_data: a number is needed, not x"),
        (lambda: P2(k=0), "k: a finite number above 0"),
        (lambda: P2(gamma=-1), "gamma: a finite number of 0 or more"),
        (lambda: VariationalBound(steps=0), "steps: a whole number of 1 or more"),
    ],
)
def test_settings_that_give_no_weights_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
