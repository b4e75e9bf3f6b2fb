"""A return curve in braille: two by four dots in each character, one function, no terminal needed."""

from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]

# Bits of the dots of U+2800, by column and row from the top.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BLANK, MARK, LEVEL = 0x2800, "●", "┄"


@dataclass(frozen=True, slots=True)
class Curve:
    """A drawn curve: lines of equal width, and the scale that they were drawn to."""

    lines: tuple[str, ...]
    low: float
    high: float
    first: float
    last: float


def draw(
    line: list[Point], marks: list[Point], level: float | None = None, width: int = 60, height: int = 8
) -> Curve:
    """Draw a line of (x, y) with marks on it and a level across, into width x height characters."""
    points = [*line, *marks]
    if not points:
        return Curve((" " * width,) * height, 0.0, 0.0, 0.0, 0.0)
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + ([] if level is None else [level])
    first, last, low, high = min(xs), max(xs), min(ys), max(ys)

    def column(x: float) -> int:
        return round((x - first) / (last - first) * (2 * width - 1)) if last > first else 0

    def row(y: float) -> int:
        share = (y - low) / (high - low) if high > low else 0.5
        return round((1 - share) * (4 * height - 1))

    cells = [[BLANK] * width for _ in range(height)]

    def dot(x: int, y: int) -> None:
        cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]

    dots = [(column(x), row(y)) for x, y in sorted(line)]
    if len(dots) == 1:
        dot(*dots[0])
    for (x0, y0), (x1, y1) in pairwise(dots):
        reach = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(reach + 1):
            dot(x0 + round((x1 - x0) * step / reach), y0 + round((y1 - y0) * step / reach))

    text = [[chr(cell) if cell != BLANK else " " for cell in cells_of_row] for cells_of_row in cells]
    if level is not None:
        at = text[row(level) // 4]
        at[:] = [LEVEL if character == " " else character for character in at]
    for x, y in marks:
        text[row(y) // 4][column(x) // 2] = MARK
    return Curve(tuple("".join(characters) for characters in text), low, high, first, last)
