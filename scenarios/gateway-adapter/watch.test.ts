// SPDX-License-Identifier: Apache-2.0

/** What comes in over the driver's watch, and what users see of it. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { phaseOf } from "../../harness.ts";
import { until } from "../../harness/base/waiting.ts";
import { streaming, outcomeOf } from "../../proto/contract.ts";
import { type Bench, fail, gateways, readyIs, stateOf, type TestSandbox } from "./given.ts";

const { scenario, ownGateway } = gateways();

// A watch that ends: first, since these wait for the next one, 2 s and more

for (const [id, what, error] of [
  ["GA-710", "ends", undefined],
  ["GA-711", "fails", { code: status.INTERNAL, details: "no more" }],
] as const) {
  ownGateway(`${id} a watch that ${what} is opened again after two seconds`, async (given) => {
    given.driver.calls = [];
    const endedAt = performance.now();
    given.driver.endWatches(error);
    await given.watched();
    const [{ at } = { at: 0 }] = given.driver.called("WatchSandboxes");
    expect(at - endedAt).toBeGreaterThan(1_900);
    expect(at - endedAt).toBeLessThan(4_000);
    expect(given.gateway.log).toContain("Compute driver watch stream");
  });
}

ownGateway("GA-712 what a watch begins with is what was missed while there was none", async (given) => {
  const [broken, gone] = [await given.readySandbox(), await given.readySandbox()];
  const { driver } = given;
  const sandbox = { sandbox: driver.sandbox(broken.id, readyIs("False", "ContainerExited")) };
  driver.on("WatchSandboxes", () => ({ events: [{ sandbox }, { deleted: { sandbox_id: gone.id } }] }));
  driver.endWatches();
  await broken.reaches("ERROR False/ContainerExited");
  await gone.gone();
});

ownGateway("GA-713 what a watch does not begin with is not taken for deleted", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.endWatches();
  await given.watched();
  await given.applied(sandbox);
  expect(await sandbox.state()).toBe("READY True/DependenciesReady");
});

ownGateway(
  "GA-714 a driver that cannot watch is asked again every two seconds, and works without",
  async (given) => {
    given.driver.on("WatchSandboxes", fail(status.UNIMPLEMENTED, "never heard of it"));
    given.driver.calls = [];
    given.driver.endWatches();
    const sandbox = await given.readySandbox();
    expect(phaseOf(await sandbox.stop())).toBe("STOPPED");
    const asked = await until("two tries", () => {
      const tries = given.driver.called("WatchSandboxes");
      return tries.length >= 2 && tries;
    });
    expect(asked[1]!.at - asked[0]!.at).toBeGreaterThan(1_900);
  },
);

ownGateway("GA-715 a sandbox that is deleted without a watch is gone once there is one", async (given) => {
  const { driver } = given;
  const sandbox = await given.readySandbox();
  driver.endWatches();
  expect(await sandbox.delete()).toBe(true);
  expect(await sandbox.phase()).toBe("DELETING");
  driver.on("WatchSandboxes", () => ({ events: [{ deleted: { sandbox_id: sandbox.id } }] }));
  await sandbox.gone();
});

// Events

scenario("GA-701 of snapshots in a row the last one counts", async (given) => {
  const sandbox = await given.create();
  for (const instance of ["one", "two", "three"])
    given.driver.snapshot(sandbox.id, { instance_id: instance });
  await given.applied(sandbox);
  expect((await sandbox.get()).status!.agent_pod).toBe("three");
});

scenario(
  "GA-702 a user who watches sees the record, platform events, the deletion, and the end",
  async (given) => {
    const { seen, sandbox } = await watching(given);
    await until("the record", () => seen.length === 1, { seen: () => seen });
    given.driver.platformEvent(sandbox.id, { reason: "Pulled" });
    await until("the event", () => seen.length === 2, { seen: () => seen });
    await sandbox.delete();
    await until("the end", () => seen.at(-1) === "end", { seen: () => seen });
    expect(seen).toEqual(["READY", "Pulled", "DELETING", "end"]);
  },
);

scenario("GA-703 a user who watches sees every phase that a sandbox goes through", async (given) => {
  const { seen, sandbox } = await watching(given);
  await until("the record", () => seen.length === 1, { seen: () => seen });
  await sandbox.stop();
  await until("the stop", () => seen.includes("STOPPED"), { seen: () => seen });
  expect(seen.filter((what, index) => what !== seen[index - 1])).toEqual(["READY", "STOPPING", "STOPPED"]);
});

scenario("GA-704 a platform event reaches the user as the driver made it", async (given) => {
  const sandbox = await given.create();
  const { client } = given.gateway;
  const events = streaming(client.WatchSandbox({ id: sandbox.id, follow_events: true }));
  await events.next();
  const event = { timestamp_ms: "1700000000000", source: "kubelet", type: "Warning", reason: "Failed" };
  given.driver.platformEvent(sandbox.id, { ...event, message: "no such image", metadata: { a: "b" } });
  const { value } = await events.next();
  await events.return(undefined);
  expect(value!.event).toEqual({ ...event, message: "no such image", metadata: { a: "b" } });
});

scenario("GA-705 platform events change no phase", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.platformEvent(sandbox.id, { type: "Warning", reason: "Failed", message: "out of memory" });
  await given.applied(sandbox);
  expect(await sandbox.state()).toBe("READY True/DependenciesReady");
});

for (const [id, what, event] of [
  ["GA-706", "an event that holds nothing", {}],
  ["GA-707", "a snapshot that holds no sandbox", { sandbox: {} }],
  ["GA-708", "a platform event that holds none", { platform_event: { sandbox_id: "nobody" } }],
  [
    "GA-709",
    "a platform event of a sandbox that nobody knows",
    { platform_event: { sandbox_id: "nobody", event: { reason: "x" } } },
  ],
] as const) {
  scenario(`${id} ${what} is passed over, and what follows counts`, async (given) => {
    const sandbox = await given.create();
    given.driver.send(event);
    expect((await sandbox.report({ instance_id: "next" })).status!.agent_pod).toBe("next");
    expect(given.driver.called("WatchSandboxes")).toEqual([]);
  });
}

// Many events

ownGateway(
  "GA-716 three hundred snapshots at once, of a hundred sandboxes, are all applied",
  async (given) => {
    const sandboxes = await many(given, 100);
    for (const reason of ["Starting", "ContainerStarting", "Boom"])
      for (const { id } of sandboxes) given.driver.snapshot(id, readyIs("False", reason));
    let broken = 0;
    const all = async () => {
      const { sandboxes: listed } = await given.call((client) => client.ListSandboxes, { limit: 1000 });
      broken = listed.filter((sandbox) => stateOf(sandbox) === "ERROR False/Boom").length;
      return broken === 100;
    };
    await until("all sandboxes in Error", all, { seen: () => broken, deadlineMs: 30_000 });
  },
);

/** Makes sandboxes, sixteen at a time. They have names: of a hundred that a gateway thinks up, two may be the same. */
async function many({ create }: Bench, count: number): Promise<TestSandbox[]> {
  const made: TestSandbox[] = [];
  const waiting = Array.from({ length: count }).keys();
  const worker = async () => {
    for (const number of waiting) made.push(await create({ name: `one-of-many-${number}` }));
  };
  await Promise.all(Array.from({ length: 16 }, worker));
  return made;
}

/** A Ready sandbox, and what a user who watches it sees: phases and reasons of events, and "end". */
async function watching(given: Bench) {
  const sandbox = await given.readySandbox();
  const seen: string[] = [];
  const request = { id: sandbox.id, follow_status: true, follow_events: true };
  const events = streaming(given.gateway.client.WatchSandbox(request, { deadline: Date.now() + 20_000 }));
  const follow = async () => {
    for await (const { sandbox, event } of events) seen.push(sandbox ? phaseOf(sandbox) : event!.reason);
    return "OK";
  };
  // A gateway that removes the record ends the stream with either, whichever of its tasks is first.
  const ends = ["OK", "CANCELLED: stream closed"];
  void outcomeOf(follow()).then((outcome) => seen.push(ends.includes(outcome) ? "end" : outcome));
  return { seen, sandbox };
}
