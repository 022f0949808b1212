// SPDX-License-Identifier: Apache-2.0

/** The end of a gateway, the start of the next on the same database, and what each asks of the driver for it. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { phaseOf } from "../../harness.ts";
import { until } from "../../harness/base/waiting.ts";
import { outcomeOf } from "../../proto/contract.ts";
import { type Bench, OWN_LIFECYCLE, fail, gateways, readyIs, type TestSandbox } from "./given.ts";
import { unframed } from "./gateway-process.ts";

const { ownGateway } = gateways();

// Shutdown

for (const [id, signal] of [
  ["GA-901", "SIGTERM"],
  ["GA-902", "SIGINT"],
] as const) {
  ownGateway(
    `${id} ${signal} ends a gateway without sandboxes with exit code 0`,
    async ({ gateway, driver }) => {
      expect(await gateway.stop(signal)).toBe("exit code 0");
      expect(driver.called("StopSandbox")).toEqual([]);
    },
  );
}

ownGateway(
  "GA-903 at its end a gateway stops the sandboxes that run or start, and no others",
  async (given) => {
    const [ready, provisioning, starting, stopped, broken, stopping, deleting] = [
      await given.readySandbox(),
      await given.create(),
      await given.readySandbox(),
      await given.readySandbox(),
      await given.readySandbox(),
      await given.readySandbox(),
      await given.readySandbox(),
    ];
    await starting.stop();
    await starting.start();
    await stopped.stop();
    await broken.report(readyIs("False", "Boom"));
    await staysStopping(given, stopping);
    given.driver.on("DeleteSandbox", () => ({ deleted: true }));
    await deleting.delete();
    given.driver.calls = [];
    expect(await given.gateway.stop()).toBe("exit code 0");
    expect(asked(given, "StopSandbox")).toEqual([ready.id, provisioning.id, starting.id].toSorted());
  },
);

ownGateway("GA-904 at its end a gateway stops at most sixteen sandboxes at a time", async (given) => {
  for (let count = 0; count < 20; count++) await given.create();
  const release = given.driver.hang("StopSandbox");
  const ended = given.gateway.stop();
  await until("sixteen stops", () => given.driver.called("StopSandbox").length >= 16);
  expect(given.driver.called("StopSandbox")).toHaveLength(16);
  release();
  expect(await ended).toBe("exit code 0");
  expect(given.driver.called("StopSandbox")).toHaveLength(20);
});

ownGateway(
  "GA-905 a sandbox that cannot be stopped at the end is exit code 1, and the rest is stopped",
  async (given) => {
    const [stuck, other] = [await given.create(), await given.create()];
    given.driver.on("StopSandbox", ({ sandbox_id }) =>
      sandbox_id === stuck.id ? Promise.reject({ code: status.INTERNAL, details: "stuck" }) : {},
    );
    expect(await given.gateway.stop()).toBe("exit code 1");
    expect(asked(given, "StopSandbox")).toEqual([stuck.id, other.id].toSorted());
    expect(unframed(given.gateway.log)).toContain(
      "gateway shutdown cleanup failed: failed to stop 1 sandbox(es) during gateway shutdown",
    );
  },
);

ownGateway(
  "GA-906 with sandboxes that run and a driver that is away the end is exit code 1",
  async (given) => {
    await given.create();
    given.driver.close();
    expect(await given.gateway.stop()).toBe("exit code 1");
  },
);

ownGateway("GA-907 a gateway that ends lets go of its driver's watch", async (given) => {
  await given.gateway.stop();
  await until("the watch to end", () => !given.driver.watching);
});

ownGateway(
  "GA-908 a driver that manages lifecycle itself is asked for nothing at the end, nor at the next start",
  async (given) => {
    const sandbox = await given.readySandbox();
    await given.restart();
    expect(given.driver.called("StopSandbox")).toEqual([]);
    expect(given.driver.called("StartSandbox")).toEqual([]);
    await sandbox.supervise("instance-2");
    await sandbox.reaches("READY");
  },
  OWN_LIFECYCLE,
);

ownGateway(
  "GA-909 a sandbox that Stopped stays so after a restart, and the driver is asked for nothing",
  async (given) => {
    const sandbox = await given.readySandbox();
    await sandbox.stop();
    await given.restart();
    expect(await sandbox.state()).toBe("STOPPED False/Stopped");
    expect(given.driver.called("StartSandbox")).toEqual([]);
  },
);

// Start

ownGateway("GA-910 the next gateway starts what ran, by id and name, before it watches", async (given) => {
  const { id, name } = await given.readySandbox();
  await given.restart();
  await given.watched();
  const methods = given.driver.calls.map(({ method }) => method);
  const order = [
    "GetCapabilities",
    "GetGatewayListenerRequirements",
    "StartSandbox",
    "WatchSandboxes",
  ] as const;
  expect(methods.filter((method) => order.some((each) => each === method))).toEqual([...order]);
  expect(given.driver.called("StartSandbox")[0]!.request).toEqual({ sandbox_id: id, sandbox_name: name });
});

ownGateway(
  "GA-911 what ran is Ready again once its supervisor is back, with the token of its creation",
  async (given) => {
    const sandbox = await given.readySandbox({ labels: { kept: "yes" } });
    await given.restart();
    await sandbox.supervise("instance-2");
    const record = await sandbox.reaches("READY True/DependenciesReady");
    expect(record.metadata).toMatchObject({ id: sandbox.id, labels: { kept: "yes" } });
  },
);

ownGateway(
  "GA-912 a killed gateway leaves its sandboxes running, and the next starts them all the same",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.calls = [];
    await given.gateway.stop("SIGKILL");
    expect(given.driver.called("StopSandbox")).toEqual([]);
    given.gateway = await given.lab.start();
    expect(asked(given, "StartSandbox")).toEqual([sandbox.id]);
    expect(await sandbox.phase()).toBe("READY");
  },
);

ownGateway(
  "GA-913 a sandbox that cannot be started at the next start is an Error that says why",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("StartSandbox", fail(status.INTERNAL, "stuck"));
    await given.restart();
    const record = await sandbox.reaches("ERROR False/StartFailed");
    expect(record.status!.conditions[0]!.message).toBe(
      "Failed to start sandbox during gateway startup: stuck",
    );
  },
);

ownGateway("GA-914 one that is only UNAVAILABLE at that moment is an Error for ever, too", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.on("StartSandbox", fail(status.UNAVAILABLE, "not yet"));
  await given.restart();
  given.driver.usual();
  expect(await sandbox.state()).toBe("ERROR False/StartFailed");
  await sandbox.supervise("instance-2");
  await given.watched();
  expect(await outcomeOf(sandbox.start())).toStartWith("FAILED_PRECONDITION");
  await given.restart();
  expect(await sandbox.state()).toBe("ERROR False/StartFailed");
});

ownGateway(
  "GA-915 a sandbox whose resource is gone at the next start is an Error that says so",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("StartSandbox", fail(status.NOT_FOUND, "gone"));
    await given.restart();
    const record = await sandbox.reaches("ERROR False/BackendResourceMissing");
    expect(record.status!.conditions[0]!.message).toBe(
      "Sandbox compute resource disappeared while the gateway was offline",
    );
  },
);

ownGateway(
  "GA-916 one sandbox that cannot be started keeps no other from it, nor the gateway",
  async (given) => {
    const [stuck, other] = [await given.readySandbox(), await given.readySandbox()];
    given.driver.on("StartSandbox", ({ sandbox_id }) =>
      sandbox_id === stuck.id ? Promise.reject({ code: status.INTERNAL, details: "stuck" }) : {},
    );
    await given.restart();
    expect(asked(given, "StartSandbox")).toEqual([stuck.id, other.id].toSorted());
    await other.supervise("instance-2");
    await other.reaches("READY");
    expect(await stuck.state()).toBe("ERROR False/StartFailed");
  },
);

ownGateway("GA-917 nobody is answered before all that ran is started", async (given) => {
  await given.readySandbox();
  await given.gateway.stop();
  const release = given.driver.hang("StartSandbox");
  given.gateway = await given.lab.launch();
  await until("the start to reach the driver", () => given.driver.called("StartSandbox")[0]);
  expect(await outcomeOf(given.call((client) => client.Health, {}, { deadlineMs: 500 }))).not.toBe("OK");
  expect(await given.gateway.health("/healthz").catch(() => "refused")).toBe("refused");
  release();
  await given.gateway.answering();
});

// What was under way

ownGateway("GA-918 a stop that a killed gateway had begun is finished by the next", async (given) => {
  const sandbox = await given.readySandbox();
  await killedWhile(given, "StopSandbox", () => sandbox.stop());
  expect(asked(given, "StopSandbox")).toEqual([sandbox.id]);
  expect(await sandbox.state()).toBe("STOPPED False/Stopped");
  expect(given.driver.called("StartSandbox")).toEqual([]);
});

ownGateway("GA-919 a start that a killed gateway had begun is asked for again", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.stop();
  await killedWhile(given, "StartSandbox", () => sandbox.start());
  expect(new Set(asked(given, "StartSandbox"))).toEqual(new Set([sandbox.id]));
  expect(await sandbox.phase()).toBe("STARTING");
  await sandbox.supervise("instance-2");
  await sandbox.reaches("READY");
});

ownGateway(
  "GA-920 a delete that a killed gateway had begun is not asked for again; the event still ends it",
  async (given) => {
    const sandbox = await given.readySandbox();
    await killedWhile(given, "DeleteSandbox", () => sandbox.delete());
    expect(await sandbox.phase()).toBe("DELETING");
    await given.watched();
    expect(given.driver.called("DeleteSandbox")).toEqual([]);
    expect(given.driver.called("StartSandbox")).toEqual([]);
    given.driver.deleted(sandbox.id);
    await sandbox.gone();
  },
);

ownGateway(
  "GA-921 a create that a killed gateway had begun is Provisioning, and started by the next",
  async (given) => {
    await killedWhile(given, "CreateSandbox", () => given.create({ name: "half-made" }));
    const record = await given.get("half-made");
    expect(asked(given, "StartSandbox")).toEqual([record.metadata!.id]);
    expect(record.status!.phase).toBe("SANDBOX_PHASE_PROVISIONING");
  },
);

ownGateway(
  "GA-922 a stop that the next gateway cannot finish stays Stopping, and can be tried again",
  async (given) => {
    const sandbox = await given.readySandbox();
    await killedWhile(
      given,
      "StopSandbox",
      () => sandbox.stop(),
      () => {
        given.driver.on("StopSandbox", fail(status.INTERNAL, "stuck"));
      },
    );
    expect(await sandbox.phase()).toBe("STOPPING");
    given.driver.usual();
    await sandbox.stop();
    expect(await sandbox.phase()).toBe("STOPPED");
  },
);

ownGateway(
  "GA-923 a stop without an outcome is finished by the next gateway, also where the driver manages lifecycle itself",
  async (given) => {
    const sandbox = await given.readySandbox();
    await staysStopping(given, sandbox);
    await given.restart();
    expect(asked(given, "StopSandbox")).toEqual([sandbox.id]);
    expect(await sandbox.state()).toBe("STOPPED False/Stopped");
  },
  OWN_LIFECYCLE,
);

ownGateway(
  "GA-924 a create under way at the end is cut off; its sandbox is stopped, and started by the next gateway",
  async (given) => {
    given.driver.hang("CreateSandbox");
    const creating = outcomeOf(given.create({ name: "cut-off-at-the-end" }));
    await until("the call to reach the driver", () => given.driver.called("CreateSandbox")[0]);
    expect(await given.gateway.stop()).toBe("exit code 0");
    expect(await creating).toStartWith("UNAVAILABLE: ");
    const { id } = given.driver.called("CreateSandbox")[0]!.request.sandbox!;
    expect(asked(given, "StopSandbox")).toEqual([id]);
    given.driver.usual();
    given.driver.calls = [];
    given.gateway = await given.lab.start();
    expect(asked(given, "StartSandbox")).toEqual([id]);
    expect(phaseOf(await given.get("cut-off-at-the-end"))).toBe("PROVISIONING");
  },
);

// Given

/** A stop fails, and nobody knows what came of it; from then on the driver can be asked again. */
async function staysStopping({ driver }: Bench, sandbox: TestSandbox): Promise<void> {
  driver.on("StopSandbox", fail(status.INTERNAL, "no way"));
  driver.on("GetSandbox", fail(status.UNAVAILABLE, "blind"));
  await outcomeOf(sandbox.stop());
  expect(await sandbox.phase()).toBe("STOPPING");
  driver.usual("StopSandbox", "GetSandbox");
}

/** The ids that the driver was asked about with a method. */
const asked = ({ driver }: Bench, method: "StopSandbox" | "StartSandbox"): string[] =>
  driver
    .called(method)
    .map(({ request }) => request.sandbox_id!)
    .toSorted();

/** Kills the gateway while the driver is about to answer `method`, and starts the next. */
async function killedWhile(
  given: Bench,
  method: "StopSandbox" | "StartSandbox" | "DeleteSandbox" | "CreateSandbox",
  act: () => Promise<unknown>,
  meanwhile = () => {},
): Promise<void> {
  given.driver.calls = [];
  given.driver.hang(method);
  void outcomeOf(act());
  await until("the call to reach the driver", () => given.driver.called(method)[0]);
  await given.gateway.stop("SIGKILL");
  given.driver.usual();
  given.driver.calls = [];
  meanwhile();
  given.gateway = await given.lab.start();
}
