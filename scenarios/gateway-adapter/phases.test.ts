// SPDX-License-Identifier: Apache-2.0

/** Which phase a sandbox is in, after what its driver reports and what its supervisor's session does. */
import { expect } from "bun:test";
import { phaseOf } from "../../harness.ts";
import type { DriverSandboxStatus } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import { outcomeOf } from "../../proto/contract.ts";
import { gateways, ready, readyIs, stateOf } from "./given.ts";

const { scenario } = gateways();

const SUSPENDED = { type: "Suspended", status: "True" };
const READY = "READY True/DependenciesReady";

// Sessions

scenario("GA-401 a session makes a sandbox Ready, with no word from the driver", async (given) => {
  const sandbox = await given.create();
  const session = await sandbox.supervise("instance-7");
  const record = await sandbox.reaches(READY);
  expect(record.status!.main_process_instance_id).toBe("instance-7");
  expect((await session.accepted()).session_accepted!.heartbeat_interval_secs).toBe(15);
  expect(given.driver.called("GetSandbox", sandbox.id)).toEqual([]);
});

scenario("GA-402 a session that closes makes a Ready sandbox Provisioning again", async (given) => {
  const sandbox = await given.readySandbox();
  sandbox.supervisor!.close();
  await sandbox.reaches("PROVISIONING False/DependenciesNotReady");
});

scenario("GA-403 a session that breaks off does the same", async (given) => {
  const sandbox = await given.readySandbox();
  sandbox.supervisor!.die();
  await sandbox.reaches("PROVISIONING False/DependenciesNotReady");
});

scenario("GA-404 a session that comes back makes it Ready again", async (given) => {
  const sandbox = await given.readySandbox();
  sandbox.supervisor!.close();
  await sandbox.reaches("PROVISIONING");
  await sandbox.supervise();
  await sandbox.reaches(READY);
});

scenario("GA-405 a new session supersedes the old one, whose end then changes nothing", async (given) => {
  const sandbox = await given.readySandbox();
  const old = sandbox.supervisor!;
  await sandbox.supervise("instance-2");
  await old.end();
  const record = await sandbox.reaches("READY");
  expect(record.status!.main_process_instance_id).toBe("instance-2");
  expect(stateOf(await sandbox.report({ conditions: [] }))).toBe(READY);
});

scenario("GA-406 Ready=True without a session is Provisioning, and says what is missing", async (given) => {
  const record = await (await given.create()).report(readyIs("True"));
  expect(stateOf(record)).toBe("PROVISIONING False/SupervisorNotConnected");
});

scenario("GA-407 a session that comes after Ready=True makes it Ready", async (given) => {
  const sandbox = await given.create();
  await sandbox.report(readyIs("True"));
  await sandbox.supervise();
  await sandbox.reaches(READY);
});

// What leaves a sandbox with a session Ready

const harmless: [id: string, what: string, status: DriverSandboxStatus][] = [
  ["GA-408", "Ready=Unknown", readyIs("Unknown")],
  ["GA-409", "Ready=False/Starting", readyIs("False", "Starting")],
  ["GA-410", "a passing reason in lower case", readyIs("False", "containerstarting")],
  ["GA-411", "no condition at all", { conditions: [] }],
  ["GA-412", "Ready=true in lower case", readyIs("true")],
  ["GA-413", "Suspended=False", { conditions: [{ type: "Suspended", status: "False", reason: "x" }] }],
  ["GA-414", "a status that nobody defined", readyIs("Maybe", "Boom")],
];
for (const [id, what, status] of harmless) {
  scenario(`${id} ${what} leaves a sandbox with a session Ready`, async (given) => {
    expect(stateOf(await (await given.readySandbox()).report(status))).toBe(READY);
  });
}

for (const [index, reason] of [
  "ReconcilerError",
  "DependenciesNotReady",
  "SupervisorNotConnected",
  "Starting",
  "ContainerStarting",
  "ContainerCreated",
  "HealthCheckStarting",
  "InspectFailed",
].entries()) {
  scenario(
    `GA-${415 + index} Ready=False/${reason} may pass: the sandbox stays Provisioning`,
    async (given) => {
      const record = await (await given.create()).report(readyIs("False", reason));
      expect(stateOf(record)).toBe(`PROVISIONING False/${reason}`);
    },
  );
}

// What ends it

const final: [id: string, what: string, status: DriverSandboxStatus][] = [
  ["GA-423", "Ready=False/Pulling", readyIs("False", "Pulling")],
  ["GA-424", "Ready=False without a reason", readyIs("False")],
  ["GA-425", "Ready=false in lower case", readyIs("false", "Unschedulable")],
  ["GA-426", "Ready=False/ContainerExited", readyIs("False", "ContainerExited")],
  ["GA-427", "Ready=False/HealthCheckFailed", readyIs("False", "HealthCheckFailed")],
  ["GA-428", "Ready=False/ContainerRestarting", readyIs("False", "ContainerRestarting")],
  ["GA-429", "Ready=False/Deleting without the flag", readyIs("False", "Deleting")],
];
for (const [id, what, status] of final) {
  scenario(`${id} ${what} is an Error, session or not`, async (given) => {
    for (const sandbox of [await given.readySandbox(), await given.create()])
      expect(phaseOf(await sandbox.report(status))).toBe("ERROR");
  });
}

scenario("GA-430 a driver's own reason and message reach the user", async (given) => {
  const record = await (await given.create()).report(readyIs("False", "OutOfLuck", "try again on Monday"));
  expect(record.status!.conditions).toMatchObject([ready("False", "OutOfLuck", "try again on Monday")]);
});

scenario("GA-431 Error is for ever: neither Ready=True nor a new session revives it", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.report(readyIs("False", "Pulling"));
  expect(phaseOf(await sandbox.report(readyIs("True")))).toBe("ERROR");
  await sandbox.supervise("instance-2");
  expect(stateOf(await sandbox.report(readyIs("True")))).toBe("ERROR False/Pulling");
});

scenario("GA-432 a sandbox in Error can be neither stopped nor started, only deleted", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.report(readyIs("False", "Pulling"));
  expect(await outcomeOf(sandbox.stop())).toBe(
    "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Error)",
  );
  expect(await outcomeOf(sandbox.start())).toBe(
    "FAILED_PRECONDITION: sandbox must be Stopped to start (current phase: Error)",
  );
  expect(given.driver.called("StopSandbox")).toEqual([]);
  expect(await sandbox.delete()).toBe(true);
  await sandbox.gone();
});

scenario("GA-433 a GPU that cannot be had is explained in the gateway's own words", async (given) => {
  const sandbox = await given.create({ spec: { resource_requirements: { gpu: { count: 1 } } } });
  const record = await sandbox.report(readyIs("False", "Unschedulable", "0/1 nodes"));
  expect(record.status!.conditions[0]!.message).toStartWith(
    "GPU sandbox could not be scheduled on the active gateway.",
  );
});

scenario("GA-434 the end of the main process is an Error, exit code 0 included", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.exited("instance-1", 0);
  const record = await sandbox.get();
  expect(stateOf(record)).toBe("ERROR False/MainProcessExited");
  expect(record.status!.exit_code).toBe(0);
});

scenario("GA-435 the end of another instance's main process is no news", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.exited("another", 1);
  expect(await sandbox.state()).toBe(READY);
});

scenario("GA-451 of two ends of the main process the first counts", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.exited("instance-1", 3);
  await sandbox.exited("instance-1", 5);
  expect((await sandbox.get()).status!.exit_code).toBe(3);
});

scenario("GA-452 the end of the main process of a sandbox that is Deleting is no news", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.report({ deleting: true });
  await sandbox.exited("instance-1", 3);
  const record = await sandbox.get();
  expect(phaseOf(record)).toBe("DELETING");
  expect(record.status!.exit_code).toBeUndefined();
});

// Which condition counts

scenario(
  "GA-436 a condition `ready` in lower case does not count, and is listed beside Ready=True",
  async (given) => {
    const sandbox = await given.readySandbox();
    const record = await sandbox.report({ conditions: [{ type: "ready", status: "False", reason: "Boom" }] });
    expect(phaseOf(record)).toBe("READY");
    const listed = record.status!.conditions.map(({ type, status }) => `${type}=${status}`);
    expect(listed).toEqual(["ready=False", "Ready=True"]);
  },
);

scenario("GA-437 of two Ready conditions the first counts", async (given) => {
  const sandbox = await given.create();
  const conditions = [ready("False", "Starting"), ready("False", "Boom")];
  expect(phaseOf(await sandbox.report({ conditions }))).toBe("PROVISIONING");
  expect(phaseOf(await sandbox.report({ conditions: conditions.toReversed() }))).toBe("ERROR");
});

scenario("GA-438 conditions of other types change nothing, and are shown", async (given) => {
  const sandbox = await given.readySandbox();
  const record = await sandbox.report({ conditions: [{ type: "Scheduled", status: "False", reason: "x" }] });
  expect(phaseOf(record)).toBe("READY");
  expect(record.status!.conditions).toMatchObject([
    { type: "Scheduled", status: "False" },
    ready("True", "DependenciesReady", "Supervisor session connected"),
  ]);
});

scenario(
  "GA-439 Suspended=True stops a Ready sandbox, in any spelling, and ends its session",
  async (given) => {
    const sandbox = await given.readySandbox();
    const conditions = [{ type: "suspended", status: "true" }];
    expect(phaseOf(await sandbox.report({ conditions }))).toBe("STOPPED");
    await sandbox.supervisor!.end();
  },
);

scenario("GA-440 Suspended=True outdoes every Ready condition", async (given) => {
  for (const condition of [ready("True"), ready("False", "Boom")]) {
    const record = await (await given.create()).report({ conditions: [condition, SUSPENDED] });
    expect(phaseOf(record)).toBe("STOPPED");
  }
});

scenario("GA-441 the deleting flag outdoes Suspended=True", async (given) => {
  const record = await (await given.create()).report({ conditions: [SUSPENDED], deleting: true });
  expect(phaseOf(record)).toBe("DELETING");
});

scenario(
  "GA-442 a sandbox that its driver deletes heeds no snapshot, and cannot be stopped",
  async (given) => {
    const sandbox = await given.readySandbox();
    expect(phaseOf(await sandbox.report({ deleting: true }))).toBe("DELETING");
    expect(phaseOf(await sandbox.report(readyIs("False", "Boom")))).toBe("DELETING");
    expect(phaseOf(await sandbox.report(readyIs("True")))).toBe("DELETING");
    expect(await outcomeOf(sandbox.stop())).toBe(
      "FAILED_PRECONDITION: sandbox must be Ready to stop (current phase: Deleting)",
    );
  },
);

scenario(
  "GA-443 a Stopped sandbox stays so, whatever the driver reports and whoever connects",
  async (given) => {
    const sandbox = await given.readySandbox();
    await sandbox.stop();
    for (const status of [readyIs("True"), readyIs("False", "Boom"), { conditions: [] }])
      expect(phaseOf(await sandbox.report(status))).toBe("STOPPED");
    await sandbox.supervise("instance-2");
    expect(phaseOf(await sandbox.report(readyIs("True")))).toBe("STOPPED");
  },
);

// What else a snapshot says

scenario(
  "GA-444 the driver's instance is the public agent_pod; the supervisor's stays, and the sandbox's name fills the gap",
  async (given) => {
    const sandbox = await given.readySandbox();
    const { status } = await sandbox.report({ ...readyIs("True"), instance_id: "container-1" });
    expect(status).toMatchObject({
      agent_pod: "container-1",
      main_process_instance_id: "instance-1",
      sandbox_name: sandbox.name,
    });
  },
);

scenario("GA-445 a name in the driver's status is the public sandbox_name", async (given) => {
  const { status } = await (await given.create()).report({ conditions: [], sandbox_name: "pod-0" });
  expect(status!.sandbox_name).toBe("pod-0");
});

scenario("GA-446 a snapshot without a status changes nothing", async (given) => {
  const sandbox = await given.readySandbox();
  expect(stateOf(await sandbox.report(null))).toBe(READY);
});

scenario("GA-447 a snapshot of a sandbox that nobody created makes none", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.snapshot("nobody", readyIs("True"), { name: "nobody" });
  expect(stateOf(await sandbox.report(null))).toBe(READY);
  expect(await outcomeOf(given.get("nobody"))).toBe("NOT_FOUND: sandbox not found");
});

for (const [id, what, name] of [
  ["GA-448", "another name", "renamed"],
  ["GA-449", "no name", ""],
] as const) {
  scenario(`${id} a snapshot under ${what} is refused as a whole, and the log says why`, async (given) => {
    const sandbox = await given.readySandbox();
    const record = await sandbox.report(readyIs("False", "Boom"), { name });
    expect(record.metadata!.name).toBe(sandbox.name);
    expect(stateOf(record)).toBe(READY);
    expect(given.gateway.log).toContain("sandbox name cannot be changed after creation");
  });
}

scenario("GA-450 workspace and spec of a snapshot are not heeded", async (given) => {
  const sandbox = await given.create({ spec: { environment: { A: "1" } } });
  const differing = { workspace: "elsewhere", namespace: "other", spec: { environment: { A: "2" } } };
  const record = await sandbox.report({ instance_id: "container-1" }, differing);
  expect(record.status!.agent_pod).toBe("container-1");
  expect(record.metadata!.workspace).toBe("default");
  expect(record.spec!.environment).toEqual({ A: "1" });
});
