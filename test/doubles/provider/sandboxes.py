"""The provider itself: pretend sandboxes and what may be done with them."""

from __future__ import annotations

import collections
import datetime
import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from typing import Any

from .commands import WORKSPACE, Command, Workspaces, finished
from .rules import is_integer
from .wire import INVALID_PARAMS, WORKER_ERROR, Call, Json, RpcProblem


def lease_of(members: Json) -> tuple[str, str, str]:
    """Lease ids are those of a company: two may use the same."""
    return (members["installationId"], members["companyId"],
            members["leaseId"])


class Journal:
    """Every change to what is alive, one JSON line each, written at once.

    A line reaches the operating system before its effect is answered, so the
    double may be killed at any instant and still knows what it holds.
    """

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def read(self) -> Iterator[Json]:
        with open(self.file, "rb", closefd=False) as lines:
            data = lines.read()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self.file, whole)  # a line cut short never counted
        for line in data[:whole].splitlines():
            yield json.loads(line)

    def write(self, entry: Json) -> None:
        os.write(self.file, json.dumps(entry).encode() + b"\n")


def now() -> str:
    moment = datetime.datetime.now(datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Provider:
    """The provider's side of the truth."""

    def __init__(self, lookup: bool, idempotent: bool,
                 journal: Journal | None) -> None:
        self.idempotent = idempotent
        self.journal = journal
        self.workspaces = Workspaces()
        self.handlers: dict[str, Callable[[Call], Any]] = {
            "initialize": self.initialize,
            "health": lambda call: {"status": "ok"},
            "shutdown": lambda call: None,
            "environmentValidateConfig": self.validate_config,
            "environmentProbe": self.probe,
            "environmentAcquireLease": self.acquire,
            "environmentResumeLease": self.resume,
            "environmentReleaseLease": self.release,
            "environmentDestroyLease": self.destroy,
            "environmentRealizeWorkspace": self.realize,
            "environmentExecute": self.execute,
        }
        if lookup:
            self.handlers |= {
                "environmentFindLease": self.find_lease,
                "environmentListLeases": self.list_leases,
                "environmentCancelExecute": self.cancel_execute,
            }
        self._clear()
        if journal is not None:
            for entry in journal.read():
                self._replay(entry)

    # -- memory -------------------------------------------------------------

    def _clear(self) -> None:
        self.resources: dict[str, Json] = {}
        self.by_key: dict[str, str] = {}
        self.by_lease: dict[tuple[str, str, str], list[str]] = {}
        self.running: dict[tuple[str, str], Command] = {}
        self.reset_counters()
        self.last_number = 0

    def reset_counters(self) -> None:
        self.creates = 0
        self.removes = 0
        self.repeated_acquires = 0
        self.already_gone = 0
        self.stale_generation_calls = 0
        self.duplicate_live_max = 0
        self.acquires: collections.Counter[str] = collections.Counter()
        self.executions: collections.Counter[str] = collections.Counter()
        self.acquires_max = 0

    def reset(self, keep_resources: bool) -> None:
        if keep_resources:
            self.reset_counters()
            return
        last = self.last_number
        self.close()
        self._clear()
        self.last_number = last
        self._note({"op": "reset", "last": last})

    def _note(self, entry: Json) -> None:
        if self.journal is not None:
            self.journal.write(entry)

    def _replay(self, entry: Json) -> None:
        op = entry["op"]
        if op == "create":
            self._add(entry["resource"])
        elif op == "acquire":
            self._count_acquire(entry["key"])
        elif op == "execute":
            self.executions[entry["key"]] += 1
        elif op == "change":
            self.resources[entry["providerLeaseId"]].update(entry["set"])
        elif op == "remove":
            self._drop(entry["providerLeaseId"])
        elif op == "reset":
            self._clear()
            self.last_number = entry["last"]

    def _add(self, resource: Json) -> None:
        provider_id = resource["providerLeaseId"]
        self.last_number = max(self.last_number, number_of(provider_id))
        self.resources[provider_id] = resource
        key = resource["idempotencyKey"]
        if key is not None:
            self.by_key.setdefault(key, provider_id)
            self._count_acquire(key)
        twins = self.by_lease.setdefault(lease_of(resource), [])
        twins.append(provider_id)
        self.duplicate_live_max = max(self.duplicate_live_max, len(twins))
        self.creates += 1

    def _drop(self, provider_id: str) -> None:
        resource = self.resources.pop(provider_id)
        if self.by_key.get(resource["idempotencyKey"]) == provider_id:
            del self.by_key[resource["idempotencyKey"]]
        lease = lease_of(resource)
        self.by_lease[lease].remove(provider_id)
        if not self.by_lease[lease]:
            del self.by_lease[lease]
        self.removes += 1

    def _count_acquire(self, key: str) -> None:
        self.acquires[key] += 1
        if self.acquires[key] > 1:
            self.repeated_acquires += 1
        self.acquires_max = max(self.acquires_max, self.acquires[key])

    def create(self, members: Json, key: str | None) -> Json:
        number = self.last_number + 1
        resource = {
            "providerLeaseId": f"sbx-{number}-{secrets.token_hex(6)}",
            "leaseId": members["leaseId"],
            "generation": members["generation"],
            "installationId": members["installationId"],
            "companyId": members["companyId"],
            "environmentId": members["environmentId"],
            "agentId": members.get("agentId"),
            "issueId": members.get("issueId"),
            "runId": members.get("runId"),
            "state": "running",
            "createdAt": now(),
            "idempotencyKey": key,
        }
        self._note({"op": "create", "resource": resource})
        self._add(resource)
        return resource

    def change(self, resource: Json, **members: Any) -> None:
        if any(resource[name] != value for name, value in members.items()):
            self._note({"op": "change", "set": members,
                        "providerLeaseId": resource["providerLeaseId"]})
            resource.update(members)

    def remove(self, provider_id: str) -> None:
        self._note({"op": "remove", "providerLeaseId": provider_id})
        self._drop(provider_id)
        self.end_commands(provider_id)
        self.workspaces.remove(provider_id)

    def other_live(self, lease_id: str | None) -> str | None:
        """The newest sandbox that belongs to some other lease."""
        for provider_id in reversed(self.resources):
            if self.resources[provider_id]["leaseId"] != lease_id:
                return provider_id
        return None

    # -- methods ------------------------------------------------------------

    def perform(self, call: Call) -> Any:
        """Do what was asked.  The result may be a coroutine."""
        return self.handlers[call.method](call)

    def initialize(self, call: Call) -> Json:
        return {"ok": True, "supportedMethods": [
            name for name in self.handlers if name != "initialize"]}

    def validate_config(self, call: Call) -> Json:
        if "reject" in call.config:
            return {"ok": False, "errors": [str(call.config["reject"])]}
        return {"ok": True, "normalizedConfig": call.config}

    def probe(self, call: Call) -> Json:
        return {"ok": True, "summary": "The test double is reachable.",
                "diagnostics": [], "metadata": {"live": len(self.resources)}}

    def acquire(self, call: Call) -> Json:
        key = call.label["idempotencyKey"]
        known = self.resources.get(self.by_key.get(key, ""))
        if known is not None:
            asked = call.params | call.label
            for name in ("installationId", "companyId", "leaseId", "generation"):
                if known[name] != asked[name]:
                    raise RpcProblem(
                        INVALID_PARAMS, "params.leasehold.idempotencyKey is "
                        f"in use with another {name}")
        if known is not None and self.idempotent:
            self._note({"op": "acquire", "key": key})
            self._count_acquire(key)
            call.record["outcome"] = "repeated"
            return describe(known["providerLeaseId"])
        resource = self.create(call.params | call.label, key)
        call.record["outcome"] = "created"
        lease = describe(resource["providerLeaseId"])
        if call.params.get("requestedExpiresAt"):
            lease["expiresAt"] = call.params["requestedExpiresAt"]
        return lease

    def resume(self, call: Call) -> Json:
        resource = self._owned(call, call.params["providerLeaseId"])
        if resource is None:
            call.record["outcome"] = "missing"
            return {"providerLeaseId": None, "metadata": {"expired": True}}
        self.change(resource, state="running",
                    generation=call.label["generation"])
        call.record["outcome"] = "resumed"
        return describe(resource["providerLeaseId"])

    def release(self, call: Call) -> None:
        disposition = call.label.get("disposition")
        if disposition is None:
            reuse = call.config.get("reuseLease") is True
            disposition = "stop" if reuse else "delete"
        self._end(call, delete=disposition == "delete")

    def destroy(self, call: Call) -> None:
        self._end(call, delete=True)

    def _end(self, call: Call, delete: bool) -> None:
        provider_id = call.params["providerLeaseId"]
        if provider_id is None:
            call.record["outcome"] = "nothing"
            return
        resource = self._owned(call, provider_id)
        if resource is None:
            self.already_gone += 1
            call.record["outcome"] = "gone"
        elif delete:
            self.remove(provider_id)
            call.record["outcome"] = "removed"
        else:
            self.change(resource, state="parked")
            call.record["outcome"] = "parked"

    def _owned(self, call: Call, provider_id: str) -> Json | None:
        """The sandbox, which must be the caller's, or None when it is gone."""
        resource = self.resources.get(provider_id)
        if resource is None:
            return None
        asked = call.params | call.label
        for name in ("installationId", "companyId", "leaseId"):
            if resource[name] != asked[name]:
                raise RpcProblem(
                    INVALID_PARAMS,
                    f"{provider_id} belongs to another {name}")
        if call.label["generation"] < resource["generation"]:
            self.stale_generation_calls += 1
        return resource

    def find_lease(self, call: Call) -> Json:
        lease = lease_of(call.params | call.label)
        for provider_id in self.by_lease.get(lease, ()):
            resource = self.resources[provider_id]
            if resource["generation"] == call.label["generation"]:
                call.record["outcome"] = "found"
                return describe(provider_id)
        call.record["outcome"] = "missing"
        return {"providerLeaseId": None}

    def list_leases(self, call: Call) -> Json:
        size = call.config.get("pageSize", 100)
        after = call.params.get("cursor") or "0"
        if not after.isdecimal() or not is_integer(size) or size < 1:
            raise RpcProblem(INVALID_PARAMS, "params.cursor is not ours")
        installation = call.label["installationId"]
        page: list[Json] = []
        cursor = None
        for provider_id, resource in self.resources.items():
            if (resource["installationId"] != installation
                    or number_of(provider_id) <= int(after)):
                continue
            if len(page) == size:
                cursor = str(number_of(page[-1]["providerLeaseId"]))
                break
            page.append({name: resource[name] for name in (
                "providerLeaseId", "leaseId", "companyId", "generation")}
                | {"metadata": {"state": resource["state"]}})
        call.record["outcome"] = f"listed {len(page)}"
        return {"leases": page, "nextCursor": cursor}

    def realize(self, call: Call) -> Json:
        lease = call.params["lease"]
        provider_id = lease["providerLeaseId"]
        if provider_id is None or self._owned(call, provider_id) is None:
            raise RpcProblem(WORKER_ERROR, f"no such sandbox: {provider_id}")
        workspace = call.params["workspace"]
        cwd = (call.config.get("workspace")
               or lease.get("metadata", {}).get("remoteCwd")
               or workspace.get("remotePath") or workspace.get("localPath")
               or WORKSPACE)
        return {"cwd": cwd, "metadata": {"realized": True}}

    # -- commands -----------------------------------------------------------

    def execute(self, call: Call) -> Any:
        params = call.params
        provider_id = params["lease"]["providerLeaseId"]
        resource = None
        if provider_id is not None:
            resource = self._owned(call, provider_id)
        if resource is None:
            return finished(1, stderr=f"no such sandbox: {provider_id}\n")
        if resource["state"] == "parked":
            return finished(1, stderr=f"{provider_id} is parked\n")
        key = call.label["idempotencyKey"]
        self._note({"op": "execute", "key": key})
        self.executions[key] += 1
        return self._run(Command(params, self.workspaces.of(provider_id),
                                 call.emit),
                         (provider_id, call.label.get("commandId", "")))

    async def _run(self, command: Command, slot: tuple[str, str]) -> Json:
        self.running[slot] = command
        try:
            return await command.run()
        finally:
            if self.running.get(slot) is command:
                del self.running[slot]

    def cancel_execute(self, call: Call) -> Json:
        provider_id = call.params["lease"]["providerLeaseId"]
        if provider_id is not None:
            self._owned(call, provider_id)
        command = self.running.get((provider_id, call.label["commandId"]))
        call.record["outcome"] = "cancelled" if command else "nothing"
        if command is not None:
            command.cancel()
        return {}

    def end_commands(self, provider_id: str | None = None) -> None:
        """Those of a sandbox that goes, or all."""
        for (where, _), command in self.running.items():
            if provider_id in (None, where):
                command.signal(signal.SIGKILL)

    def close(self) -> None:
        self.end_commands()
        self.workspaces.remove_all()


def number_of(provider_id: str) -> int:
    return int(provider_id.split("-")[1])


def describe(provider_id: str) -> Json:
    return {"providerLeaseId": provider_id,
            "metadata": {"remoteCwd": WORKSPACE, "sandboxId": provider_id}}

