"""Plans: trials, names and identities, and what is refused before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import mcc_experiment
from tiny import settings_in, tiny_sweep
from trained import smallest

import mcc_core
from mcc_core.checkpoint import Checkpoint, save
from mcc_core.data.index import build_index
from mcc_core.errors import MCCError, UsageError
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.validation import flatten
from orchestrator.cluster.session import Capacity
from orchestrator.planning.configurations import Trial
from orchestrator.planning.disk import checkpoint_bytes
from orchestrator.planning.identity import source_hash
from orchestrator.planning.plan import Plan, check_models, plan_document, plan_sweep
from orchestrator.records.events import write_end
from orchestrator.records.speeds import Speed, speed_profile, speed_record
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import is_staged
from orchestrator.spec.sweep_file import load_sweep
from orchestrator.storage.store import Storage
from orchestrator.workflows.posthoc import is_posthoc

SHIPPED = sorted((Path(__file__).parents[3] / "sweeps").glob("*.yaml"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def clean(settings: Settings) -> Iterator[Storage]:
    storage = Storage(settings.storage)
    yield storage
    for folder in ("trials", "speeds"):
        storage.delete_folder(folder)


def plan(
    settings: Settings, *, estimate: bool = False, overrides: Any = None, workers: Any = None, **fields: Any
) -> Plan:
    return plan_sweep(tiny_sweep(**fields), "s.yaml", None, overrides, workers, settings, estimate=estimate)


def identity(settings: Settings, **changes: Any) -> str:
    (trial,) = plan(settings, set=changes).trials
    return trial.identity


def test_a_grid_with_points_and_seeds_has_short_unique_names(settings: Settings) -> None:
    made = plan(
        settings,
        parameters={"mask.ratio": [0.5, {"schedule": "linear", "start": 0.5, "end": 0.95}], "mask.scale": [1, 4]},
        points=[{"name": "off", "set": {"loss.mcc": 0}}],
        seeds=[0, 7],
    )
    names = [trial.name for trial in made.trials]
    assert names[:2] == ["ratio=0.5 scale=1 s0", "ratio=0.5 scale=1 s7"]
    assert "ratio=linear 0.5 to 0.95 scale=4 s0" in names
    assert names[-1] == "off s7"
    assert len(names) == len(set(names)) == 10 == len({t.identity for t in made.trials})
    assert made.trials[0].varied == {"mask.ratio": "0.5", "mask.scale": "1"}
    assert (made.trials[1].point, made.trials[1].seed) == ("ratio=0.5 scale=1", 7)
    assert flatten(made.trials[-1].experiment)["loss.mcc"] == "0.0"
    assert all(len(t.identity) == 16 for t in made.trials)


def test_one_seed_is_not_in_the_name_and_like_named_fields_are_told_apart(settings: Settings) -> None:
    made = plan(settings, parameters={"augment.scale": [[0.5, 2.0]], "mask.scale": [1]})
    assert [t.name for t in made.trials] == ["augment.scale=0.5,2 mask.scale=1"]


def test_without_parameters_the_base_is_the_trial(settings: Settings) -> None:
    assert [t.name for t in plan(settings).trials] == ["tiny"]


def test_the_same_trial_twice_is_run_once(settings: Settings) -> None:
    made = plan(
        settings, parameters={"mask.ratio": [0.5, 0.50, 0.6]}, points=[{"name": "again", "set": {"mask.ratio": 0.6}}]
    )
    assert [t.name for t in made.trials] == ["ratio=0.5", "ratio=0.6"]
    assert made.duplicates == ("ratio=0.5", "again")


def test_what_changes_numbers_changes_the_identity(settings: Settings) -> None:
    base = identity(settings)
    changes: list[dict[str, Any]] = [
        {"mask.ratio": 0.9},
        {"loss.mcc": 0.4},
        {"train.iterations": 5},
        {"train.workers": 2},
        {"optim.lr": 1.7e-3},
        {"data.shapes_train": 9},
        {"model.decoder_channels": 9},
        {"train.eval_images": 3},
    ]
    found = {identity(settings, **change) for change in changes}
    assert len(found) == len(changes) and base not in found
    (seeded,) = plan(settings, seeds=[3]).trials
    assert seeded.identity != base


def test_what_cannot_change_numbers_does_not(settings: Settings, tmp_path: Path) -> None:
    base = identity(settings)
    for change in ({"train.log_every": 3}, {"train.panels": 0}, {"train.loader_workers": 1}, {"train.eval_batch": 3}):
        assert identity(settings, **change) == base
    generated = plan(settings).index.train[0].image.parents[1]
    copied = tmp_path / "elsewhere"
    shutil.copytree(generated, copied)
    assert identity(settings, **{"data.root": str(copied)}) == base


def test_comments_and_order_of_a_sweep_file_do_not_matter(settings: Settings, tmp_path: Path) -> None:
    sweep = tiny_sweep(parameters={"mask.ratio": [0.5, 0.6]})
    text = sweep.model_dump_json(exclude_defaults=True)
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(text)
    second.write_text(f"# a comment\n{text}\n# and another\n")
    one, two = (plan_sweep(load_sweep(f), str(f), settings=settings, estimate=False) for f in (first, second))
    assert (one.sweep, one.trials) == (two.sweep, two.trials)


def test_the_source_hash_sees_code_and_not_comments(tmp_path: Path) -> None:
    def hashed(name: str, old: str = "", new: str = "", file: str = "losses/terms.py") -> str:
        package = tmp_path / name
        shutil.copytree(Path(mcc_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        text = (package / file).read_text()
        assert old in text
        (package / file).write_text(text.replace(old, new, 1))
        return source_hash(package, ("methods/other/",))

    base = hashed("base")
    assert hashed("comment", "from __future__", "# a comment\n\nfrom __future__") == base
    assert hashed("docstring", '"""', '"""Changed. ') == base
    assert hashed("code", "import torch\n", "import torch\nX = 1\n") != base
    (tmp_path / "base/methods/other").mkdir()
    (tmp_path / "base/methods/other/objective.py").write_text("X = 1")
    source_hash.cache_clear()
    assert source_hash(tmp_path / "base", ("methods/other/",)) == base != source_hash(tmp_path / "base")
    assert hashed("picture", "import", "import sys\nimport", "evaluation/visualize.py") == base


def test_weights_are_known_by_content(settings: Settings, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from mcc_core.networks.backbones import build_vit

    (trial,) = plan(settings).trials
    state = {name: tensor.contiguous() for name, tensor in build_vit(trial.experiment.model).state_dict().items()}
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors"]
    save_file(state, files[0])
    shutil.copy(files[0], files[1])
    save_file({name: tensor + 1 for name, tensor in state.items()}, files[2])
    found = [identity(settings, **{"model.weights": str(file)}) for file in files]
    assert found[0] == found[1] != found[2]
    assert trial.identity not in found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"set": {"model.weights": "/no/such.pth"}}, "model.weights: /no/such.pth: no such file; give a "),
        ({"set": {"data.name": "voc", "data.root": "/no/data"}}, "/no/data: no such folder"),
        ({"set": {"model.backbone": "vit_nope"}}, "model.backbone: 'vit_nope' is not a timm model"),
        ({"set": {"model.aux_block": 9}}, "model.aux_block: 9: the backbone has 2 blocks"),
        ({"metric": "val/seg/single/mIoU"}, "s.yaml: metric: 'val/seg/single/mIoU': evaluation records no such"),
        ({"workers": 2, "overrides": {"train.workers": 3}}, "--workers 2 and --set train.workers=3: give one of them"),
        (
            {"points": [{"name": "x"}, {"name": "y"}], "baseline": "y"},
            "baseline: 'y' is the same as another configuration and left out; name that one of x",
        ),
        ({"metric": "loss"}, "evaluation records no such metric; such as val/cam/ms/miou"),
        (
            {"metric": "val/seg/single/iou/dog"},
            "single/iou/dog': the data has no such class; it has background, ",
        ),
        ({"metric": "val/seg/ms/miou"}, "no such metric; did you mean val/seg/single/miou?"),
        ({"parameters": {"mask.ratio": [0.5, 1.2]}}, "s.yaml: parameters.mask.ratio[1]: 1.2: 1.2 is out of range"),
        ({"overrides": {"mask.ration": 1}}, "--set: mask.ration: unknown field, did you mean mask.ratio?"),
        ({"overrides": {"mask.ratio": 7}}, "mask.ratio"),
        (
            {"overrides": {"mask.ratio": 0.5}, "parameters": {"mask.ratio": [0.5]}},
            "--set: mask.ratio: s.yaml varies it",
        ),
        ({"workers": 0}, "--workers: 0: must be at least 1"),
        ({"workers": 999}, "s.yaml: resources: a trial needs 999 CPUs (999 workers x cpus_per_worker 1) and"),
        ({"resources": {"gpus_per_worker": 99}}, "a trial needs 99 GPUs"),
        (
            {"workers": 2, "resources": {"gpus_per_worker": 0.5}},
            "s.yaml: resources.gpus_per_worker: 0.5: the 2 workers of a trial would share a GPU, which NCCL refuses; "
            "give each a whole one, or use one worker with train.accumulate: 2, which trains the same",
        ),
        ({"parameters": {"optim.lr": [i / 1e5 for i in range(1, 10_002)]}}, "10001 trials are more than the 10000"),
        (
            {"parameters": {"thresholds.background": [0.3, 0.4], "thresholds.foreground": [0.8, 0.35]}},
            "thresholds.background (0.4) must be below thresholds.foreground (0.35)",
        ),
        (
            {"overrides": {"model.backbone_args.patch_size": 32, "train.crop": 16}},
            "train.crop: 16: below the network's stride of 32 pixels",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(settings: Settings, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(settings, **fields)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_overrides_reach_every_trial(settings: Settings) -> None:
    made = plan(settings, parameters={"mask.ratio": [0.5, 0.6]}, overrides={"train.iterations": 3}, workers=1)
    assert {t.experiment.train.iterations for t in made.trials} == {3}


def test_finished_trials_are_marked(settings: Settings, clean: Storage) -> None:
    made = plan(settings, parameters={"mask.ratio": [0.5, 0.6]})
    write_end(clean, made.trials[0].identity, TrialStatus.FINISHED, "")
    write_end(clean, made.trials[1].identity, TrialStatus.FAILED, "")
    assert plan(settings, parameters={"mask.ratio": [0.5, 0.6]}).finished == {made.trials[0].identity}


def test_each_of_unlike_methods_is_timed(settings: Settings, clean: Storage) -> None:
    """The slower one's time is not that of the other."""
    points = [{"name": "mcc"}, {"name": "slow", "base": "toco-tiny"}]
    fields: dict[str, Any] = {"points": points, "resources": {"max_concurrent": 1}}
    for trial, seconds in zip(plan(settings, **fields).trials, (1.0, 10.0), strict=True):
        assert trial.varied["method"] == trial.experiment.method  # a column of the plan's table, also of the base
        clean.write(*speed_record(speed_profile(trial.experiment, 1.0, 0.0), trial.identity, Speed(seconds, 5.0)))
    made = plan(settings, **fields, estimate=True)
    assert made.estimate is not None and made.estimate.source == "1 earlier trial of each method"
    iterations, evaluations = 4, 2
    assert made.estimate_s == pytest.approx(2 * (12 + evaluations * 5) + 11 * iterations)


def test_the_estimate_is_measured_then_learned(settings: Settings, clean: Storage) -> None:
    probed = plan(settings, estimate=True).estimate
    assert probed is not None and probed.iteration_s > 0 and "measured" in probed.source
    made = plan(settings, parameters={"mask.ratio": [0.5, 0.6, 0.7]}, resources={"max_concurrent": 1})
    trial = made.trials[0]
    clean.write(*speed_record(speed_profile(trial.experiment, 1.0, 0.0), trial.identity, Speed(10.0, 5.0)))
    learned = plan(settings, parameters={"mask.ratio": [0.5, 0.6, 0.7]}, resources={"max_concurrent": 1}, estimate=True)
    assert learned.estimate is not None and learned.estimate.source == "1 earlier trial"
    assert learned.estimate_s == pytest.approx(3 * (12 + 4 * 10 + 2 * 5))


@pytest.mark.parametrize(
    ("capacity", "workers", "cpus", "gpus", "expected"),
    [
        (Capacity(2, 0), 1, 1, 0, 2),
        (Capacity(2, 0), 2, 1, 0, 1),
        (Capacity(3, 0), 1, 0.5, 0, 6),
        (Capacity(64, 4), 2, 1, 1, 2),
        (Capacity(0.9, 0), 3, 0.3, 0, 1),
        (Capacity(64, 2), 1, 1, 0.5, 4),
        (Capacity(64, 2), 1, 1, 0.6, 2),
        (Capacity(64, 4), 2, 1, 0.5, 4),
        (Capacity(8, 0, ((4, 0), (4, 0))), 2, 3, 0, 1),
        (Capacity(8, 4, ((4, 2), (4, 2))), 1, 1, 2, 2),
    ],
)
def test_as_many_trials_as_fit(capacity: Capacity, workers: int, cpus: float, gpus: float, expected: int) -> None:
    assert capacity.trials_at_a_time(workers, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("capacity", "workers", "cpus", "gpus", "expected"),
    [
        (Capacity(8, 0, ((4, 0), (4, 0))), 1, 6, 0, "a trial needs 1 workers of 6 CPUs and 0 GPUs, each on one node"),
        (Capacity(8, 2), 3, 1, 0.6, "a trial needs 3 workers of 1 CPUs and 0.6 GPUs, each on one node and one device"),
        (Capacity(8, 1), 1, 1, 2, "a trial needs 2 GPUs (1 workers x gpus_per_worker 2) and 1 are there"),
    ],
)
def test_a_trial_that_could_never_start_is_one_line(
    capacity: Capacity, workers: int, cpus: float, gpus: float, expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        capacity.trials_at_a_time(workers, cpus, gpus)
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("file", [f for f in SHIPPED if not is_posthoc(f) and not is_staged(f)], ids=lambda f: f.name)
def test_shipped_sweeps_are_planned_on_shapes_and_elsewhere_as_far_as_there_are_data(
    settings: Settings, tmp_path: Path, file: Path
) -> None:
    sweep = load_sweep(file)
    if sweep.base == "tiny":
        few = {"data.shapes_train": 8, "data.shapes_val": 4, "data.shapes_size": 48}
        made = plan_sweep(load_sweep(file), str(file), None, few, None, settings, estimate=False)
        points = {trial.point for trial in made.trials}
        assert len(made.trials) == len(points) * len(sweep.seeds) > 1 and not made.duplicates
        assert sweep.baseline is None or sweep.baseline in points
    for base in {"voc", *sweep.bases} if sweep.base == "tiny" else [sweep.base]:
        with pytest.raises(MCCError, match=r"data\.root") as caught:
            plan_sweep(
                load_sweep(file), str(file), base, {"data.root": str(tmp_path / "none")}, None, settings, estimate=False
            )
        assert len(str(caught.value).splitlines()) == 1 and str(tmp_path / "none") in str(caught.value)


def test_worker_hours_and_disk_are_planned_and_learned(settings: Settings, clean: Storage) -> None:
    fields: dict[str, Any] = {"parameters": {"mask.ratio": [0.5, 0.6]}, "resources": {"max_concurrent": 1}}
    made = plan(settings, **fields, workers=2)
    experiment = made.trials[0].experiment
    profile = speed_profile(experiment, 1.0, 0.0)
    clean.write(*speed_record(profile, "a", Speed(10.0, 5.0)))
    known = plan(settings, **fields, workers=2, estimate=True)
    assert known.estimate is not None and known.estimate.worker_s == pytest.approx(2 * known.estimate.total_s)
    network, kept = checkpoint_bytes(experiment, len(made.index.classes)), 2  # evaluations, so checkpoints
    assert known.disk_bytes is not None
    assert known.disk_bytes == pytest.approx(2 * kept * network, rel=0.9) and known.disk_bytes > 2 * kept * network
    clean.write(*speed_record(profile, "a", Speed(10.0, 5.0, 1e6, 1e3)))
    learned = plan(settings, **fields, workers=2, estimate=True)
    assert learned.disk_bytes == pytest.approx(2 * (2 * 1e6 + 2 * 1e3 + 100_000))
    assert plan_document(learned, [], None)["disk_bytes"] == learned.disk_bytes
    clean.write(*speed_record(profile, "a", Speed(10.0, 5.0, 1e18, None)))
    assert "are free; the trials will keep up to" in plan(settings, **fields, workers=2, estimate=True).notes[-1]


def test_a_checkpoint_is_as_large_as_predicted(tmp_path: Path) -> None:
    experiment = mcc_experiment("tiny", {})
    network = MCCNet(experiment.model, 3)
    optimizer = torch.optim.AdamW(p for p in network.parameters() if p.requires_grad)
    for p in network.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    content = Checkpoint(experiment, ("a", "b", "c"), 1, 0, network.state_dict(), optimizer.state_dict(), {})
    save(content, tmp_path / "x.pt")
    assert checkpoint_bytes(experiment, 3) == pytest.approx((tmp_path / "x.pt").stat().st_size, rel=0.05)


def test_the_document_of_a_plan_is_json_with_every_trial(settings: Settings) -> None:
    import json

    made = plan(settings, parameters={"mask.ratio": [0.5, {"schedule": "linear", "start": 0.5, "end": 0.9}]})
    document = json.loads(json.dumps(plan_document(made, ["mcc"], "abc")))
    assert [t["identity"] for t in document["trials"]] == [t.identity for t in made.trials]
    assert document["trials"][1]["experiment"]["mask"]["ratio"]["end"] == 0.9
    assert replace(made, finished=frozenset()).sweep == document["sweep"]


def test_prompts_of_other_classes_are_refused_in_the_plan(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fits = "templates: ['a {}.']\nbackgrounds: [sky]\n"
    (tmp_path / "fits.yaml").write_text(fits)
    (tmp_path / "other.yaml").write_text(fits + "companions: {zebra: [grass]}\n")
    right, wrong = (smallest("clims", **{"clip.prompts": f"~/{name}.yaml"}) for name in ("fits", "other"))
    index = build_index(right.data, settings.home)
    trials = [Trial("0" * 16, "t", {}, each, 0, "t", index.fingerprint) for each in (right, wrong)]
    check_models(trials[:1], {index.fingerprint: index}, download=False)
    with pytest.raises(UsageError, match=r"other\.yaml: companions\.zebra: no class of the data"):
        check_models(trials, {index.fingerprint: index}, download=False)
