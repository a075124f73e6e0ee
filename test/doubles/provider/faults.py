"""Which fault befalls which call."""

from __future__ import annotations

import collections
import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .rules import SHORT_NAMES, is_integer
from .wire import INVALID_PARAMS, Call, Json, RpcProblem

# Each fault and the form of its argument.
FAULT_FORMS = {
    "lose_answer": "", "cut": "", "cut_mid": "", "hang": "", "hang_before": "",
    "garbage": "", "html": "", "redirect": "", "drip": "", "wrong_id": "",
    "no_id": "", "both": "", "deep": "", "dup_keys": "", "duplicate_id": "",
    "empty_id": "", "nul": "", "bad_utf8": "", "echo_secret": "",
    "echo_token": "",
    "chunked": "", "expired": "",
    "status": r":[2-5]\d\d(:(\d+|date))?",
    "delay": r":\d+", "slow_act": r":\d+",
    "rpc_error": r":-?\d+",
    "malformed": r"(:(array|null|string|number))?",
    "huge": r"(:\d+)?",
    "early_expiry": r":-?\d+",
    "pretend": "",
    "cut_stream": "", "hang_stream": "", "noise_stream": "", "no_answer": "", "after_answer": "",
    "garbage_line": "", "foreign_chunk": "", "malformed_chunk": "",
    "huge_line": r"(:\d+)?",
}

# These answer without doing what was asked, unless written with "act_" in
# front: act_status:504 is the gateway that gave up on a call that succeeded.
INSTEAD_OF_ACTING = frozenset((
    "cut", "status", "garbage", "html", "redirect", "rpc_error",
    "echo_token", "duplicate_id", "pretend"))


@dataclass(frozen=True, slots=True)
class Fault:
    text: str
    kind: str
    argument: str
    acts: bool


@functools.lru_cache(maxsize=4096)
def parse_fault(text: str) -> Fault:
    name, colon, argument = text.partition(":")
    kind = name.removeprefix("act_")
    form = FAULT_FORMS.get(kind)
    if (form is None or not re.fullmatch(form, colon + argument)
            or (kind != name and kind not in INSTEAD_OF_ACTING)):
        raise ValueError(f"no such fault: {text}")
    acts = kind != name or kind not in INSTEAD_OF_ACTING | {"hang_before"}
    return Fault(text, kind, argument, acts)


def read_fault(value: Any) -> Fault | None:
    if value is None:
        return None
    if type(value) is not str:
        raise ValueError("a fault is a string or null")
    return parse_fault(value)


class FaultPlan:
    """Decides which fault, if any, befalls a call."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        # method or "any" -> the faults still to come
        self.forced: dict[str, Iterator[Fault | None]] = {}
        self.used: collections.Counter[tuple[str, str]] = collections.Counter()
        self.drawn: collections.Counter[tuple[str, str]] = \
            collections.Counter()

    def force(self, order: Json) -> None:
        """Take an admin order: {"acquire": fault or list, "times": n}."""
        times = order.get("times")
        if times is not None and not (is_integer(times) and times >= 0):
            raise ValueError("times must be a number that is not negative")
        plan: dict[str, Iterator[Fault | None] | None] = {}
        for name, value in order.items():
            if name == "times":
                continue
            if name != "any" and name not in SHORT_NAMES:
                raise ValueError(f"no such method: {name}")
            if value is None:
                plan[name] = None
            elif type(value) is list:
                plan[name] = iter([read_fault(item) for item in value])
            else:
                fault = read_fault(value)
                plan[name] = (itertools.repeat(fault) if times is None
                              else itertools.repeat(fault, times))
        for name, faults in plan.items():
            if faults is None:
                self.forced.pop(name, None)
            else:
                self.forced[name] = faults

    def choose(self, call: Call) -> Fault | None:
        """The fault for this call: forced, then asked for, then by chance."""
        for name in (call.short, "any") if self.forced else ():
            if name in self.forced:
                fault = next(self.forced[name], None)
                if fault is not None:
                    return fault
        config = call.config
        try:
            if "fault" in call.order:
                fault = self._turn(call.label["commandId"], "command",
                                   call.order["fault"])
                if fault is not None:
                    return fault
            if "fault" in config:
                fault = self._asked(call, config["fault"])
                if fault is not None:
                    return fault
            if "chaos" in config:
                return self._by_chance(call, config["chaos"])
        except (ValueError, TypeError, LookupError,
                AttributeError) as problem:
            raise RpcProblem(
                INVALID_PARAMS, f"unusable fault order: {problem}") from None
        return None

    def _asked(self, call: Call, orders: Json) -> Fault | None:
        for name in orders:
            if name != "any" and name not in SHORT_NAMES:
                raise ValueError(f"no such method: {name}")
        name = call.short if call.short in orders else "any"
        return self._turn(call.scope, name, orders.get(name))

    def _turn(self, scope: str, name: str, order: Any) -> Fault | None:
        if type(order) is not list:
            return read_fault(order)
        turn = self.used[scope, name]
        self.used[scope, name] += 1
        return read_fault(order[turn]) if turn < len(order) else None

    def _by_chance(self, call: Call, chaos: Json) -> Fault | None:
        if call.short not in chaos.get("methods", (call.short,)):
            return None
        turn = self.drawn[call.scope, call.short]
        self.drawn[call.scope, call.short] += 1
        dice = random.Random(f"{self.seed}|{call.scope}|{call.short}|{turn}")
        if dice.random() >= chaos["p"]:
            return None
        return read_fault(dice.choice(chaos["kinds"]))
