"""Spaces, conditions, derived fields, and what random and TPE searches propose."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import settings_in, tiny_plan

from mcc_core.errors import UsageError
from mcc_core.validation import flatten
from orchestrator.search.population import moved, selected
from orchestrator.search.tpe import TpeSearch
from orchestrator.settings import Settings
from orchestrator.spec.schedulers import Pbt
from orchestrator.spec.space import Space, Tpe, parse, random_point
from orchestrator.storage.store import Storage

SPACES = {
    "loss.mcc": {"uniform": [0.1, 1.0]},
    "optim.lr": {"loguniform": [1e-5, 1e-2]},
    "mask.ratio": {"quniform": [0.5, 0.95, 0.05]},
    "mask.views": {"randint": [2, 5]},
    "mask.scale": {"choice": [1, 2, 4]},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("search"))


def base(name: str) -> Any:
    return {"loss.mcc": 0.5, "mask.views": 8}[name]


@given(st.integers(0, 10_000))
def test_draws_stay_in_their_space(number: int) -> None:
    point = random_point(parse(SPACES), 0, number, base)
    assert 0.1 <= point["loss.mcc"] <= 1 and 1e-5 <= point["optim.lr"] <= 1e-2
    assert point["mask.views"] in {2, 3, 4, 5} and point["mask.scale"] in {1, 2, 4}
    steps = (point["mask.ratio"] - 0.5) / 0.05
    assert abs(steps - round(steps)) < 1e-6 and 0 <= round(steps) <= 9


def test_draws_cover_their_space_evenly() -> None:
    points = [random_point(parse(SPACES), 0, n, base) for n in range(3000)]
    logs = sorted(math.log10(p["optim.lr"]) for p in points)
    assert logs[1500] == pytest.approx(-3.5, abs=0.1)
    for key, count in (("mask.ratio", 10), ("mask.views", 4), ("mask.scale", 3)):
        values = [p[key] for p in points]
        assert len(set(values)) == count
        assert all(0.7 < values.count(v) * count / 3000 < 1.3 for v in set(values))


def test_a_random_search_that_grew_keeps_its_first_points_and_more_seeds_add_only_themselves(
    settings: Settings,
) -> None:
    def trials(points: int, seeds: list[int]) -> list[str]:
        made = tiny_plan(settings, parameters=SPACES, search={"kind": "random", "points": points}, seeds=seeds)
        return [t.identity for t in made.trials]

    few, many = trials(3, [0]), trials(5, [0])
    assert len(set(many)) == 5 and many[:3] == few
    assert set(few) < set(trials(3, [0, 1]))
    other = tiny_plan(settings, parameters=SPACES, search={"kind": "random", "points": 3, "seed": 1})
    assert not set(few) & {t.identity for t in other.trials}


def test_a_different_number_of_iterations_is_another_trial(settings: Settings) -> None:
    # The learning rate's decay and open-ended schedules depend on the total, so the first iterations differ already.
    short, long = (tiny_plan(settings, set={"train.iterations": n}).trials[0].identity for n in (4, 6))
    assert short != long


def test_a_condition_decides_whether_a_parameter_is_drawn(settings: Settings) -> None:
    made = tiny_plan(
        settings,
        parameters={"loss.mcc": [0, 0.5], "contrast.temperature": {"choice": [0.3, 0.7], "when": "loss.mcc > 0"}},
    )
    assert [t.point for t in made.trials] == ["mcc=0", "mcc=0.5 temperature=0.3", "mcc=0.5 temperature=0.7"]
    assert flatten(made.trials[0].experiment)["contrast.temperature"] == "0.5"


def test_derived_fields_follow_what_is_varied(settings: Settings) -> None:
    made = tiny_plan(
        settings,
        parameters={"thresholds.background": [0.2, 0.3]},
        derived={"thresholds.foreground": "1 - thresholds.background", "loss.reg": "thresholds.foreground / 8"},
        points=[{"name": "base", "set": {}}],
    )
    values = [flatten(t.experiment) for t in made.trials]
    pairs = [(float(v["thresholds.foreground"]), float(v["loss.reg"])) for v in values]
    assert pairs == [
        (0.8, 0.1),
        (0.7, 0.0875),
        (0.75, 0.09375),
    ]


def test_a_schedule_may_have_what_is_drawn_inside(settings: Settings) -> None:
    ramp = {"schedule": "linear", "start": 0.5, "end": {"uniform": [0.7, 0.95]}}
    made = tiny_plan(settings, parameters={"mask.ratio": ramp}, search={"kind": "random", "points": 3})
    ends = [cast(Any, t.experiment).mask.ratio.end for t in made.trials]
    assert len(set(ends)) == 3 and all(0.7 <= end <= 0.95 for end in ends)


def test_points_that_are_no_valid_experiment_are_left_out_and_said(settings: Settings) -> None:
    crossing = {"thresholds.background": {"uniform": [0.1, 0.9]}, "thresholds.foreground": {"uniform": [0.1, 0.95]}}
    made = tiny_plan(settings, parameters=crossing, search={"kind": "random", "points": 12})
    assert 0 < len(made.trials) < 12
    assert f"{12 - len(made.trials)} drawn points are not valid and left out" in made.notes[0]


def quadratic(search: TpeSearch, points: int) -> list[float]:
    """Values proposed while (x - 0.3)^2 is to be small."""
    found = []
    for _ in range(points):
        proposal = search.propose()
        found.append(proposal.values["loss.mcc"])
        search.tell(proposal.number, [(found[-1] - 0.3) ** 2])
    return found


def tpe(modes: tuple[str, ...] = ("min",), **fields: Any) -> TpeSearch:
    config = Tpe.model_validate({"kind": "tpe", "points": 40, "startup": 8} | fields)
    return TpeSearch(config, parse({"loss.mcc": {"uniform": [0.0, 1.0]}}), modes, base)


def test_tpe_learns_and_is_deterministic() -> None:
    first, second = quadratic(tpe(), 40), quadratic(tpe(), 40)
    assert first == second
    early, late = (sum(abs(x - 0.3) for x in part) / len(part) for part in (first[:8], first[-15:]))
    assert late < 0.6 * early
    assert quadratic(tpe(seed=1), 5) != first[:5]


def test_a_search_rebuilt_from_its_record_goes_on_as_it_would_have() -> None:
    whole = quadratic(tpe(), 14)
    search = tpe()
    record = []
    for _ in range(11):
        proposal = search.propose()
        record.append(proposal.params)
        search.tell(proposal.number, [(proposal.values["loss.mcc"] - 0.3) ** 2])
    again = tpe()
    for params in record:
        proposal = again.propose(params)
        again.tell(proposal.number, [(proposal.values["loss.mcc"] - 0.3) ** 2])
    assert quadratic(again, 3) == whole[11:]


def test_a_search_may_have_several_objectives_failures_and_pruned_trials() -> None:
    search = tpe(("max", "min"))
    for n in range(15):
        proposal = search.propose()
        x = proposal.values["loss.mcc"]
        search.tell(proposal.number, None if n % 5 == 4 else [x, x**2])
    assert search.proposed == 15
    single = tpe(("max",))
    for n in range(12):
        proposal = single.propose()
        single.tell(proposal.number, [proposal.values["loss.mcc"]], pruned_at=10 if n % 2 else None)
    assert single.proposed == 12


def test_a_sweep_of_a_search_has_one_id_however_far_it_goes(settings: Settings) -> None:
    fields: dict[str, Any] = {"parameters": {"loss.mcc": {"uniform": [0.1, 1.0]}}}
    few = tiny_plan(settings, **fields, search={"kind": "tpe", "points": 4, "startup": 3})
    many = tiny_plan(settings, **fields, search={"kind": "tpe", "points": 9, "startup": 3}, seeds=[0, 1])
    assert few.sweep == many.sweep and len(few.trials) == 3 and len(many.trials) == 6
    assert few.open is not None and many.open is not None and (few.open.left, many.open.left) == (1, 6)
    other = tiny_plan(settings, **fields, search={"kind": "tpe", "points": 4, "startup": 3, "seed": 5})
    assert other.sweep != few.sweep


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"parameters": {"loss.mcc": {"uniform": [0.1, 1]}}}, "loss.mcc: a range; a grid takes lists"),
        ({"parameters": {"loss.mcc": {"unifrom": [0.1, 1]}}}, "loss.mcc: unifrom: unknown; one of choice, uniform"),
        ({"parameters": {"loss.mcc": {"uniform": [1, 0.1]}}}, "loss.mcc: uniform: low (1) must be below high (0.1)"),
        ({"parameters": {"loss.mcc": {"loguniform": [0, 1]}}}, "loss.mcc: loguniform: low (0) must be above 0"),
        ({"parameters": {"loss.mcc": {"uniform": [0, 1], "choice": [1]}}}, "exactly one of choice, uniform"),
        ({"parameters": {"loss.mcc": {"quniform": [0, 1, 3]}}}, "step (3) must be above 0 and fit"),
        ({"parameters": {"loss.mcc": {"choice": [1], "when": "import os"}}}, "loss.mcc.when: 'import os'"),
        ({"search": {"kind": "random", "points": 3}}, "search: random has nothing to draw"),
        ({"search": {"kind": "tpe"}, "parameters": SPACES}, "points"),
        (
            {"search": {"kind": "random", "points": 2}, "parameters": {"loss.mcc": {"uniform": [-1, 1]}}},
            "s.yaml: parameters.loss.mcc: uniform: -1.0: -1 is out of range: must be at least 0",
        ),
        ({"derived": {"loss.mcc": "1 - loss.x"}}, "s.yaml: derived.loss.mcc: loss.x: unknown field"),
        ({"derived": {"loss.mcc": "1 / 0"}}, "s.yaml: derived.loss.mcc: '1 / 0': cannot be computed"),
        ({"derived": {"loss.x": "1"}}, "s.yaml: derived: loss.x: unknown field"),
        ({"scheduler": {"kind": "pbt", "population": 2, "interval": 2}}, "pbt has nothing to perturb"),
        (
            {"scheduler": {"kind": "pbt", "population": 2, "interval": 2}, "budget": {"trials": 1}},
            "budget.trials: 1 is less than the population",
        ),
        (
            {
                "scheduler": {"kind": "pbt", "population": 2, "interval": 2},
                "parameters": {"model.aux_block": {"randint": [1, 2]}},
            },
            "model.aux_block: pbt can change only what training reads at every iteration",
        ),
        (
            {
                "search": {"kind": "tpe", "points": 2, "objectives": [{"metric": "a"}, {"metric": "b"}]},
                "scheduler": {"kind": "asha", "min_iterations": 2},
                "parameters": SPACES,
            },
            "scheduler: asha compares by one metric; search.objectives has several",
        ),
        ({"budget": {"hours": 0}}, "budget.hours"),
        ({"baseline": "x"}, "baseline: 'x' is not among points"),
        (
            {"resources": {"max_concurrent": 99}, "set": {"train.workers": 2}},
            "",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(settings: Settings, fields: dict[str, Any], expected: str) -> None:
    if not expected:  # no mistake, but worth a line
        (note,) = tiny_plan(settings, **fields).notes
        assert "resources.max_concurrent: 99 trials of 2 workers of 1 CPUs do not fit on" in note
        return
    with pytest.raises((UsageError, ValueError)) as caught:
        tiny_plan(settings, **fields)
    assert expected in str(caught.value)


def test_selection_clones_the_best_and_revives_the_failed() -> None:
    config = Pbt(kind="pbt", population=8, interval=1, quantile=0.25)
    scores = [0.1, 0.5, None, 0.9, 0.8, 0.2, 0.3, 0.4]
    pairs = selected(config, scores, "max", 0)
    assert {pair.member for pair in pairs} == {2, 0}
    assert {pair.donor for pair in pairs} <= {3, 4}
    assert selected(config, scores, "max", 0) == pairs
    assert {pair.member for pair in selected(config, [None] * 7 + [0.5], "max", 0)} == set(range(7))
    assert selected(config, [None] * 8, "max", 0) == []
    assert {p.donor for p in selected(config, scores, "min", 0)} <= {0, 5}


@given(st.sampled_from(sorted(SPACES)), st.integers(0, 10_000))
def test_a_moved_value_is_another_one_within_its_space(key: str, seed: int) -> None:
    space, rng = Space.model_validate(SPACES[key]), Random(seed)
    before = space.draw(rng)
    after = moved(space, before, (0.8, 1.25), rng)
    low, high = space.range
    assert low <= after <= high and type(after) is type(before)
    assert after != before
    space.value(after)
    if space.quniform:
        assert abs((after - low) / 0.05 - round((after - low) / 0.05)) < 1e-6


def test_the_stored_plan_of_a_search_is_plain_data(settings: Settings, tmp_path: Path) -> None:
    import json

    from orchestrator.planning.plan import plan_document
    from orchestrator.spec.sweep_file import SweepFile

    made = tiny_plan(settings, parameters=SPACES, search={"kind": "random", "points": 2})
    document = json.loads(json.dumps(plan_document(made, ["mcc"], None)))
    assert SweepFile.model_validate(document["file"]) == made.file
    assert Storage(settings.storage).list("trials") == []
