"""One file of a reproduced table: everything that stands behind its numbers, whole, without credentials."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from experiments import mcc_experiment

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.errors import UsageError
from orchestrator.records import layout
from orchestrator.records.events import write_attempt
from orchestrator.redaction import scrub
from orchestrator.reproduction.bundle import SUMS, require_free, write_bundle
from orchestrator.reproduction.latex import escaped
from orchestrator.reproduction.lines import Origin, aspects, judged
from orchestrator.reproduction.numbers import numbers
from orchestrator.reproduction.runs import plan_table
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import load_table, with_rows
from orchestrator.storage.store import Storage

SECRETS = ("hunter2-of-this-process", "wJalrXUtnFEMI", "pass-in-address")


def test_a_bundle_has_everything_and_no_credentials(
    settings: Settings, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[0])
    monkeypatch.setenv("HOME", str(tmp_path))
    table = with_rows(load_table("voc-table1"), ["mcc"])
    few = {"data.shapes_train": 8, "data.shapes_val": 4, "data.shapes_size": 48}
    plan = plan_table(table, "voc-table1", "tiny", Path("data"), (0, 1), few, settings, estimate=False)
    networks, scores = {}, {}
    key = "val/seg/ms_crf/miou"
    for trial in plan.trials:
        write_attempt(storage, trial.identity, 20_000, {key: 0.69}, 1.0, {"host": "lab-7", "gpu": "H100"})
        storage.write(f"{layout.logs(trial.identity)}/0001-rank1.log", b"")
        log = f"MINIO_ROOT_PASSWORD={SECRETS[1]} at s3://me:{SECRETS[2]}@host, key {SECRETS[0]}\nlast line\n"
        storage.write(f"{layout.logs(trial.identity)}/0001-rank0.log", log.encode())
        storage.write(layout.environment(trial.identity), json.dumps({"API_TOKEN": SECRETS[1], "mcc": "1"}).encode())
        file = tmp_path / f"{trial.seed}.pt"
        experiment = mcc_experiment("voc", {"data.root": str(tmp_path), "model.weights": "/mine/deit.pth"})
        checkpoints.save(Checkpoint(experiment, VOC_CLASSES, 20_000, trial.seed, {}, None, {}), file)
        networks["MCC", trial.seed], scores["MCC", trial.seed] = file, {key: 0.69 + trial.seed / 100}
    line = judged(next(t for t in table.targets if not t.server), networks, scores, "")
    line = line.__class__(line.target, line.seeds, line.verdict, aspects(line, {}, Origin("ours", "1 x H100")))
    out = tmp_path / "b.zip"
    command = ["/home/me/bin/mcc", "reproduce", "voc-table1", f"--set=x={SECRETS[0]}", "--bundle", str(out)]
    write_bundle(
        out, "voc-table1", table, [line], numbers([line], table, networks), networks, plan, settings, tmp_path, command
    )
    with zipfile.ZipFile(out) as archive:
        files = {name.removeprefix("b/"): archive.read(name) for name in archive.namelist()}
    sums = {row[66:]: row[:64] for row in files.pop(SUMS).decode().splitlines()}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for identity in (trial.identity for trial in plan.trials):
        inside = {name.rsplit("/", 1)[-1] for name in files if name.startswith(f"trials/{identity}/")}
        assert inside == {"experiment.yaml", "environment.json", "curves.csv", "attempts.json", "0001-rank0.log"}
        assert f"20000,{key},0.69" in files[f"trials/{identity}/curves.csv"].decode()
        began, ended = json.loads(files[f"trials/{identity}/attempts.json"])
        assert "host" not in began
        assert began["time"] == "1970-01-01T00:00:01Z" and began["gpu"] == "H100" and ended["status"] == "finished"
        assert f"{identity}  MCC" in files["trials.txt"].decode()
        assert b"last line" in files[f"trials/{identity}/logs/0001-rank0.log"]
    hidden = (*SECRETS, str(tmp_path))
    assert not [name for name, content in files.items() for s in hidden if s.encode() in content]
    (said,) = files["numbers.txt"].decode().splitlines()
    assert said.startswith("MCC (DeiT-B) 69.5 ± 0.7 mIoU: seg/ms_crf on val; as many images")
    assert "deit_base_patch16_224 from the weights deit.pth, 20000 iterations; 2 seeds (0, 1); within" in said
    assert said in files["README.txt"].decode()
    tex = files["table.tex"].decode()
    assert r"69.5 $\pm$ 0.7" in tex and r"\begin{tabular}" in tex and r"seg/ms\_crf on val" in tex
    made, versions = files["README.txt"].decode().splitlines()[1:3]
    assert made == "made by: mcc reproduce voc-table1 '--set=x=***' --bundle b.zip"
    assert versions.startswith("with: mcc 0.1.0") and ", torch 2." in versions
    assert len(files["checkpoints.txt"].splitlines()) == 2 and not list(tmp_path.glob(".*.part"))


def test_what_was_not_measured_has_no_line() -> None:
    table = load_table("voc-table1")
    assert numbers([judged(table.targets[0], {}, {}, "")], table, {}) == []


@pytest.mark.parametrize("name", ["b.tar", "nowhere/b.zip", "there.zip"])
def test_where_it_cannot_be_written_is_said_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "there.zip").touch()
    with pytest.raises(UsageError, match=r"--bundle .*(ends in .zip|is no folder|is there already)"):
        require_free(tmp_path / name)


def test_texts_for_latex_and_credentials_of_others() -> None:
    assert escaped("a_b & 5 % ± {x}") == r"a\_b \& 5 \% $\pm$ \{x\}"
    assert scrub(b'"HF_TOKEN": "abc", TOKENS_PATH=/x; export DB_PASSWORD=\'p\' loss=1') == (
        b'"HF_TOKEN": "***", TOKENS_PATH=***; export DB_PASSWORD=\'***\' loss=1'
    )
