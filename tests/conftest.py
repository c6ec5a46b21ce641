import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if os.environ.get("LDMLAB_NETWORK") == "1":
        return
    for item in items:
        if "network" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a download: set LDMLAB_NETWORK=1"))
