"""The MQTT sink against mosquitto."""

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import sys
import time

import pytest

from sprfast.errors import BackendError, InputError
from sprfast.line.sinks import Code, open_sink
from sprfast.method.threshold import Verdict
from support.line_cases import eventually
from support.sink_cases import answer, back, certificate, connected, free_port

mqtt = pytest.importorskip("paho.mqtt.client", reason="pip install 'sprfast[mqtt]'")
needs_broker = pytest.mark.skipif(not shutil.which("mosquitto"), reason="mosquitto is not here: apt install mosquitto")


class Broker:
    """A mosquitto that can be ended and started again; it keeps nothing."""

    def __init__(self, folder):
        self.port, self.process = free_port(), None
        self.configuration = folder / "mosquitto.conf"
        self.configure("allow_anonymous true")

    def configure(self, *lines):
        self.configuration.write_text("\n".join([f"listener {self.port} 127.0.0.1", *lines, ""]))

    def start(self):
        command = [shutil.which("mosquitto"), "-c", str(self.configuration)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert eventually(self.answers)

    def answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@contextlib.contextmanager
def listening(broker, ca=None):
    """What a subscriber hears: pairs of topic and message."""
    heard = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    if ca is not None:
        client.tls_set(ca)
        client.username_pw_set("robot", "hunter2")
    ready = []
    client.on_message = lambda _client, _data, message: heard.append((message.topic, json.loads(message.payload)))
    client.on_subscribe = lambda *_: ready.append(True)
    client.on_connect = lambda client, *_: client.subscribe("cell/#", qos=1)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert eventually(lambda: ready)
    yield heard
    client.disconnect()
    client.loop_stop()


def results(heard):
    return [message for topic, message in heard if topic == "cell/4/result"]


def states(heard):
    return [message["ready"] for topic, message in heard if topic == "cell/4/state"]


@needs_broker
def test_answers_are_published_as_json(broker):
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/cell/4")
    with listening(broker) as heard:
        assert connected(sink)
        sink.deliver(answer("part-1"))
        sink.deliver(answer(("camera", 2), Verdict.REJECT))
        sink.deliver(answer("part-3", Verdict.ERROR))
        assert eventually(lambda: len(results(heard)) == 3)
        first, second, third = results(heard)
        assert (first["id"], first["verdict"], first["code"], first["score"]) == ("part-1", "PASS", Code.PASS, 0.5)
        assert (second["id"], second["verdict"], second["threshold"]) == ("('camera', 2)", "REJECT", 1.0)
        assert (third["verdict"], third["score"], third["reason"]) == ("ERROR", None, "image: is no image")
        assert first["valid_until"] - first["time"] == pytest.approx(0.5)
        assert abs(first["time"] - time.time()) < 30
        assert eventually(lambda: True in states(heard))
        assert sink.fault() == ""
        sink.close()
        assert eventually(lambda: states(heard)[-1] is False)


@needs_broker
def test_the_broker_says_that_a_station_is_gone(broker):
    """Its will, without any word of the station: here its connection is broken from inside."""
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/cell/4")
    with listening(broker) as heard:
        assert eventually(lambda: True in states(heard))
        sink._connection.open = lambda: (_ for _ in ()).throw(ConnectionError("the cable is out"))
        sink._connection._client.socket().shutdown(socket.SHUT_RDWR)
        assert eventually(lambda: states(heard)[-1] is False)
        assert eventually(lambda: "the cable is out" in sink.fault())
        sink.close()


@needs_broker
def test_what_waits_while_the_broker_is_away_comes_as_error(broker):
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/cell/4")
    assert connected(sink)
    broker.stop()
    assert eventually(lambda: "is not connected" in sink.fault())
    sink.deliver(answer("old"))
    sink._connection.open, real = (lambda: (_ for _ in ()).throw(ConnectionError("not yet"))), sink._connection.open
    broker.start()
    with listening(broker) as heard:
        sink._connection.open = real
        assert eventually(lambda: results(heard))
        sink.deliver(answer("new"))
        assert eventually(lambda: len(results(heard)) == 2)
        sink.close()
    assert [(each["id"], each["verdict"], each["code"]) for each in results(heard)] == [
        ("old", "ERROR", Code.LATE),
        ("new", "PASS", Code.PASS),
    ]


@needs_broker
def test_each_answer_is_published_at_most_once_over_many_drops(broker):
    sink = open_sink(f"mqtt://127.0.0.1:{broker.port}/cell/4")
    given = 0
    with listening(broker) as heard:
        assert connected(sink)
        for _ in range(10):
            for _ in range(20):
                sink.deliver(answer(given, Verdict.PASS if given % 2 else Verdict.REJECT))
                given += 1
            client = sink._connection._client
            if client is not None and client.socket() is not None:
                with contextlib.suppress(OSError):
                    client.socket().shutdown(socket.SHUT_RDWR)
        assert back(sink)
        sink.deliver(answer("last"))
        assert eventually(lambda: any(each["id"] == "last" for each in results(heard)))
        sink.close()
    told = results(heard)
    assert len({each["id"] for each in told}) == len(told) > 100
    assert all(each["verdict"] != "PASS" or each["id"] == "last" or int(each["id"]) % 2 for each in told)


@needs_broker
def test_a_wrong_password_is_a_fault_that_does_not_show_it(broker, tmp_path, caplog):
    broker.stop()
    (tmp_path / "users").write_text("")
    (tmp_path / "users").chmod(0o644)
    broker.configure("allow_anonymous false", f"password_file {tmp_path}/users", "user root")
    broker.start()
    with caplog.at_level(logging.DEBUG):
        sink = open_sink(f"mqtt://robot:hunter2@127.0.0.1:{broker.port}/cell/4")
        assert eventually(lambda: "Not authorized" in sink.fault()), sink.fault()
        sink.close()
    assert "hunter2" not in caplog.text + sink.fault()


@pytest.fixture
def secure_broker(tmp_path):
    """Takes TLS only, and the user `robot` with the password that is in the file `password`."""
    own, key = certificate(tmp_path, "broker", "IP:127.0.0.1")
    (tmp_path / "password").write_text("hunter2\n")
    (tmp_path / "users").touch()
    users = [shutil.which("mosquitto_passwd"), "-b", tmp_path / "users", "robot", "hunter2"]
    subprocess.run(users, check=True, capture_output=True)
    broker = Broker(tmp_path)
    allowed = ("allow_anonymous false", f"password_file {tmp_path}/users", "user root")
    broker.configure(f"certfile {own}", f"keyfile {key}", *allowed)
    broker.start()
    yield broker
    broker.stop()


@needs_broker
def test_a_broker_with_tls_and_a_password(secure_broker, tmp_path, caplog):
    where = f"127.0.0.1:{secure_broker.port}/cell/4"
    given = f"password-file={tmp_path}/password"
    with caplog.at_level(logging.DEBUG):
        sink = open_sink(f"mqtts://robot@{where}?ca={tmp_path}/broker.pem&{given}")
        assert connected(sink), sink.fault()
        with listening(secure_broker, str(tmp_path / "broker.pem")) as heard:
            sink.deliver(answer("part-1"))
            assert eventually(lambda: [each["id"] for each in results(heard)] == ["part-1"])
        secure_broker.stop()
        assert eventually(lambda: f"mqtts {where}: is not connected" in sink.fault())
        secure_broker.start()
        assert back(sink)
        sink.close()
    assert "hunter2" not in caplog.text


@needs_broker
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mqtts://robot@{where}?password-file={folder}/password", "certificate verify failed"),
        ("mqtts://robot@{where}?ca={folder}/other.pem&password-file={folder}/password", "certificate verify failed"),
        ("mqtts://robot@localhost:{port}/cell?ca={folder}/broker.pem&password-file={folder}/password", "localhost"),
        ("mqtts://robot@{where}?ca={folder}/broker.pem&password-file={folder}/wrong", "Not authorized"),
        ("mqtts://{where}?ca={folder}/broker.pem", "Not authorized"),
        ("mqtt://robot@{where}?password-file={folder}/password", "is not connected"),
    ],
)
def test_a_broker_that_is_not_the_right_one_or_refuses(secure_broker, tmp_path, address, said):
    certificate(tmp_path, "other", "IP:127.0.0.1")
    (tmp_path / "wrong").write_text("hunter3")
    port = secure_broker.port
    sink = open_sink(address.format(where=f"127.0.0.1:{port}/cell/4", port=port, folder=tmp_path))
    assert eventually(lambda: said in sink.fault()), sink.fault()
    sink.close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mqtts://me:hunter2@plc/t", "others can see a password in an address; put it in a file"),
        ("mqtts://me@plc/t?password-file={folder}/none", "password-file: {folder}/none cannot be read (No such file"),
        ("mqtts://me@plc/t?password-file={folder}", "password-file: {folder} cannot be read"),
        ("mqtts://plc/t?password-file={folder}/empty", "password-file needs a user"),
        ("mqtt://me:hunter2@plc/t?password-file={folder}/empty", "password-file needs a user, and no password beside"),
        ("mqtts://me@plc/t?ca={folder}/none", "ca: {folder}/none cannot be read (No such file"),
        ("mqtts://me@plc/t?ca={folder}/empty", "ca: {folder}/empty holds no certificates in PEM"),
        ("mqtts://me@plc/t?ca={folder}/bytes", "ca: {folder}/bytes is no text"),
        ("mqtts://me@plc/t?ca={folder}/words", "ca: {folder}/words holds no certificates in PEM"),
        ("mqtt://plc/t?ca={folder}/empty", "'ca' is not known"),
    ],
)
def test_an_address_whose_secrets_cannot_be_used_is_refused(tmp_path, address, said):
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "words").write_text("no certificate")
    with pytest.raises(InputError) as refused:
        open_sink(address.format(folder=tmp_path))
    assert said.format(folder=tmp_path) in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_no_broker_is_a_fault():
    sink = open_sink(f"mqtt://127.0.0.1:{free_port()}/cell/4")
    assert eventually(lambda: "Connection refused" in sink.fault())
    sink.close()


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(BackendError, match=r"pip install 'sprfast\[mqtt\]'"):
        open_sink("mqtt://127.0.0.1/cell")
