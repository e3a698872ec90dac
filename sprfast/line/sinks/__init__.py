"""What hears the verdicts of a line: controllers over Modbus TCP and OPC UA, MQTT brokers, and web
servers. A sink that is not connected, or is late, never lets a part pass.
"""

from sprfast.line.sinks.message import Code, Message
from sprfast.line.sinks.opening import open_sink
from sprfast.line.sinks.sink import Sink

__all__ = ["Code", "Message", "Sink", "open_sink"]
