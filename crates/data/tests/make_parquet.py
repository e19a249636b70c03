"""Writes golden/parquet: files of every type that a reader may meet, and expected.json, what was
written.

    python crates/data/tests/make_parquet.py

Made with pyarrow 26. Dates and times are in the form of ISO 8601, of UTC with `Z`; what JSON has no
number for is null.
"""

import datetime
import decimal
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent / "golden/parquet"


def plain(value):
    """As JSON has it."""
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case datetime.datetime() | datetime.time():
            digits = "auto" if value.microsecond % 1000 else "milliseconds"
            whole = "seconds" if value.microsecond == 0 else digits
            return value.isoformat(timespec=whole).replace("+00:00", "Z")
        case datetime.date():
            return value.isoformat()
        case decimal.Decimal():
            return str(value)
        case bytes():
            return value.decode()
        case float() if not math.isfinite(value):
            return None
    return value


def moments(unit, zone=None):
    return pa.array([1_500, -1, None], pa.timestamp(unit, zone))


def table():
    text = pa.array(["a", None, "größer 好"])
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.table({
        "text": text,
        "large_text": text.cast(pa.large_string()),
        "category": pa.array(["qa", None, "qa"]).dictionary_encode(),
        "nothing": pa.nulls(3),
        "int8": pa.array([-128, 127, None], pa.int8()),
        "int16": pa.array([-5, 5, None], pa.int16()),
        "int32": pa.array([3, -1, None], pa.int32()),
        "int64": pa.array([2**62, -1, None], pa.int64()),
        "uint8": pa.array([255, 1, None], pa.uint8()),
        "uint16": pa.array([65535, 1, None], pa.uint16()),
        "uint32": pa.array([2**32 - 1, 1, None], pa.uint32()),
        "uint64": pa.array([2**64 - 1, 1, None], pa.uint64()),
        "float16": pa.array([0.5, -2.0, None], pa.float16()),
        "float32": pa.array([0.25, math.nan, None], pa.float32()),
        "float64": pa.array([0.1, -math.inf, None], pa.float64()),
        "flag": pa.array([True, False, None]),
        "day": pa.array([0, -1, None], pa.date32()),
        "seconds": pa.array([0, 86_399, None], pa.timestamp("s")),
        "milliseconds": moments("ms"),
        "microseconds": moments("us"),
        "nanoseconds": pa.array([1_500_000, -1_000, None], pa.timestamp("ns")),
        "utc": moments("ms", "UTC"),
        "utc_microseconds": moments("us", "UTC"),
        "utc_nanoseconds": pa.array([1_500_000, -1_000, None], pa.timestamp("ns", "UTC")),
        "time_milliseconds": pa.array([1_000, 86_399_000, None], pa.time32("ms")),
        "time_microseconds": pa.array([1, 0, None], pa.time64("us")),
        "time_nanoseconds": pa.array([1_000, 0, None], pa.time64("ns")),
        "price": pa.array([decimal.Decimal("12.50"), decimal.Decimal("-0.05"), None], pa.decimal128(9, 2)),
        "wide": pa.array([decimal.Decimal("-123456789012345678901234567890.1"), decimal.Decimal("0.1"), None],
                         pa.decimal256(40, 1)),
        "numbers": pa.array([[1, None, 3], [], None], pa.list_(pa.int64())),
        "moments": pa.array([[1_000, None], [], None], pa.list_(pa.timestamp("ns"))),
        "grid": pa.array([[[1], [2, 3]], [None, []], None], pa.list_(pa.list_(pa.int32()))),
        "pair": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int32(), 2)),
        "message": pa.array([{"role": "user", "content": None}, None, {"role": "x", "content": "y"}], message),
        "messages": pa.array([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}], [], None],
                             pa.list_(message)),
        "nested": pa.array([{"at": [0], "in": {"at": 1_000}}, None, {"at": None, "in": None}],
                           pa.struct([("at", pa.list_(pa.timestamp("us"))),
                                      ("in", pa.struct([("at", pa.timestamp("ns"))]))])),
    })


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    expected = {}

    def write(name, columns, reads=True, **options):
        columns = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(columns, HERE / f"{name}.parquet", **options)
        if reads:
            expected[name] = {it: [plain(value) for value in columns[it].to_pylist()] for it in columns.column_names}

    write("types", table(), version="2.6")
    # Many small pages or row groups, and the older forms.
    write("pages", table(), data_page_size=1, data_page_version="2.0", compression="zstd")
    write("groups", table(), row_group_size=1, compression="none", use_dictionary=False)
    write("older", table().drop_columns(["uint32", "nanoseconds", "utc_nanoseconds", "time_nanoseconds",
                                         "moments", "nested", "float16"]),
          version="1.0", use_compliant_nested_type=False, compression="gzip", store_schema=False)
    write("int96", {"at": moments("ms")}, use_deprecated_int96_timestamps=True, compression="lz4")
    text = ["un café".encode(), None]
    write("bytes", {
        "binary": pa.array(text, pa.binary()),
        "large": pa.array(text, pa.large_binary()),
        "view": pa.array(text, pa.binary_view()),
        "fixed": pa.array(text, pa.binary(8)),
    }, compression="none")
    write("latin", {"x": pa.array([b"fine", b"caf\xe9"], pa.binary())}, reads=False)
    write("map", {"text": ["a"], "x": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
                  "inside": pa.array([[[("a", 1)]]], pa.list_(pa.map_(pa.string(), pa.int32())))}, reads=False)
    write("dictionary", {"x": pa.array(["a" * 1000] * 3000).dictionary_encode()}, reads=False)
    write("long_list", {"x": pa.array([[None] * 100_000], pa.list_(pa.int32()))}, reads=False)
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")


main()
