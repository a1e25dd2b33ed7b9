"""Training samples and batches: what they hold, that runs resume exactly, and that no mask is within reach."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_voc
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mcc_core.config import AugmentConfig
from mcc_core.data.datasets import EvaluationSet, TrainingBatches, TrainingSet
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.transforms import ThreeViews
from mcc_core.errors import DataError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    folder = tmp_path_factory.mktemp("data")
    root = small_voc.write(
        folder / "voc",
        train={f"t{i:02d}": (small_voc.CLASSES[i % 3],) for i in range(12)} | {"empty": ()},
        val={"v0": ("cat", "dog"), "v1": ("tree",)},
    )
    return build_index(small_voc.config(root), folder / "home")


def _training_set(index: DataIndex, seed: int = 0) -> TrainingSet:
    return TrainingSet(index.train, len(index.classes), ThreeViews(AugmentConfig(), 32), seed)


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_sample(index: DataIndex) -> None:
    sample = _training_set(index)[(0, 1)]
    assert set(sample) == {"name", "view1", "view2", "local", "labels", "box"}
    for view in ("view1", "view2", "local"):
        assert sample[view].shape == (3, 32, 32) and sample[view].dtype == torch.float32
    assert sample["name"] == "t01"
    assert sample["labels"].tolist() == [0, 1, 0] and sample["labels"].dtype == torch.float32
    assert sample["box"].shape == (4,) and sample["box"].dtype == torch.int64


def test_an_image_without_objects_has_no_labels(index: DataIndex) -> None:
    assert _training_set(index)[(0, 12)]["labels"].tolist() == [0, 0, 0]


def test_a_sample_is_a_function_of_seed_draw_and_index(index: DataIndex) -> None:
    first = _training_set(index)[(2, 5)]
    assert _equal(first, _training_set(index)[(2, 5)])
    for other in (_training_set(index)[(3, 5)], _training_set(index, seed=1)[(2, 5)]):
        assert not torch.equal(first["view1"], other["view1"])
        assert torch.equal(first["labels"], other["labels"])


def test_loader_processes_change_nothing(index: DataIndex) -> None:
    def batches(workers: int) -> list[dict[str, Any]]:
        sampler = TrainingBatches(13, 3, 0, start=1, end=7)
        return list(DataLoader(_training_set(index), batch_sampler=sampler, num_workers=workers))

    alone, together = batches(0), batches(2)
    assert len(alone) == len(together) == 6
    assert all(_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert alone[0]["view1"].shape == (3, 3, 32, 32) and alone[0]["box"].shape == (3, 4)


def test_an_image_that_became_unreadable_is_named(index: DataIndex, tmp_path: Path) -> None:
    root = small_voc.write(tmp_path / "voc")
    index = build_index(small_voc.config(root), tmp_path / "home")
    (root / "JPEGImages" / "a2.jpg").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"a2.jpg: cannot be read as an image"):
        _training_set(index)[(0, 1)]


def test_evaluation_samples_are_squashed_and_keep_the_masks_size(index: DataIndex) -> None:
    sample = EvaluationSet(index.val, index.masks, 3, 48)[0]
    assert sample["image"].shape == (3, 48, 48)
    assert sample["mask"].shape == (30, 40) and set(sample["mask"].unique().tolist()) == {0, 1, 2, 255}
    assert sample["labels"].tolist() == [1, 1, 0] and sample["name"] == "v0"


# --- batches ---------------------------------------------------------------------------------------------------------

SIZES = {"size": st.integers(1, 60), "batch": st.integers(1, 7), "world": st.integers(1, 4), "seed": st.integers(0, 9)}


def _fits(size: int, batch: int, world: int) -> bool:
    return size >= batch * world


@settings(max_examples=80, deadline=None)
@given(**SIZES, cut=st.integers(0, 30))
def test_resuming_sees_the_batches_of_an_undisturbed_run(
    size: int, batch: int, world: int, seed: int, cut: int
) -> None:
    if not _fits(size, batch, world):
        return
    for rank in range(world):
        whole = list(TrainingBatches(size, batch, seed, start=0, end=30, rank=rank, world_size=world))
        rest = TrainingBatches(size, batch, seed, start=cut, end=30, rank=rank, world_size=world)
        assert list(rest) == whole[cut:] and len(rest) == 30 - cut
        assert list(rest) == whole[cut:]  # a sampler may be walked twice


@settings(max_examples=80, deadline=None)
@given(**SIZES)
def test_ranks_share_each_pass_without_overlap(size: int, batch: int, world: int, seed: int) -> None:
    if not _fits(size, batch, world):
        with pytest.raises(DataError, match=f"{size} training images do not fill one batch of {batch} x {world}"):
            TrainingBatches(size, batch, seed, start=0, end=1, world_size=world)
        return
    per_pass = size // (batch * world)
    ranks = [
        list(TrainingBatches(size, batch, seed, start=0, end=2 * per_pass, rank=rank, world_size=world))
        for rank in range(world)
    ]
    for number in range(2):
        seen = [pair for rank in ranks for b in rank[number * per_pass : (number + 1) * per_pass] for pair in b]
        assert len(seen) == len(set(seen)) == per_pass * batch * world
        assert {draw for draw, _ in seen} == {number}
        assert all(0 <= i < size for _, i in seen)
    assert all(len(b) == batch for rank in ranks for b in rank)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9), batch=st.integers(1, 3), world=st.sampled_from([1, 2, 4]))
def test_the_global_batch_does_not_depend_on_how_it_is_shared(seed: int, batch: int, world: int) -> None:
    together = TrainingBatches(40, batch * world, seed, start=0, end=5)
    apart = [TrainingBatches(40, batch, seed, start=0, end=5, rank=r, world_size=world) for r in range(world)]
    for whole, *parts in zip(together, *apart, strict=True):
        assert set(whole) == {pair for part in parts for pair in part}


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, start: int) -> list[int]:
        return [i for b in TrainingBatches(32, 4, seed, start=start, end=start + 8) for _, i in b]

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == sorted(order(0, 8)) == sorted(order(1, 0)) == list(range(32))
    assert order(0, 0) != order(0, 8) and order(0, 0) != order(1, 0)
    assert order(0, 0) != list(range(32))


# --- supervision -----------------------------------------------------------------------------------------------------


def _reachable(value: object, seen: set[int]) -> Iterator[object]:
    """Everything that can be got from an object by attributes, items and elements."""
    if id(value) in seen or isinstance(value, type | torch.Tensor) or callable(value):
        return
    seen.add(id(value))
    yield value
    if isinstance(value, str | bytes | int | float):
        return
    inner: list[object] = []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif not isinstance(value, Path):
        inner = list(getattr(value, "__dict__", {}).values())
    for each in inner:
        yield from _reachable(each, seen)


def test_nothing_reachable_from_training_names_a_mask_or_an_evaluation_image(index: DataIndex) -> None:
    found = [str(value) for value in _reachable(_training_set(index), set())]
    assert any("JPEGImages" in value for value in found)  # the walk does reach the items
    names = {item.name for item in index.val}
    assert not [value for value in found if "SegmentationClass" in value]
    assert not [value for value in found if Path(value).stem in names]


def _opened(loader: DataLoader[Any], folder: Path, log: Path) -> list[str]:
    """Files below `folder` that a loader's process opens, as the interpreter itself reports them."""

    def watch(_: int) -> None:  # in the loader's process, since such a hook cannot be taken off again
        note = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sys.addaudithook(lambda event, what: event == "open" and os.write(note, f"{what[0]}\n".encode()))

    loader = DataLoader(
        loader.dataset, batch_sampler=loader.batch_sampler, num_workers=1, worker_init_fn=watch,
        multiprocessing_context="fork",
    )  # fmt: skip
    assert len(list(loader)) > 0
    paths = [Path(line) for line in log.read_text().splitlines()]
    return sorted({str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder)})


def test_training_opens_training_images_and_no_other_file(index: DataIndex, tmp_path: Path) -> None:
    root = index.train[0].image.parents[1]
    batches = TrainingBatches(13, 13, 0, start=0, end=2)
    training = DataLoader(_training_set(index), batch_sampler=batches)
    evaluation = DataLoader(EvaluationSet(index.val[:1], index.masks, 3, 32))
    assert _opened(training, root, tmp_path / "training") == sorted(f"JPEGImages/{i.name}.jpg" for i in index.train)
    assert _opened(evaluation, root, tmp_path / "evaluation") == ["JPEGImages/v0.jpg", "SegmentationClass/v0.png"]
