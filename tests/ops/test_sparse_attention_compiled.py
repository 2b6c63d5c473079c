"""The sparse attention under torch.compile: the same numbers as without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.attention_problems import IMPLEMENTATIONS, Problem, random_problem, require_equal


@pytest.fixture(autouse=True)
def compiled_afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def varied_problems(has_position_key: bool) -> list[Problem]:
    """Return problems that differ in what changes from step to step: boxes, number of images, size of maps."""
    return [
        random_problem(has_position_key=has_position_key, seed=1),
        random_problem(has_position_key=has_position_key, seed=2),
        random_problem(has_position_key=has_position_key, seed=3, num_images=1, image_hw=(50, 120)),
    ]


def require_equal_when_compiled(name: str, has_position_key: bool, backend: str) -> None:
    attention = IMPLEMENTATIONS[name](4)
    compiled = torch.compile(attention.__call__, backend=backend)
    for problem in varied_problems(has_position_key):
        require_equal(problem.answer(compiled), problem.answer(attention))


both_families = pytest.mark.parametrize("has_position_key", [False, True], ids=["detr", "conditional"])


def test_captured_graphs_give_the_same_numbers_and_gradients():
    require_equal_when_compiled("fast", has_position_key=True, backend="aot_eager")


@pytest.mark.slow
@both_families
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_generated_code_gives_the_same_numbers_and_gradients(name, has_position_key):
    require_equal_when_compiled(name, has_position_key, "inductor")
