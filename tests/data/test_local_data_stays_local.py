import socket

import pytest
from image_files import picture, pngs, write_parquet

from ldmlab.data.imagefolder import ImageFolder
from ldmlab.data.parquet import ParquetImages


@pytest.fixture
def calls(monkeypatch):
    """Addresses that anybody tried to reach."""
    reached = []

    def refuse(self, address):
        reached.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **options: refuse(None, address))
    return reached


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_local_data_needs_no_network_and_writes_below_the_cache_dir_alone(tmp_path, calls, kind):
    folder = tmp_path / "set"
    if kind == "parquet":
        write_parquet(folder / "train.parquet", pngs(4))
    else:
        folder.mkdir()
        for number in range(4):
            picture(number).save(folder / f"{number}.png")
    before = sorted(folder.rglob("*"))
    build = ParquetImages if kind == "parquet" else ImageFolder
    data = build(path=str(folder), image_size=8, cache_dir=str(tmp_path / "cache"), val_fraction=0.25)
    assert len(data.split("train")) == 3
    assert calls == []
    assert sorted(folder.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"set", "cache"}
