"""Prints, as one JSON object, what TensorBoard reads in a directory of event files.

    pip install tensorboard 'setuptools<81'
    python crates/train/tests/read_events.py DIRECTORY

A unit test of tensorboard.rs calls it when EPIPHYTE_PYTHON names a Python that has the packages.
"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
result = {
    "scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
    "texts": {
        tag: [[e.step, e.tensor_proto.string_val[0].decode()] for e in events.Tensors(tag)]
        for tag in tags["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    },
}
print(json.dumps(result))
