"""A paho client that no message can end: what paho cannot read is acknowledged and dropped.

Paho takes a message for a broken connection if its properties hold U+FEFF or the like, which
brokers pass on. It would come again with every new connection, and end that one as well.
"""

from __future__ import annotations

import struct

from paho.mqtt import MQTTException
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode

UNREADABLE = (MQTTException, ValueError, LookupError, struct.error)


class PatientClient(paho.Client):
    """Drops what it cannot read, and keeps why until `take_unreadable`."""

    _unreadable: tuple[str, ...] = ()

    def take_unreadable(self) -> tuple[str, ...]:
        """Return what was wrong with the messages that were dropped since the last call."""
        taken, self._unreadable = self._unreadable, ()
        return taken

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except UNREADABLE as error:
            self._unreadable += (str(error),)
        packet = bytes(self._in_packet["packet"])
        qos = (self._in_packet["command"] >> 1) & 3
        after_topic = 2 + int.from_bytes(packet[:2], "big")
        number = packet[after_topic : after_topic + 2]
        if qos != 1 or len(number) != 2:  # noqa: PLR2004 - bytes of a packet's identifier
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return self._send_puback(int.from_bytes(number, "big"))
