"""One step of each published method, recorded: losses, gradients, CAMs, labels and flags must come out the same."""

from __future__ import annotations

import os
from pathlib import Path

import golden
import pytest

from mcc_core.networks.published import from_published

SHIPPED = Path(__file__).parents[1] / "data" / "golden"
# More recordings can be checked without copying them here: MCC_GOLDEN=folder.
FILES = sorted(SHIPPED.glob("*.npz")) + sorted(Path(os.environ.get("MCC_GOLDEN", SHIPPED / "none")).glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_step_is_reproduced(path: Path) -> None:
    rows = golden.compare(path)
    assert len(rows) > 100
    assert {row.name.split()[0] for row in rows} >= {"loss", "gradient", "cams", "refined"}
    assert [row for row in rows if not row.passed] == []


def test_comparison_notices_a_changed_step() -> None:
    """The comparison itself must be able to fail: another temperature moves loss and gradients out of tolerance."""
    arrays, step, model = golden.run_recorded(SHIPPED / "step_voc_128.npz", {"contrast.temperature": 0.51})
    rows = [
        *golden.loss_rows(arrays["meta"]["terms"], step),
        *golden.gradient_rows(arrays["meta"]["grad_norms"], model, from_published),
    ]
    failed = {row.name for row in rows if not row.passed}
    assert {"loss mcc", "loss total", "gradient projector.last.direction"} <= failed
    assert "loss cls" not in failed
