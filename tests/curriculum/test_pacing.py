import numpy as np
import pytest

from keras_cdiff.curriculum.pacing import FixedPacing, PatiencePacing

pytestmark = pytest.mark.backend_free

STREAMS = [
    "decay_noise0.01",
    "decay_noise0.1",
    "decay_noise0.001",
    "plateau_const",
    "spike",
    "with_nan",
]
NAN, INF = float("nan"), float("inf")


def stage_ends(pacing, losses, iterations=1):
    return [i for i, loss in enumerate(losses) if pacing.update(loss, iterations)]


# Patience


@pytest.mark.parametrize("num_stages", [3, 20])
@pytest.mark.parametrize("patience", [5, 50, 200])
@pytest.mark.parametrize("stream", STREAMS)
def test_patience_matches_golden(golden, stream, patience, num_stages):
    data = golden("pacing")
    key = f"out/{stream}/tau{patience}_N{num_stages}"
    ends = stage_ends(PatiencePacing(patience), data[f"in/{stream}"])
    assert ends[: num_stages - 1] == data[key].tolist()
    assert ends[:num_stages] == data[f"{key}_lastcounts"].tolist()


def test_rule_by_hand():
    pacing = PatiencePacing(2)
    #         improves, equal, improves, worse, worse, worse: 3 > 2, next stage starts anywhere
    losses = [1.0, 1.0, 0.5, 0.6, 0.7, 0.5, 9.0, 8.0]
    assert stage_ends(pacing, losses) == [5]
    assert pacing.state == (8.0, 0.0, 8.0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e39, -1e39])
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_losses_that_are_not_finite_only_count(bad, smoothing):
    pacing = PatiencePacing(3, smoothing=smoothing)
    pacing.update(1.0)
    assert not pacing.update(bad)
    assert pacing.state == (1.0, 1.0, 1.0)
    pacing.update(0.5)
    assert pacing.state[0] < 1.0
    assert pacing.state[1] == 0.0


def test_stage_without_any_finite_loss_ends():
    pacing = PatiencePacing(3)
    assert stage_ends(pacing, [NAN, INF, NAN, NAN, 1.0]) == [3]
    assert pacing.reason == "no finite loss in 4 iterations"


def test_reason_names_the_best_loss():
    pacing = PatiencePacing(200)
    assert pacing.reason is None
    assert stage_ends(pacing, [0.0213] + 201 * [0.03]) == [201]
    assert pacing.reason == "no improvement on 0.0213 for 201 iterations"


def test_min_delta_asks_for_more_than_any_improvement():
    falling = np.linspace(1.0, 0.9, 100)
    assert stage_ends(PatiencePacing(5), falling) == []
    assert stage_ends(PatiencePacing(5, min_delta=1.0), falling) == list(range(6, 100, 7))
    # The counter is measured against the best, so slow progress adds up to an improvement.
    assert stage_ends(PatiencePacing(20, min_delta=0.01), falling) == []


def test_comparison_is_in_float32():
    pacing = PatiencePacing(10)
    pacing.update(1.0)
    pacing.update(1.0 - 1e-9)
    assert pacing.state == (1.0, 1.0, 1.0)


def test_smoothing_is_an_exponential_average_from_the_first_loss():
    pacing = PatiencePacing(100, smoothing=0.75)
    losses = [2.0, 1.0, NAN, 3.0, 0.5]
    expected = [2.0, 1.75, 1.75, 2.0625, 1.671875]
    for loss, smoothed in zip(losses, expected, strict=True):
        pacing.update(loss)
        assert pacing.state[2] == smoothed
    assert pacing.state[0] == 1.671875


def test_every_stage_smooths_from_its_own_first_loss():
    pacing = PatiencePacing(1, smoothing=0.9)
    assert stage_ends(pacing, [1.0, 2.0, 2.0]) == [2]
    pacing.update(50.0)
    assert pacing.state == (50.0, 0.0, 50.0)


def test_smoothing_sees_through_noise():
    random = np.random.default_rng(0)
    losses = np.linspace(1.0, 0.0, 2000) + random.normal(0.0, 0.3, 2000)
    plain = stage_ends(PatiencePacing(50), losses)
    smooth = stage_ends(PatiencePacing(50, smoothing=0.98), losses)
    assert len(smooth) < len(plain) / 2


@pytest.mark.parametrize("patience", [50, 200])
def test_stationary_noise_ends_a_stage_after_about_1_8_patience(patience):
    random = np.random.default_rng(1)
    num_iterations = 400 * patience
    ends = stage_ends(PatiencePacing(patience), random.random(num_iterations, dtype=np.float32))
    assert 1.6 < num_iterations / patience / len(ends) < 2.0


def test_a_loss_may_stand_for_several_iterations():
    pacing = PatiencePacing(9)
    # One improvement, then 4 + 4 + 4 > 9 iterations without.
    assert stage_ends(pacing, [1.0, 1.0, 1.0, 1.0], iterations=4) == [3]
    assert pacing.reason == "no improvement on 1 for 12 iterations"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": 0}, "`patience`.*Received: patience=0"),
        ({"patience": -5}, "`patience`.*Received: patience=-5"),
        ({"patience": 2.5}, r"`patience`.*Received: patience=2\.5"),
        ({"patience": True}, "`patience`.*Received: patience=True"),
        ({"patience": 2**24}, "`patience`.*Received: patience=16777216"),
        ({"min_delta": -0.1}, r"`min_delta`.*Received: min_delta=-0\.1"),
        ({"min_delta": NAN}, "`min_delta`.*Received: min_delta=nan"),
        ({"min_delta": INF}, "`min_delta`.*Received: min_delta=inf"),
        ({"smoothing": 1.0}, r"`smoothing`.*Received: smoothing=1\.0"),
        ({"smoothing": -0.1}, r"`smoothing`.*Received: smoothing=-0\.1"),
    ],
)
def test_bad_patience_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatiencePacing(**arguments)


# Fixed


def test_fixed_ends_every_so_many_iterations():
    pacing = FixedPacing(3)
    assert stage_ends(pacing, [1.0, NAN, 0.5, 2.0, INF, 0.1, 0.0]) == [2, 5]
    assert pacing.state[1] == 1.0
    assert pacing.reason == "its 3 iterations are done"


def test_fixed_ends_at_the_first_update_past_its_steps():
    assert stage_ends(FixedPacing(10), 8 * [1.0], iterations=4) == [2, 5]


@pytest.mark.parametrize("steps", [0, -1, 1.0, None, 2**24])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match=r"`steps`.*Received: steps="):
        FixedPacing(steps)


# What both share

PACINGS = [
    PatiencePacing(5),
    PatiencePacing(20, min_delta=0.003, smoothing=0.9),
    FixedPacing(17),
]


@pytest.mark.parametrize("pacing", PACINGS, ids=repr)
@pytest.mark.parametrize("cut", [0, 1, 7, 33, 100])
def test_restored_from_float32_goes_on_as_if_uninterrupted(pacing, cut):
    random = np.random.default_rng(2)
    losses = 1.0 / np.arange(1, 301) ** 0.3 + random.normal(0.0, 0.05, 300)
    losses[[10, 34, 101]] = NAN, INF, NAN

    def states(machine, losses):
        return [(machine.update(loss), machine.state) for loss in losses]

    uninterrupted = states(type(pacing).from_config(pacing.get_config()), losses)
    first = type(pacing).from_config(pacing.get_config())
    before = states(first, losses[:cut])
    weight = np.array(first.state, dtype=np.float32)
    second = type(pacing).from_config(pacing.get_config())
    second.set_state(weight)
    assert before + states(second, losses[cut:]) == uninterrupted
    assert any(ended for ended, _ in uninterrupted)


@pytest.mark.parametrize("pacing", PACINGS, ids=repr)
def test_state_is_three_numbers_and_reset_starts_afresh(pacing):
    machine = type(pacing).from_config(pacing.get_config())
    fresh = machine.state
    assert fresh == (INF, 0.0, INF)
    for loss in (1.0, 2.0, 0.7, 0.8):
        machine.update(loss)
    assert machine.state != fresh
    assert all(isinstance(number, float) for number in machine.state)
    machine.reset()
    assert machine.state == fresh


@pytest.mark.parametrize(
    "state", [(), (1.0, 2.0), (1.0, -1.0, 1.0), (1.0, 0.5, 1.0), (1.0, NAN, 1.0)]
)
def test_bad_state(state):
    with pytest.raises(ValueError, match=r"best, counter, smoothed.*Received: state="):
        PatiencePacing().set_state(state)


@pytest.mark.parametrize("iterations", [0, -1, 1.5, None])
def test_bad_iterations(iterations):
    with pytest.raises(ValueError, match=r"`iterations`.*Received: iterations="):
        FixedPacing(3).update(1.0, iterations)


def test_repr_is_the_constructor():
    assert repr(PatiencePacing(50)) == "PatiencePacing(patience=50, min_delta=0.0, smoothing=0.0)"
    assert repr(FixedPacing(7)) == "FixedPacing(steps=7)"
