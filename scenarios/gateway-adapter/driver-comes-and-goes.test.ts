// SPDX-License-Identifier: Apache-2.0

/** A driver that dies under its gateway, stays away, and comes back, as itself or as another. */
import { linkSync, renameSync } from "node:fs";
import { expect } from "bun:test";
import { outcomeOf } from "../../proto/contract.ts";
import { until } from "../../harness/base/waiting.ts";
import { type Bench, CAPABILITIES, gateways } from "./given.ts";

const { ownGateway } = gateways();

const NOBODY_THERE = /^UNAVAILABLE: .*No such file or directory \(os error 2\)/;
const NOBODY_LISTENS = /^UNAVAILABLE: .*Connection refused \(os error 111\)/;

ownGateway("GA-801 without a driver a create is UNAVAILABLE and leaves no record", async (given) => {
  await dies(given);
  expect(await outcomeOf(given.create({ name: "lost" }))).toMatch(NOBODY_THERE);
  expect(await outcomeOf(given.get("lost"))).toBe("NOT_FOUND: sandbox not found");
});

ownGateway(
  "GA-802 a socket that nobody serves any more is UNAVAILABLE in the system's words",
  async (given) => {
    const { path } = given.driver;
    linkSync(path, `${path}.kept`);
    given.driver.close();
    renameSync(`${path}.kept`, path);
    await until("the refusal", async () => NOBODY_LISTENS.test(await outcomeOf(given.create())));
  },
);

ownGateway("GA-803 without a driver users still see their sandboxes as they were", async (given) => {
  const sandbox = await given.readySandbox();
  await dies(given);
  expect(await sandbox.state()).toBe("READY True/DependenciesReady");
  const { sandboxes } = await given.call((client) => client.ListSandboxes, {});
  expect(sandboxes.map(({ metadata }) => metadata!.name)).toEqual([sandbox.name]);
});

ownGateway("GA-804 without a driver the gateway calls itself healthy", async (given) => {
  await until("a first look at the database", async () => (await given.gateway.health("/readyz")) === 200);
  await dies(given);
  expect(await given.gateway.health("/healthz")).toBe(200);
  expect(await given.gateway.health("/readyz")).toBe(200);
  expect((await given.call((client) => client.Health, {})).status).toBe("SERVICE_STATUS_HEALTHY");
});

ownGateway(
  "GA-805 without a driver a stop is UNAVAILABLE and stays Stopping; it works once one is back",
  async (given) => {
    const sandbox = await given.readySandbox();
    await dies(given);
    expect(await outcomeOf(sandbox.stop())).toStartWith("UNAVAILABLE: stop sandbox failed: ");
    expect(await sandbox.phase()).toBe("STOPPING");
    await comesBack(given);
    await until("the stop", async () => (await outcomeOf(sandbox.stop())) === "OK");
    expect(await sandbox.phase()).toBe("STOPPED");
  },
);

ownGateway(
  "GA-806 without a driver a start is UNAVAILABLE and stays Starting; it works once one is back",
  async (given) => {
    const sandbox = await given.readySandbox();
    await sandbox.stop();
    await dies(given);
    expect(await outcomeOf(sandbox.start())).toStartWith("UNAVAILABLE: start sandbox failed: ");
    expect(await sandbox.phase()).toBe("STARTING");
    await comesBack(given);
    await until("the start", async () => (await outcomeOf(sandbox.start())) === "OK");
  },
);

ownGateway("GA-807 without a driver a delete is INTERNAL, and the record is as before", async (given) => {
  const sandbox = await given.readySandbox();
  await dies(given);
  expect(await outcomeOf(sandbox.delete())).toStartWith("INTERNAL: delete sandbox failed: ");
  expect(await sandbox.state()).toBe("READY True/DependenciesReady");
});

ownGateway(
  "GA-808 a driver that is back is used without a restart, and watched within two seconds",
  async (given) => {
    await dies(given);
    const back = performance.now();
    await comesBack(given);
    await until("a create", async () => (await outcomeOf(given.create())) === "OK");
    await given.watched();
    expect(performance.now() - back).toBeLessThan(5_000);
  },
);

ownGateway(
  "GA-809 a driver that is back is not asked again what it is, nor what it listens on",
  async (given) => {
    await dies(given);
    await comesBack(given, { driver_name: "another", default_image: "image:other" });
    await given.watched();
    const sandbox = await given.create();
    expect(sandbox.created.spec!.template!.image).toBe("image:default");
    expect((await given.call((client) => client.GetGatewayInfo, {})).compute_drivers).toEqual([
      { name: "external-test", capabilities: { driver_name: "scripted", driver_version: "1.2.3" } },
    ]);
    expect(given.driver.called("GetCapabilities")).toEqual([]);
    expect(given.driver.called("GetGatewayListenerRequirements")).toEqual([]);
  },
);

ownGateway("GA-810 sessions and sandboxes live on while the driver is away", async (given) => {
  const sandbox = await given.readySandbox();
  await dies(given);
  await comesBack(given);
  await given.watched();
  await given.applied(sandbox);
  expect(await sandbox.state()).toBe("READY True/DependenciesReady");
  expect(sandbox.supervisor!.ended).toBeUndefined();
});

ownGateway("GA-811 a create under way when the driver dies fails and leaves no record", async (given) => {
  given.driver.hang("CreateSandbox");
  const creating = outcomeOf(given.create({ name: "cut-off" }));
  await until("the call to reach the driver", () => given.driver.called("CreateSandbox")[0]);
  given.driver.close();
  expect(await creating).toStartWith("INTERNAL: create sandbox failed: ");
  expect(await outcomeOf(given.get("cut-off"))).toBe("NOT_FOUND: sandbox not found");
});

ownGateway("GA-812 a stop under way when the driver dies fails and stays Stopping", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.hang("StopSandbox");
  const stopping = outcomeOf(sandbox.stop());
  await until("the call to reach the driver", () => given.driver.called("StopSandbox")[0]);
  given.driver.close();
  expect(await stopping).toContain(": stop sandbox failed: ");
  expect(await sandbox.phase()).toBe("STOPPING");
});

ownGateway(
  "GA-813 a delete under way when the driver dies is INTERNAL, and the record is as before",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.hang("DeleteSandbox");
    const deleting = outcomeOf(sandbox.delete());
    await until("the call to reach the driver", () => given.driver.called("DeleteSandbox")[0]);
    given.driver.close();
    expect(await deleting).toStartWith("INTERNAL: delete sandbox failed: ");
    expect(await sandbox.phase()).toBe("READY");
  },
);

// Given

/** The driver ends, and the gateway knows. */
async function dies(given: Bench): Promise<void> {
  given.driver.close();
  await until("a create to fail at the socket", async () =>
    NOBODY_THERE.test(await outcomeOf(given.create())),
  );
}

/** A driver on the same path, which knows the old one's sandboxes. */
async function comesBack(given: Bench, differing: Partial<typeof CAPABILITIES> = {}): Promise<void> {
  const { created } = given.driver;
  given.driver = await given.lab.listen({ GetCapabilities: () => ({ ...CAPABILITIES, ...differing }) });
  for (const [id, sandbox] of created) given.driver.created.set(id, sandbox);
}
