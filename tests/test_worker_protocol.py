"""What Group and a rank say to each other, and what the worker makes of it."""

import socket
import threading

from jobs.request import Item
from worker.meter import Meter
from worker.protocol import (
    Cancel,
    Decoder,
    Done,
    Exit,
    Hello,
    Loaded,
    Message,
    Progress,
    Run,
    encode,
    messages,
)

RUN = Run("job_1", 0, "a prompt with an é", 7, "{}", {"data": 1}, [0, 1], [0, 1], "/tmp/x")


def test_messages_survive_any_cut_of_the_stream() -> None:
    hello = Hello(1, 2, 3, "cpu", 2**30)
    sent: list[Message] = [RUN, Cancel("job_1"), hello, Loaded(1, ["a"]), Exit()]
    data = b"".join(map(encode, sent))
    for size in (1, 3, 7, len(data)):
        decoder = Decoder()
        got = [m for i in range(0, len(data), size) for m in decoder.feed(data[i : i + size])]
        assert got == sent


def test_a_reader_ends_when_the_other_side_is_gone() -> None:
    ours, theirs = socket.socketpair()
    got: list[Message] = []
    reader = threading.Thread(target=lambda: got.extend(messages(theirs)))
    reader.start()
    ours.sendall(encode(RUN) + encode(Exit())[:3])
    ours.close()
    reader.join(5)
    theirs.close()
    assert not reader.is_alive() and got == [RUN]


def step(rank: int, index: int, stage: str, step: int = 0) -> Progress:
    return Progress(rank, "job_1", index, stage, step, 4, {"allocated": 1, "peak": 2})


def test_progress_never_goes_back() -> None:
    meter = Meter([Item(0, "a", 1), Item(1, "b", 2)], width=2)
    stream = [step(0, 0, "load_model"), step(1, 1, "text_encode"), step(0, 0, "denoise")]
    stream += [step(r, r, "denoise", n) for n in range(5) for r in (0, 1)]
    stream += [step(0, 0, "vae_decode"), step(1, 1, "load_model"), step(0, 0, "encode_file")]
    values = [meter.progress(event)["value"] for event in stream]
    assert values == sorted(values) and values[0] == 0 and 0.8 < values[-1] < 0.98


def test_the_metrics_sum_the_stages_of_the_leads() -> None:
    meter = Meter([Item(0, "a", 11), Item(1, "b", 12)], width=2)
    for index in (1, 0):
        meter.done(Done(0, "j", index, {"path": f"/{index}"}, {"denoise_s": 2.0}, 100 + index))
        meter.done(Done(1, "j", index, None, {"denoise_s": 2.0}, 50))
    assert meter.files() == [
        {"index": 0, "seed": 11, "path": "/0"},
        {"index": 1, "seed": 12, "path": "/1"},
    ]
    metrics = meter.metrics()
    assert metrics["denoise_s"] == 4.0
    assert metrics["peak_memory_bytes"] == {"0": 101, "1": 50}
