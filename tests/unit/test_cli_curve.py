"""The return curve and the live picture, drawn without a terminal."""

from datetime import UTC, datetime
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ratchet.cli.curve import draw
from ratchet.cli.live import Watched, picture

FINITE = st.floats(-1e9, 1e9)
POINTS = st.lists(st.tuples(st.floats(0, 1e9), FINITE), max_size=50)


@given(POINTS, POINTS, st.none() | FINITE, st.integers(1, 120), st.integers(1, 20))
def test_a_curve_fills_exactly_its_box(line, marks, level, width, height):
    curve = draw(line, marks, level, width, height)

    assert len(curve.lines) == height
    assert {len(drawn) for drawn in curve.lines} == {width}


def test_a_rising_curve_goes_from_bottom_left_to_top_right():
    lines = draw([(0, 0), (10, 5)], [], width=10, height=4).lines

    assert lines[0][0] == " "
    assert lines[0][-1] != " "
    assert lines[-1][0] != " "
    assert lines[-1][-1] == " "


def test_evaluations_are_marks_and_the_target_is_a_level_above():
    lines = draw([(0, 0), (10, 5)], [(10, 5)], 10, width=10, height=4).lines

    assert lines[0] == "┄" * 10
    assert sum(line.count("●") for line in lines) == 1


def seen(steps: int, mean: float) -> dict[str, object]:
    return {
        "metadata": {"name": "cartpole"},
        "spec": {"stop": {"targetReturn": 475}},
        "status": {"progress": {"steps": steps, "meanReturn": mean, "stepsPerSecond": 4321.0}},
    }


def test_the_picture_fits_80_columns_and_tells_the_figures():
    watched = Watched()
    for step in range(10):
        watched.see(seen(1000 * step, 20.0 * step))
    console = Console(width=80, record=True, file=StringIO())

    console.print(picture(watched, datetime(2026, 1, 31, tzinfo=UTC), 80))

    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "steps 9,000" in text
    assert "target" in text


def test_the_curve_goes_back_with_the_steps_after_a_resume():
    watched = Watched()
    for steps in (1000, 2000, 3000, 1500):
        watched.see(seen(steps, 1.0))

    assert [steps for steps, _ in watched.returns] == [1000, 1500]
