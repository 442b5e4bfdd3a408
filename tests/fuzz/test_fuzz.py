"""Hostile messages by the thousand at live services, the same ones in every run."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.adapters.media import decode_input
from agent.errors import InputError, WireError
from agent.wire import messages as wire
from agent.wire.calibration import decode_probes
from agent.wire.manifest import Manifest, decode_manifest
from agent.wire.program import decode_program
from agent.wire.tensors import decode_tensor
from agent.wire.topics import Kind
from tests.fuzz.attack import SHOTS, Attack
from tests.fuzz.mutate import HEADS, bombs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = 40
SEEDS = st.lists(st.integers(0, 2**32), min_size=SHOTS, max_size=SHOTS)
QUICK: Any = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
KINDS = (wire.Control, wire.Status, wire.PlanHeader, wire.Trace, wire.Answer, wire.AnswerKey)
DECODERS: tuple[Callable[[bytes], object], ...] = (
    *(lambda content, kind=kind: wire.decode_json(content, kind) for kind in KINDS),
    *(lambda content, kind=kind: wire.decode_msgpack(content, kind) for kind in KINDS),
    lambda content: wire.decode_msgpack(content, wire.Peer),
    lambda content: wire.decode_msgpack(content, wire.Chunk),
    wire.decode_answer,
    decode_program,
    decode_probes,
    decode_manifest,
    decode_tensor,
)


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    with Attack(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


def test_every_kind_of_message_is_damaged(attack: Attack) -> None:
    tags = {kind.__struct_config__.tag for kind in get_args(wire.Control | wire.Peer)}
    plain = {kind.value for kind in Kind} - {"inbox", "halo"}
    assert attack.kinds == tags | plain


@settings(max_examples=EXAMPLES, **QUICK)
@given(SEEDS)
def test_no_message_harms_a_fleet(attack: Attack, seeds: list[int]) -> None:
    for seed in seeds:
        attack.shoot(Random(seed))
    attack.check_serves()
    attack.check_answered()


@settings(max_examples=200, **QUICK)
@given(st.binary(max_size=200), st.sampled_from((b"", *HEADS)), st.sampled_from(DECODERS))
def test_decoders_refuse_bytes(
    content: bytes, head: bytes, decode: Callable[[bytes], object]
) -> None:
    # Anything else that is raised would end up as an error in an agent's log.
    with suppress(WireError):
        decode(head + content)


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_as_an_input(name: str) -> None:
    with pytest.raises(InputError):
        decode_input(bombs()[name], Manifest(task="tensor"), (1, 3, 224, 224), "float32", None)
