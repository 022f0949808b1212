// SPDX-License-Identifier: Apache-2.0

/** What users find when a gateway was killed, stopped or frozen, in the middle of whatever it did, and is back. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { eventually, phaseOf, refusal, type RunningStack, Sandbox, scenario } from "../../../harness.ts";
import {
  asked,
  COUNTS_STARTS,
  nothingLeft,
  readyCondition,
  removeUnseen,
  startGateway,
  toContainer,
  watched,
  withoutBridges,
  withoutPodmanDriver,
} from "../given.ts";
import { fileHolds } from "../sandboxes.ts";

const skip = withoutPodmanDriver;
const PROXIED = { engineProxy: true };

/** Kills the gateway, as a machine does that loses its power, and starts it again. */
async function killAndStart(stack: RunningStack): Promise<void> {
  await stack.control("gateway", "kill");
  await startGateway(stack);
}

// Killed in the middle of something: first, since one of these takes longest, and the others run beside it

scenario("DI-47 a deletion in which the gateway dies is done within 5 s of its return", async (given) => {
  const stack = await given.startStack();
  const sandbox = await stack.gateway.readySandbox();
  await stack.rules({ method: "DeleteSandbox", times: 1, hang: true });
  const deletion = refusal(sandbox.delete());
  await asked(stack, "DeleteSandbox");
  // It is deleted; nobody is to ask for that again.
  stack.gateway.sandboxes.delete(sandbox);
  await killAndStart(stack);
  expect((await deletion).code).toBe("UNAVAILABLE");
  await sandbox.gone(5_000);
  await nothingLeft(stack, sandbox.id);
});

scenario(
  "DI-43 a creation that never reached the driver is an error after its gateway's death",
  async (given) => {
    const stack = await given.startStack();
    await stack.rules({ method: "CreateSandbox", times: 1, hang: true });
    const creation = refusal(stack.gateway.createSandbox({ name: "lost" }));
    await asked(stack, "CreateSandbox");
    await killAndStart(stack);
    expect((await creation).code).toBe("UNAVAILABLE");
    const sandbox = new Sandbox(stack.gateway, await stack.gateway.getSandbox("lost"));
    expect(sandbox.phase).toBe("ERROR");
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "BackendResourceMissing" });
    await sandbox.delete();
  },
);

scenario(
  "DI-44 of a creation whose gateway died nothing is left once the sandbox is deleted",
  async (given) => {
    const stack = await given.startStack(PROXIED);
    await stack.engineRules({ call: "POST containers/create", hang: true });
    const creation = refusal(stack.gateway.createSandbox({ name: "half-made" }));
    await stack.engineAsked("POST containers/create");
    await stack.control("gateway", "kill");
    await creation;
    await stack.engineRules();
    await startGateway(stack);
    const sandbox = new Sandbox(stack.gateway, await stack.gateway.getSandbox("half-made"));
    await sandbox.delete();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario("DI-45 a stop in which the gateway dies is done when it is back", async ({ startStack }) => {
  const stack = await startStack();
  const sandbox = await stack.gateway.readySandbox();
  await stack.rules({ method: "StopSandbox", times: 1, hang: true });
  const stop = refusal(sandbox.stop());
  await asked(stack, "StopSandbox");
  await killAndStart(stack);
  expect((await stop).code).toBe("UNAVAILABLE");
  await sandbox.reach("STOPPED", 5_000);
});

scenario("DI-46 a start in which the gateway dies is done when it is back", async ({ startStack }) => {
  const stack = await startStack();
  const sandbox = await (await stack.gateway.readySandbox()).stop();
  await stack.rules({ method: "StartSandbox", times: 1, hang: true });
  const start = refusal(sandbox.start());
  await asked(stack, "StartSandbox");
  await killAndStart(stack);
  expect((await start).code).toBe("UNAVAILABLE");
  await sandbox.ready(10_000);
});

// Stopped and started

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

scenario("DI-35 a gateway that is told to end stops what runs, and nobody else's business", async (given) => {
  const stack = await given.startStack();
  const running = await stack.gateway.readySandbox();
  const stopped = await (await stack.gateway.readySandbox()).stop();
  const since = await stack.lastCall();
  expect(await stack.control("gateway", "stop")).toBe("exit code 0");
  const stops = (await stack.calls(since)).filter(({ method }) => method === "StopSandbox");
  const about = stops.map(({ request }) => (request as { sandbox_id: string }).sandbox_id);
  expect(about).toEqual([running.id]);
  expect(about).not.toContain(stopped.id);
  await startGateway(stack);
});

scenario(
  "DI-36 a sandbox that has failed stays failed over a restart, and can be deleted after it",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await toContainer(stack, sandbox.id, "kill");
    await sandbox.reach("ERROR");
    expect(await stack.control("gateway", "stop")).toBe("exit code 0");
    await startGateway(stack);
    expect((await sandbox.refresh()).phase).toBe("ERROR");
    expect(readyCondition(sandbox)).toMatchObject({ reason: "ContainerExited" });
    await sandbox.delete();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario(
  "DI-37 a gateway that cannot stop its sandboxes says so in its end, and has them after it",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox({ command: COUNTS_STARTS });
    await fileHolds(sandbox, "starts", "begun\n");
    await stack.control("driver", "kill");
    expect(await stack.control("gateway", "stop")).toBe("exit code 1");
    expect(stack.log("gateway")).toContain("gateway shutdown cleanup failed");
    await stack.control("driver", "start");
    await startGateway(stack);
    await sandbox.ready();
    await fileHolds(sandbox, "starts", "begun\n");
  },
);

// Killed

scenario("DI-38 what runs in sandboxes outlives a gateway that is killed", async ({ startStack }) => {
  const stack = await startStack();
  const sandbox = await stack.gateway.readySandbox({ command: COUNTS_STARTS });
  await fileHolds(sandbox, "starts", "begun\n");
  await killAndStart(stack);
  await sandbox.ready();
  await fileHolds(sandbox, "starts", "begun\n");
});

scenario(
  "DI-39 ids, names, labels and workspaces outlive a gateway that is killed",
  async ({ startStack }) => {
    const stack = await startStack();
    await stack.gateway.createWorkspace("lasting");
    const options = {
      name: "kept",
      workspace: "lasting",
      labels: { env: "dev" },
      annotations: { why: "test" },
    };
    const sandbox = await stack.gateway.readySandbox(options);
    const { id, labels, annotations, created_at_ms } = sandbox.seen.metadata!;
    await killAndStart(stack);
    await sandbox.ready();
    expect(sandbox.seen.metadata).toMatchObject({ id, name: "kept", labels, annotations, created_at_ms });
    expect(await stack.gateway.listSandboxes("env=dev", "lasting")).toEqual(["kept"]);
  },
);

scenario(
  "DI-40 a stopped sandbox outlives a gateway that is killed, with workspace and token",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await sandbox.exec(["sh", "-c", "echo content > file"]);
    await sandbox.stop();
    await killAndStart(stack);
    await watched(stack, sandbox);
    expect((await sandbox.refresh()).phase).toBe("STOPPED");
    await (await sandbox.start()).ready();
    await fileHolds(sandbox, "file", "content\n");
  },
);

scenario("DI-41 a command ends with an error when its gateway dies", async ({ startStack }) => {
  const stack = await startStack();
  const sandbox = await stack.gateway.readySandbox();
  const command = sandbox.interact(["sh", "-c", "echo up; sleep 60"], { tty: false });
  const ended = refusal(command.result);
  await command.shows("up");
  await stack.control("gateway", "kill");
  expect((await ended).code).toBe("UNAVAILABLE");
  await startGateway(stack);
  await sandbox.ready();
});

scenario("DI-42 a watch ends with an error when its gateway dies, and can be opened again", async (given) => {
  const stack = await given.startStack();
  const sandbox = await stack.gateway.readySandbox();
  let seen = 0;
  const watching = (async () => {
    for await (const _ of sandbox.watch({ follow_status: true })) seen++;
  })();
  const ended = refusal(watching);
  await eventually(() => expect(seen).toBeGreaterThan(0), { what: "the first event" });
  await stack.control("gateway", "kill");
  expect((await ended).code).toBe("UNAVAILABLE");
  await startGateway(stack);
  await sandbox.ready();
});

// The driver meanwhile

scenario(
  "DI-48 a gateway that is started before its driver waits for it, and has all as it was",
  async (given) => {
    const stack = await given.startStack({ tap: false });
    const sandbox = await stack.gateway.readySandbox();
    await stack.control("gateway", "kill");
    await stack.control("driver", "kill");
    const starting = startGateway(stack);
    await stack.control("driver", "start");
    await starting;
    // It is Ready in the record before its supervisor has called again.
    const echoed = async () => expect((await sandbox.exec(["echo", "back"])).stdout).toBe("back\n");
    await eventually(echoed, { what: "a command in the sandbox" });
  },
);

scenario(
  "DI-49 a sandbox that was removed while the gateway was away is an error that says so",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await stack.control("gateway", "kill");
    await removeUnseen(stack, sandbox.id);
    await startGateway(stack);
    await sandbox.reach("ERROR", 5_000);
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "BackendResourceMissing" });
    await sandbox.delete();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario(
  "DI-50 a driver that fails once while its gateway starts costs no sandbox",
  async ({ startStack }) => {
    const stack = await startStack();
    const sandbox = await stack.gateway.readySandbox();
    expect(await stack.control("gateway", "stop")).toBe("exit code 0");
    const fail = { code: status.UNAVAILABLE, message: "not yet" };
    await stack.rules({ method: "StartSandbox", times: 1, fail });
    await startGateway(stack);
    await sandbox.ready(5_000);
  },
);

// Frozen

scenario("DI-51 a gateway that was frozen for a moment goes on where it was", async ({ startStack }) => {
  const stack = await startStack();
  const sandbox = await stack.gateway.readySandbox();
  await stack.control("gateway", "pause");
  const asking = stack.gateway.getSandbox(sandbox.name);
  const early = await Promise.race([asking.then(() => "an answer"), Bun.sleep(200).then(() => "silence")]);
  await stack.control("gateway", "continue");
  expect(early).toBe("silence");
  expect(phaseOf(await asking)).toBe("READY");
  expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
});

// A network that nobody has joined yet

scenario(
  "DI-52 a gateway starts on a network that no sandbox has joined yet",
  async ({ startStack }) => {
    const stack = await startStack({ holdBridge: false });
    await stack.gateway.readySandbox();
  },
  { skip: skip || withoutBridges },
);
