"""Topics: what is written is read back, and nothing else is taken for a topic of the fleet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.topics import NAME, Address, Kind, Topics

TOPICS = Topics("home")
NAMES = st.from_regex(NAME, fullmatch=True)
DIGEST = "0123456789abcdef" * 4


@given(NAMES, NAMES, NAMES)
def test_every_topic_is_read_back(fleet: str, subject: str, request: str) -> None:
    topics = Topics(fleet)
    made = {
        topics.status(subject): Address(Kind.STATUS, subject),
        topics.inbox(subject): Address(Kind.INBOX, subject),
        topics.halo(subject): Address(Kind.HALO, subject),
        topics.echo(subject): Address(Kind.ECHO, subject),
        topics.beat(subject): Address(Kind.BEAT, subject),
        topics.plan(subject): Address(Kind.PLAN, subject),
        topics.infer(subject): Address(Kind.INFER, subject),
        topics.infer(subject, request): Address(Kind.INFER, subject, request),
        topics.infer(subject, request, tensors=True): Address(
            Kind.INFER, subject, request, tensors=True
        ),
        topics.result(subject, request): Address(Kind.RESULT, subject, request),
        topics.trace(subject, request): Address(Kind.TRACE, subject, request),
        topics.blob(DIGEST): Address(Kind.BLOB, DIGEST),
    }
    assert {topic: topics.parse(topic) for topic in made} == made


def test_topics_are_spelt_as_documented() -> None:
    assert TOPICS.status("pi-1") == "halomq/1/home/device/pi-1/status"
    assert TOPICS.halo("pi-1") == "halomq/1/home/device/pi-1/halo"
    assert TOPICS.plan("m") == "halomq/1/home/model/m/plan"
    assert TOPICS.infer("m") == "halomq/1/home/model/m/infer"
    assert TOPICS.infer("m", "r", tensors=True) == "halomq/1/home/model/m/infer/r/tensors"
    assert TOPICS.result("m", "r") == "halomq/1/home/model/m/result/r"
    assert TOPICS.blob(DIGEST) == f"halomq/1/home/blob/{DIGEST}"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "halomq/1/home",
        "halomq/1/home/",
        "halomq/1/other/device/pi-1/status",
        "halomq/1/homely/device/pi-1/status",
        "halomq/2/home/device/pi-1/status",
        "halomq/1/home/device",
        "halomq/1/home/device/pi-1",
        "halomq/1/home/device/pi-1/plan",
        "halomq/1/home/device/pi-1/status/more",
        "halomq/1/home/device//status",
        "halomq/1/home/device/+/status",
        "halomq/1/home/device/pi 1/status",
        "halomq/1/home/device/pi-1/status\n",
        "halomq/1/home/model/m",
        "halomq/1/home/model/m/status",
        "halomq/1/home/model/m/result",
        "halomq/1/home/model/m/trace",
        "halomq/1/home/model/m/infer/r/others",
        "halomq/1/home/model/m/infer/r/tensors/more",
        f"halomq/1/home/model/{'x' * 65}/plan",
        "halomq/1/home/blob/a/b",
        "halomq/1/home/blob/",
        "halomq/1/home/else/x",
    ],
)
def test_other_topics_are_none_of_the_fleet(topic: str) -> None:
    assert TOPICS.parse(topic) is None


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_ignored(rest: str) -> None:
    address = TOPICS.parse(f"{TOPICS.root}/{rest}")
    assert address is None or NAME.fullmatch(address.subject)
