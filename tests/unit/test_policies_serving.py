"""A served policy answers each row as its distribution says, with its own mask, temperature and seed."""

from math import inf, log, nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from servedpolicies import CARTPOLE, PLANE, components, observations, plain, policy_specs, questions
from servedpolicies import random_parameters as parameters
from torch.distributions import Bernoulli, Categorical, Normal

from ratchet.policies import PolicySpec, ServedPolicy, SpaceSpec, parameter_shapes, safe_action
from ratchet.policies.draws import Draws
from ratchet.policies.formats import WeightFormat
from ratchet.policies.networks import NumpyNetwork, by_speed
from ratchet.policies.torchnetwork import TorchNetwork

DRAWS = 40_000
# Five standard deviations of a frequency.
FIVE_SIGMA = 5 * 0.5 / DRAWS**0.5
MANY = 100  # rows, with which numpy chooses and not plain Python


def constant(action: SpaceSpec, outputs: list[float], log_std: list[float] | None = None) -> ServedPolicy:
    """Its outputs are the same for every observation."""
    spec = PolicySpec(observation=PLANE, action=action, hidden=(3,))
    values = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    values["policy.1.bias"] = np.array(outputs, np.float32)
    if log_std is not None:
        values["log_std"] = np.array(log_std, np.float32)
    return ServedPolicy.of("0" * 64, spec, values, seed=0)


def rows_of(asked: dict[str, Any], which: slice) -> dict[str, Any]:
    return {name: None if value is None else value[which] for name, value in asked.items()}


@given(st.data())
def test_a_row_is_answered_the_same_alone_and_in_any_batch(data: st.DataObject):
    spec = data.draw(policy_specs())
    policy = ServedPolicy.of("", spec, parameters(spec, data.draw(st.integers(0, 99))))
    asked = data.draw(questions(spec, MANY))

    together = policy.decide(**asked)
    row = data.draw(st.integers(0, MANY - 1))
    size = data.draw(st.integers(1, 3))
    apart = policy.decide(**rows_of(asked, slice(row, row + size)))

    for one, many in zip(apart, together, strict=True):
        if one is None:
            assert many is None
            continue
        assert one.dtype == many.dtype
        np.testing.assert_allclose(one, many[row : row + size], rtol=1e-3, atol=2e-4)
    assert together.action.shape == (MANY, *spec.action.shape)
    assert together.action.dtype == spec.action.dtype


def exact_log_probability(
    spec: PolicySpec,
    log_std: np.ndarray | None,
    outputs: np.ndarray,
    asked: dict[str, Any],
    action: np.ndarray,
) -> torch.Tensor:
    """By torch's distributions, in float64."""
    temperature = torch.tensor(asked["temperature"], dtype=torch.float64)[:, None]
    logits = torch.tensor(outputs, dtype=torch.float64)
    flat = torch.tensor(action.reshape(len(action), -1).astype(np.float64))
    if log_std is not None:
        deviation = torch.tensor(np.exp(log_std.astype(np.float64))) * temperature.sqrt()
        return Normal(logits, deviation).log_prob(flat).sum(1)
    masks = np.ones_like(outputs, bool) if asked["masks"] is None else asked["masks"]
    scaled = (logits / temperature).masked_fill(torch.tensor(~masks), -inf)
    if spec.action.kind == "MultiBinary":
        return Bernoulli(logits=scaled.clamp(-1e6, 1e6)).log_prob(flat).sum(1)
    start = torch.tensor(np.resize(spec.action.start, spec.action.size))
    chosen = [
        Categorical(logits=scaled[:, part]).log_prob((flat - start)[:, i])
        for i, part in enumerate(components(spec.action))
    ]
    return torch.stack(chosen).sum(0)


@pytest.mark.parametrize("rows", [1, MANY])
@given(data=st.data())
def test_the_log_probability_is_that_of_the_masked_and_tempered_distribution(rows: int, data: st.DataObject):
    spec = data.draw(policy_specs())
    values = parameters(spec)
    if spec.action.kind == "Box":
        # Wide enough that nothing is clipped: the log-probability is that of what was drawn.
        spec = spec.model_copy(update={"action": spec.action.model_copy(update={"low": -1e9, "high": 1e9})})
    policy = ServedPolicy.of("", spec, values)
    asked = data.draw(questions(spec, rows))

    decided = policy.decide(**asked)

    outputs = policy.outputs(asked["observations"], asked["states"]).outputs
    exact = exact_log_probability(spec, values.get("log_std"), outputs, asked, decided.action).numpy()
    exact[asked["deterministic"]] = 0  # the action is sure
    np.testing.assert_allclose(decided.log_probability, exact, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("batch", [4, DRAWS])
def test_discrete_frequencies_follow_mask_and_temperature(batch: int, seeded: bool):
    policy = constant(SpaceSpec(kind="Discrete", dtype="int64", n=4, start=-1), [0.0, 5.0, 2.0, 1.0])
    mask, temperature = np.array([True, False, True, True]), 2.0
    count = 4_000 if batch == 4 else DRAWS
    found: list[int] = []
    for first in range(0, count, batch):
        seeds = list(range(first, first + batch)) if seeded else [None] * batch
        asked = plain(np.zeros((batch, 4), np.float32), seeds=seeds, masks=np.tile(mask, (batch, 1)))
        asked["temperature"] += 1
        found += policy.decide(**asked).action.tolist()
    weights = np.exp(np.array([0.0, -inf, 2.0, 1.0]) / temperature)
    expected = weights / weights.sum() * count
    counted = np.bincount(np.array(found) + 1, minlength=4)
    assert counted[1] == 0
    # With 2 degrees of freedom one of 20,000 is above.
    assert ((counted - expected)[[0, 2, 3]] ** 2 / expected[[0, 2, 3]]).sum() < 20


def test_components_of_a_multi_discrete_are_drawn_apart():
    space = SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3))
    policy = constant(space, [log(0.3), log(0.7), log(0.1), log(0.6), log(0.3)])
    action = policy.decide(**plain(np.zeros((DRAWS, 4), np.float32))).action
    joint = np.histogram2d(action[:, 0], action[:, 1], bins=(2, 3))[0] / DRAWS
    np.testing.assert_allclose(joint, np.outer([0.3, 0.7], [0.1, 0.6, 0.3]), atol=FIVE_SIGMA)


def test_bits_follow_their_logits_and_stay_0_where_the_mask_says_so():
    policy = constant(SpaceSpec(kind="MultiBinary", dtype="int8", shape=(3,)), [log(0.2 / 0.8), 9.0, 200.0])
    masks = np.tile([True, False, True], (DRAWS, 1))
    action = policy.decide(**plain(np.zeros((DRAWS, 4), np.float32), masks=masks)).action
    np.testing.assert_allclose(action.mean(axis=0), [0.2, 0.0, 1.0], atol=FIVE_SIGMA)


def test_a_gaussian_has_its_mean_and_a_variance_that_grows_with_temperature():
    policy = constant(SpaceSpec(kind="Box", shape=(2,), low=-99.0, high=99.0), [0.5, -3.0], [0.0, log(2)])
    asked = plain(np.zeros((DRAWS, 4), np.float32))
    asked["temperature"] *= 4
    action = policy.decide(**asked).action
    np.testing.assert_allclose(action.mean(axis=0), [0.5, -3.0], atol=5 * 4 / DRAWS**0.5)
    np.testing.assert_allclose(action.std(axis=0), [2.0, 4.0], rtol=0.03)
    assert abs(np.corrcoef(action.T)[0, 1]) < 5 / DRAWS**0.5


@given(st.integers(-(2**80), 2**80), st.integers(1, 9))
def test_one_row_and_many_draw_the_same_numbers_from_a_seed(seed: int, count: int):
    many = Draws().rows([None, seed, 7, seed], count)
    assert Draws().row(seed, count) == many[1].tolist() == many[3].tolist()
    assert ((many > 0) & (many <= 1)).all()


def test_numbers_of_neighbouring_seeds_are_uniform_and_do_not_hang_together():
    drawn = Draws().rows(range(DRAWS), 2)
    for column in drawn.T:
        counted = np.bincount((column * 100).astype(int).clip(max=99), minlength=100)
        assert ((counted - DRAWS / 100) ** 2 / (DRAWS / 100)).sum() < 170  # of 99 degrees of freedom
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 5 / DRAWS**0.5
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 5 / DRAWS**0.5


def test_rows_without_a_seed_draw_anew_and_from_the_policys_own_seed():
    asked = plain(np.zeros((8, 4), np.float32), seeds=[None] * 8)
    spec = PolicySpec(observation=PLANE, action=SpaceSpec(kind="Box", shape=(2,), low=-9.0, high=9.0))
    one, other = (ServedPolicy.of("", spec, parameters(spec), seed=5) for _ in range(2))
    first, second = one.decide(**asked).action, one.decide(**asked).action
    assert len(np.unique(np.concatenate([first, second]))) == 32
    np.testing.assert_array_equal(first, other.decide(**asked).action)


EXTREMES = st.sampled_from([0.0, -0.0, 1e-30, 1.0, -1.0, 88.8, -1e30, 3e38, -3e38, inf, -inf, nan])


@pytest.mark.filterwarnings("ignore:overflow")
@given(data=st.data(), rows=st.sampled_from([1, 2, MANY]))
def test_every_action_is_valid_under_its_mask_whatever_the_network_says(data: st.DataObject, rows: int):
    spec = data.draw(policy_specs())
    policy = ServedPolicy.of("", spec, parameters(spec))
    asked = data.draw(questions(spec, rows))
    asked["temperature"] = np.full(
        rows, data.draw(st.sampled_from([1e-45, 1e-20, 1.0, 1e20, 3e38])), np.float32
    )
    said = np.array(data.draw(st.lists(EXTREMES, min_size=spec.action.outputs, max_size=spec.action.outputs)))
    policy._network = Says(said.astype(np.float32), rows)

    with np.errstate(invalid="raise"):
        decided = policy.decide(**asked)

    action, space = decided.action.reshape(rows, -1), spec.action
    for row in range(rows):
        if space.kind == "Box":
            assert (action[row] >= 0).all()
            assert (action[row] <= 1).all()
        elif space.kind == "MultiBinary":
            assert set(action[row].tolist()) <= {0, 1}
            assert asked["masks"] is None or not action[row][~asked["masks"][row]].any()
        else:
            for i, part in enumerate(components(space)):
                chosen = int(action[row, i]) - int(np.resize(space.start, space.size)[i])
                assert 0 <= chosen < part.stop - part.start
                assert asked["masks"] is None or asked["masks"][row, part][chosen]
    if not np.isfinite(said).all():
        assert np.isnan(decided.log_probability).all()


class Says:
    """A network that gives the same outputs, whatever they are."""

    arithmetic = "none"
    has_value = False

    def __init__(self, outputs: np.ndarray, rows: int) -> None:
        self._outputs = np.tile(outputs, (rows, 1))

    def __call__(self, _observations: np.ndarray, _states: np.ndarray | None) -> Any:
        from ratchet.policies.networks import Outputs

        return Outputs(self._outputs, None, None)


@pytest.mark.parametrize("rows", [3, MANY])
def test_a_broken_row_leaves_the_others_as_they_are(rows: int):
    policy = ServedPolicy.of("", CARTPOLE, parameters(CARTPOLE))
    asked = plain(np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32))
    whole = policy.decide(**asked)
    asked["observations"][1] = nan
    decided = policy.decide(**asked)
    others = np.arange(rows) != 1
    np.testing.assert_array_equal(decided.action[others], whole.action[others])
    np.testing.assert_allclose(decided.log_probability[others], whole.log_probability[others], rtol=1e-5)
    assert np.isnan(decided.log_probability[1])
    assert decided.action[1] == 0


@pytest.mark.parametrize("rows", [1, 4, MANY])
def test_deterministic_takes_the_most_likely_that_is_allowed(rows: int):
    policy = constant(SpaceSpec(kind="Discrete", dtype="int64", n=4, start=5), [0.0, 9.0, 2.0, 1.0])
    masks = np.ones((rows, 4), bool)
    masks[-1, 1] = False
    asked = plain(np.zeros((rows, 4), np.float32), masks=masks, deterministic=np.ones(rows, bool))
    assert policy.decide(**asked).action.tolist() == [6] * (rows - 1) + [7]


@pytest.mark.parametrize("rows", [3, MANY])
@pytest.mark.parametrize(
    ("space", "none", "sentence"),
    [
        (SpaceSpec(kind="Discrete", dtype="int64", n=3), slice(0, 3), "the mask of row 1 allows no action"),
        (
            SpaceSpec(kind="MultiDiscrete", dtype="int64", shape=(2,), nvec=(2, 3)),
            slice(2, 5),
            "the mask of row 1 allows no value of component 1",
        ),
    ],
)
def test_a_mask_that_allows_nothing_is_named(rows: int, space: SpaceSpec, none: slice, sentence: str):
    policy = constant(space, [0.0] * space.outputs)
    masks = np.ones((rows, space.outputs), bool)
    masks[1, none] = False
    with pytest.raises(ValueError, match=sentence):
        policy.decide(**plain(np.zeros((rows, 4), np.float32), masks=masks))


def test_what_cannot_be_answered_is_said():
    box = constant(SpaceSpec(kind="Box", shape=(1,), low=-1.0, high=1.0), [0.0], [0.0])
    two = constant(SpaceSpec(kind="Discrete", dtype="int64", n=2), [0.0, 0.0])
    row = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match="Box of actions takes no mask"):
        box.decide(**plain(row, masks=np.ones((1, 1), bool)))
    with pytest.raises(ValueError, match=r"masks have the shape \(1, 3\), not \(1, 2\)"):
        two.decide(**plain(row, masks=np.ones((1, 3), bool)))
    for observation in (np.zeros((1, 5), np.float32), np.zeros(4, np.float32), np.zeros((0, 4), np.float32)):
        with pytest.raises(ValueError, match="observations are"):
            two.decide(**plain(observation))
    for rows in (1, MANY):
        for bad in (0.0, -1.0, nan):
            asked = plain(np.zeros((rows, 4), np.float32))
            asked["temperature"][-1] = bad
            with pytest.raises(ValueError, match=f"the temperature of row {rows - 1} is {bad}"):
                two.decide(**asked)


@pytest.mark.parametrize("rows", [1, 4, MANY])
def test_what_was_answered_is_not_overwritten_by_the_next_answer(rows: int):
    spec = PolicySpec(observation=PLANE, action=SpaceSpec(kind="Box", shape=(2,), low=-9.0, high=9.0))
    policy = ServedPolicy.of("", spec, parameters(spec))
    for deterministic in (False, True):
        asked = plain(np.ones((rows, 4), np.float32), deterministic=np.full(rows, deterministic))
        first = policy.decide(**asked)
        kept = [None if part is None else part.copy() for part in first]
        policy.decide(**{**asked, "observations": np.full((rows, 4), -3, np.float32)})
        for part, before in zip(first, kept, strict=True):
            np.testing.assert_array_equal(part, before)


def test_a_memory_is_that_of_a_gru_cell_and_goes_from_answer_to_answer():
    spec = CARTPOLE.model_copy(update={"recurrent_size": 7, "hidden": (5,)})
    values = parameters(spec)
    cell = torch.nn.GRUCell(5, 7)
    cell.load_state_dict(
        {
            f"{kind}_{short}": torch.tensor(values[f"recurrent.{name}.{kind}"])
            for kind in ("weight", "bias")
            for name, short in (("input", "ih"), ("hidden", "hh"))
        }
    )
    policy = ServedPolicy.of("", spec, values)
    assert policy.recurrent_size == 7
    state, expected = None, torch.zeros(3, 7)
    rng = np.random.default_rng(0)
    for _ in range(4):
        seen = rng.standard_normal((3, 4)).astype(np.float32)
        decided = policy.decide(**plain(seen, states=state))
        hidden = torch.tanh(torch.tensor(seen @ values["policy.0.weight"].T + values["policy.0.bias"]))
        expected = cell(hidden, expected).detach()
        state = decided.states
        np.testing.assert_allclose(state, expected, atol=1e-5)
        value = expected.numpy() @ values["value.0.weight"][0] + values["value.0.bias"]
        np.testing.assert_allclose(decided.value, value, atol=1e-5)


@settings(max_examples=50)
@given(st.data())
def test_torch_gives_what_numpy_gives(data: st.DataObject):
    spec = data.draw(policy_specs())
    rows = data.draw(st.sampled_from([1, 5]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = parameters(spec, value=data.draw(st.booleans()))
    seen = observations(spec, rows, rng)
    states = (
        rng.standard_normal((rows, spec.recurrent_size)).astype(np.float32) if spec.recurrent_size else None
    )
    ours, theirs = NumpyNetwork(spec, values), TorchNetwork(spec, values)
    assert ours.has_value == theirs.has_value
    for one, other in zip(ours(seen, states), theirs(seen, states), strict=True):
        if one is None:
            assert other is None
            continue
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("memory", [0, 8])
def test_torch_in_few_bits_is_near_and_keeps_the_types(weights: WeightFormat, memory: int):
    spec = CARTPOLE.model_copy(update={"hidden": (64, 32, 64), "recurrent_size": memory})
    values = parameters(spec)
    seen = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    ours, theirs = NumpyNetwork(spec, values), TorchNetwork(spec, values, weights)
    for one, other in zip(ours(seen, None), theirs(seen, None), strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            assert other.dtype == np.float32
            np.testing.assert_allclose(one, other, atol=0.05)
            assert np.abs(one - other).max() > 1e-4


def test_in_8_bits_a_row_does_not_hang_on_the_others_of_its_batch():
    spec = CARTPOLE.model_copy(update={"hidden": (64, 64), "activation": "ReLU"})
    network = TorchNetwork(spec, parameters(spec), "int8")
    seen = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    before = network(seen, None).outputs
    seen[4] = 1e6
    after = network(seen, None).outputs
    others = np.arange(9) != 4
    np.testing.assert_allclose(after[others], before[others], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network(seen[:1], None).outputs, before[:1], rtol=1e-5, atol=1e-5)


def test_torch_is_only_considered_for_large_networks_of_few_bits():
    large = CARTPOLE.model_copy(update={"hidden": (600, 600)})
    for spec, weights, kinds in (
        (CARTPOLE, "int8", {NumpyNetwork}),
        (large, "float32", {NumpyNetwork}),
        (large, "bfloat16", {NumpyNetwork, TorchNetwork}),
        (large, "int8", {NumpyNetwork, TorchNetwork}),
    ):
        assert {type(network) for network in by_speed(spec, parameters(spec), weights)} == kinds


@given(st.data())
def test_a_safe_action_is_in_its_space_and_under_its_mask(data: st.DataObject):
    spec = data.draw(policy_specs())
    masks = data.draw(questions(spec, 1))["masks"]
    action = safe_action(spec, None if masks is None else masks[0])
    assert action.shape == spec.action.shape
    assert action.dtype == spec.action.dtype
    for i, part in enumerate(components(spec.action)):
        chosen = int(action.reshape(-1)[i]) - int(np.resize(spec.action.start, spec.action.size)[i])
        assert chosen == (0 if masks is None else int(masks[0, part].argmax()))


@pytest.mark.parametrize(
    ("low", "high", "middle"),
    [
        (-2.0, 6.0, 2.0),
        (-inf, inf, 0.0),
        (3.0, inf, 3.0),
        (-inf, -3.0, -3.0),
        (-3e38, 3e38, 0.0),
        (-1.0, inf, 0.0),
    ],
)
def test_a_safe_box_action_is_in_the_middle_or_nearest_to_0(low: float, high: float, middle: float):
    spec = PolicySpec(observation=PLANE, action=SpaceSpec(kind="Box", shape=(2,), low=low, high=high))
    assert safe_action(spec).tolist() == [middle, middle]


def test_a_safe_action_needs_a_mask_that_allows_one():
    with pytest.raises(ValueError, match="allows no action"):
        safe_action(CARTPOLE, np.zeros(2, bool))
    box = CARTPOLE.model_copy(update={"action": SpaceSpec(kind="Box", shape=(1,), low=0.0, high=1.0)})
    with pytest.raises(ValueError, match="takes no mask"):
        safe_action(box, np.ones(1, bool))


@pytest.mark.parametrize("change", ["policy.0.bias", "surprise", "value.2.weight"])
def test_parameters_that_do_not_fit_are_named(change: str):
    values = {**parameters(CARTPOLE), change: np.zeros(99, np.float32)}
    with pytest.raises(ValueError, match=rf"spec: {change} is \(99,\), not"):
        ServedPolicy.of("", CARTPOLE, values)
