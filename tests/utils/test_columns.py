"""Values that a hand may have edited: each kind takes its own, and a row that is wrong is named by its line."""

import pytest

from staytrue.utils.columns import COUNT, LIST, NUMBER, OBJECT, TEXT, TRUTH, checked_rows, or_null, refuse_wrong

VALUES = {
    "null": None,
    "true": True,
    "0": 0,
    "-1": -1,
    "0.5": 0.5,
    "inf": float("inf"),
    "text": "x",
    "[]": [],
    "{}": {},
}


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (TEXT, {"text"}),
        (TRUTH, {"true"}),
        (NUMBER, {"0", "-1", "0.5"}),  # true is none, although Python's True is 1
        (COUNT, {"0"}),
        (OBJECT, {"{}"}),
        (LIST, {"[]"}),
        (or_null(COUNT), {"0", "null"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_kind_takes_its_own_values(kind, taken):
    assert {name for name, value in VALUES.items() if kind.has(value)} == taken


def test_a_value_of_another_kind_and_a_missing_key_are_named():
    refuse_wrong({"step": 1, "more": "x"}, {"step": COUNT, "loss": NUMBER}, ["step"])
    with pytest.raises(ValueError, match=r"^it has no 'loss'$"):
        refuse_wrong({"step": 1}, {"step": COUNT}, ["step", "loss"])
    with pytest.raises(ValueError, match=r"^row 2 has \"x{56}\.\.\. as 'step', not a whole number of at least 0$"):
        refuse_wrong({"step": "x" * 100}, {"step": COUNT}, what="row 2")


def test_a_wrong_row_is_named_by_its_line_in_the_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"step": 1}\n\n{"step": null}\n')
    with pytest.raises(ValueError, match=r"^row 3 has null as 'step', not a whole number of at least 0$"):
        checked_rows(file, {"step": COUNT})
    with pytest.raises(ValueError, match=r"^row 1 has no 'loss'$"):
        checked_rows(file, {}, ["loss"])
    assert checked_rows(file, {"step": or_null(COUNT)}) == [{"step": 1}, {"step": None}]
