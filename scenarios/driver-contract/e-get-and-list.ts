// SPDX-License-Identifier: Apache-2.0

/** What a driver says of its sandboxes when it is asked. */
import { randomBytes } from "node:crypto";
import { dirname } from "node:path";
import { group } from "../../harness/conformance/check.ts";
import { holds, refuses, Refused, same } from "../../harness/conformance/finding.ts";
import { type Driver, isUp } from "../../harness/conformance/driver.ts";
import { agree, type Trial } from "../../harness/conformance/trial.ts";
import { Engine } from "../../harness/runtime/engine.ts";
import { Run } from "../../harness/runtime/run.ts";

const check = group("E Get and List");

/** A driver of another installation: it has a network and a state of its own, and the same backend. */
async function otherInstallation(trial: Trial): Promise<Driver> {
  const { stack } = trial.subject.owned ?? {};
  const network = `${stack?.network}-${randomBytes(3).toString("hex")}`;
  if (stack?.engineSocket) {
    const engine = new Engine(stack.engineSocket);
    // Made for the driver, so that it carries the run's label: whatever ends this, a sweep finds it.
    await engine.createNetwork(network, Run.open(dirname(stack.folder)));
    trial.defer(() => engine.call("DELETE", `networks/${network}`, { accept: [404] }));
  }
  const process = await trial.startDriver({ network });
  return process.answers(trial);
}

check(
  "DC-45",
  "MUST",
  "GetSandbox answers NOT_FOUND for an id that it does not know",
  {
    source: "gateway 0.0.112, compute/mod.rs:3312",
    harm: "Sandboxes that are gone stay in users' lists for ever, and their deletion fails.",
  },
  async ({ driver }) => {
    await refuses(driver.get({ id: crypto.randomUUID(), name: "nobody" }), "NOT_FOUND");
  },
);

check(
  "DC-46",
  "MUST",
  "GetSandbox returns the sandbox whose id was asked for",
  {
    source: "gateway 0.0.112, compute/mod.rs:3301",
    harm: "The gateway stops reconciling: every sandbox keeps the phase that it had.",
  },
  async (trial) => {
    const [one, other] = await Promise.all([trial.create(), trial.create()]);
    same("the id of the one", (await one.get()).id, one.id);
    same("the id of the other", (await other.get()).id, other.id);
  },
);

check(
  "DC-47",
  "SHOULD",
  "GetSandbox answers INVALID_ARGUMENT to a request without an id",
  {
    source: "Podman driver 0.0.112, grpc.rs:191; Docker, VM and Kubernetes drivers do the same",
    harm: "A caller's mistake is taken for a sandbox that is gone, or for whichever one comes first.",
  },
  async ({ driver }) => {
    await refuses(driver.get({ id: "", name: "" }), "INVALID_ARGUMENT");
  },
);

check(
  "DC-48",
  "MUST",
  "GetSandbox goes by the id, whatever the name beside it",
  {
    source: "VM driver 0.0.112, driver.rs:3384; Docker driver does the same",
    harm: "A sandbox of another workspace that has the same name is shown, and acted upon, in its place.",
  },
  async (trial) => {
    const box = await trial.create();
    const stranger = { id: crypto.randomUUID(), name: box.name };
    await refuses(trial.driver.get(stranger), "NOT_FOUND", "FAILED_PRECONDITION");
    const misnamed = await trial.driver.get({ id: box.id, name: "another" }).catch((error: unknown) => {
      if (error instanceof Refused && error.code === "FAILED_PRECONDITION") return undefined;
      throw error;
    });
    same("the sandbox of that id", misnamed?.id ?? box.id, box.id);
  },
);

check(
  "DC-49",
  "MUST",
  "ListSandboxes has the stopped sandboxes and the failed ones, too",
  {
    source: "gateway 0.0.112, compute/mod.rs:3170",
    harm: "A sandbox that somebody stopped is taken for gone, and its record is removed after five minutes.",
  },
  async (trial) => {
    const kill = trial.subject.backend?.kill;
    const [stopped, failed] = await Promise.all([trial.running(), kill && trial.running()]);
    await Promise.all([stopped.stop(), failed && kill?.(failed.id)]);
    if (failed) await failed.until("a sandbox that is not up any more", (seen) => !isUp(seen));
    const listed = (await trial.driver.list()).map(({ id }) => id);
    holds(listed.includes(stopped.id), "the stopped sandbox in ListSandboxes", "it is not there");
    if (failed) holds(listed.includes(failed.id), "the failed sandbox in ListSandboxes", "it is not there");
  },
);

check(
  "DC-50",
  "MUST",
  "ListSandboxes and GetSandbox say the same of a sandbox",
  {
    source: "gateway 0.0.112, compute/mod.rs:3122",
    harm: "A sandbox changes its phase back and forth, depending on who looked last.",
  },
  async (trial) => {
    const box = await trial.running();
    const listed = await box.listed();
    holds(listed !== undefined, "the sandbox in ListSandboxes", "it is not there");
    agree("the listed snapshot", listed, await box.get());
  },
);

check(
  "DC-51",
  "MUST",
  "ListSandboxes answers OK with nothing in it when there are no sandboxes",
  {
    source: "gateway 0.0.112, compute/mod.rs:2607",
    harm: "The gateway cannot start its reconciler on an empty machine, or takes strangers for its own.",
    alone: true,
  },
  async (trial) => {
    const listed = await trial.driver.list();
    if (listed.length > 0) trial.skip(`there are ${listed.length} sandboxes that no check made`);
  },
);

check(
  "DC-52",
  "SHOULD",
  "ListSandboxes has only what belongs to this driver's installation",
  {
    source: "Docker driver 0.0.112, lib.rs:1332; Kubernetes driver does the same",
    harm: "Two gateways on one machine see each other's sandboxes, and whoever cleans up after one harms the other.",
  },
  async (trial) => {
    const [box, other] = await Promise.all([trial.create(), otherInstallation(trial)]);
    const seen = (await other.list()).filter(({ id }) => id === box.id);
    same("this installation's sandbox in another's ListSandboxes", seen, []);
  },
);

check(
  "DC-53",
  "SHOULD",
  "ListSandboxes keeps its order from call to call",
  {
    source: "Podman driver 0.0.112, driver.rs:1289; Docker, VM and Kubernetes drivers do the same",
    harm: "Lists jump about on users' screens, and logs of two moments cannot be compared.",
  },
  async (trial) => {
    const mine = await Promise.all([trial.create(), trial.create(), trial.create()]);
    const isMine = (wanted: string) => mine.some(({ id }) => id === wanted);
    const order = async () => (await trial.driver.list()).map(({ id }) => id).filter(isMine);
    const [first, ...others] = await Promise.all([order(), order(), order(), order()]);
    same("sandboxes that are listed", first?.length, 3);
    for (const other of others) same("the order", other, first);
  },
);

check(
  "DC-54",
  "SHOULD",
  "Snapshots leave out what the sandbox was given: its token, its environment, its command",
  {
    source: "contract, DriverSandboxSpec; Podman driver 0.0.112, watcher.rs:349; Docker driver does the same",
    harm: "Passwords in environments travel with every snapshot, and end in logs.",
  },
  async (trial) => {
    const secret = crypto.randomUUID();
    const spec = { sandbox_token: secret, environment: { PASSWORD: secret }, command: ["sleep", secret] };
    const box = await trial.create(trial.sandbox(spec));
    for (const snapshot of [await box.get(), await box.listed()])
      holds(!JSON.stringify(snapshot).includes(secret), "a snapshot without it", snapshot?.spec);
  },
);
