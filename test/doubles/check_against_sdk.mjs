// Does the HTTP provider double behave like a plugin written with the public
// plugin SDK, and are our requests ones that such a plugin understands?
//
// A small plugin made of the SDK's own fake driver runs in this process behind
// the SDK's worker host.  Every request goes to both: to that worker as a line
// on its standard input, to the double over HTTP.  The answers are compared
// with each other, and requests and answers with the SDK's published types.
//
// Run: npm install && npm test.  Prints TAP; exits 1 when a check fails.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { PassThrough } from "node:stream";
import { fileURLToPath } from "node:url";
import {
  HOST_TO_WORKER_OPTIONAL_METHODS, JSONRPC_ERROR_CODES, MESSAGE_DELIMITER,
  PLUGIN_RPC_ERROR_CODES, assertEnvironmentEventOrder,
  assertExecutionLifecycle, assertLeaseLifecycle,
  assertWorkspaceRealizationLifecycle, createEnvironmentTestHarness,
  createFakeEnvironmentDriver, createRequest, definePlugin,
  isJsonRpcErrorResponse, isJsonRpcNotification, isJsonRpcResponse,
  isJsonRpcSuccessResponse, parseMessage, serializeMessage, startWorkerRpcHost,
} from "@paperclipai/plugin-sdk";
import { pluginManifestV1Schema } from "@paperclipai/shared";

const TOKEN = "a-token-for-tests";
const here = dirname(fileURLToPath(import.meta.url));

// --- TAP ---------------------------------------------------------------------

let count = 0;
let failures = 0;

function ok(passed, name, ...details) {
  count += 1;
  if (!passed) failures += 1;
  console.log(`${passed ? "ok" : "not ok"} ${count} - ${name}`);
  if (!passed) {
    for (const detail of details) console.log(`# ${JSON.stringify(detail)}`);
  }
}

function same(left, right, name) {
  ok(JSON.stringify(left) === JSON.stringify(right), name, left, right);
}

function noThrow(action, name) {
  try {
    action();
    ok(true, name);
  } catch (error) {
    ok(false, name, String(error));
  }
}

// --- the two peers -----------------------------------------------------------

/** The SDK's worker host around a plugin, spoken to as its host would. */
function startSdkWorker(plugin) {
  const stdin = new PassThrough();
  const stdout = new PassThrough();
  const worker = startWorkerRpcHost({ plugin, stdin, stdout });
  const waiting = [];
  const notifications = [];
  createInterface({ input: stdout }).on("line", (line) => {
    const message = parseMessage(line);
    if (isJsonRpcResponse(message)) waiting.shift()?.(message);
    else if (isJsonRpcNotification(message)) notifications.push(message);
  });
  return {
    notifications,
    sendLine(line) {
      const answer = new Promise((resolve) => waiting.push(resolve));
      stdin.write(line + MESSAGE_DELIMITER);
      return answer;
    },
    send(request) {
      return this.sendLine(serializeMessage(request).trimEnd());
    },
    stop() {
      worker.stop();
    },
  };
}

/** Headers that repeat what the request says. */
function echoes(request) {
  const key = request.params?.leasehold?.idempotencyKey;
  return {
    "Leasehold-Request-Id": String(request.id),
    ...(key === undefined ? {} : { "Idempotency-Key": key }),
  };
}

/** The double as a child process, spoken to over HTTP as our worker would. */
async function startDouble(variant) {
  const child = spawn(
    process.env.PYTHON ?? "python3",
    [join(here, "http_provider.py"), "--token", TOKEN, "--variant", variant],
    { stdio: ["ignore", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout });
  const [line] = await once(lines, "line");
  const url = `http://127.0.0.1:${line.match(/^listening on (\d+)$/)[1]}`;
  return {
    async fetch(body, headers = {}) {
      const response = await fetch(`${url}/rpc`, {
        method: "POST", body, redirect: "error",
        headers: {
          "Content-Type": "application/json",
          "Authorization": `Bearer ${TOKEN}`,
          ...headers,
        },
      });
      return response.text();
    },
    async sendLine(body, headers) {
      return parseMessage(await this.fetch(body, headers));
    },
    send(request) {
      return this.sendLine(JSON.stringify(request), echoes(request));
    },
    /** All messages of the answer to a request that asks for a stream. */
    async stream(request) {
      const body = await this.fetch(JSON.stringify(request), echoes(request));
      return body.trimEnd().split("\n").map((line) => parseMessage(line));
    },
    async call(method, params) {
      const answer = await this.send(createRequest(method, params));
      if (isJsonRpcErrorResponse(answer)) throw new Error(answer.error.message);
      return answer.result;
    },
    async counters() {
      const response = await fetch(`${url}/_admin/state`);
      return (await response.json()).counters;
    },
    async stop() {
      child.kill("SIGTERM");
      const [status] = await once(child, "exit");
      return status;
    },
  };
}

// --- the SDK's published types -----------------------------------------------

const declarations = readFileSync(fileURLToPath(new URL(
  "protocol.d.ts", import.meta.resolve("@paperclipai/plugin-sdk"))), "utf8")
  .replace(/\/\*[\s\S]*?\*\//g, "");

/** Members of an exported interface: name -> { optional, type }. */
function membersOf(name) {
  const found = declarations.match(new RegExp(
    `export interface ${name}(?: extends (\\w+))? \\{\\n([\\s\\S]*?)^\\}`, "m"));
  if (!found) throw new Error(`the SDK declares no ${name}`);
  const members = found[1] ? membersOf(found[1]) : {};
  for (const [, member, mark, type] of found[2].matchAll(
    /^ {4}(?:readonly )?(\w+)(\??): ([^{}]*?|\{[\s\S]*?^ {4}\}(?:\[\])?);$/gm)) {
    members[member] = { optional: mark === "?", type };
  }
  return members;
}

function typeAccepts(type, value) {
  return type.split("|").map((part) => part.trim()).some((part) => {
    if (part === "null") return value === null;
    if (["string", "number", "boolean"].includes(part)) {
      return typeof value === part;
    }
    if (part.endsWith("[]")) return Array.isArray(value);
    return typeof value === "object" && value !== null && !Array.isArray(value);
  });
}

/** What is wrong with `value` as the SDK's `name`, extra members set aside. */
function misfits(value, name, extra = []) {
  const members = membersOf(name);
  const problems = [];
  for (const [member, { optional, type }] of Object.entries(members)) {
    if (!(member in value)) {
      if (!optional) problems.push(`${member} is missing`);
    } else if (!typeAccepts(type, value[member])) {
      problems.push(`${member} is not ${type}`);
    }
  }
  for (const member of Object.keys(value)) {
    if (!(member in members) && !extra.includes(member)) {
      problems.push(`${member} is not declared`);
    }
  }
  return problems;
}

function fits(value, name, what, extra) {
  same(misfits(value, name, extra), [], `${what} is a ${name} of the SDK`);
}

/** The kinds of the members two objects share. */
function kinds(value, names) {
  const kind = (v) => (v === null ? "null" : Array.isArray(v) ? "array" : typeof v);
  return names.map((name) => `${name}: ${kind(value[name])}`);
}

function sameShape(sdk, double, what) {
  if (sdk === null || typeof sdk !== "object") {
    same(double, sdk, `${what}: both answer ${JSON.stringify(sdk)}`);
    return;
  }
  const names = Object.keys(sdk).sort();
  same(kinds(double, names), kinds(sdk, names),
    `${what}: the double answers with ${names.join(", ")} as the SDK does`);
}

// --- our requests ------------------------------------------------------------

const manifest = {
  id: "leasehold.double",
  apiVersion: 1,
  version: "1.0.0",
  displayName: "Provider double",
  description: "A sandbox provider for tests",
  author: "The leasehold project",
  categories: ["automation"],
  capabilities: ["environment.drivers.register"],
  entrypoints: { worker: "dist/worker.js" },
  environmentDrivers: [{
    driverKey: "fake",
    kind: "sandbox_provider",
    displayName: "Double",
    configSchema: { type: "object", properties: { image: { type: "string" } } },
  }],
};
const initialize = {
  manifest,
  config: {},
  instanceInfo: {
    instanceId: "0197a000-0000-7000-8000-000000000001", hostVersion: "0.1.0",
  },
  apiVersion: 1,
};
const base = {
  driverKey: "fake",
  companyId: "0197a000-0000-7000-8000-000000000002",
  environmentId: "0197a000-0000-7000-8000-000000000003",
  issueId: null,
  config: { image: "debian:12" },
};
const leasehold = {
  installationId: "0197a000-0000-7000-8000-000000000001",
  leaseId: "0197a000-0000-7000-8000-000000000004",
  generation: 1,
  idempotencyKey: "0197a000-0000-7000-8000-000000000004/1",
};
const runId = "0197a000-0000-7000-8000-000000000005";
const agentId = "0197a000-0000-7000-8000-000000000006";
const executionWorkspaceId = "0197a000-0000-7000-8000-000000000007";

/** Our parameters for each method, given the sandbox in question. */
function parameters(providerLeaseId) {
  const lease = { providerLeaseId, metadata: {}, expiresAt: null };
  return {
    environmentValidateConfig: { driverKey: "fake", config: base.config },
    environmentProbe: base,
    environmentAcquireLease: {
      ...base, runId, agentId, workspaceMode: "isolated", executionWorkspaceId,
      adapterType: "codex_local", leasehold,
    },
    environmentResumeLease: {
      ...base, providerLeaseId, agentId, leaseMetadata: {}, leasehold,
    },
    environmentRealizeWorkspace: {
      ...base, lease, workspace: { localPath: "/home/me/work" }, leasehold,
    },
    environmentExecute: {
      ...base, lease, command: "echo", args: ["a", "b"], cwd: "/workspace",
      env: { CI: "1" }, stdin: "", timeoutMs: 60000, runId, streamOutput: true,
      leasehold: { ...leasehold, commandId: "command-1" },
    },
    environmentReleaseLease: {
      ...base, providerLeaseId, leaseMetadata: {},
      leasehold: { ...leasehold, disposition: "delete" },
    },
    environmentDestroyLease: {
      ...base, providerLeaseId, leaseMetadata: {},
      leasehold: { ...leasehold, disposition: "delete" },
    },
  };
}

// What the SDK calls the parameters and the result of each method, and which
// members of the parameters are our own additions to them.
const TYPES = {
  environmentValidateConfig: ["PluginEnvironmentValidateConfigParams",
    "PluginEnvironmentValidationResult", []],
  environmentProbe: ["PluginEnvironmentProbeParams",
    "PluginEnvironmentProbeResult", []],
  environmentAcquireLease: ["PluginEnvironmentAcquireLeaseParams",
    "PluginEnvironmentLease", ["leasehold"]],
  environmentResumeLease: ["PluginEnvironmentResumeLeaseParams",
    "PluginEnvironmentLease", ["leasehold", "agentId"]],
  environmentRealizeWorkspace: ["PluginEnvironmentRealizeWorkspaceParams",
    "PluginEnvironmentRealizeWorkspaceResult", ["leasehold"]],
  environmentExecute: ["PluginEnvironmentExecuteParams",
    "PluginEnvironmentExecuteResult",
    ["leasehold", "runId", "streamOutput"]],
  environmentReleaseLease: ["PluginEnvironmentReleaseLeaseParams",
    null, ["leasehold"]],
  environmentDestroyLease: ["PluginEnvironmentDestroyLeaseParams",
    null, ["leasehold"]],
};

// --- the checks --------------------------------------------------------------

const driver = createFakeEnvironmentDriver();
const seenBySdk = [];
const watch = (method, hook) => async (params) => {
  seenBySdk.push([method, params]);
  return hook(params);
};
let context;
async function executeAloud(params) {
  const channel = `env-exec-output:${params.runId}`;
  context.streams.open(channel, params.companyId);
  context.streams.emit(channel, { stream: "stdout", text: "a b\n" });
  context.streams.close(channel);
  context.execution.log("stdout", "a b\n");
  return driver.onExecute(params);
}
const sdk = startSdkWorker(definePlugin({
  async setup(given) {
    context = given;
  },
  onEnvironmentValidateConfig:
    watch("environmentValidateConfig", driver.onValidateConfig),
  onEnvironmentProbe: watch("environmentProbe", driver.onProbe),
  onEnvironmentAcquireLease:
    watch("environmentAcquireLease", driver.onAcquireLease),
  onEnvironmentResumeLease:
    watch("environmentResumeLease", driver.onResumeLease),
  onEnvironmentReleaseLease:
    watch("environmentReleaseLease", driver.onReleaseLease),
  onEnvironmentDestroyLease:
    watch("environmentDestroyLease", driver.onDestroyLease),
  onEnvironmentRealizeWorkspace:
    watch("environmentRealizeWorkspace", driver.onRealizeWorkspace),
  onEnvironmentExecute: watch("environmentExecute", executeAloud),
}));
const plain = await startDouble("plain");
const lookup = await startDouble("lookup");

async function both(method, sdkParams, doubleParams = sdkParams) {
  const id = `${method}-${count}`;
  const answers = await Promise.all([
    sdk.send(createRequest(method, sdkParams, id)),
    plain.send(createRequest(method, doubleParams, id)),
  ]);
  for (const answer of answers) {
    if (answer.id !== id) ok(false, `${method}: the answer repeats the id`, answer);
  }
  return answers;
}

async function checkInitialize() {
  noThrow(() => pluginManifestV1Schema.parse(manifest),
    "the SDK's schema accepts our manifest");
  fits(initialize, "InitializeParams", "our initialize");
  const [fromSdk, fromDouble] = await both("initialize", initialize);
  sameShape(fromSdk.result, fromDouble.result, "initialize");
  fits(fromDouble.result, "InitializeResult", "the double's answer");
  const theirs = new Set(fromSdk.result.supportedMethods);
  const announced = fromDouble.result.supportedMethods;
  const basic = ["health", "shutdown"]; // a worker has them without a hook
  same(announced.filter((m) => !theirs.has(m) && !basic.includes(m)), [],
    "the plain double announces nothing an SDK plugin could not");
  same([...theirs].filter((m) => !announced.includes(m)), [],
    "and everything this SDK plugin does");
  const more = (await lookup.call("initialize", initialize)).supportedMethods;
  same(more.filter((m) => !announced.includes(m)), [
    "environmentFindLease", "environmentListLeases",
    "environmentCancelExecute"],
  "the lookup double announces exactly three methods more");
  const [health, double] = await both("health", {});
  same(double.result, health.result, "health: the same answer");
}

async function checkLifecycle() {
  const held = [null, null];
  for (const [method, [paramsType, resultType, extra]] of Object.entries(TYPES)) {
    const ours = held.map((id) => parameters(id ?? "none")[method]);
    fits(ours[0], paramsType, `our ${method}`, extra);
    const [fromSdk, fromDouble] = await both(method, ...ours);
    const fine = isJsonRpcSuccessResponse(fromSdk)
      && isJsonRpcSuccessResponse(fromDouble);
    ok(fine, `${method}: both accept our request`, fromSdk, fromDouble);
    if (!fine) continue;
    sameShape(fromSdk.result, fromDouble.result, method);
    if (resultType) fits(fromDouble.result, resultType, "the double's answer");
    if (method === "environmentAcquireLease") {
      held[0] = fromSdk.result.providerLeaseId;
      held[1] = fromDouble.result.providerLeaseId;
    }
    const [, params] = seenBySdk.at(-1);
    same(params, ours[0], `${method}: the plugin sees our parameters whole`);
  }
  const { protocol_violations: violations, live } = await plain.counters();
  same([violations, live], [0, 0], "the double saw no violation, nothing is left");
}

async function checkOutput() {
  // What the SDK sends of a command's output is what the double sends.
  const { providerLeaseId } = await plain.call("environmentAcquireLease",
    parameters(null).environmentAcquireLease);
  const params = parameters(providerLeaseId).environmentExecute;
  const fromSdk = Object.fromEntries(
    sdk.notifications.map((message) => [message.method, message]));
  for (const [notify, method] of [["channel", "streams.emit"],
    ["log", "execute.log"]]) {
    const request = createRequest("environmentExecute", {
      ...params,
      env: { DOUBLE: JSON.stringify({ format: "lines", notify }) },
    });
    const messages = await plain.stream(request);
    same(messages.slice(0, -1), [fromSdk[method]],
      `${method}: the double's notification is the SDK's`);
    const answer = messages.at(-1);
    ok(isJsonRpcSuccessResponse(answer) && answer.id === request.id,
      "then the answer comes", answer);
    same(misfits(answer.result, "PluginEnvironmentExecuteResult", ["streamed"]),
      [], "which is a PluginEnvironmentExecuteResult of the SDK, but for streamed");
  }
  await plain.call("environmentReleaseLease",
    parameters(providerLeaseId).environmentReleaseLease);
  const { protocol_violations: violations, live } = await plain.counters();
  same([violations, live], [0, 0], "the double saw no violation, nothing is left");
}

async function checkIdempotentEnds() {
  for (const id of [null, "sbx-0-unknown"]) {
    for (const method of ["environmentReleaseLease", "environmentDestroyLease"]) {
      const [fromSdk, fromDouble] = await both(method, parameters(id)[method]);
      same([fromDouble.result, fromSdk.result], [null, null],
        `${method} of ${id}: success with a null result from both`);
    }
  }
}

async function checkErrors() {
  // The SDK's own fake throws where real providers answer with a null id; a
  // host has to read both as "could not be resumed".
  const [thrown, empty] = await both("environmentResumeLease",
    parameters("sbx-0-unknown").environmentResumeLease);
  same([thrown.error?.code, empty.result],
    [PLUGIN_RPC_ERROR_CODES.WORKER_ERROR,
      { providerLeaseId: null, metadata: { expired: true } }],
    "resume of a lost sandbox: an error from the SDK's fake, a null id here");
  fits(empty.result, "PluginEnvironmentLease", "the double's answer");

  const missing = HOST_TO_WORKER_OPTIONAL_METHODS.filter((method) =>
    method.startsWith("environment") && !(method in TYPES));
  ok(missing.length > 0, "the SDK has optional methods that neither implements");
  for (const method of missing) {
    const [fromSdk, fromDouble] = await both(method, base);
    same([fromDouble.error?.code, fromSdk.error?.code],
      Array(2).fill(PLUGIN_RPC_ERROR_CODES.METHOD_NOT_IMPLEMENTED),
      `${method}: both say it is not implemented`);
    ok(fromDouble.error?.message.includes(method), "and name it");
    same(kinds(fromDouble.error, ["code", "message"]),
      kinds(fromSdk.error, ["code", "message"]), "in the same form");
  }

  // Our own optional methods: an SDK plugin has never heard of them.
  const scoped = { ...base, leasehold };
  for (const method of ["environmentFindLease", "environmentListLeases",
    "environmentCancelExecute", "environmentTeleport"]) {
    const [fromSdk, fromDouble] = await both(method, scoped);
    same([fromDouble.error?.code, fromSdk.error?.code],
      Array(2).fill(JSONRPC_ERROR_CODES.METHOD_NOT_FOUND),
      `${method}: unknown to both`);
  }

  const fromSdk = await sdk.sendLine("{ not json");
  const fromDouble = await plain.sendLine("{ not json");
  same([fromDouble.id, fromDouble.error?.code], [fromSdk.id, fromSdk.error?.code],
    "a parse error: the same code, a null id");
  same(fromDouble.error?.code, JSONRPC_ERROR_CODES.PARSE_ERROR, "which is -32700");
}

async function checkHarness() {
  // The SDK's test harness drives the double as if it were a plugin's driver.
  const hook = (method) => (params) =>
    lookup.call(method, { ...params, leasehold });
  const harness = createEnvironmentTestHarness({
    manifest,
    environmentDriver: {
      driverKey: "fake",
      onValidateConfig: (params) =>
        lookup.call("environmentValidateConfig", params),
      onProbe: (params) => lookup.call("environmentProbe", params),
      onAcquireLease: hook("environmentAcquireLease"),
      onResumeLease: hook("environmentResumeLease"),
      onReleaseLease: hook("environmentReleaseLease"),
      onDestroyLease: hook("environmentDestroyLease"),
      onRealizeWorkspace: hook("environmentRealizeWorkspace"),
      onExecute: hook("environmentExecute"),
    },
  });
  await harness.validateConfig({ driverKey: "fake", config: base.config });
  await harness.probe(base);
  const lease = await harness.acquireLease({ ...base, runId });
  const providerLeaseId = lease.providerLeaseId;
  const found = await lookup.call("environmentFindLease", { ...base, leasehold });
  same(found.providerLeaseId, providerLeaseId, "find: the acquired sandbox");
  fits(found, "PluginEnvironmentLease", "what find answers");
  await harness.realizeWorkspace({ ...base, lease, workspace: {} });
  const result = await harness.execute({ ...base, lease, command: "echo" });
  same([result.exitCode, result.stdout], [0, "\n"], "execute: the expected result");
  await harness.releaseLease({ ...base, providerLeaseId });
  const events = harness.environmentEvents;
  noThrow(() => assertEnvironmentEventOrder(events, ["validateConfig", "probe",
    "acquireLease", "realizeWorkspace", "execute", "releaseLease"]),
  "the SDK's harness sees the order it expects");
  noThrow(() => assertLeaseLifecycle(events, base.environmentId),
    "a complete lease");
  noThrow(() => assertWorkspaceRealizationLifecycle(events, base.environmentId),
    "a realized workspace within it");
  noThrow(() => assertExecutionLifecycle(events, base.environmentId),
    "and an execution");
  const list = await lookup.call("environmentListLeases", {
    ...base, leasehold: { installationId: leasehold.installationId },
    cursor: null,
  });
  same(list, { leases: [], nextCursor: null }, "list: nothing is left");
  const { protocol_violations: violations } = await lookup.counters();
  same(violations, 0, "the lookup double saw no violation");
}

console.log("TAP version 13");
try {
  await checkInitialize();
  await checkLifecycle();
  await checkOutput();
  await checkIdempotentEnds();
  await checkErrors();
  await checkHarness();
} catch (error) {
  ok(false, "the checks ran to their end", String(error?.stack ?? error));
} finally {
  sdk.stop();
  same(await Promise.all([plain.stop(), lookup.stop()]), [0, 0],
    "both doubles stop cleanly");
}
console.log(`1..${count}`);
process.exitCode = failures === 0 ? 0 : 1;
