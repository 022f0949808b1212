// SPDX-License-Identifier: Apache-2.0

/** What users see when a driver fails, dies, freezes, ends, comes back, or finds something in its place. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { connectable, isAlive } from "../../../harness/base/system.ts";
import { eventually, refusal, type RunningStack, Sandbox, scenario } from "../../../harness.ts";
import { FrameCall } from "../../../harness/conformance/frame-call.ts";
import type { DriverContext } from "../../../harness/base/driver-context.ts";
import {
  asked,
  COUNTS_STARTS,
  nothingLeft,
  onEngine,
  readyCondition,
  toContainer,
  watched,
  withoutPodmanDriver,
} from "../given.ts";
import { fileHolds } from "../sandboxes.ts";

const skip = withoutPodmanDriver;
const PROXIED = { engineProxy: true };

// A driver that cannot start (first, for it takes the longest)

scenario(
  "DI-70 a driver without an engine ends within 20 s, and its last words name the engine's socket",
  async ({ startStack }) => {
    const stack = await startStack({ order: "driver-only" });
    const nobody = join(stack.info.folder, "nobody.sock");
    const told = { socket: join(stack.info.folder, "n", "driver.sock"), podman_socket: nobody };
    expect(await endOfDriver(stack, told, 20_000)).toEqual({
      ended: "exit code 1",
      tail: expect.stringContaining(nobody),
    });
  },
  { skip },
);

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

scenario("DI-08 a sandbox is stopped while its driver dies, and starts with its workspace", async (given) => {
  const stack = await given.startStack();
  const sandbox = await stack.gateway.readySandbox();
  await sandbox.exec(["sh", "-c", "echo content > file"]);
  await sandbox.stop();
  await stack.control("driver", "kill");
  expect((await sandbox.refresh()).phase).toBe("STOPPED");
  await stack.control("driver", "start");
  await watched(stack, sandbox);
  await (await sandbox.start()).ready();
  await fileHolds(sandbox, "file", "content\n");
});

scenario("DI-09 a driver's death does not restart what runs in its sandboxes", async (given) => {
  const stack = await given.startStack();
  const sandbox = await stack.gateway.readySandbox({ command: COUNTS_STARTS });
  await fileHolds(sandbox, "starts", "begun\n");
  await stack.control("driver", "kill");
  await stack.control("driver", "start");
  await watched(stack);
  expect((await sandbox.refresh()).phase).toBe("READY");
  await fileHolds(sandbox, "starts", "begun\n");
});

scenario(
  "DI-10 a creation in which the driver dies is refused at once, and its name is free again",
  async (given) => {
    const stack = await given.startStack(PROXIED);
    await stack.engineRules({ call: "POST volumes/create", hang: true });
    const creation = refusal(stack.gateway.createSandbox({ name: "again" }));
    await stack.engineAsked("POST volumes/create");
    await stack.control("driver", "kill");
    expect((await creation).code).toBe("INTERNAL");
    expect((await refusal(stack.gateway.getSandbox("again"))).code).toBe("NOT_FOUND");
    await stack.engineRules();
    await stack.control("driver", "start");
    await stack.gateway.readySandbox({ name: "again" });
    await watched(stack);
  },
  { skip },
);

scenario(
  "DI-11 of a creation in which the driver dies nothing is left once it is back",
  async (given) => {
    const stack = await given.startStack(PROXIED);
    await stack.engineRules({ call: "POST containers/create", hang: true });
    const creation = refusal(stack.gateway.createSandbox({ name: "half-made" }));
    await stack.engineAsked("POST containers/create");
    const { id } = new Sandbox(stack.gateway, await stack.gateway.getSandbox("half-made"));
    await stack.control("driver", "kill");
    await creation;
    await stack.engineRules();
    await stack.control("driver", "start");
    await watched(stack);
    await nothingLeft(stack, id);
  },
  { skip },
);

scenario(
  "DI-12 a stop in which the driver dies is refused, and succeeds when it is asked for again",
  async (given) => {
    const stack = await given.startStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "POST containers/*/stop", hang: true });
    const stop = refusal(sandbox.stop());
    await stack.engineAsked("POST containers/*/stop");
    await stack.control("driver", "kill");
    expect((await stop).message).toStartWith("stop sandbox failed: ");
    expect((await sandbox.refresh()).phase).toBe("STOPPING");
    await stack.engineRules();
    await stack.control("driver", "start");
    expect((await sandbox.stop()).phase).toBe("STOPPED");
    await watched(stack);
  },
  { skip },
);

scenario(
  "DI-13 a deletion in which the driver dies is refused, and leaves nothing when it is asked for again",
  async (given) => {
    const stack = await given.startStack(PROXIED);
    const sandbox = await stack.gateway.readySandbox();
    await stack.engineRules({ call: "DELETE containers/*", hang: true });
    const deletion = refusal(sandbox.delete());
    await stack.engineAsked("DELETE containers/*");
    await stack.control("driver", "kill");
    expect(await deletion).toMatchObject({ code: "INTERNAL" });
    expect((await sandbox.refresh()).phase).toBe("READY");
    await stack.engineRules();
    await stack.control("driver", "start");
    await watched(stack);
    expect(await sandbox.delete()).toBe(true);
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario(
  "DI-14 a start in which the driver dies is refused, and succeeds when it is asked for again",
  async (given) => {
    const stack = await given.startStack(PROXIED);
    const sandbox = await (await stack.gateway.readySandbox()).stop();
    await stack.engineRules({ call: "POST containers/*/start", hang: true });
    const start = refusal(sandbox.start());
    await stack.engineAsked("POST containers/*/start", 2);
    await stack.control("driver", "kill");
    expect((await start).message).toStartWith("start sandbox failed: ");
    await stack.engineRules();
    await stack.control("driver", "start");
    await watched(stack, sandbox);
    await (await sandbox.start()).ready();
  },
  { skip },
);

scenario(
  "DI-15 a sandbox that died while its driver was away is an error within 5 s of its return",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await stack.control("driver", "kill");
    await toContainer(stack, sandbox.id, "kill");
    await stack.control("driver", "start");
    await sandbox.reach("ERROR", 5_000);
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "ContainerExited" });
  },
  { skip },
);

scenario(
  "DI-16 a sandbox that was removed while its driver was away can be deleted, and leaves nothing",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await stack.control("driver", "kill");
    await toContainer(stack, sandbox.id, "remove");
    expect(await onEngine(stack, sandbox.id)).not.toEqual([]);
    await stack.control("driver", "start");
    await watched(stack);
    await sandbox.delete();
    await nothingLeft(stack, sandbox.id);
  },
  { skip },
);

scenario("DI-17 without a driver a stop and a deletion are refused, and lose nothing", async (given) => {
  const stack = await given.startStack();
  const [first, second] = await Promise.all([stack.gateway.readySandbox(), stack.gateway.readySandbox()]);
  await stack.control("driver", "kill");
  expect((await refusal(first.stop())).code).toBe("UNAVAILABLE");
  expect((await refusal(second.delete())).code).toBe("INTERNAL");
  expect([(await first.refresh()).phase, (await second.refresh()).phase]).toEqual(["STOPPING", "READY"]);
  await stack.control("driver", "start");
  expect((await first.stop()).phase).toBe("STOPPED");
  expect((await second.exec(["echo", "still here"])).stdout).toBe("still here\n");
  await watched(stack);
});

// A driver that freezes

scenario("DI-18 while a driver is frozen its sandboxes work, and a creation waits for it", async (given) => {
  const stack = await given.startStack();
  const sandbox = await stack.gateway.readySandbox();
  await stack.control("driver", "pause");
  const since = await stack.lastCall();
  const creation = stack.gateway.createSandbox();
  await asked(stack, "ValidateSandboxCreate", since);
  expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
  expect((await sandbox.refresh()).phase).toBe("READY");
  await stack.control("driver", "continue");
  await (await creation).ready();
});

scenario(
  "DI-19 what happened while a driver was frozen is told when it goes on",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await stack.control("driver", "pause");
    await toContainer(stack, sandbox.id, "kill");
    await stack.control("driver", "continue");
    await sandbox.reach("ERROR", 5_000);
  },
  { skip },
);

// A driver that is told to end

scenario("DI-20 a driver that is told to end under a connected gateway ends within 5 s", async (given) => {
  // Without the tap, which leaves a driver that ends, and would hide one that waits for its gateway to leave.
  const stack = await given.startStack({ tap: false });
  const { driver } = stack.info.pids;
  // The gateway watches: it learns that a sandbox is gone.
  await (await stack.gateway.readySandbox()).delete();
  // The fake gateway's library leaves a driver that announces its end. The real one's stays, as this watcher does.
  using watcher = await FrameCall.watch(stack.info.driverSocket);
  expect(watcher.over).toBe(false);
  await stack.control("driver", "terminate");
  const ended = () => expect(isAlive(driver)).toBe(false);
  await eventually(ended, { what: "the driver to end", deadlineMs: 5_000 });
  expect(await stack.control("driver", "stop")).toBe("exit code 0");
});

scenario("DI-21 a driver that is replaced leaves no process or socket of the old one", async (given) => {
  const stack = await given.startStack({ order: "driver-only" });
  const { driver } = stack.info.pids;
  const { driverSocket } = stack.info;
  expect(await stack.control("driver", "stop")).toBe("exit code 0");
  expect({ alive: isAlive(driver), socket: existsSync(driverSocket) }).toEqual({
    alive: false,
    socket: false,
  });
  await stack.control("driver", "start");
  expect(await connectable(driverSocket)).toBe(true);
});

// What stands where the driver's socket should be

scenario("DI-22 a socket that a dead driver left is replaced", async (given) => {
  const stack = await given.startStack({ order: "driver-only" });
  const { driverSocket } = stack.info;
  await stack.control("driver", "kill");
  expect(existsSync(driverSocket)).toBe(true);
  expect(await connectable(driverSocket)).toBe(false);
  await stack.control("driver", "start");
  expect(await connectable(driverSocket)).toBe(true);
});

scenario("DI-23 a driver does not replace a file that is no socket, and says which", async (given) => {
  const stack = await given.startStack({ order: "driver-only" });
  const socket = join(stack.info.folder, "f", "driver.sock");
  mkdirSync(dirname(socket), { mode: 0o700 });
  writeFileSync(socket, "precious");
  expect(await endOfDriver(stack, { socket })).toMatchObject({
    ended: "exit code 1",
    tail: expect.stringContaining(socket),
  });
  expect(readFileSync(socket, "utf8")).toBe("precious");
});

scenario("DI-24 a driver does not follow a symbolic link to where its socket should be", async (given) => {
  const stack = await given.startStack({ order: "driver-only" });
  const socket = join(stack.info.folder, "l", "driver.sock");
  const target = join(stack.info.folder, "target");
  mkdirSync(dirname(socket), { mode: 0o700 });
  writeFileSync(target, "precious");
  symlinkSync(target, socket);
  expect(await endOfDriver(stack, { socket })).toMatchObject({
    ended: "exit code 1",
    tail: expect.stringContaining(socket),
  });
  expect(readFileSync(target, "utf8")).toBe("precious");
});

scenario("DI-25 a driver does not serve in a folder that is a symbolic link", async (given) => {
  const stack = await given.startStack({ order: "driver-only" });
  const target = join(stack.info.folder, "elsewhere");
  mkdirSync(target, { mode: 0o700 });
  symlinkSync(target, join(stack.info.folder, "s"));
  const { ended } = await endOfDriver(stack, {
    socket: join(stack.info.folder, "s", "driver.sock"),
  });
  expect(ended).toBe("exit code 1");
  expect(existsSync(join(target, "driver.sock"))).toBe(false);
});

/** How one more driver ends, which is told `differing` things, and its last words. */
async function endOfDriver(
  { keeper, info }: RunningStack,
  differing: Partial<DriverContext>,
  deadlineMs = 10_000,
): Promise<{ ended: string; tail: string }> {
  const number = await keeper.call("startOtherDriver", info.id, differing);
  const look = async () => {
    const { ended, tail } = await keeper.call("driverState", info.id, number);
    if (!ended) throw new Error(`it runs; its last words are ${tail}`);
    return { ended, tail };
  };
  return eventually(look, { what: "the driver to end", deadlineMs });
}

scenario(
  "DI-26 with a second driver on the same path sandboxes are made and used as before",
  async (given) => {
    const stack = await given.startStack();
    const { keeper, info } = stack;
    const sandbox = await stack.gateway.readySandbox();
    const bound = () => statSync(info.driverSocket, { throwIfNoEntry: false })?.ctimeMs;
    const before = bound();
    const number = await keeper.call("startOtherDriver", info.id, {});
    const settled = async () => {
      const { ended, tail } = await keeper.call("driverState", info.id, number);
      if (!ended && bound() === before) throw new Error(tail || "not a word");
    };
    await eventually(settled, { what: "the second driver to take the socket or to give up" });
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
    await (await stack.gateway.readySandbox()).delete();
    await sandbox.delete();
  },
);

scenario("DI-27 a second driver takes over when the first one dies", async (given) => {
  const stack = await given.startStack();
  const { keeper, info } = stack;
  const sandbox = await stack.gateway.readySandbox();
  await stack.control("driver", "kill");
  await keeper.call("startOtherDriver", info.id, {});
  await eventually(() => stack.gateway.createSandbox(), { what: "a creation by the second driver" });
  await watched(stack);
  expect((await sandbox.stop()).phase).toBe("STOPPED");
});

// A watch that breaks or says things twice

scenario(
  "DI-32 a sandbox that dies between two watches is an error within 5 s",
  async (given) => {
    const stack = await given.startStack();
    const sandbox = await stack.gateway.readySandbox();
    await stack.rules({ method: "ValidateSandboxCreate", times: 1, drop: true });
    await refusal(stack.gateway.createSandbox());
    await toContainer(stack, sandbox.id, "kill");
    await sandbox.reach("ERROR", 5_000);
    expect(readyCondition(sandbox)).toMatchObject({ status: "False", reason: "ContainerExited" });
  },
  { skip },
);

scenario("DI-33 a driver that says everything twice confuses nobody", async (given) => {
  const stack = await given.startStack();
  const since = await stack.lastCall();
  await stack.rules({ method: "WatchSandboxes", duplicate: true });
  await stack.control("driver", "kill");
  await stack.control("driver", "start");
  await watched(stack);
  const sandbox = await stack.gateway.readySandbox();
  expect((await sandbox.stop()).phase).toBe("STOPPED");
  await (await sandbox.start()).ready();
  expect(await sandbox.delete()).toBe(true);
  // All of that was indeed said twice.
  const watches = (await stack.calls(since)).filter(({ method }) => method === "WatchSandboxes");
  const events = watches.flatMap(({ responses }) => responses);
  expect(JSON.stringify(events)).toContain(sandbox.id);
  const [firsts, seconds] = [0, 1].map((nth) => events.filter((_, at) => at % 2 === nth));
  expect(seconds).toEqual(firsts!);
});

/** An end long before the start that the gateway has just asked for. */
const OLD_END = {
  type: "Ready",
  status: "False",
  reason: "ContainerExited",
  message: "Container exited with code 0",
  last_transition_time: "2020-01-01T00:00:00Z",
};

scenario("DI-34 news of the end before a start do not fail the sandbox that is started", async (given) => {
  const stack = await given.startStack();
  const sandbox = await (await stack.gateway.readySandbox()).stop();
  const response = { sandbox: { sandbox: { status: { conditions: [OLD_END] } } } };
  await stack.rules({ method: "WatchSandboxes", times: 1, response });
  await stack.control("driver", "kill");
  await stack.control("driver", "start");
  await watched(stack, sandbox);
  try {
    await (await sandbox.start()).ready(5_000);
  } finally {
    // The rule spoils the news of its deletion too.
    stack.gateway.sandboxes.delete(sandbox);
    await stack.keeper.call("removeLeftovers", stack.info.id, [sandbox.id]);
  }
});

// A driver that fails, by rules of the tap (last, for these run one at a time)

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

const NO_ROOM = { code: status.RESOURCE_EXHAUSTED, message: "no room" };

scenario.alone("DI-28 a stop that the driver refuses leaves the sandbox Ready and in use", async (given) => {
  const { stack, gateway } = given;
  const sandbox = await gateway.readySandbox();
  await stack.rules({ method: "StopSandbox", times: 1, fail: NO_ROOM });
  expect(await refusal(sandbox.stop())).toEqual({
    code: "RESOURCE_EXHAUSTED",
    message: "stop sandbox failed: no room",
  });
  expect((await sandbox.refresh()).phase).toBe("READY");
  expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
});

scenario.alone(
  "DI-29 a deletion that the driver refuses leaves the sandbox Ready and in use",
  async (given) => {
    const { stack, gateway } = given;
    const sandbox = await gateway.readySandbox();
    await stack.rules({ method: "DeleteSandbox", times: 1, fail: NO_ROOM });
    expect(await refusal(sandbox.delete())).toEqual({
      code: "INTERNAL",
      message: "delete sandbox failed: no room",
    });
    expect((await sandbox.refresh()).phase).toBe("READY");
    expect((await sandbox.exec(["echo", "still here"])).stdout).toBe("still here\n");
  },
);

scenario.alone("DI-30 a start that the driver refuses can be asked for again", async ({ stack, gateway }) => {
  const sandbox = await (await gateway.readySandbox()).stop();
  await stack.rules({ method: "StartSandbox", times: 1, fail: NO_ROOM });
  expect(await refusal(sandbox.start())).toEqual({
    code: "RESOURCE_EXHAUSTED",
    message: "start sandbox failed: no room",
  });
  expect((await sandbox.refresh()).phase).toBe("STOPPED");
  await (await sandbox.start()).ready();
});

scenario.alone(
  "DI-31 while a stop takes its time the sandbox is STOPPING, and others live",
  async (given) => {
    const { stack, gateway } = given;
    const [slow, other] = await Promise.all([gateway.readySandbox(), gateway.readySandbox()]);
    await stack.rules({ method: "StopSandbox", times: 1, delayMs: 400 });
    const stop = slow.stop();
    const seen = new Sandbox(gateway, slow.seen);
    await seen.reach("STOPPING", 2_000);
    expect((await other.exec(["echo", "still here"])).stdout).toBe("still here\n");
    expect((await stop).phase).toBe("STOPPED");
  },
);
