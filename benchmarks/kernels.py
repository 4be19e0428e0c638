"""Which kernels of a profiler's trace take the time, and what of the program they compute."""

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

Event = dict[str, Any]
KINDS = (
    ("attention", r"fmha|flash|sdpa|attention"),
    ("copies", r"memcpy|memset|copy|transpose"),
    ("products", r"gemm|nvjet|cutlass|xmma|cublas|dot|matmul|conv(?!ert)"),
    ("loops", r""),
)
"""Kinds of kernels by what their names contain, the first that fits."""
WRAPPERS = r"jit\(\w*\)/|rematted_computation/|closed_call/|checkpoint/|body/|while/|eval_jaxpr/|vmap\(\)/"
"""What says nothing of where an operation is from."""


def newest_trace(folder: Path) -> list[Event]:
    """The events of the trace that was written last below a folder given to the profiler."""
    paths = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    return json.loads(gzip.decompress(paths[-1].read_bytes()))["traceEvents"] if paths else []


def kernels(events: list[Event], steps: int, places: dict[str, str]) -> list[dict[str, Any]]:
    """One row for each kernel, those that take most time first; `places` are those of operations in the program."""
    seconds, calls, operations = defaultdict(float), defaultdict(int), {}
    for event, alone in _alone(_of_device(events)):
        seconds[event["name"]] += alone / 1e6
        calls[event["name"]] += 1
        operations[event["name"]] = event.get("args", {}).get("hlo_op", event["name"])
    whole = sum(seconds.values())
    return [
        {
            "kernel": name,
            "kind": _kind(name, places.get(operations[name], "")),
            "ms a step": 1e3 * seconds[name] / steps,
            "share": seconds[name] / whole,
            "calls a step": calls[name] / steps,
            "place": places.get(operations[name], ""),
        }
        for name in sorted(seconds, key=lambda name: -seconds[name])
    ]


def places(program: str) -> dict[str, str]:
    """Where each operation of a compiled program's text is from, as far as the text says."""
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE)
    return {name: re.sub(WRAPPERS, "", place) for name, place in found}


def _kind(name: str, place: str) -> str:
    """By the name, and by the operation at the end of the place: some names say nothing."""
    text = f"{name} {place.split('/')[-1]}".lower()
    return next(kind for kind, pattern in KINDS if re.search(pattern, text))


def _of_device(events: list[Event]) -> list[Event]:
    """What ran on streams of accelerators; where there are none, the operations that ran on the CPU."""
    named = [event for event in events if event.get("ph") == "M" and "name" in event.get("args", {})]
    devices = {event["pid"] for event in named if event["args"]["name"].startswith("/device:")}
    streams = {(event["pid"], event.get("tid")) for event in named if event["args"]["name"].startswith("Stream")}
    timed = [event for event in events if event.get("ph") == "X"]
    if devices:
        return [event for event in timed if event["pid"] in devices and (event["pid"], event["tid"]) in streams]
    return [event for event in timed if "hlo_op" in event.get("args", {})]


def _alone(events: list[Event]) -> list[tuple[Event, float]]:
    """Each event with its microseconds, less those of events inside it: loops hold what they repeat."""
    alone, open_events = [], []
    for event in sorted(events, key=lambda event: (event["pid"], event["tid"], event["ts"], -event["dur"])):
        while open_events and not _holds(open_events[-1][0], event):
            open_events.pop()
        entry = [event, event["dur"]]
        if open_events:
            open_events[-1][1] -= event["dur"]
        open_events.append(entry)
        alone.append(entry)
    return [(event, max(rest, 0.0)) for event, rest in alone]


def _holds(outer: Event, inner: Event) -> bool:
    same = (outer["pid"], outer["tid"]) == (inner["pid"], inner["tid"])
    return same and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1e-3  # Times are rounded.
