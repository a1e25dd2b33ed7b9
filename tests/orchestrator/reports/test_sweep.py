"""Reports of sweeps: what is computed for them, and what they say of sweeps of every kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from experiments import plan_record
from PIL import Image

from mcc_core.experiment_files import resolve
from orchestrator.analysis.importance import Configuration, importances, means_by_value, needed
from orchestrator.records.events import history
from orchestrator.records.sweeps import Sweep
from orchestrator.records.usage import Span, Usage, spans, usage
from orchestrator.reports.document import Code, Grid, Picture, Section, Text, to_html, to_markdown
from orchestrator.reports.evidence import gather
from orchestrator.reports.results import sections
from orchestrator.reports.sweep import report_files
from orchestrator.storage.store import Storage
from orchestrator.text import size_text

CAM, AUX, SEG, F1 = "val/cam/ms/miou", "val/aux_cam/ms/miou", "val/seg/single/miou", "val/cls/single/f1"


def test_importance_finds_what_matters_and_refuses_too_few() -> None:
    found = [
        Configuration({"a": str(a), "b": str(b), "c": kind}, a + 0.01 * b)
        for a in (0.0, 0.5, 1.0)
        for b in (1, 2)
        for kind in ("x", "linear 0 to 1")
    ]
    method, shares = importances(found)
    assert method == "fANOVA" and next(iter(shares)) == "a" and shares["a"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert needed(2) == 10 and needed(5) == 20
    assert importances(found[: needed(3) - 1]) == ("", {})
    assert importances([Configuration(c.values, 0.5) for c in found]) == ("", {})
    means = means_by_value(found)
    assert means[0][:2] == ("a", "0.0") and means[0][2:] == pytest.approx((0.015, 4))
    assert {row[:2]: row[2:] for row in means}["c", "x"] == pytest.approx((0.515, 6))
    drawn = [Configuration({"lr": f"{i}"}, i / 40) for i in range(40)]
    assert means_by_value(drawn) == [] and list(importances(drawn)[1]) == ["lr"]


def test_time_is_counted_once_for_the_wall_and_for_each_worker() -> None:
    attempts = spans([("0001-000001.jsonl", [{"t": 0.0}, {"t": 5.0}]), ("0001-000002.jsonl", [{"t": 10.0}]),
                      ("0002-000001.jsonl", [{"t": 30.0}, {"t": 40.0}])], 2)  # fmt: skip
    assert attempts == [Span(0, 10, 2), Span(30, 40, 2)]
    assert usage([*attempts, Span(5, 20, 1)]) == Usage(30, 55, 3)
    assert usage([*attempts, Span(5, 20, 1)], since=15) == Usage(15, 25, 2)
    assert [size_text(n) for n in (12, 830e3, 21e6, 1.2e9)] == ["12 bytes", "830 kB", "21 MB", "1.2 GB"]


def test_a_page_is_whole_in_itself_and_harmless() -> None:
    parts: list[Text | Grid | Picture | Code] = [
        Text("<script>x</script>"),
        Grid([["c", "d"], ["<b>|", "+1.4 [+0.7, +2.2]"], ["y", "-1.0 [-2.0, +0.1]"]], signed=True),
        Picture("p.png", b"123", "cap"),
        Code("a\nb", "more"),
    ]
    page = to_html("t", "lead", [Section("S", parts)])
    assert "<script>x" not in page and 'src="data:image/png;base64,MTIz"' in page and "http" not in page
    assert page.count("better") == page.count(".better") + 1 and page.count("worse") == page.count(".worse")
    text = to_markdown("t", "lead", [Section("S", parts)])
    assert "| <b>\\| | +1.4 [+0.7, +2.2] |" in text and "![cap](images/p.png)" in text


def sweep(
    folder: Path, statuses: dict[str, str], bases: dict[str, str] | None = None, **file: Any
) -> tuple[Storage, Sweep]:
    """A sweep in storage: configurations `a`, `b`... of two seeds each, the later the better; status by trial.

    `bases`: presets of configurations of other methods.
    """
    storage = Storage(str(folder))
    defaults = {"name": "s", "description": "", "base": "tiny", "set": {}, "metric": SEG, "mode": "max"}
    trials = []
    for n, name in enumerate(statuses):
        point, seed = name.split("-")
        ratio = 0.5 + 0.1 * "abcde".index(point) if point in "abcde" else 0.9 + 0.005 * (ord(point) - ord("e"))
        other = (bases or {}).get(point)
        experiment = resolve(other or "tiny", {} if other else {"mask.ratio": ratio}).model_dump(mode="json")
        trials.append({"identity": f"{n:016d}", "name": name, "point": point, "varied": {"mask.ratio": f"{ratio:g}"},
                       "seed": int(seed), "fingerprint": "f", "experiment": experiment})  # fmt: skip
        if (status := statuses[name]) != "new":
            metric = dict(defaults | file)["metric"]
            write(storage, trials[-1], status, ratio + 0.01 * int(seed) * (1 if point == "a" else -1), metric)
    document = plan_record(
        "s-1",
        trials,
        name="s",
        source="s.yaml",
        created=1000.0,
        commit="c" * 40,
        command=["/bin/mcc", "sweep", "submit", "s.yaml"],
        estimate={"total_s": 60.0, "source": "x"},
        file=defaults | {"heatmap": None} | file,
    )
    storage.write("sweeps/s-1/plan.json", json.dumps(document).encode())
    return storage, Sweep("s-1", document)


def write(storage: Storage, trial: dict[str, Any], status: str, score: float, metric: str) -> None:
    identity, seed = trial["identity"], trial["seed"]
    values = {metric: score} | ({} if metric == F1 else {"val/seg/single/iou/cat": score / 2, CAM: score})
    if metric != F1 and trial["experiment"]["method"] != "afa":  # which has no such map
        values[AUX] = score
    picture = io.BytesIO()
    Image.new("RGB", (60, 10), (seed, 10, 10)).save(picture, "PNG")
    storage.write(f"trials/{identity}/images/x.png", picture.getvalue())
    events: list[dict[str, Any]] = [
        {"t": 1010.0, "kind": "start", "iteration": 0, "attempt": 1, "info": {"device": "cpu", "host": "h"}},
        {"t": 1020.0, "kind": "metrics", "iteration": 4, "metrics": values},
        {"t": 1030.0, "kind": "image", "iteration": 4, "key": "panel/x", "path": f"trials/{identity}/images/x.png"},
        {"t": 1035.0, "kind": "clone", "iteration": 4, "donor": "d", "donor_name": "member-3", "fields": {"lr": 1}},
    ]
    if status != "running":
        events.append({"t": 1040.0, "kind": "end", "iteration": 4, "status": status, "message": "it broke",
                       "metrics": values if status == "finished" else {}, "launch": "", "cause": ""})  # fmt: skip
    lines = "".join(json.dumps(event) + "\n" for event in events)
    storage.write(f"trials/{identity}/events/0001-000001.jsonl", lines.encode())
    assert history(storage, identity)


def text_of(storage: Storage, one: Sweep) -> str:
    return report_files(storage, one)["report.md"].decode()


def test_a_partly_finished_sweep_with_a_baseline(tmp_path: Path) -> None:
    statuses = {"a-0": "finished", "a-1": "finished", "b-0": "finished", "b-1": "finished", "c-0": "failed"}
    storage, one = sweep(tmp_path, statuses | {"c-1": "running", "d-0": "new"}, baseline="a",
                         parameters={"mask.ratio": [0.5, 0.6, 0.7, 0.8]})  # fmt: skip
    text = text_of(storage, one)
    said = next(line for line in text.splitlines() if line.startswith("b 6") or line.startswith("b 5"))
    assert "miou; generated shapes; vit_tiny_patch16_224 from random weights, 225 iterations; 2 seeds (0, 1)" in said
    assert "7 trials: 4 finished, 1 failed, 1 interrupted, 1 not begun." in text and "not complete" in text
    assert "seeds would decide" in text and "| b | +" in text  # of the leaderboard, and of the comparison
    assert "| cat | 25.2 | +4.5 [" in text and "names no baseline" not in text
    assert "Too few trials to tell: 2 configurations of 1 parameters" in text
    assert (
        "best: b-0 (60.0 val/seg/single/miou); worst: a-0 (50.0" in text and "x, worst trial a-0, iteration 4" in text
    )
    assert "c-0: failed: it broke" in text and "| a-0 | 4 | member-3 | lr=1 |" in text
    assert "| time | 1 min 0 s | 30 s |  |" in text  # no ratio of what is not over
    assert "mcc sweep submit s.yaml" in text and "git checkout cccc" in text


def test_sweeps_without_masks_without_results_and_of_one_trial(tmp_path: Path) -> None:
    text = text_of(*sweep(tmp_path / "1", {"a-0": "finished", "b-0": "finished"}, metric=F1))
    assert "no masks: only the classes are scored" in text and f"{F1}: no IoU of single classes" in text
    assert "One seed for each configuration: the order may be chance" in text
    text = text_of(*sweep(tmp_path / "2", {"a-0": "new", "b-0": "new"}))
    assert "nothing is ranked yet" in text and "no trial of this sweep was begun" in text
    storage, one = sweep(tmp_path / "3", {"a-0": "finished"})
    titles = [section.title for section in sections(gather(storage, one))]
    assert "IoU by class" not in titles and "CAMs of the best and the worst trial" in titles
    storage.delete_folder("trials/0000000000000000/images")  # cleared away
    assert "No panels of the same images are in storage" in text_of(storage, one)


def test_unlike_methods_are_named_and_what_one_lacks_is_absent(tmp_path: Path) -> None:
    statuses = dict.fromkeys(["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"], "finished")
    storage, one = sweep(tmp_path, statuses, {"b": "afa-tiny", "c": "toco-tiny"}, baseline="a")
    text = text_of(storage, one)
    head, *lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    assert "| method | CAM mIoU | aux CAM mIoU |" in head
    compared = next(line for line in lines if line.startswith("| b | afa | "))
    assert compared.split(" | ")[2].startswith("+") and compared.split(" | ")[3] == "absent"
    assert "absent: the method has no such class map." in text
    assert "CAMs of the best trial of each method" in text and "x, afa trial b-" in text and "x, mcc trial a-" in text
    fields = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines}
    assert fields["| mask.ratio"] == ["0.5", "absent", "absent |"] and "24" in fields["| crops.size"]
    assert [f"Whole configuration of {name}" in text for name in "abc"] == [True] * 3


def test_importance_of_enough_configurations_and_of_a_population(tmp_path: Path) -> None:
    one = {f"{point}-0": "finished" for point in "abcde"}
    text = text_of(*sweep(tmp_path / "1", one, parameters={"mask.ratio": []}, points=[]))
    assert "Too few trials to tell: 5 configurations" in text and "| mask.ratio | 0.9 |" in text
    wide = {f"{point}-0": "finished" for point in "abcdefghijkl"}
    text = text_of(*sweep(tmp_path / "3", wide, parameters={"mask.ratio": []}, points=[]))
    assert "Shares of the variance, by fANOVA over 12 configurations" in text and "| mask.ratio | 100 % |" in text
    pbt: dict[str, Any] = {"scheduler": {"kind": "pbt"}, "parameters": {"mask.ratio": []}}
    assert "A population changes its parameters while it trains" in text_of(*sweep(tmp_path / "2", one, **pbt))
