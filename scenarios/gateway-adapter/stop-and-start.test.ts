// SPDX-License-Identifier: Apache-2.0

/** Stopping and starting a sandbox, with a driver that does it, fails at it, hangs in it, or says otherwise. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { phaseOf } from "../../harness.ts";
import { until } from "../../harness/base/waiting.ts";
import type { DriverSandboxStatus } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import { outcomeOf } from "../../proto/contract.ts";
import { type Bench, fail, gateways, ready, readyIs, stateOf, type TestSandbox } from "./given.ts";
import type { Answer } from "./scripted-driver.ts";

const { scenario } = gateways();

const SUSPENDED: DriverSandboxStatus = { conditions: [{ type: "Suspended", status: "True" }] };

// As it should be

scenario("GA-501 a stop is the driver's OK: Stopped at once, and the session ends", async (given) => {
  const { id, name, supervisor, stop } = await given.readySandbox();
  expect(stateOf(await stop())).toBe("STOPPED False/Stopped");
  await supervisor!.end();
  const [call, ...others] = given.driver.called("StopSandbox");
  expect(call!.request).toEqual({ sandbox_id: id, sandbox_name: name });
  expect(others).toEqual([]);
});

scenario("GA-502 a start is Starting until a new session comes, and makes nothing anew", async (given) => {
  const sandbox = await stopped(given);
  given.driver.calls = [];
  expect(stateOf(await sandbox.start())).toBe("STARTING False/Starting");
  await sandbox.supervise("instance-2");
  await sandbox.reaches("READY True/DependenciesReady");
  expect(given.driver.asked.map(({ method, request }) => [method, request])).toEqual([
    ["StartSandbox", { sandbox_id: sandbox.id, sandbox_name: sandbox.name }],
  ]);
});

scenario("GA-503 a stop of a Stopped sandbox is OK without the driver", async (given) => {
  const sandbox = await stopped(given);
  expect(phaseOf(await sandbox.stop())).toBe("STOPPED");
  expect(given.driver.called("StopSandbox")).toHaveLength(1);
});

scenario("GA-504 a start of a Ready sandbox is OK without the driver", async (given) => {
  const sandbox = await given.readySandbox();
  expect(phaseOf(await sandbox.start())).toBe("READY");
  expect(given.driver.called("StartSandbox")).toEqual([]);
});

scenario("GA-505 a sandbox that its driver suspended is Stopped: a stop does not ask it", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.report(SUSPENDED);
  expect(phaseOf(await sandbox.stop())).toBe("STOPPED");
  expect(given.driver.called("StopSandbox")).toEqual([]);
});

scenario("GA-506 of two stops at once one reaches the driver", async (given) => {
  const sandbox = await given.readySandbox();
  const records = await Promise.all([sandbox.stop(), sandbox.stop()]);
  expect(records.map(phaseOf)).toEqual(["STOPPED", "STOPPED"]);
  expect(given.driver.called("StopSandbox")).toHaveLength(1);
});

scenario(
  "GA-507 of two starts at once both reach the driver: the second finds it not Ready yet",
  async (given) => {
    const sandbox = await stopped(given);
    await Promise.all([sandbox.start(), sandbox.start()]);
    expect(given.driver.called("StartSandbox")).toHaveLength(2);
  },
);

// When it is refused

scenario("GA-508 a sandbox that is Provisioning can be neither stopped nor started", async (given) => {
  const sandbox = await given.create();
  expect(await outcomeOf(sandbox.stop())).toBe(
    "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Provisioning)",
  );
  expect(await outcomeOf(sandbox.start())).toBe(
    "FAILED_PRECONDITION: sandbox must be Stopped to start (current phase: Provisioning)",
  );
  expect(given.driver.called("StopSandbox")).toEqual([]);
  expect(given.driver.called("StartSandbox")).toEqual([]);
});

scenario("GA-509 a sandbox that is Starting cannot be stopped", async (given) => {
  const sandbox = await stopped(given);
  await sandbox.start();
  expect(await outcomeOf(sandbox.stop())).toBe(
    "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Starting)",
  );
});

scenario(
  "GA-510 a stop or start of what is not there is NOT_FOUND, and the driver not asked",
  async (given) => {
    const name = "nobody";
    const expected = "NOT_FOUND: sandbox not found";
    expect(await outcomeOf(given.call((client) => client.StopSandbox, { name }))).toBe(expected);
    expect(await outcomeOf(given.call((client) => client.StartSandbox, { name }))).toBe(expected);
    expect(given.driver.asked).toEqual([]);
  },
);

// A stop that fails

for (const [id, code] of [
  ["GA-511", status.NOT_FOUND],
  ["GA-512", status.FAILED_PRECONDITION],
  ["GA-513", status.INTERNAL],
  ["GA-514", status.UNAVAILABLE],
  ["GA-515", status.UNIMPLEMENTED],
] as const) {
  scenario(
    `${id} a stop that fails with ${status[code]} keeps the code; what still runs is Ready again`,
    async (given) => {
      const sandbox = await given.readySandbox();
      given.driver.on("StopSandbox", fail(code, "no way"));
      expect(await outcomeOf(sandbox.stop())).toBe(`${status[code]}: stop sandbox failed: no way`);
      expect(given.driver.called("GetSandbox", sandbox.id)).toHaveLength(1);
      expect(await sandbox.state()).toBe("READY True/DependenciesReady");
    },
  );
}

const WITHOUT_STATUS: Answer = ({ sandbox_id, sandbox_name }) => ({
  sandbox: { id: sandbox_id, name: sandbox_name, workspace: "default" },
});
for (const [id, what, seen] of [
  ["GA-516", "that the driver cannot look up", fail(status.UNAVAILABLE, "blind")],
  ["GA-517", "that the driver does not know", fail(status.NOT_FOUND, "blind")],
  ["GA-547", "that the driver knows without a status", WITHOUT_STATUS],
] as const) {
  scenario(
    `${id} after a failed stop a sandbox ${what} stays Stopping, and can be stopped again`,
    async (given) => {
      const sandbox = await given.readySandbox();
      given.driver.on("StopSandbox", fail(status.INTERNAL, "no way"));
      given.driver.on("GetSandbox", seen);
      expect(await outcomeOf(sandbox.stop())).toBe("INTERNAL: stop sandbox failed: no way");
      expect(await sandbox.state()).toBe("STOPPING False/Stopping");
      given.driver.usual();
      expect(phaseOf(await sandbox.stop())).toBe("STOPPED");
    },
  );
}

for (const [id, what, seen, phase] of [
  ["GA-518", "whose container has exited is Stopped", readyIs("False", "ContainerExited"), "STOPPED"],
  ["GA-519", "that is suspended is Stopped", SUSPENDED, "STOPPED"],
  ["GA-520", "that broke is an Error", readyIs("False", "OOMKilled"), "ERROR"],
  [
    "GA-521",
    "whose pod is going down stays Stopping",
    { conditions: [{ type: "Suspended", status: "False", reason: "PodTerminating" }] },
    "STOPPING",
  ],
  ["GA-544", "whose container was stopped is Stopped", readyIs("False", "ContainerStopped"), "STOPPED"],
  [
    "GA-545",
    "whose pod has yet to go down stays Stopping",
    { conditions: [{ type: "Suspended", status: "False", reason: "PodNotTerminated" }] },
    "STOPPING",
  ],
] as const) {
  scenario(`${id} after a failed stop a sandbox ${what}`, async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("StopSandbox", fail(status.INTERNAL, "timed out"));
    given.driver.on("GetSandbox", () => ({
      sandbox: given.driver.sandbox(sandbox.id, { conditions: [...seen.conditions!] }),
    }));
    expect(await outcomeOf(sandbox.stop())).toBe("INTERNAL: stop sandbox failed: timed out");
    expect(await sandbox.phase()).toBe(phase);
  });
}

// A stop that takes its time

scenario(
  "GA-522 while the driver stops it a sandbox is Stopping, and Ready=True changes nothing",
  async (given) => {
    const { sandbox, release, stopping } = await whileStopping(given);
    expect(await sandbox.state()).toBe("STOPPING False/Stopping");
    expect(phaseOf(await sandbox.report(readyIs("True")))).toBe("STOPPING");
    release();
    expect(phaseOf(await stopping)).toBe("STOPPED");
  },
);

scenario(
  "GA-523 a stopping sandbox whose container exits is Stopped before the driver answers",
  async (given) => {
    const { sandbox, release, stopping } = await whileStopping(given);
    expect(phaseOf(await sandbox.report(readyIs("False", "ContainerExited")))).toBe("STOPPED");
    release();
    expect(phaseOf(await stopping)).toBe("STOPPED");
  },
);

scenario(
  "GA-524 a stopping sandbox that breaks is an Error, and the stop says that it was overtaken",
  async (given) => {
    const { sandbox, release, stopping } = await whileStopping(given);
    expect(phaseOf(await sandbox.report(readyIs("False", "OOMKilled")))).toBe("ERROR");
    release();
    expect(await outcomeOf(stopping)).toBe("ABORTED: sandbox lifecycle changed while stop completed");
    expect(await sandbox.phase()).toBe("ERROR");
  },
);

scenario("GA-525 a stopping sandbox whose session closes stays Stopping", async (given) => {
  const { sandbox, release, stopping } = await whileStopping(given);
  sandbox.supervisor!.close();
  await sandbox.supervisor!.end();
  expect(phaseOf(await sandbox.report({ conditions: [] }))).toBe("STOPPING");
  release();
  expect(phaseOf(await stopping)).toBe("STOPPED");
});

scenario("GA-543 a session that opens while a sandbox is Stopping changes nothing", async (given) => {
  const { sandbox, release, stopping } = await whileStopping(given);
  await sandbox.supervise("instance-2");
  expect(phaseOf(await sandbox.report({ conditions: [] }))).toBe("STOPPING");
  release();
  expect(phaseOf(await stopping)).toBe("STOPPED");
});

scenario(
  "GA-546 a stopping sandbox that breaks while its pod goes down stays Stopping, and is Stopped with its container",
  async (given) => {
    const { sandbox, release, stopping } = await whileStopping(given);
    for (const reason of ["PodTerminating", "PodNotTerminated"]) {
      const conditions = [ready("False", "Gone"), { type: "Suspended", status: "False", reason }];
      expect(phaseOf(await sandbox.report({ conditions }))).toBe("STOPPING");
    }
    expect(phaseOf(await sandbox.report(readyIs("False", "ContainerStopped")))).toBe("STOPPED");
    release();
    expect(phaseOf(await stopping)).toBe("STOPPED");
  },
);

scenario("GA-541 the end of the main process while a sandbox is Stopping is no news", async (given) => {
  const { sandbox, release, stopping } = await whileStopping(given);
  await sandbox.exited("instance-1", 3);
  expect(await sandbox.state()).toBe("STOPPING False/Stopping");
  release();
  const record = await stopping;
  expect(stateOf(record)).toBe("STOPPED False/Stopped");
  expect(record.status!.exit_code).toBeUndefined();
});

scenario("GA-526 a user who does not wait for the stop does not stop it", async (given) => {
  const sandbox = await given.readySandbox();
  const release = given.driver.hang("StopSandbox");
  const leaving = new AbortController();
  const stopping = outcomeOf(sandbox.stop({ signal: leaving.signal }));
  await until("the stop to reach the driver", () => given.driver.called("StopSandbox", sandbox.id)[0]);
  leaving.abort();
  expect(await stopping).toStartWith("CANCELLED");
  expect(await sandbox.state()).toBe("STOPPING False/Stopping");
  release();
  await sandbox.reaches("STOPPED False/Stopped");
});

scenario("GA-527 a stop that hangs holds up no other sandbox", async (given) => {
  const { release, stopping } = await whileStopping(given);
  given.driver.usual("StopSandbox");
  expect(phaseOf(await (await given.readySandbox()).stop())).toBe("STOPPED");
  release();
  await stopping;
});

scenario("GA-528 operations of one sandbox wait for each other", async (given) => {
  const { sandbox, release, stopping } = await whileStopping(given);
  const starting = sandbox.start();
  expect(await outcomeOf(sandbox.start({ deadlineMs: 300 }))).toStartWith("DEADLINE_EXCEEDED");
  expect(given.driver.called("StartSandbox")).toEqual([]);
  release();
  await stopping;
  expect(phaseOf(await starting)).toBe("STARTING");
});

// A start that fails

for (const [id, code] of [
  ["GA-529", status.NOT_FOUND],
  ["GA-530", status.FAILED_PRECONDITION],
  ["GA-531", status.INTERNAL],
  ["GA-532", status.UNAVAILABLE],
] as const) {
  scenario(
    `${id} a start that fails with ${status[code]} keeps the code; what is suspended is Stopped again`,
    async (given) => {
      const sandbox = await stopped(given);
      given.driver.on("StartSandbox", fail(code, "no way"));
      reports(given, sandbox, SUSPENDED);
      expect(await outcomeOf(sandbox.start())).toBe(`${status[code]}: start sandbox failed: no way`);
      expect(await sandbox.state()).toBe("STOPPED False/Stopped");
    },
  );
}

for (const [id, what, code] of [
  ["GA-533", "that the driver cannot look up", status.UNAVAILABLE],
  ["GA-534", "that the driver does not know", status.NOT_FOUND],
] as const) {
  scenario(
    `${id} after a failed start a sandbox ${what} stays Starting, and can be started again`,
    async (given) => {
      const sandbox = await stopped(given);
      given.driver.on("StartSandbox", fail(status.INTERNAL, "no way"));
      given.driver.on("GetSandbox", fail(code, "blind"));
      expect(await outcomeOf(sandbox.start())).toBe("INTERNAL: start sandbox failed: no way");
      expect(await sandbox.state()).toBe("STARTING False/Starting");
      given.driver.usual();
      expect(phaseOf(await sandbox.start())).toBe("STARTING");
    },
  );
}

for (const [id, what, reason] of [
  ["GA-535", "broke", "OOMKilled"],
  ["GA-540", "has only exited", "ContainerExited"],
] as const) {
  scenario(`${id} after a failed start a sandbox that ${what} is an Error, and stays one`, async (given) => {
    const sandbox = await stopped(given);
    given.driver.on("StartSandbox", fail(status.INTERNAL, "no way"));
    reports(given, sandbox, readyIs("False", reason));
    await outcomeOf(sandbox.start());
    expect(await sandbox.state()).toBe(`ERROR False/${reason}`);
    expect(await outcomeOf(sandbox.start())).toStartWith("FAILED_PRECONDITION");
  });
}

scenario(
  "GA-536 after a failed start a sandbox that runs all the same stays Starting until its session",
  async (given) => {
    const sandbox = await stopped(given);
    given.driver.on("StartSandbox", fail(status.INTERNAL, "no way"));
    await outcomeOf(sandbox.start());
    expect(await sandbox.phase()).toBe("STARTING");
    await sandbox.supervise("instance-2");
    await sandbox.reaches("READY");
  },
);

// While Starting

scenario("GA-537 a starting sandbox heeds neither Suspended=True nor a passing reason", async (given) => {
  const sandbox = await stopped(given);
  await sandbox.start();
  for (const status of [SUSPENDED, readyIs("False", "Starting")])
    expect(phaseOf(await sandbox.report(status))).toBe("STARTING");
});

scenario("GA-538 a late report of the exit before the start is an Error for ever", async (given) => {
  const sandbox = await stopped(given);
  await sandbox.start();
  expect(stateOf(await sandbox.report(readyIs("False", "ContainerExited")))).toBe(
    "ERROR False/ContainerExited",
  );
  await sandbox.supervise("instance-2");
  expect(phaseOf(await sandbox.report(readyIs("True")))).toBe("ERROR");
});

scenario(
  "GA-542 the stopped main process's end is no news, Stopped or Starting; that of the started one is an Error",
  async (given) => {
    const sandbox = await stopped(given);
    await sandbox.exited("instance-1", 3);
    expect(await sandbox.state()).toBe("STOPPED False/Stopped");
    await sandbox.start();
    await sandbox.exited("instance-1", 3);
    expect(await sandbox.state()).toBe("STARTING False/Starting");
    await sandbox.exited("instance-2", 4);
    const record = await sandbox.get();
    expect(stateOf(record)).toBe("ERROR False/MainProcessExited");
    expect(record.status).toMatchObject({ exit_code: 4, main_process_instance_id: "instance-2" });
  },
);

scenario(
  "GA-539 a start that hangs is Starting, and the session that comes meanwhile makes it Ready",
  async (given) => {
    const sandbox = await stopped(given);
    const release = given.driver.hang("StartSandbox");
    const starting = sandbox.start();
    await until("the call to reach the driver", () => given.driver.called("StartSandbox")[0]);
    expect(await sandbox.phase()).toBe("STARTING");
    await sandbox.supervise("instance-2");
    await sandbox.reaches("READY");
    release();
    expect(phaseOf(await starting)).toBe("READY");
  },
);

// Given

async function stopped({ readySandbox }: Bench): Promise<TestSandbox> {
  const sandbox = await readySandbox();
  await sandbox.stop();
  return sandbox;
}

/** A Ready sandbox whose stop has reached the driver, which answers once it is released. */
async function whileStopping({ driver, readySandbox }: Bench) {
  const sandbox = await readySandbox();
  const release = driver.hang("StopSandbox");
  const stopping = sandbox.stop();
  await until("the stop to reach the driver", () => driver.called("StopSandbox", sandbox.id)[0]);
  return { sandbox, release, stopping };
}

/** What the driver says of a sandbox when it is asked. */
function reports({ driver }: Bench, { id }: TestSandbox, status: DriverSandboxStatus): void {
  driver.on("GetSandbox", () => ({ sandbox: driver.sandbox(id, status) }));
}
