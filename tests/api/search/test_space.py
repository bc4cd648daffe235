"""The marks of a recipe: what they mean, and one message for each that means nothing."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from ckptsurgeon.errors import ConfigError
from ckptsurgeon.planning.search.picture import scores_svg
from ckptsurgeon.planning.search.result import Trial
from ckptsurgeon.planning.search.space import Parameter, search_space


def test_marks_are_found_and_filled_wherever_they_are() -> None:
    document = {
        "merge_method": {"choice": ["ties", "dare_ties"]},
        "models": [{"model": "a", "parameters": {"weight": [{"value": {"search": [0, 1]}}, {"value": 0.5}]}}],
        "parameters": {"density": {"search": [0.01, 1], "log": True}, "k": {"search": [1, 8], "whole": True}},
    }
    space = search_space(document, "r.yaml")
    assert [one.name for one in space.parameters] == [
        "merge_method", "models[0].parameters.weight[0].value", "parameters.density", "parameters.k",
    ]  # fmt: skip
    low, high = (space.filled(space.at({one.name: share for one in space.parameters})) for share in (0.0, 1.0))
    assert low["merge_method"] == "ties"
    assert high["merge_method"] == "dare_ties"
    assert low["models"][0]["parameters"]["weight"] == [{"value": 0.0}, {"value": 0.5}]
    assert low["parameters"] == {"density": pytest.approx(0.01), "k": 1}
    assert high["parameters"] == {"density": pytest.approx(1.0), "k": 8}
    assert document["models"][0]["parameters"]["weight"][0] == {"value": {"search": [0, 1]}}  # as it was


def test_a_logarithmic_range_is_even_in_its_logarithm_and_a_whole_one_in_its_numbers() -> None:
    assert Parameter("p", 0.01, 1, log=True).at(0.5) == pytest.approx(0.1)
    whole = Parameter("p", 1, 4, whole=True)
    assert [whole.at(share) for share in (0, 0.2, 0.3, 0.6, 0.8, 1)] == [1, 1, 2, 3, 4, 4]
    assert all(type(whole.at(share / 7)) is int for share in range(8))


def test_marks_with_one_name_are_one_parameter() -> None:
    mark = {"search": [0, 1], "name": "density"}
    space = search_space({"a": mark, "b": [dict(mark)]}, "r.yaml")
    assert [one.name for one in space.parameters] == ["density"]
    assert space.filled({"density": 0.25}) == {"a": 0.25, "b": [0.25]}
    with pytest.raises(ConfigError, match="the range 0 to 1 in one place, and 0 to 2 in another"):
        search_space({"a": mark, "b": {**mark, "search": [0, 2]}}, "r.yaml")


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"search": [1, 1]}, "the range [1, 1] is empty."),
        ({"search": [1, 0]}, "the range [1, 0] is empty."),
        ({"search": []}, "search is [], not a range."),
        ({"search": [0, 1, 2]}, "search is [0, 1, 2], not a range."),
        ({"search": 0.5}, "search is 0.5, not a range."),
        ({"search": [0, float("inf")]}, "not a range."),
        ({"search": [0, float("nan")]}, "not a range."),
        ({"search": [False, True]}, "not a range."),
        ({"search": [0, 10**400]}, "not a range."),
        ({"search": [0, 1], "log": True}, "log is not possible with a range that begins at 0."),
        ({"search": [1, 8], "log": True, "whole": True}, "log is not possible with whole numbers."),
        ({"search": [0.5, 8], "whole": True}, "the bounds of the range [0.5, 8] are not whole numbers."),
        ({"search": [0, 1], "log": "yes"}, "log is 'yes', not true or false."),
        ({"search": [0, 1], "lg": True}, "a parameter to search has no field 'lg'."),
        ({"search": [0, 1], "name": 3}, "the name of the parameter is 3, not a string with a character."),
        ({"search": [0, 1], "choice": ["a", "b"]}, "a parameter has either search or choice, not both."),
        ({"choice": []}, "choice has nothing to choose from: []."),
        ({"choice": ["a"]}, "choice has nothing to choose from: ['a']."),
        ({"choice": ["a", "a"]}, "choice has the same value twice: ['a', 'a']."),
        ({"choice": "ab"}, "choice is 'ab', not a list of strings, numbers, true or false."),
        ({"choice": ["a", ["b"]]}, "not a list of strings, numbers, true or false."),
        ({"choice": ["a", "b"], "whole": True}, "the field whole applies only to search, not to choice."),
    ],
)
def test_a_mark_that_means_nothing_is_an_error_with_its_place(mark: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        search_space({"models": [{"weight": mark}]}, "r.yaml")
    assert error.value.message.startswith("r.yaml: models[0].weight: ")
    assert error.value.message.endswith(message)


def test_a_recipe_without_marks_has_nothing_to_search() -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml has no parameter to search\."):
        search_space({"models": [{"weight": 0.5}]}, "r.yaml")


def test_the_picture_has_a_point_a_trial_and_rings_the_best() -> None:
    trials = [Trial(1, {}, "done", 0.5), Trial(2, {}, "failed", None, "why"), Trial(3, {}, "done", 0.25)]
    drawn = scores_svg(trials, maximize=False, title="a < b")
    assert drawn.count('r="3"') == 2
    assert drawn.count("×") == 1
    assert "a &lt; b" in drawn
    (ring,) = [line for line in drawn.splitlines() if 'r="6"' in line]
    (last,) = [line for line in drawn.splitlines() if 'r="3"' in line][1:]
    assert ring.split(" r=")[0] == last.split(" r=")[0]
    for found in (trials, trials[1:2], []):
        assert fromstring(scores_svg(found, maximize=True, title="<&>")).tag.endswith("svg")
    assert scores_svg([Trial(1, {}, "done", 0.0)], maximize=True, title="one").count('r="3"') == 1
