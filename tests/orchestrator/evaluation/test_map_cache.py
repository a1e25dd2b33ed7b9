"""Maps on disk: no score depends on whether an image came from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trained import smallest

from mcc_core.data.index import DataIndex, build_index
from mcc_core.evaluation.protocols import Maps
from mcc_core.evaluation.scoring import Scorer, Setting
from mcc_core.methods.registry import method_of
from orchestrator.evaluation.map_cache import MapCache

EXPERIMENT = smallest("mcc")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(EXPERIMENT.data, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def scorer(index: DataIndex) -> Scorer:
    torch.manual_seed(0)
    method, classes = method_of(EXPERIMENT), len(index.classes)
    setting = Setting("single", "single", method.evaluation(EXPERIMENT, classes))
    return Scorer(method.network(EXPERIMENT, classes).eval(), [setting], {}, torch.device("cpu"))


def same(first: Maps, second: Maps) -> bool:
    one, other = first.arrays("float32"), second.arrays("float32")
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_a_budget_changes_no_maps_and_bounds_the_disk(index: DataIndex, scorer: Scorer, tmp_path: Path) -> None:
    none = MapCache(tmp_path / "none", 0, scorer, "checkpoint", "data")
    without = [none.maps(item) for item in index.val]
    assert not (tmp_path / "none").exists()
    size = sum(array.nbytes for array in without[0].arrays("float16").values())
    some = MapCache(tmp_path / "some", 3 * size, scorer, "checkpoint", "data")
    for _ in range(2):
        assert all(same(some.maps(item), maps) for item, maps in zip(index.val, without, strict=True))
    kept = list((tmp_path / "some").rglob("*.npz"))
    assert 0 < len(kept) < len(index.val) and some.used == sum(file.stat().st_size for file in kept)
    later = MapCache(tmp_path / "some", 3 * size, scorer, "checkpoint", "data")
    assert later.used == some.used and later.folder == some.folder


def test_a_file_that_is_not_whole_is_made_again(index: DataIndex, scorer: Scorer, tmp_path: Path) -> None:
    cache, item = MapCache(tmp_path, 10**6, scorer, "checkpoint", "data"), index.val[0]
    maps = cache.maps(item)
    file = cache.folder / f"{item.name}.npz"
    for broken in (b"", b"nonsense", file.read_bytes()[:-20]):
        file.write_bytes(broken)
        assert same(cache.maps(item), maps) and same(cache.maps(item), maps)
        assert file.read_bytes() != broken


def test_what_decides_the_maps_names_their_folder(scorer: Scorer, tmp_path: Path) -> None:
    folders = {MapCache(tmp_path, 0, scorer, *names).folder for names in (("a", "d"), ("b", "d"), ("a", "e"))}
    assert len(folders) == 3
