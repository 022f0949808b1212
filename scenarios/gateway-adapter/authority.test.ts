// SPDX-License-Identifier: Apache-2.0

/** Who may act for which sandbox: a sandbox's token opens what supervisors do, for that sandbox and while it is good. */
import { createPrivateKey, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { expect } from "bun:test";
import { codeName, openshell } from "../../proto/contract.ts";
import { until } from "../../harness/base/waiting.ts";
import { type Bench, gateways, type TestSandbox } from "./given.ts";

const { scenario } = gateways();

const METHODS: grpc.ServiceDefinition = openshell().OpenShell.service;

/** What supervisors alone may call. All that is not in these three lists is for users alone. */
const FOR_SUPERVISORS = [
  "ConnectSupervisor",
  "GetSandboxProviderEnvironment",
  "PushSandboxLogs",
  "RefreshSandboxToken",
  "RelayStream",
  "ReportMainProcessExit",
  "ReportPolicyStatus",
];
const FOR_BOTH = ["GetSandboxConfig", "UpdateConfig"];
const FOR_ANYONE = ["Health"];
const FOR_USERS = Object.keys(METHODS).filter(
  (method) => ![...FOR_SUPERVISORS, ...FOR_BOTH, ...FOR_ANYONE].includes(method),
);

/** A call of any kind, with one message: on the wire all are streams. Resolves with how it ended, as `answer` does. */
function called(
  { gateway }: Bench,
  method: string,
  request: object,
  metadata = new grpc.Metadata(),
): Promise<string> {
  const { path, requestSerialize, responseDeserialize } = METHODS[method]!;
  const deadline = Date.now() + 10_000;
  const call = gateway.client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadata, {
    deadline,
  });
  call.on("error", () => {}).on("data", () => {});
  const { promise, resolve } = Promise.withResolvers<string>();
  call.on("status", ({ code, details }: grpc.StatusObject) =>
    resolve(code === grpc.status.OK ? "OK" : `${codeName(code)}: ${details}`),
  );
  call.write(request);
  call.end();
  return promise;
}

const bearing = (token: string): grpc.Metadata => {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return metadata;
};

/** The token with which a sandbox's supervisor was to be started. */
const tokenOf = ({ bench, id }: TestSandbox): string => bench.driver.created.get(id)!.spec!.sandbox_token;

// Users and supervisors

/** How each of these methods answers a call without content. */
async function answers(given: Bench, methods: string[], metadata?: grpc.Metadata) {
  const each = methods.map(async (method) => [method, await called(given, method, {}, metadata)] as const);
  return Object.fromEntries(await Promise.all(each));
}

const allAre = (methods: string[], refusal: string) =>
  Object.fromEntries(methods.map((method) => [method, refusal]));

scenario("GA-1101 a sandbox's token opens nothing that is for users", async (given) => {
  const token = bearing(tokenOf(await given.create()));
  const refusal = "PERMISSION_DENIED: sandbox principals may not call this method";
  expect(await answers(given, FOR_USERS, token)).toEqual(allAre(FOR_USERS, refusal));
});

scenario("GA-1102 a user opens nothing that is for supervisors", async (given) => {
  const refusal = "PERMISSION_DENIED: this method requires a sandbox principal";
  expect(await answers(given, FOR_SUPERVISORS)).toEqual(allAre(FOR_SUPERVISORS, refusal));
});

// One sandbox and another

const NOT_OWN = "PERMISSION_DENIED: cross-sandbox access denied: principal does not own this sandbox";

for (const [id, what, method, request, refusal] of [
  [
    "GA-1110",
    "report the end of another's main process",
    "ReportMainProcessExit",
    ({ id }) => ({ sandbox_id: id, instance_id: "instance-1", exit_code: 1 }),
    NOT_OWN,
  ],
  [
    "GA-1111",
    "read another's policy and settings",
    "GetSandboxConfig",
    ({ id }) => ({ sandbox_id: id }),
    NOT_OWN,
  ],
  [
    "GA-1112",
    "store another's policy",
    "UpdateConfig",
    ({ name }) => ({ name, workspace: "default", policy: { version: 1 } }),
    "PERMISSION_DENIED: sandbox not found or not owned by caller",
  ],
  [
    "GA-1113",
    "report what became of another's policy",
    "ReportPolicyStatus",
    ({ id }) => ({ sandbox_id: id, version: 1, status: "POLICY_STATUS_LOADED" }),
    NOT_OWN,
  ],
  [
    "GA-1114",
    "read another's credentials",
    "GetSandboxProviderEnvironment",
    ({ id }) => ({ sandbox_id: id }),
    NOT_OWN,
  ],
  [
    "GA-1115",
    "write into another's log",
    "PushSandboxLogs",
    ({ id }) => ({ sandbox_id: id, logs: [{ level: "WARN", message: "not mine" }] }),
    NOT_OWN,
  ],
  [
    "GA-1116",
    "open another's session",
    "ConnectSupervisor",
    ({ id }) => ({ hello: { sandbox_id: id, instance_id: "instance-2" } }),
    NOT_OWN,
  ],
] satisfies [string, string, string, (other: TestSandbox) => object, string][])
  scenario(`${id} a sandbox cannot ${what}`, async (given) => {
    const token = bearing(tokenOf(await given.create()));
    const other = await given.readySandbox();
    const before = await other.get();
    expect(await called(given, method, request(other), token)).toBe(refusal);
    expect(await other.get()).toEqual(before);
    const written = { sandbox_id: other.id, sources: ["sandbox"] };
    expect((await given.call((client) => client.GetSandboxLogs, written)).logs).toEqual([]);
    expect(other.supervisor.ended).toBe(undefined);
  });

scenario("GA-1117 a sandbox cannot take another's relay, which stays there for the other", async (given) => {
  const token = bearing(tokenOf(await given.create()));
  const { id, supervisor } = await given.readySandbox();
  supervisor.relays = "ignored";
  const { client } = given.gateway;
  const run = client.ExecSandbox({ sandbox_id: id, command: ["true"] }, { deadline: Date.now() + 20_000 });
  run.on("error", () => {}).on("data", () => {});
  const announced = () => supervisor.messages.find(({ relay_open }) => relay_open)?.relay_open ?? undefined;
  const { channel_id } = await until("a relay to be announced", announced);
  expect(await called(given, "RelayStream", { init: { channel_id } }, token)).toBe(NOT_OWN);

  const relay = client.RelayStream(supervisor.metadata(), { deadline: Date.now() + 20_000 });
  let received = "";
  relay.on("error", () => {}).on("data", ({ data }) => (received += String(data)));
  relay.write({ init: { channel_id } });
  await until("the first words of an SSH client", () => received.startsWith("SSH-2.0-"), {
    seen: () => received,
  });
  relay.cancel();
  run.cancel();
});

// Tokens that are no good

const inSeconds = (seconds: number): number => Math.floor(Date.now() / 1000) + seconds;

/** A sandbox's token with other claims, signed with the gateway's own key. */
function altered(sandbox: TestSandbox, claims: object): string {
  const [head, body] = tokenOf(sandbox).split(".") as [string, string];
  const own = JSON.parse(Buffer.from(body, "base64url").toString()) as object;
  const signed = `${head}.${Buffer.from(JSON.stringify({ ...own, ...claims })).toString("base64url")}`;
  const key = createPrivateKey(readFileSync(sandbox.bench.lab.path("signing.pem")));
  return `${signed}.${sign(null, Buffer.from(signed), key).toString("base64url")}`;
}

for (const [id, title, claims, verdict] of [
  [
    "GA-1120",
    "a token of another gateway is refused",
    () => ({ iss: "openshell-gateway:other" }),
    "UNAUTHENTICATED: invalid token: InvalidIssuer",
  ],
  [
    "GA-1121",
    "a token for another gateway is refused",
    () => ({ aud: "openshell-gateway:other" }),
    "UNAUTHENTICATED: invalid token: InvalidAudience",
  ],
  [
    "GA-1122",
    "a token that ended is refused",
    () => ({ exp: inSeconds(-120) }),
    "UNAUTHENTICATED: invalid token: ExpiredSignature",
  ],
  ["GA-1123", "a token is good for another moment after its end", () => ({ exp: inSeconds(-20) }), "OK"],
  ["GA-1124", "a token without an end is good", () => ({ exp: 0 }), "OK"],
] satisfies [string, string, () => object, string][])
  scenario(`${id} ${title}`, async (given) => {
    const sandbox = await given.create();
    const token = bearing(altered(sandbox, claims()));
    const request = { sandbox_id: sandbox.id };
    expect(await called(given, "GetSandboxProviderEnvironment", request, token)).toBe(verdict);
  });
