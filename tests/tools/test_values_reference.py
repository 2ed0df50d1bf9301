from __future__ import annotations

import pytest

from tools.generate.values_reference import CHART, Value, documented_values, render


def test_the_comment_above_a_value_is_its_description() -> None:
    text = """
# Says how many. It goes on
# in a second line.
count: 2

# Another one.
name: ""
"""

    assert documented_values(text) == [
        Value(path="count", default=2, description="Says how many. It goes on in a second line."),
        Value(path="name", default="", description="Another one."),
    ]


def test_a_mapping_without_a_comment_is_entered() -> None:
    text = """
image:
  # Where it is.
  repository: a/b
"""

    assert documented_values(text) == [
        Value(path="image.repository", default="a/b", description="Where it is.")
    ]


def test_a_mapping_with_a_comment_is_one_value() -> None:
    text = """
# What it may use.
resources:
  limits: {memory: 1Gi}
"""

    assert documented_values(text) == [
        Value(
            path="resources",
            default={"limits": {"memory": "1Gi"}},
            description="What it may use.",
        )
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a:\n  b: 1\n", id="a value"),
        pytest.param("a:\n  b: {}\n", id="an empty mapping"),
        pytest.param("# Of the file.\n\na:\n  b: []\n", id="below a comment of something else"),
    ],
)
def test_a_value_without_a_comment_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"the value a\.b has no comment"):
        documented_values(text)


def test_the_readme_lists_every_value_of_the_chart() -> None:
    values = documented_values((CHART / "values.yaml").read_text())
    readme = render()

    assert len(values) > 30
    for value in values:
        assert f"| `{value.path}` |" in readme
