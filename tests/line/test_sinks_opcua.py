"""The OPC UA sink against asyncua's server, behind which a controller's program runs."""

import socket
import sys
import threading
import time

import pytest

from sprfast.errors import BackendError, InputError
from sprfast.line.sinks import Code, open_sink
from sprfast.method.threshold import Verdict
from support.line_cases import eventually
from support.sink_cases import answer, certificate, connected, free_port

sync = pytest.importorskip("asyncua.sync", reason="pip install 'sprfast[plc]'")
ua = pytest.importorskip("asyncua.ua")
rules = pytest.importorskip("asyncua.crypto.permission_rules")

BITS = ("Trigger", "Ack", "Ready", "Done", "Ok", "Ng", "Error", "Heartbeat")
NUMBERS = ("TriggerNumber", "ResultNumber", "Code")


class Controller:
    """An OPC UA server with the variables, and a program that acknowledges."""

    def __init__(self, port, prepare=lambda server: None):
        self.port, self.decided = port, {}
        self.server = sync.Server()
        prepare(self.server)
        self.server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
        assert self.server.register_namespace("plant") == 2
        folder = self.server.nodes.objects.add_object(2, "Station")
        values = dict.fromkeys(BITS, (False, ua.VariantType.Boolean)) | dict.fromkeys(
            NUMBERS, (0, ua.VariantType.UInt16)
        )
        values |= {"Ratio": (0.0, ua.VariantType.Float), "Id": ("", ua.VariantType.String)}
        self.nodes = {}
        for name, (value, kind) in values.items():
            self.nodes[name] = folder.add_variable(f"ns=2;s=Station.{name}", f"2:{name}", value, kind)
            self.nodes[name].set_writable()
        self.server.start()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def __getitem__(self, name):
        return self.nodes[name].read_value()

    def __setitem__(self, name, value):
        kind = ua.VariantType.Boolean if name in BITS else ua.VariantType.UInt16
        self.nodes[name].write_value(value, kind)

    def run(self):
        while not self.ended.wait(0.005):
            if self["Trigger"] and not self["Ack"] and self["Done"] and self["ResultNumber"] == self["TriggerNumber"]:
                outcome = (self["Ok"], self["Ng"], self["Error"], self["Code"], self["Ratio"], self["Id"])
                self.decided[self["TriggerNumber"]] = outcome
                self["Ack"] = True
            elif self["Ack"] and not self["Done"]:
                self["Trigger"] = self["Ack"] = False

    def fire(self):
        assert eventually(lambda: not self["Trigger"])
        self["TriggerNumber"] = number = self["TriggerNumber"] + 1
        self["Trigger"] = True
        return number

    def close(self):
        self.ended.set()
        self.thread.join()
        self.server.stop()


@pytest.fixture
def port():
    return free_port()


def test_verdicts_reach_the_variables_and_go_on_after_the_server_was_away(port):
    sink = open_sink(f"opcua://127.0.0.1:{port}?node=ns=2;s=Station&within=1")
    assert eventually(lambda: "is not connected" in sink.fault())
    controller = Controller(port)
    try:
        assert connected(sink)
        assert eventually(lambda: controller["Ready"])
        assert (controller["Done"], controller["Ok"], controller["Ng"]) == (False, False, True)
        for id, verdict, expected in (
            ("a", Verdict.PASS, (True, False, False, Code.PASS, 0.5, "a")),
            ("Ä", Verdict.REJECT, (False, True, False, Code.REJECT, 2.0, "Ä")),
            ("c", Verdict.ERROR, (False, True, True, Code.IMAGE, -1.0, "c")),
        ):
            number = controller.fire()
            sink.deliver(answer(id, verdict))
            assert eventually(lambda number=number: number in controller.decided), sink.fault()
            assert controller.decided[number] == expected
        assert sink.fault() == ""
        beats = controller["Heartbeat"]
        assert eventually(lambda: controller["Heartbeat"] != beats)
        other = open_sink(f"opc.tcp://127.0.0.1:{port}?node=ns=2;s=Other")  # variables that are not there
        assert eventually(lambda: "(Bad" in other.fault()), other.fault()  # which one is the server's choice
        other.close()
        controller.close()
        assert eventually(lambda: "is not connected" in sink.fault())
        sink.deliver(answer("while it is away"))
        controller = Controller(port)
        assert eventually(lambda: "while it is away was late" in sink.fault())
        number = controller.fire()
        sink.deliver(answer("d", Verdict.REJECT))
        assert eventually(lambda: number in controller.decided), sink.fault()
        assert controller.decided == {number: (False, True, False, Code.REJECT, 2.0, "d")}
        sink.close()
        assert eventually(lambda: not controller["Ready"])
    finally:
        sink.close()
        controller.close()


class Users:
    """One user."""

    def get_user(self, iserver, username=None, password=None, certificate=None):
        return rules.User(rules.UserRole.User, username) if (username, password) == ("robot", "hunter2") else None


@pytest.fixture
def secured(port, tmp_path):
    """A controller that takes encrypted connections of its user only, and the addresses of it."""
    names = (f"DNS:{socket.gethostname()}", "IP:127.0.0.1")
    own, key = certificate(tmp_path, "controller", "URI:urn:plant:controller", *names)
    certificate(tmp_path, "station", "URI:urn:plant:station", *names)
    certificate(tmp_path, "other", "URI:urn:plant:other", *names)

    def prepare(server):
        server.aio_obj.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        server.aio_obj.set_identity_tokens([ua.UserNameIdentityToken])
        server.aio_obj.iserver.user_manager = Users()
        server.load_certificate(str(own))
        server.load_private_key(str(key))

    (tmp_path / "password").write_text("hunter2\n")
    controller = Controller(port, prepare)
    yield controller, tmp_path, f"opcua://{{}}127.0.0.1:{port}?within=2"
    controller.close()


def keys(folder, server="controller"):
    return f"&certificate={folder}/station.pem&key={folder}/station-key.pem&server={folder}/{server}.pem"


def test_verdicts_are_encrypted_for_a_controller_that_knows_its_user(secured):
    controller, folder, address = secured
    sink = open_sink(f"{address.format('robot@')}{keys(folder)}&password-file={folder}/password")
    assert connected(sink), sink.fault()
    number = controller.fire()
    sink.deliver(answer("a"))
    assert eventually(lambda: number in controller.decided), sink.fault()
    assert controller.decided[number] == (True, False, False, Code.PASS, 0.5, "a")
    sink.close()


def test_a_controller_that_is_not_the_right_one_or_refuses(secured):
    _, folder, address = secured
    (folder / "wrong").write_text("hunter3")
    given = (
        ("robot@", f"&password-file={folder}/password"),  # without encryption
        ("robot@", f"{keys(folder, 'other')}&password-file={folder}/password"),
        ("robot@", f"{keys(folder)}&password-file={folder}/wrong"),
        ("", keys(folder)),
    )
    sinks = [open_sink(address.format(user) + more) for user, more in given]
    for sink in sinks:
        assert eventually(lambda sink=sink: "is not connected (" in sink.fault()), sink.fault()
    time.sleep(0.5)
    for sink in sinks:
        assert "is not connected (" in sink.fault()
        assert "hunter" not in sink.fault()
        sink.close()


def test_certificates_that_cannot_be_used_are_refused(tmp_path):
    certificate(tmp_path, "station", "URI:urn:plant:station")
    certificate(tmp_path, "bare", "DNS:plant")
    (tmp_path / "words").write_text("no certificate")
    good = {"certificate": "station.pem", "key": "station-key.pem", "server": "station.pem"}
    for wrong, said in (
        ({"server": None}, "certificate, key and server are given together"),
        ({"certificate": "none"}, "certificate: .*none cannot be read"),
        ({"certificate": "words"}, "certificate: cannot be read as PEM or DER"),
        ({"certificate": "bare.pem"}, "certificate: has no URI"),
        ({"key": "station.pem"}, "key: cannot be read as PEM or DER"),
        ({"server": "station-key.pem"}, "server: cannot be read as PEM or DER"),
    ):
        query = "&".join(f"{name}={tmp_path / file}" for name, file in (good | wrong).items() if file)
        with pytest.raises(InputError, match=said):
            open_sink(f"opcua://127.0.0.1?{query}")


def test_threads_do_not_pile_up_while_it_cannot_connect(port):
    sink = open_sink(f"opcua://127.0.0.1:{port}")
    assert eventually(lambda: "is not connected (" in sink.fault())
    time.sleep(1.0)
    assert threading.active_count() < 10
    sink.close()


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncua.sync", None)
    with pytest.raises(BackendError, match=r"pip install 'sprfast\[plc\]'"):
        open_sink("opcua://127.0.0.1")
