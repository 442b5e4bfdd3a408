"""Requests over MQTT from anything: plain 3.1.1 tools, MQTT 5 clients, every kind of payload."""

from __future__ import annotations

import io
import subprocess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from agent.packaging import package_model
from agent.wire.messages import decode_answer
from agent.wire.tensors import encode_tensor
from tests.field.support import (
    V311,
    WAIT_S,
    Field,
    Reference,
    answers,
    frozen,
    npy,
    picture,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.field

PLAIN = ("-V", "mqttv311")
MAX_IN_FLIGHT = 16  # requests.max_in_flight as it is unless set
AT_ONCE = 40
PER_CLIENT = 30
WINDOW = 6


def new_id() -> str:
    """Return a request id that no other test uses."""
    return f"r-{uuid4().hex[:12]}"


def photo(size: int) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Return a JPEG of this height and width, and the pixels that it decodes to."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    waves = [128 + 110 * np.sin(9 * x + 5 * y * (band + 1) + band) for band in range(3)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), np.asarray(Image.open(buffer).convert("RGB"))


def test_mosquitto_pub_and_sub_are_all_that_is_needed(
    home: Field, vgg: Reference, tmp_path: Path
) -> None:
    jpeg, _ = photo(vgg.size)
    file = tmp_path / "cat.jpg"
    file.write_bytes(jpeg)
    name = new_id()
    address = ("-h", home.broker.host, "-p", str(home.broker.port))
    # -d says "Subscribed" once the broker has granted it, at once if stdout is kept by lines:
    # only then may the request go out.
    options = ("-d", "-C", "1", "-W", str(int(WAIT_S)), "-t", home.topics.result(vgg.name, name))
    waiting = subprocess.Popen(
        ["stdbuf", "-oL", "mosquitto_sub", *PLAIN, *address, *options], stdout=subprocess.PIPE
    )
    assert waiting.stdout is not None
    with waiting:
        assert any(b"Subscribed" in line for line in iter(waiting.stdout.readline, b""))
        topic = home.topics.infer(vgg.name, name)
        publish = ["mosquitto_pub", *PLAIN, *address, "-t", topic, "-f", str(file)]
        subprocess.run(publish, check=True, timeout=WAIT_S)
        lines = waiting.stdout.read().splitlines()
        assert waiting.wait(WAIT_S) == 0
    answer = decode_answer(next(line for line in lines if line.startswith(b"{")))
    assert answer.ok, answer.error
    assert answer.result == vgg.result(jpeg)


@pytest.mark.parametrize("tensors", [False, True])
def test_jpeg_png_npy_and_msgpack_of_one_picture_have_one_answer(
    home: Field, vgg: Reference, *, tensors: bool
) -> None:
    jpeg, pixels = photo(vgg.size)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    values = vgg.input_of(jpeg).whole()
    payloads = {
        "jpeg": jpeg,
        "png": png.getvalue(),
        "npy-pixels": npy(pixels),
        "msgpack-pixels": encode_tensor(pixels),
        "npy-values": npy(values),
        "msgpack-values": encode_tensor(values),
    }
    with home.client() as client:
        told = {
            kind: client.infer(vgg.name, payload, tensors=tensors)
            for kind, payload in payloads.items()
        }
    for kind, answer in told.items():
        assert answer.ok, (kind, answer.error)
        assert answer.outputs == told["jpeg"].outputs, kind
        assert answer.result == told["jpeg"].result, kind
    if tensors:
        vgg.check(told["jpeg"], jpeg)
    else:
        assert told["jpeg"].result == vgg.result(jpeg)


def test_tensors_are_asked_for_by_the_topic(home: Field, vgg: Reference) -> None:
    name = new_id()
    with home.mqtt(home.topics.result(vgg.name, name)) as user:
        user.publish(f"{home.topics.infer(vgg.name, name)}/tensors", picture(1))
        (message,) = user.wait_for(1)
    assert not message.payload.startswith(b"{")
    assert message.told("ContentType") == "application/msgpack"
    vgg.check(decode_answer(message.payload), picture(1))


def test_a_request_without_an_id_is_given_one(home: Field, vgg: Reference) -> None:
    with home.mqtt(home.topics.result(vgg.name, "+"), protocol=V311) as user:
        user.publish(home.topics.infer(vgg.name), picture(2))
        (message,) = user.wait_for(1)
        answer = decode_answer(message.payload)
        assert answer.request == message.request
        assert answer.result == vgg.result(picture(2))


def test_an_mqtt_5_client_gets_its_answer_where_it_wants_it(home: Field, vgg: Reference) -> None:
    mine = f"{home.topics.root}/device/{new_id()}/response/1"
    correlation = bytes(range(7))
    with home.mqtt(mine, home.topics.result(vgg.name, "+")) as user:
        user.publish(
            home.topics.infer(vgg.name),
            picture(3),
            ResponseTopic=mine,
            CorrelationData=correlation,
            ContentType="application/x-npy",
        )
        told = user.wait_for(2)
    for message in told:
        assert message.told("CorrelationData") == correlation
        assert message.told("ContentType") == "application/json"
        assert decode_answer(message.payload).result == vgg.result(picture(3))
    assert {message.topic == mine for message in told} == {True, False}


@pytest.mark.parametrize("same", [True, False], ids=["same picture", "another picture"])
def test_an_id_that_is_used_twice_is_answered_twice(
    home: Field, vgg: Reference, *, same: bool
) -> None:
    name = new_id()
    payloads = [picture(4), picture(4 if same else 5)]
    with home.mqtt(home.topics.result(vgg.name, name)) as user:
        for number, payload in enumerate(payloads, 1):
            user.publish(home.topics.infer(vgg.name, name), payload)
            user.wait_for(number)
    told = answers(user.messages)[name]
    assert [answer.result for answer in told] == [vgg.result(payload) for payload in payloads]


def test_two_clients_at_once_get_each_its_own_answers(home: Field, vgg: Reference) -> None:
    payloads: dict[str, bytes] = {}
    with (
        home.mqtt(home.topics.result(vgg.name, "+")) as first,
        home.mqtt(home.topics.result(vgg.name, "+")) as second,
    ):
        for number in range(PER_CLIENT):
            for user in (first, second):
                name = new_id()
                payloads[name] = picture(100 + len(payloads))
                topic = home.topics.infer(vgg.name, name, tensors=True)
                user.publish(topic, payloads[name])
            first.wait_for(2 * (number - WINDOW))
        first.wait_for(2 * PER_CLIENT)
        # Its answer comes behind all others, a second one to any of them included.
        last = new_id()
        first.publish(home.topics.infer(vgg.name, last), picture(6))
        first.wait_for(1, last)
        second.wait_for(1, last)
    for user in (first, second):
        told = answers(user.messages)
        del told[last]
        assert told.keys() == payloads.keys()
        for name, (answer, *more) in told.items():
            assert not more, name
            vgg.check(answer, payloads[name])


def test_more_requests_than_fit_are_each_answered_once(home: Field, vgg: Reference) -> None:
    names = [new_id() for _ in range(AT_ONCE)]
    with home.mqtt(home.topics.result(vgg.name, "+")) as user:
        with frozen(home, *home.fleet.names):
            # So every agent finds all of them at once, more than max_in_flight (16).
            for name in names:
                user.publish(home.topics.infer(vgg.name, name), picture(7))
        user.wait_for(AT_ONCE)
        last = new_id()
        user.publish(home.topics.infer(vgg.name, last), picture(8))
        user.wait_for(1, last)
    told = answers(user.messages)
    assert told.pop(last)[0].result == vgg.result(picture(8))
    assert sorted(told) == sorted(names)
    served = 0
    for name, (answer, *more) in told.items():
        assert not more, name
        if answer.error is None:
            served += 1
            assert answer.result == vgg.result(picture(7))
        else:
            assert answer.error.code == "overloaded"
            assert "16 requests" in answer.error.text
    assert MAX_IN_FLIGHT <= served < AT_ONCE


def test_a_flood_takes_no_answers_from_a_polite_client(home: Field, vgg: Reference) -> None:
    flood = {f"flood-{number}" for number in range(8 * MAX_IN_FLIGHT)}
    with home.mqtt(home.topics.result(vgg.name, "+")) as user, home.client() as polite:
        for name in sorted(flood):
            user.publish(home.topics.infer(vgg.name, name), picture(7))
        for number in range(3):
            payload = picture(number)
            vgg.check(polite.infer(vgg.name, payload, tensors=True), payload)
        told = user.wait(
            lambda messages: found if (found := answers(messages)).keys() >= flood else {},
            "an answer for each of the flood",
        )
    codes = [told[name][0].error for name in flood]
    assert {len(told[name]) for name in flood} == {1}
    assert {error.code for error in codes if error is not None} == {"overloaded"}
    assert codes.count(None) >= MAX_IN_FLIGHT // 2


def test_a_request_that_expires_is_answered_with_an_error(home: Field, vgg: Reference) -> None:
    plan = home.plan(vgg.name)
    late, after = new_id(), new_id()
    with home.mqtt(home.topics.result(vgg.name, "+")) as user:
        # Without most of its devices a request cannot be finished, nor can it be told whether it is
        # they who are silent.
        with frozen(home, *plan.devices[1:]):
            user.publish(home.topics.infer(vgg.name, late), picture(9), MessageExpiryInterval=1)
            (message,) = user.wait_for(1, late)
        user.publish(home.topics.infer(vgg.name, after), picture(9))
        user.wait_for(1, after)
    answer = decode_answer(message.payload)
    assert answer.error is not None
    assert answer.error.code == "deadline"
    told = answers(user.messages)
    assert len(told[late]) == 1
    assert told[after][0].result == vgg.result(picture(9))


def test_a_retained_request_does_not_run_when_an_agent_comes(
    home: Field, defects: Reference
) -> None:
    again = package_model(defects.path, "retained")
    name, after = new_id(), new_id()
    topic = home.topics.infer("retained", name)
    with home.mqtt(home.topics.result("retained", "+")) as user, home.client() as client:
        user.publish(topic, picture(10), retain=True)
        try:
            # Its devices subscribe to the model's requests now, and find the retained one.
            client.deploy(again.package, again.blobs)
            user.publish(home.topics.infer("retained", after), picture(10))
            user.wait_for(1, after)
            for device in home.fleet.names:
                wait_until(
                    lambda: "a retained request" in home.log(device),  # noqa: B023
                    f"{device} to say why it refuses the request",
                )
            assert [message.request for message in user.messages] == [after]
        finally:
            user.publish(topic, b"", retain=True)
            client.remove("retained")
