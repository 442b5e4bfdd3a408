"""A thin adapter to paho-mqtt: one connection that a caller's loop drives.

Rules of the file: paho's callbacks only append to `events`; nothing here blocks but `connect`
(a TCP and TLS handshake, bounded by `CONNECT_TIMEOUT_S`); a message that the broker would refuse
for its size is refused here, because paho would send it again for ever.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters.outgoing import Outgoing
from agent.adapters.patient_client import PatientClient
from agent.errors import BrokerError
from agent.wire.messages import MAX_PACKET_BYTES

if TYPE_CHECKING:
    from agent.config import BrokerConfig

CONNECT_TIMEOUT_S = 5.0
# From the open connection (of TLS, too) to the broker's answer: one round trip.
HANDSHAKE_S = 3.0
SESSION_S = 60
VERSIONS = 2
# Paho ignores the broker's ReceiveMaximum; this is the least that common brokers grant.
MAX_IN_FLIGHT = 20
MAX_QUEUED = 2000
CLOSE_S = 1.0
SEND_BUFFER_BYTES = 4 << 20
TOPIC_OVERHEAD_BYTES = 1024
NOBODY_LISTENS = 16  # PUBACK's reason "no matching subscribers"
# The user property by which a client says who it is.
SENDER = "client"
UNSUPPORTED_VERSION = ("Unsupported protocol version", "Unacceptable protocol version")
REFUSED_LOGIN = ("Bad user name or password", "Not authorized", "Banned")


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection; subscriptions are being renewed.

    `kept` tells that it has kept what came for this client since the last connection.
    """

    kept: bool = False


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, or could not be made; `fatal` if trying again cannot help."""

    reason: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message; `expires_s` is what is left of its expiry (MQTT 5).

    `client` is who sent it, in its own words: the user property `client`.
    """

    topic: str
    payload: bytes
    retained: bool
    redelivered: bool
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expires_s: float | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker has taken the QoS 1 message that `publish` numbered `number`.

    `heard` is false where it says (as MQTT 5 brokers may) that nobody has subscribed to the topic.
    """

    number: int
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message was dropped, because it is none that MQTT allows."""

    reason: str


LinkEvent = Connected | Disconnected | Received | Acknowledged | Unreadable


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when the connection is lost."""

    topic: str
    payload: bytes


class Link:
    """One connection to the broker under `client_id`.

    Speaks MQTT 5, and 3.1.1 to brokers that know no 5. The session outlives a short break: QoS 1
    messages that were in flight, or published meanwhile, go out when the connection is back. A
    new `Link` starts with a clean session.
    """

    def __init__(self, client_id: str, broker: BrokerConfig, will: Will | None = None) -> None:
        self._client_id = client_id
        self._broker = broker
        self._will = will
        self._version = MQTTProtocolVersion.MQTTv5
        self._subscriptions: dict[str, int] = {}
        self._limit = MAX_PACKET_BYTES
        self._client: PatientClient | None = None
        self._resumable: PatientClient | None = None
        self._outgoing = Outgoing()
        self._accepted = False
        self._attempts = 0
        self.events: deque[LinkEvent] = deque()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it has not ended since."""
        return self._accepted

    @property
    def gave_up(self) -> bool:
        """Whether every version of the protocol has failed since the last success."""
        return self._attempts >= VERSIONS

    @property
    def speaks_v5(self) -> bool:
        """Whether properties (response topic, expiry...) reach the other side."""
        return self._version == MQTTProtocolVersion.MQTTv5

    @property
    def largest_payload(self) -> int:
        """How many bytes a message may have, for this broker and for HaloMQ."""
        return self._limit - TOPIC_OVERHEAD_BYTES

    @property
    def socket(self) -> socket.socket | None:
        """The socket to wait on, while there is one."""
        return self._client.socket() if self._client else None  # type: ignore[return-value]

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return self._client is not None and self._client.want_write()

    @property
    def has_pending(self) -> bool:
        """Whether TLS holds bytes that the socket no longer shows as readable."""
        sock = self.socket
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def connect(self) -> None:
        """Open the connection; `Connected` or `Disconnected` follows as an event.

        Raises:
            BrokerError: if the broker cannot be reached, with what to check.
        """
        broker = self._broker
        where = f"the broker at {broker.host}:{broker.effective_port}"
        try:
            self._client = self._resume() or self._begin()
        except ssl.SSLError as error:
            raise BrokerError(
                f"{where} and this device do not agree on TLS: {error.reason or error}; "
                "check ca_file, the certificate's names and the port"
            ) from error
        except (OSError, ValueError) as error:
            raise BrokerError(
                f"cannot reach {where}: {error}; is it running, and are host and port right?"
            ) from error

    def close(self) -> None:
        """End the connection politely, without the last will."""
        client, self._client = self._client, None
        self._resumable = None
        self._accepted = False
        if client is None:
            return
        client.on_disconnect = None
        client.disconnect()
        sock = client.socket()
        if sock is None:
            return
        # A peer that does not read must not keep the process from ending.
        while client.want_write() and select.select([], [sock], [], CLOSE_S)[1]:
            if client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
        sock.close()

    def drop(self, reason: str) -> None:
        """End the connection as a fault would: without a DISCONNECT, so that the will is told."""
        if self._client is not None:
            self._lost(reason)

    def abandon(self) -> None:
        """End a connection that the broker does not answer; the next one speaks another version.

        Some brokers that know no MQTT 5 neither refuse it nor hang up.
        """
        self._lost("the broker accepts the connection but does not answer")

    def read(self) -> None:
        """Take what the socket has; events follow."""
        client = self._client
        if client is None:
            return
        self._check(client.loop_read())
        self.events.extend(Unreadable(reason) for reason in client.take_unreadable())

    def write(self) -> None:
        """Write what waits and the socket takes."""
        if self._client is not None:
            self._check(self._client.loop_write())

    def keep_alive(self) -> None:
        """Ping when it is time to; call it about once a second."""
        if self._client is not None:
            self._check(self._client.loop_misc())

    def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe now and after every new connection."""
        self._subscriptions |= dict.fromkeys(filters, qos)
        if self._client is not None and self._accepted:
            self._client.subscribe([(topic, qos) for topic in filters])

    def unsubscribe(self, *filters: str) -> None:
        """Undo `subscribe`."""
        for topic in filters:
            self._subscriptions.pop(topic, None)
        if self._client is not None and self._accepted:
            self._client.unsubscribe(list(filters))

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        expires_s: float | None = None,
        sender: str | None = None,
    ) -> int:
        """Publish a message; return the number that `Acknowledged` will name for QoS 1.

        Properties are left out where the broker speaks MQTT 3.1.1; `sender` is the user property
        `client`.

        Raises:
            BrokerError: if there is no connection, too much waits for it already, or the message
                is over the broker's limit.
        """
        client = self._client or self._resumable
        if client is None or (self._client is None and qos == 0):
            raise BrokerError("there is no connection to the broker")
        if len(payload) > self.largest_payload:
            raise BrokerError(
                f"a message of {len(payload)} bytes to {topic} is over the limit of {self._limit} "
                "bytes; send a smaller picture, or raise the broker's max_packet_size"
            )
        refusal = self._outgoing.refusal(len(payload), qos)
        if refusal is not None:
            raise BrokerError(f"the connection to the broker is too slow for {topic}: {refusal}")
        properties = None
        if self.speaks_v5:
            properties = _told(content_type, response_topic, correlation, expires_s, sender)
        sent = client.publish(topic, payload, qos, retain, properties)
        if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise BrokerError("too many messages wait for the connection to the broker")
        # Paho may have written a message of QoS 0, and told so, before it returned.
        if qos or (sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS and not sent.is_published()):
            self._outgoing.add(sent.mid, len(payload), qos)
        return sent.mid

    def _resume(self) -> PatientClient | None:
        # The client that was connected before sends again what the broker has not acknowledged.
        if self._resumable is not None:
            self._resumable.reconnect()
        return self._resumable

    def _begin(self) -> PatientClient:
        client = self._make_client()
        self._outgoing.clear()
        broker = self._broker
        arguments: dict[str, Any] = {}
        if self.speaks_v5:
            arguments["properties"] = _properties(PacketTypes.CONNECT)
            arguments["properties"].SessionExpiryInterval = SESSION_S
            # The broker drops what is larger, so that nobody can fill this process's memory.
            arguments["properties"].MaximumPacketSize = MAX_PACKET_BYTES
        client.connect(broker.host, broker.effective_port, broker.keepalive_s, **arguments)
        return client

    def _make_client(self) -> PatientClient:
        broker = self._broker
        client = PatientClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if self.speaks_v5 else True,
            protocol=self._version,
            reconnect_on_failure=False,
        )
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.read_password())
        if broker.tls:
            client.tls_set(
                ca_certs=str(broker.ca_file) if broker.ca_file else None,
                certfile=str(broker.cert_file) if broker.cert_file else None,
                keyfile=str(broker.key_file) if broker.key_file else None,
            )
            client.tls_insecure_set(broker.tls_insecure)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        client.max_queued_messages_set(MAX_QUEUED)
        client.on_socket_open = _tune_socket
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self._client is not None:
            self._lost(paho.error_string(code))

    def _lost(self, reason: str) -> None:
        client, self._client = self._client, None
        self._accepted = False
        sock = client.socket() if client else None
        if sock is not None:
            sock.close()
        self._attempts += 1
        self._outgoing.broken()
        if self._resumable is None:
            # Brokers that know no MQTT 5 may just hang up, so the versions take turns.
            self._version = (
                MQTTProtocolVersion.MQTTv311 if self.speaks_v5 else MQTTProtocolVersion.MQTTv5
            )
        self.events.append(Disconnected(reason))

    def _on_connect(
        self, client: paho.Client, _userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            name = str(reason)
            self._refused(name)
            return
        self._accepted = True
        self._attempts = 0
        self._resumable = self._client
        offered = getattr(properties, "MaximumPacketSize", None)
        self._limit = min(MAX_PACKET_BYTES, offered or MAX_PACKET_BYTES)
        allowed = getattr(properties, "ReceiveMaximum", None)
        # Paho refuses it on an open connection, in doubt about 0, which this never is.
        client._max_inflight_messages = min(MAX_IN_FLIGHT, allowed or MAX_IN_FLIGHT)  # noqa: SLF001
        if self._subscriptions:
            client.subscribe(list(self._subscriptions.items()))
        self.events.append(Connected(flags.session_present))

    def _refused(self, name: str) -> None:
        if name in UNSUPPORTED_VERSION:
            return
        self._attempts += 1
        client, self._client = self._client, None
        if client is not None:
            client.on_disconnect = None
        fatal = name in REFUSED_LOGIN
        hint = "; check username and password_file" if fatal else ""
        self.events.append(Disconnected(f"the broker refused the connection: {name}{hint}", fatal))

    def _on_disconnect(
        self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if self._client is not None:
            # Paho's name for an end without a word from the broker.
            name = str(reason)
            self._lost("the connection broke" if name == "Unspecified error" else name)

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        self.events.append(
            Received(
                topic=message.topic,
                payload=bytes(message.payload),
                retained=message.retain,
                redelivered=message.dup,
                content_type=getattr(properties, "ContentType", None),
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=getattr(properties, "CorrelationData", None),
                expires_s=getattr(properties, "MessageExpiryInterval", None),
                client=dict(getattr(properties, "UserProperty", ())).get(SENDER),
            )
        )

    def _on_publish(
        self, _client: Any, _userdata: Any, number: int, reason: Any, _properties: Any
    ) -> None:
        self._outgoing.done(number)
        self.events.append(Acknowledged(number, reason.value != NOBODY_LISTENS))


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _told(
    content_type: str | None,
    response_topic: str | None,
    correlation: bytes | None,
    expires_s: float | None,
    sender: str | None,
) -> Properties:
    properties = _properties(PacketTypes.PUBLISH)
    told = {
        "ContentType": content_type,
        "ResponseTopic": response_topic,
        "CorrelationData": correlation,
        "MessageExpiryInterval": None if expires_s is None else max(1, round(expires_s)),
        "UserProperty": None if sender is None else (SENDER, sender),
    }
    for name, value in told.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def _tune_socket(_client: Any, _userdata: Any, sock: Any) -> None:
    # Without TCP_NODELAY a small message waits up to 44 ms for the peer's delayed acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Paho copies what is left of a message after each partial write.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
