"""What a well-formed request looks like.

Members are described by rules; a request that breaks one is refused with the
path of the member and what it should have been.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .wire import (
    INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, Json, RpcProblem)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one member must be; ``members`` describes an object's inside."""

    wants: str
    accepts: Callable[[Any], bool]
    required: bool = True
    members: dict[str, Rule] | None = None
    lenient: bool = False  # members not listed may be there as well


def optional(rule: Rule) -> Rule:
    return replace(rule, required=False)


def an_object(members: dict[str, Rule], lenient: bool = False) -> Rule:
    return Rule("an object", is_object, members=members, lenient=lenient)


def is_object(value: Any) -> bool:
    return type(value) is dict


def is_text(value: Any) -> bool:
    return type(value) is str and value != ""


def is_integer(value: Any) -> bool:
    return type(value) is int


def is_time(value: Any) -> bool:
    try:
        return datetime.datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def is_environment(value: Any) -> bool:
    return is_object(value) and all(
        ENV_NAME.fullmatch(name) and type(text) is str
        for name, text in value.items())


KEY = re.compile(r"[a-z0-9][a-z0-9._-]*")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SEMVER = re.compile(r"\d+\.\d+\.\d+([-+].+)?")

TEXT = Rule("a non-empty string", is_text)
STRING = Rule("a string", lambda v: type(v) is str)
OBJECT = Rule("an object", is_object)
INTEGER = Rule("an integer", is_integer)
NULLABLE_TEXT = Rule("a non-empty string or null",
                     lambda v: v is None or is_text(v))
NULLABLE_TIME = Rule("an ISO 8601 time with a zone, or null",
                     lambda v: v is None or is_time(v))
BOOLEAN = Rule("true or false", lambda v: type(v) is bool)
GENERATION = Rule("an integer that is not negative",
                  lambda v: is_integer(v) and v >= 0)
DRIVER_KEY = Rule("a driver key",
                  lambda v: type(v) is str and bool(KEY.fullmatch(v)))

# Members that belong to the host and never travel inside a config.
HOST_ONLY_CONFIG = frozenset((
    "provider", "driver", "executionWorkspaceMode", "pluginId", "pluginKey",
    "providerMetadata", "sandboxProviderPlugin", "shellCommand"))
CONFIG = Rule("an object without the host's own members ("
              + ", ".join(sorted(HOST_ONLY_CONFIG)) + ")",
              lambda v: is_object(v) and HOST_ONLY_CONFIG.isdisjoint(v))

# Our addition to every lease call: whose lease this is, and which attempt.
LABEL = {"installationId": TEXT, "leaseId": TEXT, "generation": GENERATION,
         "idempotencyKey": TEXT}
RELEASE_LABEL = LABEL | {"disposition": optional(Rule(
    "keep, stop or delete", lambda v: v in ("keep", "stop", "delete")))}
EXECUTE_LABEL = LABEL | {"commandId": optional(TEXT)}
CANCEL_LABEL = LABEL | {"commandId": TEXT}
LIST_LABEL = {"installationId": TEXT}
PROBE_LABEL = {"installationId": TEXT, "idempotencyKey": optional(TEXT)}

BASE = {"driverKey": DRIVER_KEY, "companyId": TEXT, "environmentId": TEXT,
        "issueId": optional(NULLABLE_TEXT), "config": CONFIG}
LEASE = an_object({"providerLeaseId": NULLABLE_TEXT,
                   "metadata": optional(OBJECT),
                   "expiresAt": optional(NULLABLE_TIME)})
MANIFEST = an_object({
    "id": DRIVER_KEY,
    "apiVersion": Rule("1", lambda v: is_integer(v) and v == 1),
    "version": Rule("a semantic version",
                    lambda v: type(v) is str and bool(SEMVER.fullmatch(v))),
    "displayName": TEXT,
    "description": TEXT,
    "author": TEXT,
    "categories": Rule("a list", lambda v: type(v) is list and v != []),
    "capabilities": Rule(
        "a list with environment.drivers.register",
        lambda v: type(v) is list and "environment.drivers.register" in v),
    "entrypoints": an_object({"worker": TEXT}, lenient=True),
    "environmentDrivers": Rule(
        "a list of drivers with distinct driverKey",
        lambda v: type(v) is list and v != []
        and all(is_object(d) and DRIVER_KEY.accepts(d.get("driverKey"))
                for d in v)
        and len({d["driverKey"] for d in v}) == len(v)),
}, lenient=True)


@dataclass(frozen=True, slots=True)
class Method:
    """A method we know: its name in fault tables and its parameters."""

    short: str
    rules: dict[str, Rule]


METHODS = {
    "initialize": Method("initialize", {
        "manifest": MANIFEST,
        "config": OBJECT,
        "instanceInfo": an_object({"instanceId": TEXT, "hostVersion": TEXT}),
        "apiVersion": INTEGER,
        "databaseNamespace": optional(NULLABLE_TEXT)}),
    "health": Method("health", {}),
    "shutdown": Method("shutdown", {}),
    "environmentValidateConfig": Method("validate", {
        "driverKey": DRIVER_KEY, "config": CONFIG}),
    "environmentProbe": Method("probe", BASE | {
        "issueId": optional(Rule("absent or null", lambda v: v is None)),
        "leasehold": optional(an_object(PROBE_LABEL))}),
    "environmentAcquireLease": Method("acquire", BASE | {
        "runId": TEXT,
        "agentId": optional(TEXT),
        "workspaceMode": optional(TEXT),
        "requestedCwd": optional(TEXT),
        "executionWorkspaceId": optional(TEXT),
        "adapterType": optional(TEXT),
        "executionWorkspaceSettings": optional(Rule(
            "an object or null", lambda v: v is None or is_object(v))),
        "requestedExpiresAt": optional(NULLABLE_TIME),
        "leasehold": an_object(LABEL)}),
    "environmentResumeLease": Method("resume", BASE | {
        "providerLeaseId": TEXT,
        "leaseMetadata": optional(OBJECT),
        "agentId": optional(TEXT),
        "leasehold": an_object(LABEL)}),
    "environmentReleaseLease": Method("release", BASE | {
        "providerLeaseId": NULLABLE_TEXT,
        "leaseMetadata": optional(OBJECT),
        "cancelActiveWork": optional(BOOLEAN),
        "leasehold": an_object(RELEASE_LABEL)}),
    "environmentDestroyLease": Method("destroy", BASE | {
        "providerLeaseId": NULLABLE_TEXT,
        "leaseMetadata": optional(OBJECT),
        "cancelActiveWork": optional(BOOLEAN),
        "leasehold": an_object(RELEASE_LABEL)}),
    "environmentRealizeWorkspace": Method("realize", BASE | {
        "lease": LEASE,
        "workspace": an_object({
            "localPath": optional(TEXT), "remotePath": optional(TEXT),
            "mode": optional(TEXT), "metadata": optional(OBJECT)}),
        "leasehold": an_object(LABEL)}),
    "environmentExecute": Method("execute", BASE | {
        "lease": LEASE,
        "command": TEXT,
        "args": optional(Rule(
            "a list of strings",
            lambda v: type(v) is list and all(type(a) is str for a in v))),
        "cwd": optional(TEXT),
        "env": optional(Rule("an object of strings under valid names",
                             is_environment)),
        "stdin": optional(STRING),
        "timeoutMs": optional(Rule(
            "a positive number", lambda v: type(v) in (int, float) and v > 0)),
        "runId": optional(NULLABLE_TEXT),
        "streamOutput": optional(BOOLEAN),
        "bypassSession": optional(BOOLEAN),
        "leasehold": an_object(EXECUTE_LABEL)}),
    "environmentFindLease": Method("find", BASE | {
        "leasehold": an_object(LABEL)}),
    "environmentListLeases": Method("list", BASE | {
        "cursor": optional(NULLABLE_TEXT),
        "leasehold": an_object(LIST_LABEL)}),
    "environmentCancelExecute": Method("cancel", BASE | {
        "lease": LEASE,
        "leasehold": an_object(CANCEL_LABEL)}),
}

SHORT_NAMES = frozenset(method.short for method in METHODS.values())

# Optional methods of the public protocol that this double does not have.
UNSUPPORTED_METHODS = frozenset((
    "validateConfig", "configChanged", "onEvent", "runJob", "handleWebhook",
    "handleApiRequest", "getData", "performAction", "executeTool",
    "environmentSyncIn", "environmentSyncOut",
    "environmentStartInteractiveSetup", "environmentGetInteractiveSetup",
    "environmentCaptureTemplate", "environmentCancelInteractiveSetup",
    "environmentDeleteTemplate"))

ENVELOPE = frozenset(("jsonrpc", "id", "method", "params"))
INVOCATION = an_object({"id": TEXT, "scope": an_object({
    "companyId": optional(NULLABLE_TEXT)})})


def check(value: Any, rule: Rule, where: str) -> None:
    """Raise RpcProblem unless ``value`` is what ``rule`` wants."""
    if not rule.accepts(value):
        raise RpcProblem(INVALID_PARAMS, f"{where} must be {rule.wants}")
    if rule.members is not None:
        check_members(value, rule.members, where, rule.lenient)


def check_members(value: Json, rules: dict[str, Rule], where: str,
                  lenient: bool = False) -> None:
    known = 0
    for name, rule in rules.items():
        if name in value:
            known += 1
            check(value[name], rule, f"{where}.{name}")
        elif rule.required:
            raise RpcProblem(INVALID_PARAMS, f"{where}.{name} is missing")
    if not lenient and known != len(value):
        stranger = next(name for name in value if name not in rules)
        raise RpcProblem(INVALID_PARAMS, f"{where}.{stranger} is not known")


def parse_json(body: bytes) -> Any:
    """Read JSON more strictly than Python does by default."""

    def members(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise RpcProblem(INVALID_REQUEST, "a member occurs twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=members,
                          parse_constant=constant)
    except (ValueError, RecursionError) as problem:
        raise RpcProblem(PARSE_ERROR, f"not JSON: {problem}") from None
