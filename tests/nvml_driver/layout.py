"""The world of world.h as ctypes sees it: the same fields in the same order."""

import ctypes
from ctypes import c_char, c_double, c_int64

MAGIC = b"NVMLSIM1"
MAX_DEVICES, MAX_SEGMENTS, MAX_RESETS, MAX_PARTS, MAX_PROCESSES, MAX_RULES, TEXT = 16, 64, 256, 8, 8, 256, 96


class SegmentLayout(ctypes.Structure):
    """`Segment`."""

    _fields_ = [("duration_s", c_double), ("from_w", c_double), ("to_w", c_double)]


class RuleLayout(ctypes.Structure):
    """`Rule`."""

    _fields_ = [
        ("name", c_char * TEXT), ("device", c_int64), ("code", c_int64), ("start_s", c_double), ("end_s", c_double),
    ]  # fmt: skip


_DOUBLES = (
    "phase_s tick_s tick_phase_s lag_s jitter_s counter_window_s average_window_s instant_window_s counter_gain"
    " power_gain counter_start_j"
)
_INTEGERS = (
    "segments repeat resets part_count mig virtualization architecture brand major minor power_limit_mw min_limit_mw"
    " sm_mhz memory_mhz memory_bytes temperature_c utilization process_count"
)


class DeviceLayout(ctypes.Structure):
    """`Device`."""

    _fields_ = [
        ("name", c_char * TEXT), ("uuid", c_char * TEXT), ("bus_id", c_char * TEXT),
        ("parts", c_char * TEXT * MAX_PARTS), ("curve", SegmentLayout * MAX_SEGMENTS),
        ("resets_s", c_double * MAX_RESETS), *((name, c_double) for name in _DOUBLES.split()),
        *((name, c_int64) for name in _INTEGERS.split()), ("processes", c_int64 * MAX_PROCESSES),
    ]  # fmt: skip


class WorldLayout(ctypes.Structure):
    """`World`."""

    _fields_ = [
        ("magic", c_char * 8), ("origin_ns", c_int64), ("devices", c_int64), ("rules", c_int64),
        ("driver", c_char * TEXT), ("rule", RuleLayout * MAX_RULES), ("device", DeviceLayout * MAX_DEVICES),
    ]  # fmt: skip
