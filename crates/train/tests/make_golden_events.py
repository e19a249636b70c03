"""Writes golden_events.json: records that the tensorboard package serialises, in hexadecimal.

    pip install tensorboard 'setuptools<81'
    python crates/train/tests/make_golden_events.py

A unit test of tensorboard.rs compares with it byte for byte.
"""

import io
import json
import pathlib

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.record_writer import RecordWriter

WALL_TIME = 1234567890.125


def record(**content):
    buffer = io.BytesIO()
    RecordWriter(buffer).write(Event(wall_time=WALL_TIME, **content).SerializeToString())
    return buffer.getvalue().hex()


def scalar(tag, value):
    return Summary.Value(tag=tag, simple_value=value)


def text(tag, markdown):
    """As torch.utils.tensorboard.summary.text builds it."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return Summary.Value(
        tag=f"{tag}/text_summary",
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(dtype="DT_STRING", string_val=[markdown.encode()], tensor_shape=shape),
    )


golden = {
    "wall_time": WALL_TIME,
    "file_version": record(file_version="brain.Event:2"),
    "session_start": record(step=301, session_log=SessionLog(status=SessionLog.START)),
    "scalars": record(
        step=300,
        summary=Summary(value=[scalar("train/loss", 0.7), scalar("train/learning_rate", 0.0)]),
    ),
    "text": record(step=1 << 40, summary=Summary(value=[text("command", "`épiphyte` *train*")])),
}
path = pathlib.Path(__file__).with_name("golden_events.json")
path.write_text(json.dumps(golden, indent=1) + "\n")
