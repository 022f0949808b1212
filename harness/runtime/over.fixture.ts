// SPDX-License-Identifier: Apache-2.0

/** Scenarios that end badly: `bun test ./harness/runtime/over.fixture.ts`. Each must fail with its own reason, and leave nothing. */
import { expect } from "bun:test";
import { scenario } from "../scenario.ts";

scenario.alone(
  "OV-01 a body that stopped one of its stacks fails with what it threw",
  async ({ startStack }) => {
    await startStack();
    await (await startStack()).stop();
    throw new Error("the reason of OV-01");
  },
);

scenario.alone(
  "OV-02 a body that runs out of time amid a start",
  async ({ startStack }) => void (await startStack()),
  { deadlineMs: 10 },
);

scenario.alone(
  "OV-03 a body that runs out of time amid a create",
  async ({ gateway }) => void (await gateway.createSandbox({ name: "too-late" })),
  { deadlineMs: 1 },
);

scenario.alone("OV-04 nothing of those is there any more", async ({ stack, gateway }) => {
  expect(await gateway.listSandboxes()).toEqual([]);
  // Whoever has another number asks for a stack that is gone: this one alone is left.
  for (const id of [2, 3, 4].filter((id) => id !== stack.info.id))
    expect(await stack.keeper.call("info", id).catch((error: Error) => error.message)).toBe(
      `There is no stack ${id}`,
    );
});

scenario.alone("OV-05 a body that killed the keeper ends, too", async ({ stack }) => {
  process.kill(stack.info.pids.keeper!, "SIGKILL");
  await stack.keeper.closed;
  throw new Error("the reason of OV-05");
});
