// SPDX-License-Identifier: Apache-2.0

/** What users see when a sandbox's container is killed, stopped, removed or frozen behind its driver's back. */
import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { eventually, refusal, type RunningStack, Sandbox, scenario } from "../../../harness.ts";
import {
  inspect,
  nothingLeft,
  readyCondition,
  toContainer,
  withoutPodmanDriver,
  withoutProc,
} from "../given.ts";

const skip = withoutPodmanDriver;

// Frozen: first, since one of these takes longest, and the others run beside it

scenario(
  "DI-84 a sandbox that is frozen is not Ready for longer than 5 s",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "pause");
    const look = async () => expect((await sandbox.refresh()).phase).not.toBe("READY");
    try {
      await eventually(look, { what: "a sandbox that answers nobody not to be Ready", deadlineMs: 5_000 });
    } finally {
      await toContainer(stack, sandbox.id, "unpause");
    }
  },
  { skip },
);

scenario(
  "DI-83 a sandbox that was frozen for a moment goes on where it was",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "pause");
    const command = sandbox.exec(["echo", "thawed"]);
    await toContainer(stack, sandbox.id, "unpause");
    expect((await command).stdout).toBe("thawed\n");
    expect((await sandbox.refresh()).phase).toBe("READY");
  },
  { skip },
);

scenario(
  "DI-85 a frozen sandbox that is stopped runs no more",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "pause");
    expect((await sandbox.stop()).phase).toBe("STOPPED");
    expect((await inspect(stack, sandbox.id)).State.Status).toBe("exited");
    await (await sandbox.start()).ready();
  },
  { skip },
);

scenario(
  "DI-86 a frozen sandbox can be deleted, and leaves nothing",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "pause");
    expect(await sandbox.delete()).toBe(true);
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

// Killed

scenario(
  "DI-07 a container that is killed behind the driver's back is an error that says so",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "kill");
    await sandbox.reach("ERROR");
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "ContainerExited" });
  },
  { skip },
);

scenario(
  "DI-74 a supervisor that dies is an error that says so within 5 s",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    process.kill(await supervisorOf(stack, sandbox), "SIGKILL");
    await sandbox.reach("ERROR", 5_000);
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "ContainerExited" });
    expect((await refusal(sandbox.exec(["true"]))).code).toBe("FAILED_PRECONDITION");
  },
  { skip: skip || withoutProc },
);

/** The process that the engine started in a sandbox, by its id on this machine. @throws when it is another one's. */
async function supervisorOf(stack: RunningStack, { id }: Sandbox): Promise<number> {
  const { State } = await inspect(stack, id);
  expect(readFileSync(`/proc/${State.Pid}/environ`, "utf8")).toContain(id);
  return State.Pid;
}

scenario(
  "DI-75 the death of one sandbox does not touch another",
  async ({ stack, gateway }) => {
    const [dying, other] = await Promise.all([gateway.readySandbox(), gateway.readySandbox()]);
    await toContainer(stack, dying.id, "kill");
    await dying.reach("ERROR");
    expect((await other.refresh()).phase).toBe("READY");
    expect((await other.exec(["echo", "still here"])).stdout).toBe("still here\n");
  },
  { skip },
);

scenario(
  "DI-76 a sandbox that died is neither stopped, started nor used, and its deletion leaves nothing",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "kill");
    await sandbox.reach("ERROR");
    for (const attempt of [() => sandbox.stop(), () => sandbox.start(), () => sandbox.exec(["true"])])
      expect((await refusal(attempt())).code).toBe("FAILED_PRECONDITION");
    expect(await sandbox.delete()).toBe(true);
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario(
  "DI-77 a container that is stopped behind the driver's back is an error that says so",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "stop");
    await sandbox.reach("ERROR");
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "ContainerExited" });
  },
  { skip },
);

scenario(
  "DI-78 a sandbox of which the engine says that it ran out of memory is an error that says so",
  async ({ startStack }) => {
    const stack = await startStack({ engineProxy: true });
    const sandbox = await stack.gateway.readySandbox();
    const replace = { from: `"OOMKilled":false`, to: `"OOMKilled":true` };
    await stack.engineRules({ call: "GET containers/*/json", replace });
    await toContainer(stack, sandbox.id, "kill");
    await sandbox.reach("ERROR");
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "OOMKilled" });
  },
  { skip },
);

// Removed

scenario(
  "DI-79 a container that is removed behind the driver's back takes its sandbox with it, within 5 s",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox({ name: "removed" });
    await toContainer(stack, sandbox.id, "remove");
    await sandbox.gone(5_000);
    expect(await gateway.listSandboxes()).not.toContain("removed");
    await stack.keeper.call("removeLeftovers", stack.info.id, [sandbox.id]);
  },
  { skip },
);

scenario(
  "DI-80 a container that is removed behind the driver's back leaves no volume and no secret",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    await toContainer(stack, sandbox.id, "remove");
    await sandbox.gone(5_000);
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario(
  "DI-81 a watch ends when its sandbox is removed behind the driver's back",
  async ({ stack, gateway }) => {
    const sandbox = await gateway.readySandbox();
    let seen = 0;
    const watching = (async () => {
      for await (const _ of sandbox.watch({ follow_status: true }, 8_000)) seen++;
    })();
    await eventually(() => expect(seen).toBeGreaterThan(0), { what: "the first event" });
    await toContainer(stack, sandbox.id, "remove");
    await watching;
    await sandbox.gone(1_000);
    await stack.keeper.call("removeLeftovers", stack.info.id, [sandbox.id]);
  },
  { skip },
);

scenario(
  "DI-82 a stopped sandbox whose container is removed is gone within 5 s",
  async ({ stack, gateway }) => {
    const sandbox = await (await gateway.readySandbox()).stop();
    await toContainer(stack, sandbox.id, "remove");
    await sandbox.gone(5_000);
    await stack.keeper.call("removeLeftovers", stack.info.id, [sandbox.id]);
  },
  { skip },
);
