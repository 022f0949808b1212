// SPDX-License-Identifier: Apache-2.0

/** How sandboxes are told apart: names, workspaces and labels. */
import { expect } from "bun:test";
import { type Gateway, refusal, scenario } from "../../harness.ts";
import { invalid } from "./sandboxes.ts";

const NOT_FOUND = { code: "NOT_FOUND", message: "sandbox not found" };

// Names

scenario("NM-01 a name may have 19 lower-case letters, digits and single hyphens", async ({ gateway }) => {
  const names = ["x", "9-lives-of-a-cat-19"];
  const sandboxes = await Promise.all(names.map((name) => gateway.readySandbox({ name })));
  expect(sandboxes.map(({ name }) => name)).toEqual(names);
});

scenario("NM-02 any other name is refused with what is wrong with it", async ({ gateway }) => {
  const characters = "name must contain only lowercase alphanumeric characters or hyphens";
  const ends = "name must not start or end with a hyphen";
  const wrong = {
    "twenty-characters-20": "name exceeds maximum length (20 > 19)",
    Capital: characters,
    under_score: characters,
    "do.t": characters,
    "bla nk": characters,
    ünï: characters,
    "-first": ends,
    "last-": ends,
    "two--hyphens": "name must not contain consecutive hyphens",
  };
  for (const [name, message] of Object.entries(wrong)) {
    expect(await refusal(gateway.createSandbox({ name }))).toEqual(invalid(message));
  }
});

scenario("NM-03 a sandbox without a name gets one that would be allowed", async ({ gateway }) => {
  const [one, other] = await Promise.all([gateway.readySandbox(), gateway.readySandbox()]);
  expect(one.name).not.toBe(other.name);
  for (const { name } of [one, other]) expect(name).toMatch(/^(?!.*--)[a-z0-9][a-z0-9-]{0,17}[a-z0-9]$/);
});

scenario("NM-04 a name that is taken is refused, and free again after a delete", async ({ gateway }) => {
  const first = await gateway.readySandbox({ name: "again" });
  expect(await refusal(gateway.createSandbox({ name: "again" }))).toEqual({
    code: "ALREADY_EXISTS",
    message: "sandbox 'again' already exists",
  });
  await first.delete();
  const second = await gateway.readySandbox({ name: "again" });
  expect(second.id).not.toBe(first.id);
});

scenario("NM-05 every request for a sandbox that is gone is answered with NOT_FOUND", async ({ gateway }) => {
  const sandbox = await gateway.readySandbox();
  await sandbox.delete();
  const requests = [
    sandbox.refresh(),
    sandbox.stop(),
    sandbox.start(),
    sandbox.delete(),
    sandbox.exec(["true"]),
    sandbox.interact(["true"]).result,
    sandbox.logs(),
    sandbox.watch({ follow_status: true }).next(),
  ];
  for (const refused of await Promise.all(requests.map(refusal))) expect(refused).toEqual(NOT_FOUND);
});

// Workspaces

/** A workspace of a name that no other scenario has. */
async function newWorkspace(gateway: Gateway): Promise<string> {
  const name = `w-${crypto.randomUUID().slice(0, 8)}`;
  await gateway.createWorkspace(name);
  return name;
}

scenario("NM-10 sandboxes of one name in two workspaces are two sandboxes", async ({ gateway }) => {
  const workspace = await newWorkspace(gateway);
  const twins = [{ name: "twin" }, { name: "twin", workspace }];
  const [here, there] = await Promise.all(twins.map((options) => gateway.readySandbox(options)));
  await here!.exec(["sh", "-c", "echo here > place"]);
  await there!.exec(["sh", "-c", "echo there > place"]);
  expect(await gateway.listSandboxes("", workspace)).toEqual(["twin"]);
  await here!.stop();
  expect((await there!.exec(["cat", "place"])).stdout).toBe("there\n");
  await here!.delete();
  expect((await there!.refresh()).phase).toBe("READY");
  await there!.delete();
  await gateway.deleteWorkspace(workspace);
});

scenario("NM-11 a workspace can be deleted once it is empty, the default one never", async ({ gateway }) => {
  const workspace = await newWorkspace(gateway);
  const sandbox = await gateway.readySandbox({ workspace });
  const refused = await refusal(gateway.deleteWorkspace(workspace));
  expect(refused.code).toBe("FAILED_PRECONDITION");
  expect(refused.message).toStartWith(`workspace '${workspace}' still contains resources: sandbox`);
  await sandbox.delete();
  expect(await gateway.deleteWorkspace(workspace)).toBe(true);
  const never = { code: "FAILED_PRECONDITION", message: "the default workspace cannot be deleted" };
  expect(await refusal(gateway.deleteWorkspace("default"))).toEqual(never);
});

scenario("NM-12 in a workspace that does not exist there are no sandboxes", async ({ gateway }) => {
  const missing = { code: "NOT_FOUND", message: "workspace 'nowhere' not found" };
  expect(await refusal(gateway.createSandbox({ workspace: "nowhere" }))).toEqual(missing);
  expect(await refusal(gateway.getSandbox("any", "nowhere"))).toEqual(missing);
  expect(await refusal(gateway.listSandboxes("", "nowhere"))).toEqual(missing);
});

// Labels

scenario("NM-20 a selector chooses the sandboxes that have all of its labels", async ({ gateway }) => {
  const make = async (labels: Record<string, string>) => (await gateway.readySandbox({ labels })).name;
  const [devBackend, devFrontend, stagingBackend, unlabelled] = await Promise.all([
    make({ env: "dev", team: "backend" }),
    make({ env: "dev", team: "frontend" }),
    make({ env: "staging", team: "backend" }),
    make({}),
  ]);
  const chosen = async (selector: string) => (await gateway.listSandboxes(selector)).toSorted();
  expect(await chosen("env=dev")).toEqual([devBackend, devFrontend].toSorted());
  expect(await chosen("team=backend")).toEqual([devBackend, stagingBackend].toSorted());
  expect(await chosen("env=dev,team=backend")).toEqual([devBackend]);
  expect(await chosen("team=qa")).toEqual([]);
  expect(await chosen("")).toEqual(
    expect.arrayContaining([devBackend, devFrontend, stagingBackend, unlabelled]),
  );
});

scenario("NM-21 a sandbox keeps its labels and annotations over stop and start", async ({ gateway }) => {
  const labels = { env: "kept", "example.com/team": "backend" };
  const annotations = { note: "anything, in any alphabet: ünï" };
  const sandbox = await gateway.readySandbox({ labels, annotations });
  await sandbox.stop();
  await (await sandbox.start()).ready();
  expect((await sandbox.refresh()).seen.metadata).toMatchObject({ labels, annotations });
});

scenario("NM-22 labels and selectors that cannot be right are refused", async ({ gateway }) => {
  const wrong = [
    ["bad key", "value"],
    ["", "value"],
    ["key", "bad value"],
    ["key", "x".repeat(64)],
  ] as const;
  for (const [key, value] of wrong) {
    const refused = await refusal(gateway.createSandbox({ labels: { [key]: value } }));
    expect(refused.code).toBe("INVALID_ARGUMENT");
  }
  for (const selector of ["env", "=dev", "env!=dev"]) {
    expect((await refusal(gateway.listSandboxes(selector))).code).toBe("INVALID_ARGUMENT");
  }
});
