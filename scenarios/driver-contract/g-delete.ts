// SPDX-License-Identifier: Apache-2.0

/** Deleting: a gateway forgets a sandbox when the driver says that it is gone, and then nobody asks for it again. */
import { group } from "../../harness/conformance/check.ts";
import { holds, refusalOf, refuses, Refused, same } from "../../harness/conformance/finding.ts";
import { isUp, type Ref, type Watch } from "../../harness/conformance/driver.ts";
import { becomes, type Box, type Trial } from "../../harness/conformance/trial.ts";

const check = group("G DeleteSandbox");

/** Opens a watch, and waits until it knows the sandbox. */
async function watching(box: Box, over = box.driver): Promise<Watch> {
  const watch = over.watch();
  await watch.until(`a snapshot of ${box.name}`, () => watch.of(box.id).length > 0);
  return watch;
}

const reported = (watch: Watch, { id }: Ref): Promise<void> =>
  watch.until(`an event that says ${id} is deleted`, () => watch.deleted(id));

/** @throws Violation if the driver has it still: for gateways that ask, and for those that list. */
async function isGone(trial: Trial, sandbox: Ref): Promise<void> {
  await refuses(trial.driver.get(sandbox), "NOT_FOUND");
  const listed = (await trial.driver.list()).filter(({ id }) => id === sandbox.id);
  same("the deleted sandbox in ListSandboxes", listed, []);
}

/** Waits until nobody finds anything of it, neither a gateway nor, where one can look, in the backend. */
async function leavesNothing(trial: Trial, sandbox: Ref): Promise<void> {
  const list = trial.subject.backend?.list;
  let left: string[] = [];
  const found = async () => {
    const listed = (await trial.driver.list()).filter(({ id }) => id === sandbox.id);
    return [...listed.map(({ id }) => `sandbox ${id}`), ...((await list?.(sandbox.id)) ?? [])];
  };
  await becomes(
    `nothing left of ${sandbox.name}`,
    async () => (left = await found()).length === 0,
    () => left.join(", "),
    3_000,
  );
}

check(
  "DC-70",
  "MUST",
  "DeleteSandbox of an unknown id is OK and says that there was none",
  {
    source: "gateway 0.0.112, compute/mod.rs:1552; all drivers of upstream's",
    harm: "A sandbox that is gone already can never be deleted: each attempt ends with an internal error.",
  },
  async ({ driver }) => {
    same("deleted", await driver.delete({ id: crypto.randomUUID(), name: "nobody" }), false);
  },
);

check(
  "DC-71",
  "MUST",
  "DeleteSandbox says that there was one, and every open watch reports its id as deleted",
  {
    source: "gateway 0.0.112, compute/mod.rs:1552 and 2698",
    harm: "Sandboxes stay Deleting for minutes after they are gone, and their names are taken as long.",
  },
  async (trial) => {
    const box = await trial.running();
    const watches = await Promise.all([watching(box), watching(box, trial.connect())]);
    same("deleted", await box.delete(), true);
    await Promise.all(watches.map((watch) => reported(watch, box)));
  },
);

check(
  "DC-72",
  "MUST",
  "GetSandbox and ListSandboxes have no sandbox that was reported as deleted",
  {
    source: "gateway 0.0.112, compute/mod.rs:3170",
    harm: "What a gateway reads of a sandbox that it has just forgotten is not what it was told.",
  },
  async (trial) => {
    const box = await trial.create();
    const watch = await watching(box);
    await box.delete();
    await reported(watch, box);
    await isGone(trial, box);
  },
);

check(
  "DC-73",
  "MUST",
  "A second DeleteSandbox is OK and says that there was none",
  {
    source: "contract, DeleteSandbox",
    harm: "A deletion whose answer was lost can never be completed.",
  },
  async (trial) => {
    const box = await trial.create();
    const watch = await watching(box);
    await box.delete();
    await reported(watch, box);
    same("deleted", await box.delete(), false);
  },
);

check(
  "DC-74",
  "MUST",
  "DeleteSandbox deletes a sandbox that is stopped, and one that is still coming up",
  {
    source: "upstream's test sandbox_lifecycle.rs:190; Docker driver 0.0.112, lib.rs:885",
    harm: "Users cannot get rid of sandboxes that they do not need now, or that never came up.",
  },
  async (trial) => {
    const [stopped, coming] = await Promise.all([trial.create(), trial.create()]);
    same("deleted, of the one that comes up", await coming.delete(), true);
    await stopped.stop();
    same("deleted, of the stopped one", await stopped.delete(), true);
    await Promise.all([leavesNothing(trial, stopped), leavesNothing(trial, coming)]);
  },
);

check(
  "DC-75",
  "SHOULD",
  "DeleteSandbox removes all that a sandbox had in the backend",
  {
    source: "Podman driver 0.0.112, driver.rs:1159; VM driver, driver.rs:1275",
    harm: "Disks fill with the files of deleted sandboxes, and their tokens lie around.",
  },
  async (trial) => {
    const list = trial.backend("list");
    const box = await trial.running();
    holds((await list(box.id)).length > 0, "something of the sandbox in the backend", "nothing");
    await box.delete();
    await leavesNothing(trial, box);
  },
);

check(
  "DC-76",
  "SHOULD",
  "DeleteSandbox answers INVALID_ARGUMENT when neither id nor name is given, and deletes nothing",
  {
    source: "Podman driver 0.0.112, grpc.rs:666; Docker and Kubernetes drivers do the same",
    harm: "A broken caller is told that its sandbox is deleted while it runs on.",
  },
  async (trial) => {
    const box = await trial.create();
    await refuses(trial.driver.delete({ id: "", name: "" }), "INVALID_ARGUMENT");
    holds((await box.listed()) !== undefined, "the sandbox that there is in ListSandboxes", "it is gone");
  },
);

check(
  "DC-77",
  "MUST",
  "DeleteSandbox of an unknown id deletes no sandbox that has the name only",
  {
    source: "contract, DriverSandbox: the id is the key, and names are unique only within a workspace",
    harm: "Who deletes a sandbox deletes somebody else's, in another workspace, that has the same name.",
  },
  async (trial) => {
    const box = await trial.create();
    same("deleted", await trial.driver.delete({ id: crypto.randomUUID(), name: box.name }), false);
    holds((await box.listed()) !== undefined, "the sandbox of that name in ListSandboxes", "it is gone");
  },
);

check(
  "DC-78",
  "SHOULD",
  "A sandbox that DeleteSandbox was answered for is gone, or its snapshots say that it is being deleted",
  {
    source: "gateway 0.0.112, compute/mod.rs:3980; Docker and VM drivers do so",
    harm: "A sandbox that somebody deletes is shown as failed, or as running, until it is gone.",
  },
  async (trial) => {
    const box = await trial.create();
    await box.delete();
    const [got, listed] = await Promise.all([box.get().catch(absent), box.listed()]);
    same("deleting in GetSandbox", got?.status?.deleting ?? true, true);
    same("deleting in ListSandboxes", listed?.status?.deleting ?? true, true);
  },
);

/** Nothing, if the driver says that there is no such sandbox. */
function absent(error: unknown): undefined {
  if (!(error instanceof Refused && error.code === "NOT_FOUND")) throw error;
}

check(
  "DC-79",
  "SHOULD",
  "Of two DeleteSandbox calls at once for the same sandbox, one says that there was one, and none fails",
  {
    source: "contract, DeleteSandbox",
    harm: "A gateway that was restarted in the middle of a deletion reports an internal error for one that works.",
  },
  async (trial) => {
    const box = await trial.running();
    const answers = await Promise.all([box.delete(), box.delete()]);
    same("how often deleted is true", answers.filter(Boolean).length, 1);
  },
);

// Beyond the table of rules

check(
  "DC-153",
  "MUST",
  "DeleteSandbox deletes a sandbox whose workload has ended by itself",
  {
    source: "upstream's test sandbox_lifecycle.rs:190; VM driver 0.0.112, driver.rs:1245",
    harm: "Users cannot get rid of sandboxes that crashed.",
  },
  async (trial) => {
    const kill = trial.backend("kill");
    const box = await trial.running();
    await kill(box.id);
    await box.until("a sandbox whose end is known", (snapshot) => !isUp(snapshot));
    same("deleted", await box.delete(), true);
    await leavesNothing(trial, box);
  },
);

check(
  "DC-154",
  "SHOULD",
  "DeleteSandbox removes what is left of a sandbox whose compute somebody else removed",
  {
    source: "Podman driver 0.0.112, driver.rs:1159, and its test at 2781",
    harm: "After somebody cleaned up by hand, volumes and tokens stay that no deletion reaches any more.",
  },
  async (trial) => {
    const [list, remove] = [trial.backend("list"), trial.backend("remove")];
    const box = await trial.create();
    await remove(box.id);
    await box.delete();
    await leavesNothing(trial, box);
    same("what there is in the backend", await list(box.id), []);
  },
);

check(
  "DC-155",
  "SHOULD",
  "DeleteSandbox acts on the id, whatever name comes with it",
  {
    source: "contract, DriverSandbox: the id is the key",
    harm: "A gateway and a driver that differ about a name leave a sandbox that runs for ever.",
  },
  async (trial) => {
    const box = await trial.running();
    same("deleted", await trial.driver.delete({ id: box.id, name: "somebody-else" }), true);
    await leavesNothing(trial, box);
  },
);

check(
  "DC-156",
  "MUST",
  "StopSandbox and DeleteSandbox touch no sandbox that is called nearly the same",
  {
    source: "contract, DriverSandbox: the id is the key",
    harm: "Who deletes a sandbox deletes the work in another one.",
  },
  async (trial) => {
    const one = await trial.create();
    // The ids differ in their last digit, for drivers that shorten them; the name goes on, for those that search.
    const lastDigit = one.id.endsWith("0") ? "1" : "0";
    const alike = { id: one.id.slice(0, -1) + lastDigit, name: `${one.name}-2` };
    const other = await trial.create(trial.sandbox({}, alike));
    const had = async () => [(await other.listed())?.id, await trial.subject.backend?.list?.(other.id)];
    const before = await had();
    await one.stop();
    holds(isUp(await other.get()), "the other sandbox to run on after the stop", "it does not");
    same("deleted", await one.delete(), true);
    same("what there is of the other sandbox", await had(), before);
    holds(isUp(await other.get()), "the other sandbox to run on after the deletion", "it does not");
  },
);

check(
  "DC-157",
  "SHOULD",
  "DeleteSandbox while CreateSandbox runs leaves nothing once both have answered",
  {
    source: "gateway 0.0.112, compute/mod.rs:912 and 1440: a deletion does not wait for the create",
    harm: "Who deletes a sandbox while its image is pulled gets it all the same, and nobody lists or deletes it.",
  },
  async (trial) => {
    const sandbox = trial.sandbox();
    await trial.forget(sandbox);
    const creating = refusalOf(trial.driver.create(sandbox));
    // The driver has the create once it answers what was asked after it.
    await trial.driver.getCapabilities();
    await trial.driver.delete(sandbox, trial.subject.stopMs);
    await creating;
    await leavesNothing(trial, sandbox);
  },
);

check(
  "DC-158",
  "SHOULD",
  "DeleteSandbox deletes a sandbox that StopSandbox is stopping",
  {
    source: "gateway 0.0.112, compute/mod.rs:2285: it may be restarted in the middle of a stop",
    harm: "A sandbox that takes long to stop cannot be deleted until it has.",
  },
  async (trial) => {
    const box = await trial.running();
    // What becomes of the stop, nobody asks any more.
    const stopping = box.stop().catch((error: unknown) => error);
    const deleted = await box.delete();
    const stopped = await stopping;
    if (stopped instanceof Refused && stopped.code === "UNIMPLEMENTED") throw stopped;
    same("deleted", deleted, true);
    await leavesNothing(trial, box);
  },
);

check(
  "DC-159",
  "MUST",
  "Eight DeleteSandbox calls at once all delete their sandbox",
  {
    source: "gateway 0.0.112, compute/mod.rs:1440: it does not bound how many run at once",
    harm: "Who deletes all sandboxes of a workspace is left with some of them, and with internal errors.",
    deadlineMs: 60_000,
  },
  async (trial) => {
    const boxes = await Promise.all(Array.from({ length: 8 }, () => trial.running()));
    const answers = await Promise.all(boxes.map((box) => box.delete()));
    same("how often deleted is true", answers.filter(Boolean).length, boxes.length);
    // One by one: a command that lists what is left may take a second, and all of the machine.
    for (const box of boxes) await leavesNothing(trial, box);
  },
);

check(
  "DC-162",
  "MUST",
  "StopSandbox and StartSandbox answer NOT_FOUND for a deleted sandbox",
  {
    source: "gateway 0.0.112, compute/mod.rs:2212",
    harm: "A sandbox that was deleted comes back, and nobody lists or deletes it.",
  },
  async (trial) => {
    const box = await trial.create();
    await box.delete();
    await leavesNothing(trial, box);
    await refuses(box.stop(), "NOT_FOUND");
    await refuses(box.start(), "NOT_FOUND");
    await isGone(trial, box);
  },
);
