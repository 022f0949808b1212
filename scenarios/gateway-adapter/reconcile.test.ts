// SPDX-License-Identifier: Apache-2.0

/**
 * The sweep in which a gateway compares its records with the driver's list. It runs when the gateway starts, so each
 * scenario ends its gateway and starts it again; what five minutes would do, an older record does.
 */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import type { DriverSandboxStatus } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import { outcomeOf } from "../../proto/contract.ts";
import { until } from "../../harness/base/waiting.ts";
import { type Bench, OWN_LIFECYCLE, fail, gateways, readyIs, type TestSandbox } from "./given.ts";

const { ownGateway } = gateways();

/** Above the grace period of a record that the driver does not list. */
const OLD = 400;

ownGateway(
  "GA-730 a gateway that starts lists the driver's sandboxes and looks at each that it knows",
  async (given) => {
    const sandbox = await given.create();
    const { driver } = given;
    driver.on("ListSandboxes", () => ({
      sandboxes: [driver.sandbox(sandbox.id, null), driver.sandbox("stranger", null)],
    }));
    await given.restart();
    await until("the look", () => driver.called("GetSandbox", sandbox.id)[0]);
    expect(driver.called("ListSandboxes")).toHaveLength(1);
    expect(driver.called("GetSandbox").map(({ request }) => request)).toEqual([
      { sandbox_id: sandbox.id, sandbox_name: sandbox.name },
    ]);
  },
);

for (const [id, what, seen, state] of [
  ["GA-731", "is suspended is Stopped", { conditions: [{ type: "Suspended", status: "True" }] }, "STOPPED"],
  ["GA-732", "broke is an Error", readyIs("False", "OOMKilled"), "ERROR False/OOMKilled"],
  ["GA-733", "runs waits for its session", readyIs("True"), "PROVISIONING False/SupervisorNotConnected"],
] as const) {
  ownGateway(`${id} a sandbox that, as the sweep finds, ${what}`, async (given) => {
    const sandbox = await given.create();
    lists(given, sandbox, { ...seen, conditions: [...seen.conditions!] });
    await given.restart();
    await sandbox.reaches(state);
  });
}

ownGateway("GA-734 the look at a sandbox outdoes what the list says of it", async (given) => {
  const sandbox = await given.create();
  lists(given, sandbox, readyIs("True"), readyIs("False", "Boom"));
  await given.restart();
  await sandbox.reaches("PROVISIONING False/SupervisorNotConnected");
});

ownGateway(
  "GA-735 a young sandbox that the driver does not list is left alone, and not looked at",
  async (given) => {
    const sandbox = await given.create();
    await given.restart();
    await swept(given);
    expect(await sandbox.phase()).toBe("PROVISIONING");
    expect(given.driver.called("GetSandbox")).toEqual([]);
  },
);

ownGateway(
  "GA-736 after five minutes a sandbox that the driver neither lists nor knows is gone",
  async (given) => {
    const sandbox = await given.create();
    given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
    await restartLater(given, sandbox);
    await sandbox.gone();
  },
);

ownGateway(
  "GA-737 after five minutes a sandbox that is not listed and yet known is as the driver says",
  async (given) => {
    const sandbox = await given.create();
    const { driver } = given;
    driver.on("GetSandbox", () => ({ sandbox: driver.sandbox(sandbox.id, readyIs("False", "Boom")) }));
    await restartLater(given, sandbox);
    await sandbox.reaches("ERROR False/Boom");
  },
);

ownGateway(
  "GA-738 a Stopped sandbox whose resource is gone stays, as an Error that says so",
  async (given) => {
    const sandbox = await given.readySandbox();
    await sandbox.stop();
    given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
    await restartLater(given, sandbox);
    await sandbox.reaches("ERROR False/ComputeResourceMissing");
  },
);

ownGateway(
  "GA-739 a Deleting sandbox whose Deleted event was missed is gone after five minutes",
  async (given) => {
    const sandbox = await given.create();
    given.driver.on("DeleteSandbox", () => ({ deleted: true }));
    await sandbox.delete();
    given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
    await restartLater(given, sandbox);
    await sandbox.gone();
  },
);

for (const [id, method] of [
  ["GA-740", "ListSandboxes"],
  ["GA-741", "GetSandbox"],
] as const) {
  ownGateway(`${id} a sweep in which ${method} fails removes nothing`, async (given) => {
    const sandbox = await given.create();
    given.driver.on(method, fail(status.UNAVAILABLE, "not now"));
    await restartLater(given, sandbox);
    await until("the log to say so", () => given.gateway.log.includes("not now"), {
      seen: () => given.gateway.log,
    });
    expect(await sandbox.phase()).toBe("PROVISIONING");
  });
}

ownGateway("GA-742 an answer about another sandbox than the one asked for is refused", async (given) => {
  const sandbox = await given.create();
  const { driver } = given;
  driver.on("ListSandboxes", () => ({ sandboxes: [driver.sandbox(sandbox.id, null)] }));
  driver.on("GetSandbox", () => ({
    sandbox: { ...driver.sandbox(sandbox.id, readyIs("False", "Boom")), id: "other" },
  }));
  await given.restart();
  const words = `compute driver returned sandbox 'other' for requested id '${sandbox.id}'`;
  await until("the log to say so", () => given.gateway.log.includes(words), {
    seen: () => given.gateway.log,
  });
  expect(await sandbox.phase()).toBe("PROVISIONING");
});

ownGateway(
  "GA-743 a sandbox whose session came while the driver listed stays Ready, however old and unknown to it",
  async (given) => {
    const [sandbox, other] = [await given.readySandbox(), await given.create()];
    given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
    const release = given.driver.hang("ListSandboxes");
    await restartLater(given, sandbox, other);
    await until("the list", () => given.driver.called("ListSandboxes")[0]);
    await sandbox.supervise("instance-2");
    const renewed = async () => (await sandbox.get()).status!.main_process_instance_id === "instance-2";
    await until("the session to be written down", renewed);
    release();
    // A sweep takes the oldest first: it has been at `sandbox` once `other` is gone.
    await other.gone();
    expect(await sandbox.state()).toBe("READY True/DependenciesReady");
  },
  OWN_LIFECYCLE,
);

ownGateway(
  "GA-744 the five minutes count from the creation of a sandbox, not from its last change",
  async (given) => {
    const [old, young] = [await given.create(), await given.create()];
    given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
    await given.gateway.stop();
    given.age(old, OLD, "created_at_ms");
    given.age(young, OLD, "updated_at_ms");
    given.gateway = await given.lab.start();
    await old.gone();
    await swept(given);
    expect(await young.phase()).toBe("PROVISIONING");
  },
);

for (const [id, method, phase] of [
  ["GA-745", "StopSandbox", "STOPPING"],
  ["GA-746", "StartSandbox", "STARTING"],
] as const) {
  ownGateway(
    `${id} a sandbox that is ${phase} and whose resource is gone stays, as an Error that says so`,
    async (given) => {
      const sandbox = await given.readySandbox();
      if (method === "StartSandbox") await sandbox.stop();
      given.driver.on(method, fail(status.INTERNAL, "no"));
      given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
      await outcomeOf(method === "StopSandbox" ? sandbox.stop() : sandbox.start());
      expect(await sandbox.phase()).toBe(phase);
      await restartLater(given, sandbox);
      await sandbox.reaches("ERROR False/ComputeResourceMissing");
    },
    OWN_LIFECYCLE,
  );
}

// Given

/** The driver lists a sandbox, and describes it when it is looked at. */
function lists({ driver }: Bench, { id }: TestSandbox, seen: DriverSandboxStatus, listed = seen): void {
  driver.on("ListSandboxes", () => ({ sandboxes: [driver.sandbox(id, listed)] }));
  driver.on("GetSandbox", () => ({ sandbox: driver.sandbox(id, seen) }));
}

/** Ends the gateway, and starts it as if five minutes had passed since the sandboxes were made. */
async function restartLater(given: Bench, ...sandboxes: TestSandbox[]): Promise<void> {
  await given.gateway.stop();
  for (const sandbox of sandboxes) given.age(sandbox, OLD);
  given.driver.calls = [];
  given.gateway = await given.lab.start();
}

/** The gateway has listed, and done what it does about it: it lists once a minute. */
async function swept(given: Bench): Promise<void> {
  await until("the list", () => given.driver.called("ListSandboxes")[0]);
  const marker = await given.create();
  await given.applied(marker);
}
