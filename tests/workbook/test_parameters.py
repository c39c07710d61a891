"""Faults in parameters: each found, all said in one line."""

import math
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqlib.core import files
from rqlib.workbook import choices, parameters, run
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
        ("recipe", "fast", "fast"),
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
    whole = type(value) is int and (name == "limit" or (name == "epochs" and 0 <= value <= 10**6))
    if whole or (name == "limit" and value is None):
        assert parameters.check({name: value}, TYPES) == {name: value}
    else:
        with pytest.raises(ParameterError, match=f"^{name}="):
            parameters.check({name: value}, TYPES)


NOTEBOOKS = {path.stem: run.declared(path) for path in sorted((files.project_root() / "notebooks").glob("*.ipynb"))}


def of_all(name: str) -> list[str]:
    """The notebooks that have this parameter."""
    return [notebook for notebook, types in NOTEBOOKS.items() if name in types]


WRONG = [
    ("level", 0, "greater than 0"),
    ("level", 1.5, "less than 1"),
    ("tolerated_loss", 2, "less than or equal to 1"),
    ("prune_epochs", 0, "greater than or equal to 1"),
    ("pretrain_epochs", 0, "greater than or equal to 1"),
    ("ablation_epochs", [0], "greater than or equal to 1"),
    ("learning_rate", 1e9, "less than or equal to 1"),
    ("width", 1e6, "less than or equal to 16"),
    ("seed", 2**70, "less than or equal to 4294967295"),
    ("generator_seed", -1, "greater than or equal to 0"),
    ("test_images", 2**70, "less than or equal to 1000000000"),
    ("pseudo_images", 1, "greater than or equal to 10"),
    ("bits", 64, "less than or equal to 16"),
    ("budget_bits", 100, "less than or equal to 16"),
    ("budget_bits", 1, "greater than or equal to 2"),
    ("num_classes", 1, "greater than or equal to 2"),
    ("image_size", 10**9, "less than or equal to 4096"),
    ("kept", [], "at least one value, got none"),
    ("epsilons_255", [], "at least one value, got none"),
    ("sensitivity_formats", [], "at least one value, got none"),
    ("certified_255", [], "at least one value, got none"),
    ("certified_bounds", [], "at least one value, got none"),
    ("smoothing_draws", [], "at least one value, got none"),
    ("model", ":", "unknown model ':'"),
    ("model", "ResNet18", "unknown model 'ResNet18' .did you mean 'ResNet_18'"),
    ("network", "ResNet18", "unknown network 'ResNet18' .did you mean 'ResNet_18'"),
    ("network", "no/such.pt", "expected a checkpoint at no/such.pt, found no file; make it: run notebooks/01"),
    ("weights", "no/such.pt", "expected a file at no/such.pt, found no file"),
    ("compare", "no/such.pt", "expected a file at no/such.pt, found no file"),
    ("others", ["no/such.pt"], "expected a file at no/such.pt, found no file"),
    ("others", [""], "expected a file at , found no file"),
    ("table", "no/such.csv", "expected a table .* found none at .*no/such.csv"),
    ("pseudo", "no/such.csv", "expected a table .* found none at .*no/such.csv"),
    ("known", "no/such.csv", "expected a table .* found none at .*no/such.csv"),
    ("study", ["nobody*"], "expected finished runs with such names in .*01_train"),
    ("dataset", "digit", "unknown dataset 'digit' .did you mean 'digits'"),
    ("dataset", "imagefolder:no/such", "expected a folder or a .zip of images, found none of"),
    ("pixels", "0-1", "unknown pixels '0-1' .did you mean '0..1'"),
    ("pixels", "128,128,128/1,1,1", "expected means of pixels in"),
    ("recipe", "fastest", "unknown recipe 'fastest' .did you mean 'fast'"),
    ("objective", "foo", "unknown objective 'foo'"),
    ("prune_objective", "foo", "unknown objective 'foo'"),
    ("hidden_objectives", ["natural", "foo"], "unknown objective 'foo'"),
    ("activation", "DTReLU_9", "expected 1 to 8 bits"),
    ("activation", "DTReLU", "unknown activation 'DTReLU'"),
    ("weight_format", "LSQ_1", "expected 2 to 8 bits for LSQ"),
    ("penalty", "cosine+foo", "unknown penalty 'foo'"),
    ("formats", ["INT_8", "INT_64"], "bits must be 2..32"),
    ("robust_formats", ["INT8"], "unknown format 'INT8' .did you mean 'INT_8'"),
    ("repair_format", "", "unknown format ''"),
    ("export_format", "FP32", "unknown format 'FP32'"),
    ("granularity", "row", "unknown granularity 'row'"),
    ("ranges", "max", "unknown ranges 'max'"),
    ("nonnegative", "yes", "unknown nonnegative 'yes'"),
    ("bias", "none", "unknown bias 'none'"),
    ("source", "01_train", "unknown source '01_train'"),
    ("family", "rational_5", "unknown family 'rational_5' .did you mean 'rational_4'"),
    ("norm", "L7", "unknown norm 'L7'; known: Linf, L2|did you mean 'L2'"),
    ("structure", "rows", "unknown structure 'rows'"),
    ("methods", ["hydr"], "unknown method 'hydr' .did you mean 'hydra'"),
    ("certified_bounds", ["CROWN_IBP"], "unknown bound 'CROWN_IBP' .did you mean 'CROWN-IBP'"),
    ("joint_rivals", ["ATMC"], "unknown rival 'ATMC'"),
    ("joint_form", "long", "unknown form 'long'"),
    ("device", "meta", "expected device auto, cpu, cuda or cuda:N, got 'meta'"),
    ("precision", "float16", "unknown precision 'float16'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{name}={value}"[:40] for name, value, _ in WRONG])
def test_what_a_notebook_cannot_use_is_said_before_a_kernel_starts(name, value, message):
    assert of_all(name)
    for notebook in of_all(name):
        with pytest.raises(ParameterError, match=rf"^{name}=.*(expected )?({message})") as caught:
            parameters.check({name: value}, NOTEBOOKS[notebook])
        assert "\n" not in str(caught.value)


RIGHT = [
    ("deployed_images", 0),
    ("certified_images", None),
    ("formats", []),
    ("robust_formats", []),
    ("methods", []),
    ("hidden_objectives", []),
    ("joint_compressions", []),
    ("finetune_epochs", 0),
    ("epochs", 0),
    ("width", 0.0625),
    ("model", "torchvision:resnet18"),
    ("model", "package.module:function"),
    ("network", ""),
    ("network", "SmallCNN"),
    ("weights", ""),
    ("pixels", "0.49,0.48,0.45/0.25,0.24,0.26"),
    ("pixels", "0.1/0.3"),
    ("recipe", "none"),
    ("penalty", "cosine+spectral"),
    ("activation", "jacob_ema_4"),
    ("weight_format", "range_8"),
    ("device", "cuda:3"),
    ("known", "outputs/reference/nine_pseudo.csv"),
    ("others", []),
]


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_what_a_notebook_can_use_is_accepted(name, value):
    for notebook in of_all(name):
        assert parameters.check({name: value}, NOTEBOOKS[notebook]) == {name: value}


def test_every_text_has_a_check_or_may_say_anything():
    """A new parameter is either checked or listed here."""
    texts = {name for types in NOTEBOOKS.values() for name, kind in types.items() if "str" in kind}
    checked = {name for name in texts for _, patterns in choices.CHECKS if fnmatches(name, patterns)}
    assert texts - checked == {"options", "run_folder", "new_network", "group", "feature"}


def test_every_number_has_a_range():
    numbers = {name for types in NOTEBOOKS.values() for name, kind in types.items() if "int" in kind or "float" in kind}
    assert [name for name in numbers if not any(fnmatches(name, patterns) for _, patterns in parameters.LIMITS)] == []


def fnmatches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())
