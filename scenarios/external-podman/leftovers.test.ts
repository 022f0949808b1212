// SPDX-License-Identifier: Apache-2.0

/** What is left when a sandbox or a stack has ended: nothing. (When a whole run has: harness/runtime/keeper.test.ts.) */
import { expect } from "bun:test";
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { isAlive } from "../../harness/base/system.ts";
import { RunningStack, scenario } from "../../harness.ts";
import { belongings } from "../../harness/runtime/engine.ts";
import { engineOf, withoutPodmanDriver } from "./given.ts";

// Sandboxes

const ONE_OF_EACH = { container: 1, volume: 1, secret: 1 };
const NOTHING = { container: 0, volume: 0, secret: 0 };

scenario(
  "LO-01 a sandbox that is deleted leaves no container, volume or secret",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    expect(await onEngine(stack, sandbox.id)).toEqual(ONE_OF_EACH);
    await sandbox.delete();
    expect(await onEngine(stack, sandbox.id)).toEqual(NOTHING);
  },
  { skip: withoutPodmanDriver },
);

scenario(
  "LO-02 nor does one that is deleted while it is stopped",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await sandbox.stop();
    expect(await onEngine(stack, sandbox.id)).toEqual(ONE_OF_EACH);
    await sandbox.delete();
    expect(await onEngine(stack, sandbox.id)).toEqual(NOTHING);
  },
  { skip: withoutPodmanDriver },
);

/** How many containers, volumes and secrets of a sandbox are on the engine. */
async function onEngine(stack: RunningStack, sandboxId: string) {
  const count = { ...NOTHING };
  for (const { kind, name } of await belongings(engineOf(stack), [stack.info.network], [sandboxId])) {
    if (kind !== "network" && name.includes(sandboxId)) count[kind]++;
  }
  return count;
}

scenario(
  "LO-03 what a driver forgets is found by the sandbox's id, reported and removed",
  async ({ stack }) => {
    const id = randomUUID();
    const volume = `openshell-sandbox-${id}-workspace`;
    const secret = `openshell-token-${id}`;
    const engine = engineOf(stack);
    await engine.call("POST", "volumes/create", { body: { Name: volume } });
    await engine.call("POST", "secrets/create", { query: { name: secret }, body: new Blob(["forgotten"]) });
    await stack.keeper.call("remember", stack.info.id, id);
    const left = await stack.keeper.call("removeLeftovers", stack.info.id, [id]);
    expect(left.toSorted()).toEqual([`secret ${secret}`, `volume ${volume}`]);
    expect(await stack.keeper.call("leftovers", stack.info.id, [id])).toEqual([]);
  },
  { skip: withoutPodmanDriver },
);

// Stacks

scenario("LO-04 gateway and driver end on SIGTERM and leave no process, socket or network", async (given) => {
  const { keeper } = given.stack;
  const stack = new RunningStack(keeper, await keeper.call("startStack", {}));
  const { pids, gatewaySocket, driverSocket, engineSocket, network } = stack.info;
  const left = async () => ({
    processes: [pids.gateway, pids.driver].filter(isAlive).length,
    sockets: [gatewaySocket, driverSocket].filter(existsSync).length,
    networks: engineSocket && (await engineOf(stack).networks()).filter((name) => name === network).length,
  });
  await (await stack.gateway.readySandbox()).delete();
  expect(await left()).toEqual({ processes: 2, sockets: 2, networks: engineSocket && 1 });
  // In this order: a driver may not end while a gateway watches it.
  expect(await stack.control("gateway", "stop")).toBe("exit code 0");
  expect(await stack.control("driver", "stop")).toBe("exit code 0");
  expect(existsSync(driverSocket)).toBe(false);
  expect(await stack.stop()).toEqual([]);
  expect(await left()).toEqual({ processes: 0, sockets: 0, networks: engineSocket && 0 });
});
