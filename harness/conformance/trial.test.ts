// SPDX-License-Identifier: Apache-2.0

/** What checks make of drivers that do what a rule allows, and nearly no driver does. */
import * as grpc from "@grpc/grpc-js";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { computeDriver } from "../../proto/contract.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { HarnessError } from "../base/errors.ts";
import type { Connection } from "../runtime/connection.ts";
import type { StackInfo } from "../runtime/stack.ts";
import type { Backend } from "./backend.ts";
import { Driver } from "./driver.ts";
import { loadChecks } from "./load.ts";
import { runOne, UNDO } from "./runner.ts";
import { type Subject, Trial } from "./trial.ts";

const folder = mkdtempSync(join(tmpdir(), "trial-"));
const socket = join(folder, "driver.sock");
const server = new grpc.Server();
const cancelled = Promise.withResolvers<void>();
const subject: Subject = {
  socket,
  own: new Driver(socket),
  backend: undefined,
  image: "",
  stopMs: 5_000,
};

const there = new Map<string, DriverSandbox>();
const madeSlowly = Promise.withResolvers<void>();

beforeAll(async () => {
  const deletes: grpc.handleUnaryCall<{ sandbox_id: string }, object> = ({ request }, reply) =>
    reply(null, { deleted: there.delete(request.sandbox_id) });
  server.addService(computeDriver().ComputeDriver.service, {
    // Takes its time for one that is slow, and makes it although the call was cancelled meanwhile.
    CreateSandbox: async (
      { request }: { request: { sandbox: DriverSandbox } },
      reply: grpc.sendUnaryData<object>,
    ) => {
      const isSlow = request.sandbox.workspace === "slow";
      if (isSlow) await Bun.sleep(100);
      there.set(request.sandbox.id!, request.sandbox);
      if (isSlow) madeSlowly.resolve();
      reply(null, {});
    },
    GetSandbox: ({ request }: { request: { sandbox_id: string } }, reply: grpc.sendUnaryData<object>) => {
      const sandbox = there.get(request.sandbox_id);
      if (sandbox) reply(null, { sandbox });
      else reply({ code: grpc.status.NOT_FOUND, details: "no such sandbox" });
    },
    // Answers nobody.
    ValidateSandboxCreate: (call: grpc.ServerUnaryCall<object, object>) =>
      call.on("cancelled", () => cancelled.resolve()),
    StopSandbox: deletes,
    DeleteSandbox: deletes,
  });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const bound = (error: Error | null) => (error ? reject(error) : resolve());
  server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), bound);
  await promise;
});

afterAll(() => {
  server.forceShutdown();
  rmSync(folder, { recursive: true });
});

test("DC-68 holds for a driver that deletes a sandbox which is stopped while it comes up, and at once", async () => {
  const { body } = (await loadChecks()).find(({ id }) => id === "DC-68")!;
  const trial = new Trial(subject);
  const began = performance.now();
  try {
    await body(trial);
    expect(performance.now() - began).toBeLessThan(5_000);
  } finally {
    expect(await trial.end()).toEqual([]);
  }
}, 30_000);

test("a call that nobody waits for any more is over with its check", async () => {
  const trial = new Trial(subject);
  const call = trial.driver.validate(trial.sandbox()).catch((error: Error) => error.message);
  await trial.driver.get({ id: "nobody", name: "" }).catch(() => {});
  expect(await trial.end()).toEqual([]);
  expect(await call).toContain("CANCELLED");
  await cancelled.promise;
}, 5_000);

test("what is being created when its check ends is deleted, too", async () => {
  const trial = new Trial(subject);
  void trial.create(trial.sandbox({}, { workspace: "slow" })).catch(() => {});
  await trial.driver.get({ id: "nobody", name: "" }).catch(() => {});
  expect(await trial.end()).toEqual([]);
  await madeSlowly.promise;
  expect(there.size).toBe(0);
}, 5_000);

test("what a sandbox leaves is removed by command, also of a driver that the harness started", async () => {
  const left = new Set<string>();
  const backend: Backend = {
    name: "commands",
    list: async (id) => [...left].filter((each) => each === id),
    remove: async (id) => void left.delete(id),
  };
  const asked: unknown[] = [];
  const keeper = { call: async (...call: unknown[]) => void asked.push(call) } as unknown as Connection;
  const stack = { id: 7 } as StackInfo;
  const trial = new Trial({
    ...subject,
    backend,
    owned: { keeper, stack, hasPodmanSocket: false, isolates: false },
  });
  const { id } = await trial.create();
  left.add(id);
  expect(await trial.end()).toEqual([expect.stringContaining(`nothing left of`)]);
  expect(asked).toContainEqual(["removeLeftovers", 7, [id]]);
  expect(left.size).toBe(0);
}, 10_000);

test("a connection passes from check to check as long as every call on it was answered", async () => {
  const spare: Subject["spare"] = [];
  const shared = { ...subject, spare };
  const first = new Trial(shared);
  await first.driver.get({ id: "nobody", name: "" }).catch(() => {});
  expect(await first.end()).toEqual([]);
  expect(spare).toEqual([first.driver.client]);

  const second = new Trial(shared);
  expect(second.driver.client).toBe(first.driver.client);
  expect(second.asked).toEqual([]);
  void second.driver.validate(second.sandbox()).catch(() => {});
  expect(await second.end()).toEqual([]);
  expect(spare).toEqual([]);

  const third = new Trial(shared);
  third.driver.watch();
  expect(await third.end()).toEqual([]);
  expect(spare).toEqual([]);
}, 5_000);

test.each([
  ["is not deleted again", [], 0],
  ["is deleted again when something is left of it", ["a volume"], 1],
])(
  "what a check had deleted %s",
  async (_, left: string[], times) => {
    const deleted: string[] = [];
    const own = new Driver(socket);
    own.delete = async ({ id }) => deleted.push(id) > 0;
    const trial = new Trial({
      ...subject,
      own,
      backend: { name: "commands", list: async () => left.splice(0) },
    });
    const box = await trial.create();
    expect(await box.delete()).toBe(true);
    expect(await trial.end()).toEqual([]);
    expect(deleted).toEqual(Array.from({ length: times }, () => box.id));
  },
  5_000,
);

test("a check whose undoing a signal cut off blames the driver for nothing", async () => {
  const ended = new AbortController();
  const usual = UNDO.ms;
  UNDO.ms = 10;
  try {
    const [check] = await loadChecks();
    const body = async (trial: Trial) => {
      trial.defer(() => new Promise(() => {}));
      ended.abort(new HarnessError("ended by SIGINT"));
    };
    const outcome = await runOne({ ...check!, body }, subject, { stop: ended.signal });
    expect(outcome).toMatchObject({
      verdict: "error",
      left: [],
      reason: "ended by SIGINT before it was undone",
    });
  } finally {
    UNDO.ms = usual;
  }
}, 5_000);
