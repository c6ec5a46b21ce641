"""Work shared among processes."""

import pytest
import torch
from two_processes import in_two_processes

from ldmlab import processes
from ldmlab.errors import UserError


def gather_all(rank, folder):
    for count in (2, 7, 8):
        own = torch.tensor([[10.0 * row, rank] for row in processes.share(count)]).reshape(-1, 2)
        rows = processes.gather_rows(own, count)
        assert rows[:, 0].tolist() == [10.0 * row for row in range(count)]  # each once, in order
        assert rows[:, 1].tolist() == [row % 2 for row in range(count)]
    assert processes.from_first(lambda: rank) == 0
    with pytest.raises(UserError, match="2 processes are too many to share 1 images"):
        processes.share(1)
    processes.wait()


@pytest.mark.slow
def test_two_processes_share_rows_without_duplicates_or_gaps(tmp_path):
    in_two_processes(gather_all, tmp_path)


def test_one_process_has_all_rows_and_decides_for_itself():
    assert list(processes.share(5)) == [0, 1, 2, 3, 4]
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(processes.gather_rows(rows, 3), rows)
    assert processes.from_first(lambda: 5) == 5
    processes.wait()


def test_without_torchrun_no_group_is_made(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.join(torch.device("cpu")) == torch.device("cpu")
    assert not torch.distributed.is_initialized()
