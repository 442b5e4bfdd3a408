"""What a user asks a drill to do."""

from __future__ import annotations

import pytest

from agent.drill.course import At, read_faults, read_points
from agent.errors import ConfigError


def test_lists_are_read_in_their_order() -> None:
    assert read_faults("drop, die") == ("drop", "die")
    assert read_points("received,step:3,step,sent") == (
        At("received"),
        At("step", 3),
        At("step", 1),
        At("sent"),
    )
    assert [str(point) for point in read_points("answer,step:3")] == ["answer", "step:3"]


@pytest.mark.parametrize("text", ["", "explode", "die,,drop"])
def test_an_unknown_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give one of die, freeze, drop"):
        read_faults(text)


@pytest.mark.parametrize("text", ["later", "sent:1", "step:0", "step:x", "step:", "step:-1"])
def test_an_unknown_point_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--point"):
        read_points(text)
