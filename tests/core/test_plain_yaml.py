"""A number in YAML is the number that a reader sees, or it is refused."""

import pytest
import yaml

from rqlib.core import plain_yaml


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-3",
        "1.5",
        "[1, 2]",
        "a: 1\nb: [x, null]",
        "true",
        "0x10",
        "'010'",
        "1_000",
        "0.5",
        "2020-01-01",
        "",
        "007a",
    ],
)
def test_it_reads_what_yaml_reads(text):
    assert plain_yaml.load(text) == yaml.safe_load(text)


@pytest.mark.parametrize("value", [1e-05, 3, "1e-3", "010", "1:30", "no", "", "ü {x} $(y)", [0.5, "a"], None, True])
def test_what_it_writes_it_reads(value):
    assert plain_yaml.load(plain_yaml.dump({"b": value, "a": value})) == {"b": value, "a": value}


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("-2E5", -2e5), ("[1.e2]", [100.0])])
def test_powers_of_ten_are_numbers(text, value):
    assert plain_yaml.load(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("010", "expected a plain number, got 010, which YAML reads as 8; write 10"),
        ("-007", "got -007, which YAML reads as -7; write -7"),
        ("seeds: [0, 017]", "got 017, which YAML reads as 15; write 17"),
        ("1:30", "got 1:30, which YAML reads as 90; write '1:30'"),
        ("-1:30.5", "got -1:30.5, which YAML reads as -90.5"),
        ("[1", "expected YAML, got .*expected ',' or ']'"),
        ("!!python/object/apply:os.getcwd []", "expected YAML, got could not determine a constructor"),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        plain_yaml.load(text)
