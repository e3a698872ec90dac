"""The pipeline at work: every frame gets its own answer, once, whatever the order, the form of the
frames and the producers.
"""

import io
import threading
import time
import tracemalloc

import numpy as np
import PIL.Image
import pytest
import torch

import sprfast
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, CameraError, ClosedError, InputError, SprfastError
from sprfast.line import Line
from sprfast.line.frames import Frame, FrameFormat
from sprfast.line.health import State
from sprfast.method.threshold import Verdict
from support.line_cases import PATIENCE, engine_with_network, entry_of, eventually, frame
from support.scoring_mode_cases import with_mode


def test_answers_are_those_of_the_engine(engine):
    frames = [frame(seed) for seed in range(40)]
    expected = engine.predict(frames, "rgb")
    delivered = []
    with Line(engine, delivered.append) as line:
        futures = [line.submit(each, f"part-{index}", channel_order="rgb") for index, each in enumerate(frames)]
        answers = [future.result(PATIENCE) for future in futures]
    assert {result.verdict for result in expected} == {Verdict.PASS, Verdict.REJECT}
    for index, (answer, result) in enumerate(zip(answers, expected, strict=True)):
        assert (answer.id, answer.verdict, answer.error) == (f"part-{index}", result.verdict, None)
        assert answer.result.pred_score == result.pred_score
        assert np.array_equal(answer.result.anomaly_map, result.anomaly_map)
        assert answer.result.source_size == (32, 32)
        assert answer.seconds > 0
    assert delivered == answers  # one worker, one network: as submitted


def test_it_is_a_public_name():
    assert sprfast.Line is Line


def test_an_export_serves_a_line_as_a_model_does(engine, small_model, tmp_path):
    from sprfast.deploy import export

    path = tmp_path / "model.plan.safetensors"
    export.export(small_model, path, export.Request("plan"))
    frames = [frame(seed) for seed in range(6)]
    with Line(sprfast.load(path)) as line:
        scores = [
            line.submit(each, index, channel_order="rgb").result(PATIENCE).result.pred_score
            for index, each in enumerate(frames)
        ]
    assert scores == pytest.approx([result.pred_score for result in engine.predict(frames, "rgb")], rel=1e-6)


def test_an_export_for_one_size_serves_a_line(small_model, tmp_path):
    pytest.importorskip("onnxruntime")
    from sprfast.deploy import export

    path = tmp_path / "model.onnx"
    export.export(small_model, path, export.Request("onnx", size=(32, 48)))
    with Line(sprfast.load(path)) as line:
        assert line.submit(frame(1, (32, 48, 3)), 1, channel_order="rgb").result(PATIENCE).error is None
        assert "48" in str(line.submit(frame(1), 2, channel_order="rgb").result(PATIENCE).error)


def forms(folder):
    """Pictures in every form that a line takes, each with the channel order that goes with it."""
    small, wide, tall = frame(1), frame(2, (40, 64, 3)), frame(3, (64, 33, 3))
    path = folder / "part.png"
    PIL.Image.fromarray(frame(4)).save(path)
    return [
        (small, "rgb"),
        (wide, "bgr"),
        (tall, "rgb"),
        (frame(5, (50, 50)), "grey"),
        (frame(6).astype(np.uint16) * 200, "bgr"),
        ((frame(7) / np.float32(255)).astype(np.float32), "rgb"),
        (path, None),
        (io.BytesIO(path.read_bytes()), None),
        (PIL.Image.fromarray(frame(8)), None),
        (torch.from_numpy(np.moveaxis(frame(9) / np.float32(127.5) - np.float32(1), 2, 0).astype(np.float32)), None),
        (np.flip(wide, 1), "rgb"),
    ]


def test_32_producers_with_mixed_sizes_and_forms_get_their_own_results(engine, tmp_path):
    pictures = forms(tmp_path)
    expected = [engine.predict(picture, order).pred_score for picture, order in pictures]
    assert len(set(expected)) == len(pictures) - 1  # a file, and the same one in memory
    wrong, rounds = [], 6

    def produce(producer):
        for turn in range(rounds):
            index = (producer + turn) % len(pictures)
            answer = line.submit(pictures[index][0], (producer, turn), channel_order=pictures[index][1]).result(
                PATIENCE
            )
            if answer.id != (producer, turn) or answer.result.pred_score != expected[index]:
                wrong.append((producer, turn, answer))

    with Line(engine, workers=2, timeout=PATIENCE) as line:
        threads = [threading.Thread(target=produce, args=(producer,)) for producer in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert wrong == []
    assert line.health().taken == 32 * rounds == sum(line.health().verdicts.values())


def test_frames_that_wait_together_are_scored_together(small_model):
    engine, network = engine_with_network(small_model)
    with Line(engine, max_batch=4) as line:
        network.batches.clear()
        with network.held():
            futures = [line.submit(frame(0), 0, channel_order="rgb")]
            assert network.entered.wait(PATIENCE)
            futures += [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(1, 11)]
            assert eventually(lambda: len(line._in_flight._ready) == 8)  # two batches are prepared ahead, not more
        scores = [future.result(PATIENCE).result.pred_score for future in futures]
    assert network.batches == [1, 4, 4, 2]
    assert scores == [engine.predict(frame(seed), "rgb").pred_score for seed in range(11)]
    assert (line.health().batches, line.health().batched) == (4, 11)


def test_an_incomplete_batch_waits_for_more(small_model):
    engine, network = engine_with_network(small_model)
    with Line(engine, max_batch=3, max_wait=PATIENCE) as line:
        network.batches.clear()
        futures = [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(3)]
        assert [future.result(PATIENCE).verdict for future in futures]
        assert network.batches == [3]
        line.submit(frame(3), 3, channel_order="rgb")
        assert line.drain(PATIENCE / 2)  # the end does not wait for a full batch
        assert network.batches == [3, 1]


@pytest.mark.parametrize("in_order", [True, False])
def test_delivery_in_order_or_as_decided(small_model, in_order, tmp_path):
    engine, network = engine_with_network(small_model)
    order = []
    with Line(engine, lambda answer: order.append(answer.id), in_order=in_order) as line:
        with network.held():
            first = line.submit(frame(0), "good", channel_order="rgb")
            bad = line.submit(tmp_path / "missing.png", "bad")
            if in_order:
                assert eventually(lambda: not entry_of(line, "bad").open)
                assert not bad.done()
            else:
                assert bad.result(PATIENCE).verdict is Verdict.ERROR
            assert not first.done()
        assert line.drain(PATIENCE)
    assert order == (["good", "bad"] if in_order else ["bad", "good"])


def test_a_file_in_memory_is_taken_as_one_on_disk(engine, tmp_path):
    """It is the line's own copy, and may be the same one for two frames."""
    PIL.Image.fromarray(frame(4)).save(tmp_path / "part.png")
    content = io.BytesIO((tmp_path / "part.png").read_bytes())
    with Line(engine, workers=2) as line:
        futures = [line.submit(content, number) for number in range(4)]
        content.seek(0)
        content.write(bytes(1000))
        scores = {future.result(PATIENCE).result.pred_score for future in futures}
        assert scores == {engine.predict(frame(4), "rgb").pred_score}
        content.close()
        streams = [content, (tmp_path / "part.png").open("rb"), io.StringIO("no picture")]
        for number, stream in enumerate(streams, 10):
            answer = line.submit(stream, number).result(PATIENCE)
            assert isinstance(answer.error, InputError)
            stream.close()


@pytest.mark.parametrize("kind", ["array", "tensor", "declared", "itemsize"])
def test_what_is_small_in_memory_only_is_refused_before_it_is_copied(small_model, kind):
    engine = Engine(small_model)
    limit = engine.preprocessing.max_pixels
    side = int(limit**0.5) + 1
    shape = (4 * side, 4 * side, 3)
    image, order, declared = {
        "array": (np.broadcast_to(np.uint8(7), shape), "rgb", None),
        "tensor": (torch.zeros(1).expand(3, 2 * side, 2 * side), None, None),
        "declared": (np.broadcast_to(np.uint8(7), shape), None, FrameFormat(*shape[:2], "rgb")),
        "itemsize": (np.broadcast_to(np.zeros(1, "V1000000"), (2000, 2000)), "grey", None),
    }[kind]
    with Line(engine) as line:
        line._frame_format = declared
        tracemalloc.start()
        answer = line.submit(image, 1, channel_order=order).result(PATIENCE)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(answer.error, InputError)
    assert f"more than {limit} pixels (max_pixels)" in str(answer.error)
    assert most < 10_000_000


@pytest.mark.parametrize("kind", ["array", "declared array", "buffer", "tensor"])
def test_the_callers_buffer_is_free_when_submit_returns(small_model, kind):
    engine, network = engine_with_network(small_model)
    given = frame(1)
    image, order, declared = {
        "array": (given.copy(), "rgb", None),
        "declared array": (given.copy(), None, FrameFormat(32, 32, "rgb")),
        "buffer": (bytearray(given.tobytes()), None, FrameFormat(32, 32, "rgb")),
        "tensor": (torch.from_numpy(np.moveaxis(given / np.float32(255), 2, 0).copy()), None, None),
    }[kind]
    expected = engine.predict(image if kind == "tensor" else given, None if kind == "tensor" else "rgb").pred_score
    with Line(engine, max_batch=1, frame_format=declared) as line, network.held():
        for number in range(3):  # one in the network and two ahead, so that the next one is not prepared yet
            line.submit(given.copy(), number, channel_order="rgb")
            assert network.entered.wait(PATIENCE)
        assert eventually(lambda: len(line._in_flight._ready) == 2)
        future = line.submit(image, "part", channel_order=order)
        image[:] = bytes(len(image)) if kind == "buffer" else 0
        network.open.set()
        assert future.result(PATIENCE).result.pred_score == expected


def test_padded_rows_and_other_layouts_are_taken_as_declared(engine):
    picture = frame(1, (40, 50, 3))
    expected = engine.predict(picture, "bgr").pred_score
    padded = np.full((40, 160), 255, np.uint8)
    padded[:, :150] = picture.reshape(40, 150)
    with Line(engine, frame_format=FrameFormat(40, 50, "bgr", row_bytes=160)) as line:
        for index, buffer in enumerate(
            (padded.tobytes(), memoryview(padded.tobytes()), bytearray(padded.tobytes()[:-10]), picture)
        ):
            answer = line.submit(buffer, index).result(PATIENCE)
            assert answer.result.pred_score == expected
    mono = frame(2, (40, 50))
    with Line(engine, frame_format=FrameFormat(40, 50, "grey")) as line:
        assert (
            line.submit(mono.tobytes(), 0).result(PATIENCE).result.pred_score == engine.predict(mono, "grey").pred_score
        )
    with Line(engine) as line:
        fortran, reversed_ = np.asfortranarray(picture), picture[:, ::-1][:, ::-1]
        picture.flags.writeable = False
        for index, view in enumerate((fortran, reversed_, picture)):
            assert line.submit(view, index, channel_order="bgr").result(PATIENCE).result.pred_score == expected


@pytest.mark.parametrize(
    ("image", "order", "said"),
    [
        (frame(1, (40, 51, 3)), None, "this camera was declared as uint8 (40, 50, 3)"),
        (frame(1, (40, 50)), None, "this camera was declared as uint8 (40, 50, 3)"),
        (frame(1, (40, 50, 3)).astype(np.uint16), None, "this camera was declared as uint8"),
        (frame(1, (40, 50, 3)), "rgb", "this camera was declared as bgr"),
        (bytes(5999), None, "5999 bytes, this camera was declared with 40 rows of 150 bytes"),
    ],
)
def test_a_frame_in_another_form_than_the_declared_one_is_an_error(engine, image, order, said):
    with Line(engine, frame_format=FrameFormat(40, 50, "bgr")) as line:
        answer = line.submit(image, 1, channel_order=order).result(PATIENCE)
        assert line.submit(frame(1, (40, 50, 3)), 2).result(PATIENCE).verdict is not Verdict.ERROR
    assert answer.verdict is Verdict.ERROR
    assert isinstance(answer.error, InputError)
    assert said in str(answer.error)


def test_a_source_is_submitted_to_its_end(engine, tmp_path):
    answers = {}
    source = [
        Frame(1, frame(1), time.monotonic(), "rgb"),
        Frame(2, None, time.monotonic(), fault=CameraError("camera: the picture of trigger 2 is missing")),
        Frame(1, frame(3), time.monotonic(), "rgb"),  # an id that was there before
        Frame(3, tmp_path / "missing.png", time.monotonic()),
        Frame(4, frame(4), time.monotonic(), "bgr"),
    ]
    with Line(engine, lambda answer: answers.setdefault(answer.id, answer)) as line:
        line.run(source)
    assert {number: answer.verdict for number, answer in answers.items() if answer.error} == {
        2: Verdict.ERROR,
        3: Verdict.ERROR,
    }
    assert answers[1].result.pred_score == engine.predict(frame(1), "rgb").pred_score
    assert answers[4].result.pred_score == engine.predict(frame(4), "bgr").pred_score
    health = line.health()
    assert (health.taken, health.refused) == (4, 1)
    assert {name: count for name, count in health.errors.items() if count} == {"camera": 1, "input": 1}


@pytest.mark.parametrize(
    "argument",
    [
        {"capacity": 0},
        {"capacity": 2.0},
        {"max_batch": 0},
        {"workers": 0},
        {"timeout": -1},
        {"max_wait": float("nan")},
        {"deadline": 0},
        {"deadline": float("inf")},
        {"overflow": "drop"},
    ],
)
def test_arguments_that_are_not_allowed(engine, argument):
    with pytest.raises(InputError, match=f"^{next(iter(argument))}: .* is not allowed"):
        Line(engine, **argument)


class Nameless:
    """An id that cannot be logged."""

    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"id": []}, "id: list is not allowed"),
        ({"id": Nameless()}, "id: Nameless is not allowed"),
        ({"id": 1, "trigger_time": float("nan")}, "trigger_time: nan is not allowed"),
        ({"id": 1, "trigger_time": "now"}, "trigger_time: 'now' is not allowed"),
        ({"id": 1, "deadline": -1}, "deadline: -1 is not allowed"),
    ],
)
def test_a_frame_that_could_not_be_answered_is_not_taken(engine, arguments, said):
    with Line(engine) as line:
        with pytest.raises(InputError, match=said):
            line.submit(frame(1), channel_order="rgb", **arguments)
        assert (line.health().taken, line.health().refused, line.health().unanswered) == (0, 1, 0)


def test_a_model_without_a_threshold_makes_no_line(small_model):
    with pytest.raises(InputError, match="no threshold"):
        Line(Engine(with_mode(small_model, threshold=None)))


def test_drain_and_close(small_model):
    engine, network = engine_with_network(small_model)
    line = Line(engine)
    line.wait_until_started()
    with network.held():
        future = line.submit(frame(1), 1, channel_order="rgb")
        assert not line.drain(0.05)
        with pytest.raises(ClosedError, match="drained"):
            line.submit(frame(2), 2, channel_order="rgb")
        assert not future.done()
    assert line.drain(PATIENCE)
    assert future.result(0).error is None
    line.close()
    line.close()
    with pytest.raises(ClosedError):
        line.submit(frame(3), 3, channel_order="rgb")
    with pytest.raises(SprfastError):
        line.swap(engine)


def test_closing_answers_what_is_left(small_model):
    engine, network = engine_with_network(small_model)
    answers = []
    line = Line(engine, answers.append)
    line.wait_until_started()
    with network.held():
        futures = [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(3)]
        assert network.entered.wait(PATIENCE)
        line.close(timeout=0.05)
        assert [type(future.result(PATIENCE).error) for future in futures] == [ClosedError] * 3
    assert [answer.verdict for answer in answers] == [Verdict.ERROR] * 3
    assert eventually(lambda: "sprfast-network" not in [thread.name for thread in threading.enumerate()])


def test_a_line_that_cannot_start_says_why(small_model):
    engine, network = engine_with_network(small_model)
    network.fault = lambda x: RuntimeError("no kernel image")
    with pytest.raises(BackendError, match="no kernel image"), Line(engine):
        raise AssertionError
    line = Line(engine)
    answer = line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE)
    assert (answer.verdict, type(answer.error)) == (Verdict.ERROR, BackendError)
    assert line.health().state is State.FAILED
    line.close()
