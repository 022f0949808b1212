// SPDX-License-Identifier: Apache-2.0

/** What users see when the engine fails, hangs, breaks off, goes away and comes back. */
import { expect } from "bun:test";
import { eventually, phaseOf, refusal, type RunningStack, Sandbox, scenario } from "../../../harness.ts";
import {
  asked,
  nothingLeft,
  onEngine,
  readyCondition,
  toContainer,
  watched,
  withForeignEngine,
  withoutPodmanDriver,
} from "../given.ts";

const skip = withoutPodmanDriver;
/** All scenarios that leave it as it was share one stack with a proxy before its engine. */
const PROXIED = { engineProxy: true };
const NO_ROOM = { status: 500, message: "no space left on device" };

// An engine that fails

for (const [id, what, call] of [
  ["DI-53", "make the volume", "POST volumes/create"],
  ["DI-54", "take the token", "POST secrets/create"],
  ["DI-55", "make the container", "POST containers/create"],
  ["DI-56", "start the container", "POST containers/*/start"],
] as const) {
  scenario.alone(
    `${id} a creation for which the engine cannot ${what} is refused with its reason, and leaves nothing`,
    async ({ sharedStack }) => {
      const stack = await sharedStack(PROXIED);
      const name = `no-${id.toLowerCase()}`;
      const since = await stack.lastCall();
      await stack.engineRules({ call, times: 1, fail: NO_ROOM });
      const { code, message } = await refusal(stack.gateway.createSandbox({ name }));
      expect({ code, message }).toEqual({
        code: "INTERNAL",
        message: expect.stringContaining("no space left on device"),
      });
      expect((await refusal(stack.gateway.getSandbox(name))).code).toBe("NOT_FOUND");
      await nothingLeft(stack, await lastCreated(stack, since));
    },
    { skip },
  );
}

/**
 * The id of the sandbox that the driver was last asked to create. The user never learns of it when it is refused; here
 * what it may have left counts as this scenario's.
 */
async function lastCreated(stack: RunningStack, since: number): Promise<string> {
  const call = (await stack.calls(since)).findLast(({ method }) => method === "CreateSandbox");
  const { id } = (call!.request as { sandbox: { id: string } }).sandbox;
  stack.gateway.created.push(id);
  return id;
}

scenario.alone(
  "DI-57 a sandbox that the engine cannot stop stays Ready and in use, and can be stopped later",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "POST containers/*/stop", times: 1, fail: NO_ROOM });
    const { code, message } = await refusal(sandbox.stop());
    expect({ code, message }).toEqual({
      code: "INTERNAL",
      message: expect.stringContaining("no space left"),
    });
    expect((await sandbox.refresh()).phase).toBe("READY");
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
    expect((await sandbox.stop()).phase).toBe("STOPPED");
  },
  { skip },
);

scenario.alone(
  "DI-58 a sandbox that the engine cannot start stays Stopped, and can be started later",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await (await stack.gateway.readySandbox()).stop();
    await stack.engineRules({ call: "POST containers/*/start", times: 1, fail: NO_ROOM });
    const { code, message } = await refusal(sandbox.start());
    expect({ code, message }).toEqual({
      code: "INTERNAL",
      message: expect.stringContaining("no space left"),
    });
    expect((await sandbox.refresh()).phase).toBe("STOPPED");
    await (await sandbox.start()).ready();
  },
  { skip },
);

scenario.alone(
  "DI-59 a sandbox that the engine cannot remove stays Ready and in use, and can be deleted later",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "DELETE containers/*", times: 1, fail: NO_ROOM });
    const { code, message } = await refusal(sandbox.delete());
    expect({ code, message }).toEqual({
      code: "INTERNAL",
      message: expect.stringContaining("no space left"),
    });
    expect((await sandbox.refresh()).phase).toBe("READY");
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
    await sandbox.delete();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario.alone(
  "DI-60 an engine that cannot say how a container is does not fail its sandbox",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "GET containers/*/json", times: 2, fail: NO_ROOM });
    await toContainer(stack, sandbox.id, "pause");
    await toContainer(stack, sandbox.id, "unpause");
    await stack.engineRules();
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
    expect((await sandbox.refresh()).phase).toBe("READY");
  },
  { skip },
);

// An engine that hangs

scenario.alone(
  "DI-61 while the engine hangs over one sandbox others are made, used and deleted",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const [stuck, other] = await Promise.all([stack.gateway.readySandbox(), stack.gateway.readySandbox()]);
    await stack.engineRules({ call: "POST containers/*/stop", times: 1, hang: true });
    const stop = stuck.stop();
    await stack.engineAsked("POST containers/*/stop");
    await new Sandbox(stack.gateway, stuck.seen).reach("STOPPING", 2_000);
    const made = async () => (await stack.gateway.readySandbox()).exec(["true"]);
    await Promise.all([made(), other.delete()]);
    await stack.engineRules();
    expect((await stop).phase).toBe("STOPPED");
  },
  { skip },
);

scenario.alone(
  "DI-62 a call over which the engine hangs until it breaks is refused, and can be made again",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    const call = "DELETE containers/*";
    await stack.engineRules({ call, hang: true });
    const deletion = refusal(sandbox.delete());
    const deleting = async () => expect((await sandbox.refresh()).phase).toBe("DELETING");
    await eventually(deleting, { what: "the sandbox to be DELETING" });
    await stack.engineRules({ call, drop: true });
    expect((await deletion).code).toBe("INTERNAL");
    await stack.engineRules();
    await sandbox.delete();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

// An engine that breaks off in the middle of its answer

scenario.alone(
  "DI-63 a creation of which the engine's answer breaks off is refused, and leaves nothing",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const since = await stack.lastCall();
    await stack.engineRules({ call: "POST containers/create", times: 1, cut: true });
    expect((await refusal(stack.gateway.createSandbox({ name: "cut-short" }))).code).toBe("INTERNAL");
    expect((await refusal(stack.gateway.getSandbox("cut-short"))).code).toBe("NOT_FOUND");
    await nothingLeft(stack, await lastCreated(stack, since));
  },
  { skip },
);

scenario.alone(
  "DI-64 a sandbox is Stopped although the engine's answer to its stop broke off",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "POST containers/*/stop", times: 1, cut: true });
    await sandbox.stop().catch(() => {});
    await new Sandbox(stack.gateway, sandbox.seen).reach("STOPPED", 5_000);
    await (await sandbox.start()).ready();
  },
  { skip },
);

scenario.alone(
  "DI-65 a sandbox is gone although the engine's answer to its removal broke off, and leaves nothing",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "DELETE containers/*", times: 1, cut: true });
    await sandbox.delete().catch(() => {});
    await sandbox.gone(5_000);
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

// An engine that goes away

scenario(
  "DI-66 without an engine sandboxes run on, and creations are refused until it is back",
  async ({ startStack }) => {
    const stack = await startStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "*", drop: true });
    expect((await refusal(stack.gateway.createSandbox({ name: "too-early" }))).code).toBe("INTERNAL");
    expect((await refusal(stack.gateway.getSandbox("too-early"))).code).toBe("NOT_FOUND");
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
    expect((await sandbox.refresh()).phase).toBe("READY");
    await stack.engineRules();
    await stack.gateway.readySandbox();
    await watched(stack);
  },
  { skip },
);

scenario(
  "DI-67 a sandbox that died while the engine could not be heard is an error within 5 s",
  async ({ startStack }) => {
    const stack = await startStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "*", drop: true });
    await toContainer(stack, sandbox.id, "kill");
    await stack.engineRules();
    await sandbox.reach("ERROR", 5_000);
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "ContainerExited" });
  },
  { skip },
);

scenario(
  "DI-68 without an engine a stop and a deletion are refused, and succeed when it is back",
  async ({ startStack }) => {
    const stack = await startStack(PROXIED);
    const [first, second] = await Promise.all([stack.gateway.readySandbox(), stack.gateway.readySandbox()]);
    await stack.engineRules({ call: "*", drop: true });
    expect((await refusal(first.stop())).code).toBe("INTERNAL");
    expect((await refusal(second.delete())).code).toBe("INTERNAL");
    await stack.engineRules();
    await watched(stack);
    expect((await first.stop()).phase).toBe("STOPPED");
    await second.delete();
    await nothingLeft(stack, second.id);
  },
  { skip },
);

scenario.alone(
  "DI-69 an engine that is killed and started again has its sandboxes, and they can be used",
  async ({ startStack, stack: shared }) => {
    const stack = await startStack();
    const sandbox = await stack.gateway.readySandbox();
    await shared.keeper.call("restartEngine");
    await Promise.all([watched(stack), watched(shared)]);
    expect((await sandbox.refresh()).phase).toBe("READY");
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
    expect((await sandbox.stop()).phase).toBe("STOPPED");
    await sandbox.delete();
  },
  { skip: skip || withForeignEngine },
);

// Images

scenario.alone(
  "DI-71 an image that cannot be pulled refuses the creation with the engine's reason, and leaves nothing",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const since = await stack.lastCall();
    const message = "registry.example: manifest unknown";
    await stack.engineRules({ call: "POST images/pull", times: 1, fail: { status: 500, message } });
    const refused = await refusal(stack.gateway.createSandbox({ name: "no-image" }));
    expect(refused).toEqual({ code: "INTERNAL", message: expect.stringContaining(message) });
    expect((await refusal(stack.gateway.getSandbox("no-image"))).code).toBe("NOT_FOUND");
    expect(await onEngine(stack, await lastCreated(stack, since))).toEqual([]);
  },
  { skip },
);

scenario.alone(
  "DI-72 while an image is pulled its sandbox is PROVISIONING, others live, and it is Ready in the end",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    const other = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "POST images/pull", times: 1, hang: true });
    const creation = stack.gateway.createSandbox({ name: "slow-image" });
    const stored = () => stack.gateway.getSandbox("slow-image");
    const seen = await eventually(stored, { what: "the gateway to know the sandbox" });
    expect(phaseOf(seen)).toBe("PROVISIONING");
    expect((await other.exec(["echo", "still here"])).stdout).toBe("still here\n");
    await stack.engineRules();
    await (await creation).ready();
  },
  { skip },
);

scenario.alone(
  "DI-73 a sandbox whose image is still being pulled can be deleted, and leaves nothing",
  async ({ sharedStack }) => {
    const stack = await sharedStack(PROXIED);
    await stack.engineRules({ call: "POST images/pull", times: 1, hang: true });
    const creation = stack.gateway.createSandbox({ name: "given-up" }).catch(() => undefined);
    const stored = () => stack.gateway.getSandbox("given-up");
    const sandbox = new Sandbox(stack.gateway, await eventually(stored, { what: "the sandbox" }));
    const since = await stack.lastCall();
    const deletion = sandbox.delete();
    await asked(stack, "DeleteSandbox", since);
    await stack.engineRules();
    await deletion;
    // Whether it is refused or too late, the sandbox is not to come back.
    await (await creation)?.gone();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);
