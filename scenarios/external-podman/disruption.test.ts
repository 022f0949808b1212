// SPDX-License-Identifier: Apache-2.0

/** What users see when a driver fails, dies and comes back, and when a gateway is restarted. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { eventually, refusal, type RunningStack, scenario } from "../../harness.ts";
import { engineOf, inspect, withoutPodmanDriver } from "./given.ts";

// A driver that is killed

scenario("DI-01 a driver that dies and comes back costs the calls in between and no more", async (given) => {
  const stack = await given.startStack();
  const sandbox = await stack.gateway.readySandbox();
  const { pids } = stack.info;
  await stack.control("driver", "kill");
  expect((await refusal(stack.gateway.createSandbox())).code).toBe("UNAVAILABLE");
  expect((await sandbox.refresh()).phase).toBe("READY");
  expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
  await stack.control("driver", "start");
  expect(stack.info.pids.gateway).toBe(pids.gateway);
  expect(stack.info.pids.driver).not.toBe(pids.driver);
  await stack.gateway.readySandbox();
  await watched(stack);
  await sandbox.delete();
});

/** Waits until the gateway watches the driver, which it tries every 2 s: what is deleted before stays DELETING. */
async function watched(stack: RunningStack): Promise<void> {
  const open = async () => {
    const watches = (await stack.calls()).filter(({ method }) => method === "WatchSandboxes");
    if (watches.at(-1)?.status) throw new Error(`the last one ended with ${watches.at(-1)?.status}`);
  };
  await eventually(open, { what: "the gateway to watch the driver again", deadlineMs: 5_000 });
}

// A gateway that is restarted

scenario("DI-02 a gateway that is restarted has its sandboxes as they were", async ({ startStack }) => {
  const stack = await startStack();
  const running = await stack.gateway.readySandbox();
  const stopped = await (await stack.gateway.readySandbox()).stop();
  expect(await stack.control("gateway", "stop")).toBe("exit code 0");
  await stack.control("gateway", "start");
  await running.ready();
  expect((await running.exec(["echo", "back"])).stdout).toBe("back\n");
  expect((await stopped.refresh()).phase).toBe("STOPPED");
});

// A sandbox that dies

scenario(
  "DI-07 a container that is killed behind the driver's back is an error that says so",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    const { Id } = await inspect(stack, sandbox.id);
    await engineOf(stack).call("POST", `containers/${Id}/kill`, { query: { signal: "SIGKILL" } });
    await sandbox.reach("ERROR");
    const ready = sandbox.seen.status?.conditions.find(({ type }) => type === "Ready");
    expect(ready).toMatchObject({ status: "False", reason: "ContainerExited" });
  },
  { skip: withoutPodmanDriver },
);

// A driver that fails

for (const [title, code, seen, says] of [
  [
    "DI-03 a failing create is INTERNAL, with the driver's reason",
    "UNAVAILABLE",
    "INTERNAL",
    "create sandbox failed: no room",
  ],
  [
    "DI-04 a create that must wait is FAILED_PRECONDITION",
    "FAILED_PRECONDITION",
    "FAILED_PRECONDITION",
    "no room",
  ],
  [
    "DI-05 a create of what is there is ALREADY_EXISTS",
    "ALREADY_EXISTS",
    "ALREADY_EXISTS",
    "sandbox already exists",
  ],
] as const) {
  scenario.alone(`${title}, and leaves no sandbox`, async ({ stack, gateway }) => {
    await stack.rules({
      method: "CreateSandbox",
      times: 1,
      fail: { code: status[code], message: "no room" },
    });
    const name = `fails-${title.slice(3, 5)}`;
    expect(await refusal(gateway.createSandbox({ name }))).toEqual({ code: seen, message: says });
    expect((await refusal(gateway.getSandbox(name))).code).toBe("NOT_FOUND");
  });
}

scenario.alone(
  "DI-06 a driver's refusal to validate reaches the user as it is",
  async ({ stack, gateway }) => {
    const fail = { code: status.RESOURCE_EXHAUSTED, message: "no room" };
    await stack.rules({ method: "ValidateSandboxCreate", times: 1, fail });
    expect(await refusal(gateway.createSandbox())).toEqual({
      code: "RESOURCE_EXHAUSTED",
      message: "no room",
    });
  },
);
