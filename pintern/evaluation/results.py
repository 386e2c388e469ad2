"""When two query results are the same: rows, columns and floats.

Rows are a list if order matters, else a multiset. Columns are the gold query's, in its order or in
one other order that holds for every row: a question seldom says which column comes first. Floats
are equal to one part in a million, since sums and averages depend on the order of adding; text,
bytes and integers are equal exactly, and NULL equals NULL only.
"""

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

Row = tuple[object, ...]

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9
# Orders of columns grow as the factorial: beyond this width only the gold query's counts.
MAX_PERMUTED_COLUMNS = 6


def same_rows(predicted: Sequence[Row], gold: Sequence[Row], *, ordered: bool) -> bool:
    """Whether two results of equal width are the same, by the rules above."""
    if len(predicted) != len(gold):
        return False
    if not gold:
        return True
    if len(predicted[0]) != len(gold[0]):
        return False
    snap = _snapper(value for row in gold for value in row)
    gold = [tuple(map(snap, row)) for row in gold]
    predicted = [tuple(map(snap, row)) for row in predicted]
    collect = list if ordered else Counter
    expected = collect(gold)
    return any(
        collect(tuple(row[column] for column in order) for row in predicted) == expected
        for order in _column_orders(predicted, gold, collect)
    )


def _snapper(values: Iterable[object]) -> Callable[[object], object]:
    """A function that moves numbers within tolerance of a gold one onto it.

    Comparison is then exact equality, so that rows can be counted. Near floats among the gold ones
    become one value; two integers never do, however large.
    """
    numbers = sorted({value for value in values if isinstance(value, int | float)})
    onto = list(numbers)
    for index in range(1, len(numbers)):
        if isinstance(numbers[index], float) and isinstance(onto[index - 1], float):
            onto[index] = onto[index - 1] if _near(numbers[index], onto[index - 1]) else onto[index]
    moved = dict(zip(numbers, onto, strict=True))

    def snap(value: object) -> object:
        if not isinstance(value, int | float):
            return value
        if value in moved:
            return moved[value]
        index = bisect.bisect(numbers, value)
        near = [
            number
            for number in numbers[max(index - 1, 0) : index + 1]
            if isinstance(value, float) or isinstance(number, float)
            if _near(value, number)
        ]
        return moved[min(near, key=lambda number: abs(number - value))] if near else value

    return snap


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


def _column_orders(
    predicted: Sequence[Row],
    gold: Sequence[Row],
    collect: Callable[[Iterable[object]], object],
) -> Iterator[tuple[int, ...]]:
    """Orders of the predicted columns in which each column by itself equals the gold one."""
    width = len(gold[0])
    yield tuple(range(width))
    if width > MAX_PERMUTED_COLUMNS:
        return
    columns = [collect(row[column] for row in predicted) for column in range(width)]
    wanted = [collect(row[column] for row in gold) for column in range(width)]
    candidates = [
        [column for column in range(width) if columns[column] == target] for target in wanted
    ]
    for order in itertools.product(*candidates):
        if len(set(order)) == width and order != tuple(range(width)):
            yield order
