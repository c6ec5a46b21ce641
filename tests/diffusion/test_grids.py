import pytest
import torch

from ldmlab.diffusion.grids import GRIDS, FlowShifted, Karras, Leading, grid_named
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow

SCHEDULES = [Linear(), Cosine(zero_terminal_snr=True), EDM(), RectifiedFlow(), RectifiedFlow(shift=3.0)]


def levels(times, schedule):
    alpha, sigma = schedule.coefficients(times)
    return sigma / alpha


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_every_grid_has_one_more_time_than_steps_and_falls_to_zero(steps, name, schedule):
    times = GRIDS[name](steps, schedule)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert times[0] == 1 or name == "leading"


def test_trailing_and_leading_are_those_of_their_papers():
    # Lin et al. 2023, table 2, for 10 steps of 1000, counted from 1
    assert (GRIDS["trailing"](10, Linear()) * 1000).tolist() == pytest.approx([*range(1000, 0, -100), 0])
    assert (GRIDS["leading"](10, Linear()) * 1000).tolist() == pytest.approx([*range(901, 0, -100), 0])
    assert (Leading(offset=1)(10, Linear()) * 1000).tolist() == pytest.approx([*range(902, 1, -100), 0])


def test_trailing_asks_a_discrete_model_about_its_own_steps_only():
    times = GRIDS["trailing"](7, Linear()) * 1000
    torch.testing.assert_close(times, times.round())
    torch.testing.assert_close(GRIDS["trailing"](7, RectifiedFlow()), GRIDS["uniform"](7, RectifiedFlow()))


def test_quadratic_squares_the_even_times():
    assert GRIDS["quadratic"](4, Linear()).tolist() == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16, 0])


@pytest.mark.parametrize("rho", [3.0, 7.0])
@pytest.mark.parametrize("schedule", [Linear(), EDM()], ids=repr)
def test_karras_spaces_roots_of_noise_levels_evenly_between_the_schedule_s_ends(schedule, rho):
    ratios = levels(Karras(rho)(20, schedule), schedule)[:-1]
    roots = ratios ** (1 / rho)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(19), rtol=1e-6, atol=0)
    ends = levels(torch.tensor([1.0, schedule.smallest_time], dtype=torch.float64), schedule)
    torch.testing.assert_close(ratios[[0, -1]], ends)


def test_karras_on_edm_is_even_in_its_time():
    times = GRIDS["karras"](18, EDM())[:-1]
    torch.testing.assert_close(times.diff(), times.diff().mean().expand(17))
    assert EDM().coefficients(times)[1][-1].item() == pytest.approx(0.002)


def test_logsnr_spaces_the_logarithm_evenly():
    ratios = levels(GRIDS["logsnr"](20, Cosine()), Cosine())[:-1].log()
    torch.testing.assert_close(ratios.diff(), ratios.diff().mean().expand(19), rtol=1e-6, atol=0)


def test_on_a_path_that_ends_in_noise_ramps_start_there_and_go_on_from_a_finite_level():
    schedule = RectifiedFlow()
    for name in ("karras", "logsnr"):
        ratios = levels(GRIDS[name](10, schedule), schedule)
        assert ratios[0] == torch.inf
        assert torch.isfinite(ratios[1:]).all()


def test_flow_shifted_grid_is_the_even_grid_of_the_shifted_path():
    times = FlowShifted(3.0)(8, RectifiedFlow())
    _, tau = RectifiedFlow(shift=3.0).coefficients(GRIDS["uniform"](8, RectifiedFlow()))
    torch.testing.assert_close(times, tau)


def test_auto_is_the_usual_grid_of_the_schedule():
    assert grid_named("auto", EDM()) is GRIDS["karras"]
    assert grid_named("auto", RectifiedFlow()) is GRIDS["uniform"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Karras(rho=0), "rho: a finite number above 0 is needed, not 0"),
        (lambda: FlowShifted(shift=-1.0), "shift: a finite number above 0 is needed, not -1"),
        (lambda: Leading(offset=-1), "offset: a whole number of 0 or more is needed, not -1"),
        (lambda: Leading(offset=0.5), "offset: a whole number is needed, not 0.5"),
    ],
)
def test_settings_that_give_no_times_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.7, 1.7, 9.9])
def test_flow_shifted_times_stay_on_the_path(shift):
    assert FlowShifted(shift)(20, Linear()).max() == 1


@pytest.mark.parametrize("name", GRIDS)
def test_no_grid_asks_about_levels_below_edm_s_smallest(name):
    assert levels(GRIDS[name](20, EDM())[:-1], EDM()).min() >= 0.002 * (1 - 1e-9)


def test_leading_has_no_more_times_than_the_chain():
    with pytest.raises(ValueError, match="no 20 times on a chain of 10 steps"):
        GRIDS["leading"](20, Linear(steps=10))
