"""Work in other processes gives what work in this one gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcc_core.errors import DataError
from mcc_core.parallel import ahead, each


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def refused_at_40(number: int) -> int:
    if number == 40:
        raise DataError("40: not this one")
    return number


def test_results_come_in_order_from_other_processes() -> None:
    found = list(each(where, range(100), worth=1, processes=2))
    assert [number for number, _ in found] == list(range(100))
    assert os.getpid() not in {pid for _, pid in found}
    assert {pid for _, pid in each(where, range(100), worth=101, processes=2)} == {os.getpid()}


def test_what_work_raises_is_raised_here() -> None:
    with pytest.raises(DataError, match="40: not this one"):
        list(each(refused_at_40, range(1000), worth=1, processes=2))


def test_a_dataset_of_many_files_is_the_same_by_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import archives_mini as mini

    from mcc_core.data import prepare
    from mcc_core.data.prepare_folder import draft_folder

    for i in range(40):
        mini.picture(tmp_path / "images" / f"{i % 2}" / f"{i}.png", str(i))
        mini.mask(tmp_path / "masks" / f"{i % 2}" / f"{i}.png", 1)
    (tmp_path / "images" / "1" / "7.png").write_bytes(b"broken")
    one = prepare.finish(draft_folder(tmp_path / "images", masks=tmp_path / "masks"), tmp_path / "a", skip_broken=True)
    monkeypatch.setattr(prepare, "each", lambda work, items: each(work, items, worth=1, processes=2))
    two = prepare.finish(draft_folder(tmp_path / "images", masks=tmp_path / "masks"), tmp_path / "b", skip_broken=True)
    assert one.index == two.index and one.problems == two.problems and "7.png" in one.problems[0]


def test_reading_ahead_keeps_the_order_and_is_never_far_ahead() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 9:
            raise DataError("9: not this one")
        return 10 * number

    found, results = ahead(work, range(100), threads=2, depth=3), []
    with pytest.raises(DataError, match="9: not this one"):
        for number, result in enumerate(found):
            results.append(result)
            assert max(begun) <= number + 4
    assert results == [10 * number for number in range(9)]
    assert max(begun) < 14  # what was not begun is dropped
