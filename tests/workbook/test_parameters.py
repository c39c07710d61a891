"""Faults in parameters: each found, all said in one line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqlib.workbook import parameters
from rqlib.workbook.parameters import ParameterError

CELL = """
epochs: int = 30  # passes over the data
rate: float = 0.1  # learning rate
recipe: str = "quick"  # how to train
ema: bool = False  # average the weights
seeds: list[int] = [0, 1]  # seeds
epsilons_255: list[float] = [0.0, 8.0]  # attack radii, in 1/255
formats: list[str] = ["INT_8"]  # formats
limit: int | None = None  # number of images
"""
TYPES = {
    "epochs": "int",
    "rate": "float",
    "recipe": "str",
    "ema": "bool",
    "seeds": "list[int]",
    "epsilons_255": "list[float]",
    "formats": "list[str]",
    "limit": "int | None",
}


def notebook(cell: str, *injected: str) -> dict:
    """The namespace of a notebook after its parameters cell and the cells papermill injected."""
    namespace = {}
    for source in (cell, *injected):
        exec(source, namespace)
    return namespace | {"In": ["", cell, *injected, "run = ..."]}


def test_types_are_the_same_from_the_kernel_and_from_the_file():
    assert parameters.declared(notebook(CELL)) == TYPES
    assert parameters.declared_in(CELL) == TYPES
    assert parameters.declared_in("seeds: 'list[int]' = [0]") == {"seeds": "list[int]"}


def test_defaults_and_injected_values():
    found = parameters.from_namespace(notebook(CELL, "# Parameters\nepochs = 3\nrate = 1\n"))
    assert found["epochs"] == 3
    assert type(found["rate"]) is float
    assert list(found) == list(TYPES)


def test_only_the_last_injected_cell_counts():
    mistake, corrected = "# Parameters\nepocs = 3\n", "# Parameters\nepochs = 3\n"
    assert parameters.from_namespace(notebook(CELL, mistake, corrected))["epochs"] == 3
    assert parameters.injected(["", "x = 1", "a = 1\n# Parameters\n"]) == []


def test_all_faults_in_one_line():
    injected = "# Parameters\nepocs = 3\nrate = 'fast'\nseeds = [0.5, 1.5]\nema = 1\nepochs = -1\n"
    with pytest.raises(ParameterError) as caught:
        parameters.from_namespace(notebook(CELL + "\nsteps: int  # of the attack", injected))
    assert str(caught.value) == (
        "epochs=-1: expected greater than or equal to 0; "
        "rate='fast': expected float, got str; "
        "ema=1: expected bool, got int; "
        "seeds=[0.5, 1.5]: expected list[int], got list; "
        "write seeds: [..., ...] (papermill: -y 'seeds: [..., ...]'); "
        "missing parameter 'steps'; "
        "unknown parameter 'epocs' (did you mean 'epochs'?)"
    )


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("rate", 8, 8.0),
        ("rate", "1e-3", 0.001),
        ("epsilons_255", [0, "2.5", 8.0], [0.0, 2.5, 8.0]),
        ("seeds", (1, 2), [1, 2]),
        ("limit", None, None),
        ("limit", 5, 5),
        ("recipe", "", ""),
        ("formats", [], []),
    ],
)
def test_conversions(name, given, expected):
    found = parameters.check({name: given}, TYPES)[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("zzz", 1, r"unknown parameter 'zzz' \(known: epochs, rate, .*limit\)"),
        (7, 1, r"unknown parameter 7 \(known: "),
        ("epochs", True, "epochs=True: expected int, got bool"),
        ("epochs", 3.0, "epochs=3.0: expected int, got float"),
        ("epochs", "1e3", "epochs='1e3': expected int, got str"),
        ("epochs", None, "epochs=None: expected int, got NoneType"),
        ("rate", True, "rate=True: expected float, got bool"),
        ("rate", "", "rate='': expected float, got str"),
        ("ema", "yes", "ema='yes': expected bool, got str"),
        ("recipe", 5, r"recipe=5: expected str, got int; write it in quotes \(papermill: -r recipe"),
        ("seeds", "[0, 1]", r"expected list\[int\], got str; write seeds: .*papermill: -y"),
        ("seeds", [0, 0.5], r"seeds=\[0, 0.5\]: expected list\[int\]"),
        ("seeds", [True], r"seeds=\[True\]: expected list\[int\]"),
        ("formats", ["INT_8", 8], r"expected list\[str\]"),
        ("limit", "5", r"limit='5': expected int \| None, got str"),
        ("rate", math.nan, "rate=nan: expected a finite number"),
        ("rate", "inf", "rate='inf': expected a finite number"),
        ("epsilons_255", [0.0, math.inf], "expected a finite number"),
        ("epsilons_255", [0.0, 256.0], r"epsilons_255=\[0.0, 256.0\]: expected less than or equal to 255"),
        ("seeds", [-1], "expected greater than or equal to 0"),
    ],
)
def test_wrong_name_type_or_range(name, wrong, message):
    with pytest.raises(ParameterError, match=message):
        parameters.check({name: wrong}, TYPES)


@pytest.mark.parametrize("annotation", ["dict", "Optional[int]", "list[bytes]", "list[int", "int | str", "Tensor"])
def test_other_types_are_refused(annotation):
    with pytest.raises(ParameterError, match="annotation of 'x': expected int, float"):
        parameters.check({"x": 1}, {"x": annotation})


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("steps", 1, 0),
        ("attack_steps", 1, 0),
        ("batch_size", 1, 0),
        ("bits", 2, 0),
        ("seed", 0, -1),
        ("sigma", 0.0, -0.1),
        ("learning_rate", 0.1, 0.0),
        ("width", 0.25, 0.0),
        ("epsilon_255", 0.0, -1.0),
        ("step_size_255", 255.0, 300.0),
        ("kept", 1.0, 0.0),
        ("kept", 0.01, 1.1),
        ("fraction", 0.0, 1.5),
        ("alpha", 0.001, 0.0),
        ("alpha", 0.999, 1.0),
    ],
)
def test_ranges(name, inside, outside):
    kind = type(inside).__name__
    for types, of in (
        ({name: kind}, lambda value: value),
        ({name: f"list[{kind}]"}, lambda value: [value]),
        ({name: f"{kind} | None"}, lambda value: value),
    ):
        assert parameters.check({name: of(inside)}, types) == {name: of(inside)}
        with pytest.raises(ParameterError, match=f"^{name}=.*: expected (greater|less) than"):
            parameters.check({name: of(outside)}, types)


def test_ranges_do_not_touch_texts():
    assert parameters.check({"images": "folder"}, {"images": "str"}) == {"images": "folder"}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_written_as_text_is_the_same_float(value):
    assert parameters.check({"rate": repr(value)}, TYPES) == {"rate": value}


@given(st.sampled_from(["epochs", "limit", "seeds"]), st.integers() | st.text() | st.none() | st.booleans())
def test_whatever_comes_for_an_integer_is_one_or_is_refused(name, value):
    whole = type(value) is int and (name == "limit" or (name == "epochs" and value >= 0))
    if whole or (name == "limit" and value is None):
        assert parameters.check({name: value}, TYPES) == {name: value}
    else:
        with pytest.raises(ParameterError, match=f"^{name}="):
            parameters.check({name: value}, TYPES)
