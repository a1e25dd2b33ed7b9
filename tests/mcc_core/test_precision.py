"""The precision is one decision: set, restored, used wherever the network is, and named by its records."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from last_step import LastStep
from tiny import TINY
from trained import SMALLEST, smallest

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.config import Precision
from mcc_core.data.index import build_index
from mcc_core.evaluation.in_training import evaluate
from mcc_core.evaluation.inference import predict
from mcc_core.experiment_files import merge
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.registry import network_of
from mcc_core.networks.base import Network, Output
from mcc_core.precision import advice, arithmetic, cast_once, suggested
from mcc_core.training.engine import probe
from mcc_core.validation import validate


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def experiment(precision: str) -> Experiment:
    fields = TINY | {"data.name": "shapes", "model.weights": "random", "train.loader_workers": 0}
    fields |= {"compute.precision": precision}
    return validate(Experiment, merge({}, fields, "test"), "test")


@pytest.mark.parametrize(("precision", "inside"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_products_and_convolutions_agree_inside_and_are_as_before_afterwards(
    precision: Precision, inside: bool
) -> None:
    before = flags()
    with pytest.raises(KeyError), arithmetic(precision):
        assert flags() == (inside, inside)
        raise KeyError
    assert flags() == before


def test_training_evaluation_and_prediction_use_the_trials_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = experiment("tf32")
    index, device = build_index(chosen.data, tmp_path), torch.device("cpu")
    seen: list[tuple[bool, bool]] = []
    made = network_of

    def noted(*arguments: object) -> Network:
        network = made(*arguments)  # type: ignore[arg-type]
        network.register_forward_pre_hook(lambda *unused: seen.append(flags()))
        return network

    monkeypatch.setattr("mcc_core.training.engine.network_of", noted)
    probe(chosen, index, device, steps=1)
    network = noted(chosen, len(index.classes)).eval()
    record = evaluate(network, index, chosen, device, 1, images=1)
    predict(network, chosen, [np.zeros((40, 40, 3), np.uint8)], device)
    assert set(seen) == {(True, True)} and record.precision == "tf32"
    assert flags() != (True, True)


def test_a_checkpoint_is_read_back_in_its_precision() -> None:
    chosen = experiment("bfloat16")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_of(chosen, 3).eval()
    saved = Checkpoint(chosen, ("a", "b", "c"), 1, 0, network.state_dict(), None, {})
    file = io.BytesIO()
    torch.save(
        {"format": 1, "experiment": chosen.model_dump(mode="json"), "classes": ["a", "b", "c"]}
        | {"iteration": 1, "seed": 0, "model": saved.model, "optimizer": None, "metrics": {}},
        file,
    )
    file.seek(0)
    again = checkpoints.load(file).network()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trained, read = (_seg(one, images) for one in (network, again))
        exact = _seg(Checkpoint(experiment("float32"), *_rest(saved)).network(), images)
    assert again.precision == "bfloat16" and torch.equal(trained, read) and not torch.equal(trained, exact)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_step_of_every_method_in_bfloat16_has_weights_and_losses_of_float32(name: str) -> None:
    chosen, device = smallest(name, **{"compute.precision": "bfloat16"}), torch.device("cpu")
    case = LastStep(chosen, device, images=2)
    with cast_once("bfloat16", device):
        step = case.run()
    assert {term.dtype for term in (*step.terms.values(), step.total)} == {torch.float32} and step.total.isfinite()
    gradients = [p.grad for p in case.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def _seg(network: Network, images: torch.Tensor) -> torch.Tensor:
    output: Output = network(images)
    return output.seg


def _rest(saved: Checkpoint) -> tuple[tuple[str, ...], int, int, dict[str, torch.Tensor], None, dict[str, float]]:
    return saved.classes, saved.iteration, saved.seed, saved.model, None, {}


def test_a_gpu_is_recommended_what_it_has() -> None:
    assert suggested(7) == ("float32",) and suggested(9)[0] == "bfloat16"
    assert advice("bfloat16", "H100", 9) is None and advice("float32", "V100", 7) is None
    slow, wrong = advice("float32", "H100", 9), advice("tf32", "V100", 7)
    assert slow and "H100 is faster in bfloat16 and tf32" in slow
    assert wrong and "V100 does not compute in it" in wrong
