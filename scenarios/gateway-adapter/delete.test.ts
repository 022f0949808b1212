// SPDX-License-Identifier: Apache-2.0

/** Deleting a sandbox: when its record goes, when it comes back, and what the driver is asked. */
import { status } from "@grpc/grpc-js";
import { expect } from "bun:test";
import { phaseOf } from "../../harness.ts";
import { until } from "../../harness/base/waiting.ts";
import { outcomeOf } from "../../proto/contract.ts";
import { fail, gateways, readyIs } from "./given.ts";

const { scenario } = gateways();

const GONE = "NOT_FOUND: sandbox not found";

scenario(
  "GA-601 a delete asks the driver by id and name, and the Deleted event removes the record",
  async (given) => {
    const { id, name, gone, delete: remove } = await given.readySandbox();
    expect(await remove()).toBe(true);
    await gone();
    expect(given.driver.called("DeleteSandbox").map(({ request }) => request)).toEqual([
      { sandbox_id: id, sandbox_name: name },
    ]);
  },
);

scenario("GA-602 deleted=false removes the record at once", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.on("DeleteSandbox", () => ({ deleted: false }));
  expect(await sandbox.delete()).toBe(false);
  expect(await outcomeOf(sandbox.get())).toBe(GONE);
});

scenario("GA-603 deleted=true is Deleting until the driver's Deleted event", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.on("DeleteSandbox", () => ({ deleted: true }));
  expect(await sandbox.delete()).toBe(true);
  expect(await sandbox.phase()).toBe("DELETING");
  given.driver.deleted(sandbox.id);
  await sandbox.gone();
});

scenario(
  "GA-604 a second delete while Deleting answers the same without asking the driver",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("DeleteSandbox", () => ({ deleted: true }));
    await sandbox.delete();
    expect(await sandbox.delete()).toBe(true);
    expect(given.driver.called("DeleteSandbox")).toHaveLength(1);
  },
);

scenario("GA-605 a name is taken until the record is gone, and free then", async (given) => {
  const sandbox = await given.create({ name: "name" });
  given.driver.on("DeleteSandbox", () => ({ deleted: true }));
  await sandbox.delete();
  expect(await outcomeOf(given.create({ name: "name" }))).toBe(
    "ALREADY_EXISTS: sandbox 'name' already exists",
  );
  given.driver.deleted(sandbox.id);
  await sandbox.gone();
  expect((await given.create({ name: "name" })).id).not.toBe(sandbox.id);
});

scenario("GA-606 a delete of what is not there is NOT_FOUND, and the driver not asked", async (given) => {
  expect(await outcomeOf(given.call((client) => client.DeleteSandbox, { name: "nobody" }))).toBe(GONE);
  expect(given.driver.called("DeleteSandbox")).toEqual([]);
});

// A delete that fails

for (const [id, code] of [
  ["GA-607", status.NOT_FOUND],
  ["GA-608", status.FAILED_PRECONDITION],
  ["GA-609", status.UNIMPLEMENTED],
  ["GA-610", status.UNAVAILABLE],
] as const) {
  scenario(
    `${id} a delete that fails with ${status[code]} is INTERNAL; what still runs is Ready again`,
    async (given) => {
      const sandbox = await given.readySandbox();
      given.driver.on("DeleteSandbox", fail(code, "no way"));
      expect(await outcomeOf(sandbox.delete())).toBe("INTERNAL: delete sandbox failed: no way");
      expect(await sandbox.state()).toBe("READY True/DependenciesReady");
    },
  );
}

scenario(
  "GA-611 a delete that fails of a sandbox that is gone all the same removes the record",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("DeleteSandbox", fail(status.INTERNAL, "half done"));
    given.driver.on("GetSandbox", fail(status.NOT_FOUND, "gone"));
    expect(await outcomeOf(sandbox.delete())).toBe("INTERNAL: delete sandbox failed: half done");
    expect(await outcomeOf(sandbox.get())).toBe(GONE);
  },
);

scenario(
  "GA-612 after a failed delete of which nobody knows the outcome the record is as before",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("DeleteSandbox", fail(status.INTERNAL, "no way"));
    given.driver.on("GetSandbox", fail(status.UNAVAILABLE, "blind"));
    expect(await outcomeOf(sandbox.delete())).toBe("INTERNAL: delete sandbox failed: no way");
    expect(await sandbox.state()).toBe("READY True/DependenciesReady");
  },
);

scenario(
  "GA-628 after a failed delete of a sandbox that the driver knows without a status the record is as before",
  async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("DeleteSandbox", fail(status.INTERNAL, "no way"));
    given.driver.on("GetSandbox", () => ({ sandbox: given.driver.sandbox(sandbox.id, null) }));
    expect(await outcomeOf(sandbox.delete())).toBe("INTERNAL: delete sandbox failed: no way");
    expect(await sandbox.state()).toBe("READY True/DependenciesReady");
  },
);

for (const [id, what, seen, phase] of [
  ["GA-613", "that is being deleted stays Deleting", { deleting: true }, "DELETING"],
  ["GA-614", "that broke is an Error", readyIs("False", "OOMKilled"), "ERROR"],
] as const) {
  scenario(`${id} after a failed delete a sandbox ${what}`, async (given) => {
    const sandbox = await given.readySandbox();
    given.driver.on("DeleteSandbox", fail(status.INTERNAL, "no way"));
    given.driver.on("GetSandbox", () => ({ sandbox: given.driver.sandbox(sandbox.id, { ...seen }) }));
    await outcomeOf(sandbox.delete());
    expect(await sandbox.phase()).toBe(phase);
  });
}

scenario("GA-615 a delete that failed can be tried again", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.on("DeleteSandbox", fail(status.INTERNAL, "no way"));
  await outcomeOf(sandbox.delete());
  given.driver.usual();
  expect(await sandbox.delete()).toBe(true);
  await sandbox.gone();
});

// From every phase

scenario("GA-616 a sandbox that is Provisioning can be deleted", async (given) => {
  const sandbox = await given.create();
  expect(await sandbox.delete()).toBe(true);
  await sandbox.gone();
});

scenario("GA-617 a sandbox that is Stopped can be deleted, without a start", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.stop();
  expect(await sandbox.delete()).toBe(true);
  await sandbox.gone();
  expect(given.driver.called("StartSandbox")).toEqual([]);
});

scenario("GA-618 a sandbox whose creation hangs can be deleted", async (given) => {
  given.driver.hang("CreateSandbox");
  void outcomeOf(given.create({ name: "hung-and-deleted" }, { deadlineMs: 3_000 }));
  await until("the call to reach the driver", () => given.driver.called("CreateSandbox")[0]);
  const { deleted } = await given.call((client) => client.DeleteSandbox, { name: "hung-and-deleted" });
  expect(deleted).toBe(true);
  await until("it to be gone", async () => (await outcomeOf(given.get("hung-and-deleted"))) === GONE);
});

scenario("GA-619 a delete waits for a stop under way", async (given) => {
  const sandbox = await given.readySandbox();
  const release = given.driver.hang("StopSandbox");
  const stopping = sandbox.stop();
  await until("the stop to reach the driver", () => given.driver.called("StopSandbox")[0]);
  const deleting = sandbox.delete();
  expect(await outcomeOf(sandbox.delete({ deadlineMs: 300 }))).toStartWith("DEADLINE_EXCEEDED");
  expect(given.driver.called("DeleteSandbox")).toEqual([]);
  release();
  await stopping;
  expect(await deleting).toBe(true);
  await sandbox.gone();
});

scenario("GA-620 a user who does not wait for the delete does not stop it", async (given) => {
  const sandbox = await given.readySandbox();
  const release = given.driver.hang("DeleteSandbox");
  const leaving = new AbortController();
  const deleting = outcomeOf(sandbox.delete({ signal: leaving.signal }));
  await until("the delete to reach the driver", () => given.driver.called("DeleteSandbox", sandbox.id)[0]);
  leaving.abort();
  expect(await deleting).toStartWith("CANCELLED");
  expect(await sandbox.phase()).toBe("DELETING");
  release();
  await sandbox.gone();
});

scenario("GA-627 a session that opens while a sandbox is Deleting changes nothing", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.on("DeleteSandbox", () => ({ deleted: true }));
  await sandbox.delete();
  await sandbox.supervise("instance-2");
  const record = await sandbox.report({ conditions: [] });
  expect(phaseOf(record)).toBe("DELETING");
  expect(record.status!.main_process_instance_id).toBe("instance-1");
});

// Deleted by the driver

for (const [id, phase] of [
  ["GA-621", "READY"],
  ["GA-622", "PROVISIONING"],
  ["GA-623", "STOPPED"],
  ["GA-624", "ERROR"],
] as const) {
  scenario(`${id} a Deleted event removes a sandbox that is ${phase}`, async (given) => {
    const sandbox = phase === "PROVISIONING" ? await given.create() : await given.readySandbox();
    if (phase === "STOPPED") await sandbox.stop();
    if (phase === "ERROR") await sandbox.report(readyIs("False", "Boom"));
    expect(await sandbox.phase()).toBe(phase);
    given.driver.deleted(sandbox.id);
    await sandbox.gone();
  });
}

scenario("GA-625 a Deleted event of a sandbox that nobody knows is harmless", async (given) => {
  const sandbox = await given.readySandbox();
  given.driver.deleted("nobody");
  await given.applied(sandbox);
  expect(await sandbox.phase()).toBe("READY");
});

scenario("GA-626 a sandbox that is gone takes no session", async (given) => {
  const sandbox = await given.readySandbox();
  await sandbox.delete();
  await sandbox.gone();
  void sandbox.supervise().catch(() => {});
  const refused = { code: status.NOT_FOUND, details: "sandbox not found" };
  expect(await sandbox.supervisor!.end()).toMatchObject(refused);
});
