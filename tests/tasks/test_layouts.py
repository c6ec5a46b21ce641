"""How a run is laid out over devices."""

import pytest

from ldmlab.metrics.footprint import Footprint
from ldmlab.tasks.layouts import Device, layouts

GB = 10**9
NEED = Footprint(parameters=GB, weights=8 * GB, gradients=4 * GB, optimizer=8 * GB, activations=GB, flops=1e12)


def device(memory, link=1e12):
    return Device("d", flops=1e13, memory=memory * GB, link=link, precision="fp32")


def found(memory, batch=64, most=8, **options):
    return {layout.devices: layout for layout in layouts(NEED, batch, device(memory, **options), most)}


def test_a_large_device_takes_the_whole_batch():
    one = found(100)[1]
    assert (one.strategy, one.micro_batch, one.accumulate) == ("one", 64, 1)
    assert one.memory == 84 * GB
    assert one.seconds == 6.4


def test_a_smaller_one_takes_it_in_equal_parts():
    one = found(40)[1]
    assert (one.micro_batch, one.accumulate) == (16, 4)  # 20 images would fit, but do not divide 64
    assert one.seconds == 6.4


def test_what_fits_nowhere_is_divided():
    layouts = found(18)
    assert 1 not in layouts
    assert {layout.strategy for layout in layouts.values()} == {"fsdp"}
    assert layouts[2].memory == 10 * GB + layouts[2].micro_batch * GB
    assert layouts[8].micro_batch == 8
    assert found(1) == {}


def test_devices_that_cannot_share_a_batch_evenly_are_left_out():
    assert sorted(found(100, batch=6)) == [1, 2]
    assert sorted(found(100, most=5)) == [1, 2, 4]


def test_more_devices_take_less_time_and_no_less_of_it_together():
    layouts = found(100)
    assert layouts[8].seconds == pytest.approx(layouts[1].seconds / 8)
    slow = found(100, link=1e9)
    # two rounds of 7/8 of 4 GB at 1 GB/s, of which two thirds of 0.8 s are not waited for
    assert slow[8].seconds == pytest.approx(0.8 + 7 - 0.8 * 2 / 3)
    assert slow[1].seconds == layouts[1].seconds
