// SPDX-License-Identifier: Apache-2.0

/** What the tap does to calls, in front of a driver that counts them. */
import * as grpc from "@grpc/grpc-js";
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import * as http2 from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { eventually, within } from "../../base/waiting.ts";
import { refusal } from "../../client/gateway.ts";
import { computeDriver, outcomeOf, streaming, unary } from "../../../proto/contract.ts";
import type { ComputeDriverClient } from "../../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { WatchSandboxesEvent } from "../../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import { parseFault } from "./rules.ts";
import { Tap } from "./tap.ts";

const folder = mkdtempSync(join(tmpdir(), "tap-"));
const driver = new grpc.Server();
let seen: string[] = [];
let trouble: Partial<grpc.ServiceError> | undefined;
let events: string[] = ["a", "b", "c"];
let tap: Tap;
let client: ComputeDriverClient;

beforeAll(async () => {
  const answer =
    (name: string, response: object): grpc.handleUnaryCall<object, object> =>
    (_call, reply) => {
      seen.push(name);
      if (trouble) reply(trouble);
      else reply(null, response);
    };
  driver.addService(computeDriver().ComputeDriver.service, {
    GetCapabilities: answer("GetCapabilities", { driver_name: "counting", driver_version: "1" }),
    CreateSandbox: answer("CreateSandbox", {}),
    StopSandbox: answer("StopSandbox", {}),
    GetSandbox: answer("GetSandbox", { sandbox: { id: "1", name: "box", status: {} } }),
    WatchSandboxes: (call: grpc.ServerWritableStream<object, WatchSandboxesEvent>) => {
      for (const sandbox_id of events) call.write({ deleted: { sandbox_id } });
      call.on("cancelled", () => {});
    },
  });
  const asIs = (bytes: Buffer) => bytes;
  const echo = { path: "/newer.v2.Driver/Echo", requestStream: false, responseStream: false };
  const codecs = {
    requestSerialize: asIs,
    requestDeserialize: asIs,
    responseSerialize: asIs,
    responseDeserialize: asIs,
  };
  driver.addService(
    { Echo: { ...echo, ...codecs } },
    {
      Echo: (call: grpc.ServerUnaryCall<Buffer, Buffer>, reply: grpc.sendUnaryData<Buffer>) =>
        reply(null, call.request),
    },
  );
  const bind = (error: Error | null) => error && expect.unreachable(error.message);
  driver.bindAsync(`unix:${folder}/driver.sock`, grpc.ServerCredentials.createInsecure(), bind);
  await eventually(() => statSync(`${folder}/driver.sock`), { what: "the driver's socket" });
  tap = await Tap.open(`${folder}/tap.sock`, `${folder}/driver.sock`, () => {}, Promise.resolve());
  client = new (computeDriver().ComputeDriver)(`unix:${folder}/tap.sock`, grpc.credentials.createInsecure(), {
    "grpc.initial_reconnect_backoff_ms": 20,
    "grpc.max_reconnect_backoff_ms": 50,
  });
});

afterAll(() => {
  client.close();
  tap.close();
  driver.forceShutdown();
  rmSync(folder, { recursive: true });
});

beforeEach(() => {
  seen = [];
  events = ["a", "b", "c"];
  tap.rules = [];
  tap.intercept = {};
});

const faults = (...texts: string[]) => (tap.rules = texts.map(parseFault));
const who = { sandbox_id: "1", sandbox_name: "box" };
const stop = (deadlineMs = 2_000) => unary(client, client.StopSandbox, who, { deadlineMs });

/** The ids that a watch has sent once there are `count`, or it ended. */
async function watched(count: number): Promise<{ ids: string[]; ended: string | undefined }> {
  const call = client.WatchSandboxes({});
  const ids: string[] = [];
  let ended: string | undefined;
  call.on("error", () => {});
  call.on("data", ({ deleted }) => ids.push(deleted.sandbox_id));
  call.on("status", ({ code }: grpc.StatusObject) => (ended = grpc.status[code]));
  const enough = () => {
    if (ids.length < count && ended === undefined) throw new Error(`${ids.length} events`);
  };
  await eventually(enough, { what: `${count} events`, deadlineMs: 2_000 });
  call.cancel();
  return { ids, ended };
}

test("without a rule calls pass as they are, and are kept with what came back", async () => {
  const since = tap.seq;
  await stop();
  expect(seen).toEqual(["StopSandbox"]);
  expect(tap.calls(since)).toMatchObject([{ method: "StopSandbox", status: "OK", request: who }]);
});

test("the tap's socket is its user's alone", () => {
  expect(statSync(`${folder}/tap.sock`).mode & 0o777).toBe(0o600);
});

test("a rule may speak of one call, of those from one on, or of some", async () => {
  faults("StopSandbox: fail ABORTED, on call 2");
  await stop();
  expect((await refusal(stop())).code).toBe("ABORTED");
  await stop();
  faults("StopSandbox: fail ABORTED, 2 times");
  expect([(await refusal(stop())).code, (await refusal(stop())).code]).toEqual(["ABORTED", "ABORTED"]);
  await stop();
  expect(seen).toHaveLength(3);
});

test("a delayed call reaches the driver later, a hanging one never", async () => {
  faults("StopSandbox: delay 150ms once");
  const began = performance.now();
  await stop();
  expect(performance.now() - began).toBeGreaterThanOrEqual(149);
  faults("StopSandbox: hang");
  expect((await refusal(stop(100))).code).toBe("DEADLINE_EXCEEDED");
  expect(seen).toHaveLength(1);
});

test("a dropped connection is an error to all its calls, and the next one works", async () => {
  const call = client.WatchSandboxes({});
  const broken = new Promise<number>((resolve) => {
    call.on("error", () => {});
    call.on("data", () => {});
    call.on("status", ({ code }: grpc.StatusObject) => resolve(code));
  });
  faults("StopSandbox: drop once");
  expect((await refusal(stop())).code).not.toBe("DEADLINE_EXCEEDED");
  expect(await within(2_000, "the watch's end", broken)).not.toBe(grpc.status.OK);
  await eventually(() => stop(500), { what: "a call after the drop" });
  expect(seen).toEqual(["StopSandbox"]);
});

test("a duplicated call reaches the driver twice and is answered once", async () => {
  faults("CreateSandbox: duplicate");
  await unary(client, client.CreateSandbox, { sandbox: { id: "1" } }, { deadlineMs: 2_000 });
  const twice = () => expect(seen).toEqual(["CreateSandbox", "CreateSandbox"]);
  await eventually(twice, { what: "two calls at the driver" });
});

test("a field of the answer can be rewritten", async () => {
  faults("GetSandbox: rewrite sandbox.status.deleting=true");
  const { sandbox } = await unary(client, client.GetSandbox, who, { deadlineMs: 2_000 });
  expect(sandbox).toMatchObject({ name: "box", status: { deleting: true } });
});

test("a watch's events can be doubled, and swapped where two come together", async () => {
  faults("WatchSandboxes: duplicate");
  expect((await watched(6)).ids).toEqual(["a", "a", "b", "b", "c", "c"]);
  faults("WatchSandboxes: reorder");
  expect((await watched(3)).ids).toEqual(["b", "a", "c"]);
});

test("only the watch that a rule speaks of has its events doubled, and its record has both of each", async () => {
  const since = tap.seq;
  faults("WatchSandboxes: duplicate once");
  await watched(6);
  expect((await watched(3)).ids).toEqual(["a", "b", "c"]);
  const told = tap.calls(since).map(({ responses }) => responses as { deleted: { sandbox_id: string } }[]);
  expect(told.map((events) => events.map(({ deleted }) => deleted.sandbox_id))).toEqual([
    ["a", "a", "b", "b", "c", "c"],
    ["a", "b", "c"],
  ]);
});

test("of a watch a report has the last events of each sandbox, with their times", async () => {
  const before = performance.timeOrigin + performance.now();
  events = [...Array<string>(60).fill("often"), "once"];
  const seq = tap.seq;
  await watched(61);
  const records = tap.records(7).filter((call) => call.seq > seq);
  expect(records).toMatchObject([{ stack: 7, method: "WatchSandboxes", responses: [] }]);
  const told = records[0]!.events!;
  expect(told.map(({ sandbox }) => sandbox)).toEqual([...Array<string>(20).fill("often"), "once"]);
  expect(told.at(-1)!.event).toMatchObject({ deleted: { sandbox_id: "once" } });
  const after = performance.timeOrigin + performance.now();
  for (const { at } of told) expect(at >= before && at <= after).toBe(true);
});

test("a watch can be ended after some events, with OK or an error", async () => {
  faults("WatchSandboxes: end after 2 events");
  expect(await watched(9)).toEqual({ ids: ["a", "b"], ended: "OK" });
  faults("WatchSandboxes: end after 0 events UNAVAILABLE");
  expect(await watched(9)).toEqual({ ids: [], ended: "UNAVAILABLE" });
});

test("an interceptor answers in the driver's place, and may pass the call on", async () => {
  tap.intercept = {
    GetSandbox: async (request, pass) => {
      const answer = await pass({ ...request, sandbox_id: "2" });
      return { sandbox: { ...answer.sandbox!, name: "changed" } };
    },
    StopSandbox: async () => {
      throw Object.assign(new Error(), { code: grpc.status.NOT_FOUND, details: "broken on purpose" });
    },
    WatchSandboxes: (watch) => () => watch.send({ deleted: { sandbox_id: "never" } }),
  };
  const { sandbox } = await unary(client, client.GetSandbox, who, { deadlineMs: 2_000 });
  expect(sandbox?.name).toBe("changed");
  expect(await refusal(stop())).toEqual({ code: "NOT_FOUND", message: "broken on purpose" });
  expect(seen).toEqual(["GetSandbox"]);
  expect((await watched(3)).ids).toEqual(["never", "never", "never"]);
});

test("callers that give up, at whatever moment, and connections that break under them harm no other call", async () => {
  faults("CreateSandbox: delay 1ms");
  const rest = (count: number) => Array.from({ length: count }, (_, at) => stop(at / 20).catch(() => {}));
  const made = Array.from({ length: 100 }, (_, at) =>
    unary(client, client.CreateSandbox, {}, { deadlineMs: at / 10 }).catch(() => {}),
  );
  await Promise.all([...rest(200), ...made]);
  faults("GetSandbox: drop once");
  const broken = [...rest(100), unary(client, client.GetSandbox, who, { deadlineMs: 500 }).catch(() => {})];
  await Promise.all(broken);
  await eventually(() => stop(500), { what: "a call after all that" });
  const open = tap.calls().filter(({ ms, method }) => ms === undefined && method !== "WatchSandboxes");
  expect(open).toEqual([]);
});

test("calls of another contract pass, and are not kept", async () => {
  const seq = tap.seq;
  const asIs = (bytes: Buffer) => bytes;
  const ask = (path: string, reply: grpc.requestCallback<Buffer>) =>
    client.makeUnaryRequest(
      path,
      asIs,
      asIs,
      Buffer.from("as it is"),
      { deadline: Date.now() + 2_000 },
      reply,
    );
  const asked = (path: string) =>
    new Promise((done) => ask(path, (error, answer) => done(error?.details ?? answer!.toString())));
  expect(await asked("/newer.v2.Driver/Echo")).toBe("as it is");
  expect(await asked("/newer.v2.Driver/Unknown")).toStartWith("The server does not implement the method");
  expect(tap.seq).toBe(seq);
});

test("a large message passes both ways", async () => {
  const name = "x".repeat(3_000_000);
  await unary(client, client.CreateSandbox, { sandbox: { id: "1", name } }, { deadlineMs: 5_000 });
  const { request } = tap.calls().at(-1)!;
  expect((request as { sandbox: { name: string } }).sandbox.name).toHaveLength(name.length);
  faults(`GetSandbox: rewrite sandbox.name="${name}"`);
  const { sandbox } = await unary(client, client.GetSandbox, who, { deadlineMs: 5_000 });
  expect(sandbox!.name).toHaveLength(name.length);
});

test("an error's own trailers and words pass as they are", async () => {
  const metadata = new grpc.Metadata();
  metadata.set("why-bin", Buffer.from([0, 255, 1]));
  trouble = { code: grpc.status.ABORTED, details: "überfüllt: 100 %\nof it", metadata };
  const failed = await new Promise<grpc.ServiceError | null>((done) => client.StopSandbox(who, done));
  trouble = undefined;
  expect(failed).toMatchObject({ code: grpc.status.ABORTED, details: "überfüllt: 100 %\nof it" });
  expect(failed!.metadata.get("why-bin")).toEqual([Buffer.from([0, 255, 1])]);
});

test("a tap that is closed waits no longer for a driver that never came back", async () => {
  const lonely = await Tap.open(`${folder}/l.sock`, `${folder}/nobody.sock`, () => {}, Promise.resolve());
  await expect(lonely.reconnected(100)).rejects.toThrow("ENOENT");
  const waiting = lonely.reconnected(60_000);
  lonely.close();
  await within(1_000, "an end of the wait", waiting);
});

// Drivers that send what is no message

const GRPC = { ":status": 200, "content-type": "application/grpc" };

function frame(message: Uint8Array, { flag = 0, length = message.length } = {}): Buffer {
  const prefix = Buffer.alloc(5);
  prefix[0] = flag;
  prefix.writeUInt32BE(length, 1);
  return Buffer.concat([prefix, message]);
}

/** A tap before a driver that answers every call with these bytes, and a client of it. */
async function before(answer: () => Iterable<Buffer>) {
  const name = crypto.randomUUID().slice(0, 8);
  const server = http2.createServer();
  server.on("stream", (stream) => {
    stream.on("error", () => {});
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.respond(GRPC, { waitForTrailers: true });
    Readable.from(answer()).pipe(stream);
  });
  await new Promise<void>((done) => server.listen(`${folder}/${name}`, done));
  const tap = await Tap.open(`${folder}/${name}-tap`, `${folder}/${name}`, () => {}, Promise.resolve());
  const client = new (computeDriver().ComputeDriver)(
    `unix:${folder}/${name}-tap`,
    grpc.credentials.createInsecure(),
    { "grpc.max_receive_message_length": -1 },
  );
  const close = () => {
    client.close();
    tap.close();
    server.close();
  };
  return { tap, client, close };
}

const { GetSandbox, WatchSandboxes } = computeDriver().ComputeDriver.service;
const good = GetSandbox.responseSerialize({ sandbox: { id: "1", name: "xx" } });

const CUT = "failed to decode Protobuf message: GetSandboxResponse.sandbox: buffer underflow";

test.each<[string, Buffer, string, object[]]>([
  [
    "no protobuf message",
    frame(Buffer.from("no message")),
    "INTERNAL: Response message parsing error: failed to decode Protobuf message: invalid wire type value: 6",
    [{ undecodable: "failed to decode Protobuf message: invalid wire type value: 6", bytes: 10 }],
  ],
  [
    "half a message",
    frame(good.subarray(0, -1)),
    `INTERNAL: Response message parsing error: ${CUT}`,
    [{ undecodable: CUT, bytes: good.length - 1 }],
  ],
  [
    "compressed, without a word of it",
    frame(good, { flag: 1 }),
    "INTERNAL: protocol error: received message with compressed-flag but no grpc-encoding was specified",
    [],
  ],
  [
    "a flag that nobody knows",
    frame(good, { flag: 7 }),
    "INTERNAL: protocol error: received message with invalid compression flag: 7 (valid flags are 0 and 1) while receiving response with status: 200 OK",
    [],
  ],
  [
    "a length that lies",
    frame(good, { length: 0xffff_ffff }),
    "OUT_OF_RANGE: Error, decoded message length too large: found 4294967295 bytes, the limit is: 4194304 bytes",
    [],
  ],
  [
    "65 MB",
    frame(Buffer.alloc(65 * 2 ** 20)),
    "OUT_OF_RANGE: Error, decoded message length too large: found 68157440 bytes, the limit is: 4194304 bytes",
    [],
  ],
])("a driver's answer that is %s is told as it is, and kept as what it is", async (_, answer, told, kept) => {
  const { tap, client, close } = await before(() => [answer]);
  tap.onEnd = () => {};
  expect(await outcomeOf(unary(client, client.GetSandbox, who, { deadlineMs: 5_000 }))).toBe(told);
  expect(tap.calls()).toMatchObject([{ request: who, responses: kept }]);
  expect(tap.records(1)[0]).toMatchObject({ method: "GetSandbox", sandbox: who.sandbox_id, responses: kept });
  // The next call is as good as any.
  tap.rules = [{ method: "GetSandbox", response: { sandbox: { id: "2" } } }];
  expect(await outcomeOf(unary(client, client.GetSandbox, who, { deadlineMs: 5_000 }))).not.toBe("OK");
  expect(tap.calls().map(({ ms }) => typeof ms)).toEqual(["number", "number"]);
  close();
});

test("a rule that makes no message of a response fails the call, and says why", async () => {
  faults("GetSandbox: rewrite sandbox=5");
  const asked = outcomeOf(unary(client, client.GetSandbox, who, { deadlineMs: 2_000 }));
  expect(await asked).toBe("INTERNAL: .openshell.compute.v1.GetSandboxResponse.sandbox: object expected");
});

test("what is kept of a flood is bounded, its latest, and it costs other calls nothing", async () => {
  const event = (sandbox_id: string) => frame(WatchSandboxes.responseSerialize({ deleted: { sandbox_id } }));
  const events = Array.from({ length: 14 }, (_, number) => event(String(number).padEnd(3_000_000)));
  const { tap, client, close } = await before(() => events);
  tap.rules = [{ method: "StopSandbox", fail: { code: grpc.status.ABORTED, message: "" } }];
  expect(await outcomeOf(unary(client, client.StopSandbox, who, { deadlineMs: 5_000 }))).toBe("ABORTED: ");
  let came = 0;
  for await (const _ of streaming(client.WatchSandboxes({}))) came++;
  expect(came).toBe(14);
  const [stop, watch] = tap.crossed();
  expect(stop).toMatchObject({ name: "StopSandbox", code: grpc.status.ABORTED });
  const kept = watch!.responses.map(({ message }) => (message as WatchSandboxesEvent).deleted!.sandbox_id!);
  expect(kept.map((id) => Number(id))).toEqual([4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
  close();
});
