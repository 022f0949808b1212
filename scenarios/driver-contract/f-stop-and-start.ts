// SPDX-License-Identifier: Apache-2.0

/** Stopping and starting: a gateway writes down that a sandbox is stopped as soon as the driver says so. */
import { group } from "../../harness/conformance/check.ts";
import { holds, refuses, Refused, same } from "../../harness/conformance/finding.ts";
import { describeSnapshot, isStopped, isUp, type Ref } from "../../harness/conformance/driver.ts";
import { type Box } from "../../harness/conformance/trial.ts";

const check = group("F StopSandbox and StartSandbox");

/** A reference to a sandbox that there is not. */
const nobody = (name = "nobody"): Ref => ({ id: crypto.randomUUID(), name });

/** When its compute was last started; undefined where nobody can look behind the driver. */
const lastStart = async ({ trial, id }: Box): Promise<string | undefined> =>
  (await trial.subject.backend?.inspect?.(id))?.started;

/** Whether its compute runs: by the backend's word, or else by the driver's. */
const runs = async (box: Box): Promise<boolean> =>
  (await box.trial.subject.backend?.inspect?.(box.id))?.running ?? isUp(await box.get());

check(
  "DC-55",
  "MUST",
  "StopSandbox answers NOT_FOUND for an id that it does not know",
  {
    source: "contract, StopSandbox; all drivers of upstream's 0.0.112",
    harm: "A sandbox that is gone is shown as stopped, with data that nobody will ever see again.",
  },
  async ({ driver }) => {
    await refuses(driver.stop(nobody()), "NOT_FOUND");
  },
);

check(
  "DC-56",
  "MUST",
  "StartSandbox answers NOT_FOUND for an id that it does not know",
  {
    source: "gateway 0.0.112, compute/mod.rs:2212",
    harm: "After a gateway's restart a sandbox that is gone is said to have failed to start, and is tried again.",
  },
  async ({ driver }) => {
    await refuses(driver.start(nobody()), "NOT_FOUND");
  },
);

check(
  "DC-57",
  "MUST",
  "StopSandbox of a stopped sandbox is OK and leaves it stopped",
  {
    source: "contract, StopSandbox; gateway 0.0.112, compute/mod.rs:1039",
    harm: "A stop whose answer was lost can never be repeated: the sandbox stays Stopping for ever.",
  },
  async (trial) => {
    const box = await trial.create();
    await box.stop();
    await box.stop();
    await box.stopped();
  },
);

check(
  "DC-58",
  "MUST",
  "StartSandbox of a running sandbox is OK and does not restart it",
  {
    source: "contract, StartSandbox; gateway 0.0.112, compute/mod.rs:2153",
    harm: "Every restart of the gateway restarts every sandbox, and ends all that users run in them.",
  },
  async (trial) => {
    const box = await trial.running();
    const before = await lastStart(box);
    await box.start();
    same("the time of its last start", await lastStart(box), before);
    holds(await runs(box), "a sandbox that runs", "it does not");
  },
);

check(
  "DC-59",
  "MUST",
  "StopSandbox answers once the compute has stopped, not before",
  {
    source: "gateway 0.0.112, compute/mod.rs:1112",
    harm: "Sandboxes shown as stopped go on computing and costing, and their end kills what is started next.",
  },
  async (trial) => {
    const box = await trial.running();
    await box.stop();
    holds(!(await runs(box)), "no compute after StopSandbox", "it runs");
  },
);

check(
  "DC-60",
  "MUST",
  "A sandbox keeps its identity and its files from StopSandbox to StartSandbox",
  {
    source: "contract, StopSandbox and StartSandbox",
    harm: "Users lose their work when they stop a sandbox overnight.",
  },
  async (trial) => {
    const box = await trial.running();
    await box.started();
    await box.stop();
    same("the id and the name in ListSandboxes", pick(await box.listed()), pick(box));
    await box.start();
    await box.started(2);
  },
);
const pick = (of?: Ref): Ref | undefined => of && { id: of.id, name: of.name };

check(
  "DC-61",
  "MUST",
  "A stopped sandbox is Suspended=True, or its False condition has the reason ContainerExited or ContainerStopped",
  {
    source: "gateway 0.0.112, compute/mod.rs:3822 and 3984",
    harm: "A gateway that missed StopSandbox's answer shows the sandbox as failed instead of stopped.",
  },
  async (trial) => {
    const box = await trial.create();
    await box.stop();
    await box.stopped();
    const listed = await box.listed();
    holds(listed !== undefined, "the stopped sandbox in ListSandboxes", "it is not there");
    holds(isStopped(listed), "a listed snapshot of a stopped sandbox", describeSnapshot(listed));
  },
);

check(
  "DC-62",
  "MUST",
  "WatchSandboxes does not report the end of the last run once StartSandbox has been called",
  {
    source: "gateway 0.0.112, compute/mod.rs:3764; Podman driver 0.0.112, watcher.rs:34",
    harm: "A sandbox that starts well is shown as failed, for good: the gateway takes the old end for the new one's.",
  },
  async (trial) => {
    const box = await trial.running();
    const watch = trial.driver.watch();
    await watch.until("a first snapshot", () => watch.of(box.id).length > 0);
    await box.stop();
    // One more call, so that what was sent before StopSandbox's answer is here, too.
    await box.get();
    const seen = watch.of(box.id).length;
    const since = () => watch.of(box.id).slice(seen);
    await box.start();
    await watch.until("a snapshot of the started sandbox", () => since().some(isUp));
    await box.up();
    same("reports of an end since StartSandbox", since().filter(isStopped).map(describeSnapshot), []);
  },
);

check(
  "DC-63",
  "MUST",
  "Sixteen StopSandbox calls at once all stop their sandbox",
  {
    source: "gateway 0.0.112, compute/mod.rs:88 and 2057",
    harm: "A gateway that shuts down exits with an error and leaves sandboxes running that nobody watches.",
    deadlineMs: 60_000,
  },
  async (trial) => {
    const boxes = await Promise.all(Array.from({ length: 16 }, () => trial.create()));
    await Promise.all(boxes.map((box) => box.stop()));
    const running = await Promise.all(boxes.map(runs));
    same("sandboxes that still run", running.filter(Boolean).length, 0);
  },
);

check(
  "DC-64",
  "SHOULD",
  "Two StopSandbox calls at once for the same sandbox are both OK",
  {
    source: "Podman driver 0.0.112, test at driver.rs:1724",
    harm: "A gateway that was restarted in the middle of a stop is told that the stop failed, though it did not.",
  },
  async (trial) => {
    const box = await trial.running();
    await Promise.all([box.stop(), box.stop()]);
    holds(!(await runs(box)), "no compute after both", "it runs");
  },
);

check(
  "DC-65",
  "SHOULD",
  "StopSandbox and StartSandbox answer INVALID_ARGUMENT when neither id nor name is given",
  {
    source: "Podman driver 0.0.112, grpc.rs:242; Docker and Kubernetes drivers do the same",
    harm: "A broken caller is told that its sandbox is gone, and forgets one that is there.",
  },
  async ({ driver }) => {
    const unnamed = { id: "", name: "" };
    await refuses(driver.stop(unnamed), "INVALID_ARGUMENT");
    await refuses(driver.start(unnamed), "INVALID_ARGUMENT");
  },
);

check(
  "DC-66",
  "MUST",
  "StopSandbox and StartSandbox do not act on a sandbox that has the name only, and answer NOT_FOUND",
  {
    source: "contract, DriverSandbox: the id is the key, and names are unique only within a workspace",
    harm: "Who stops a sandbox stops somebody else's, in another workspace, that has the same name.",
  },
  async (trial) => {
    const box = await trial.running();
    const namesake = nobody(box.name);
    await refuses(trial.driver.stop(namesake), "NOT_FOUND");
    holds(await runs(box), "the sandbox of that name to run on", "it does not run");
    await box.stop();
    await refuses(trial.driver.start(namesake), "NOT_FOUND");
    holds(!(await runs(box)), "the sandbox of that name to stay stopped", "it runs");
  },
);

check(
  "DC-67",
  "SHOULD",
  "StopSandbox ends a workload that ignores SIGTERM, after the stop timeout",
  {
    source: "Podman driver 0.0.112, --stop-timeout; Docker driver, 10 s",
    harm: "One program that does not want to end keeps its sandbox Stopping, and the gateway from shutting down.",
  },
  async (trial) => {
    const stubborn = trial.sandbox({ environment: { PROBE_IS_STUBBORN: "yes" } });
    const box = await trial.running(stubborn);
    await box.started();
    await trial.driver.stop(box, 2 * trial.subject.stopMs);
    holds(!(await runs(box)), "no compute after StopSandbox", "it runs");
  },
);

check(
  "DC-68",
  "SHOULD",
  "StopSandbox of a sandbox that is still coming up leaves it stopped, or deleted",
  {
    source: "VM driver 0.0.112, driver.rs:1113; Docker driver, lib.rs:955",
    harm: "A sandbox that was stopped while its image was pulled starts minutes later, and nobody knows.",
  },
  async (trial) => {
    const box = await trial.create();
    await box.stop();
    const gone = await box.stopped().then(
      () => false,
      (error: unknown) => {
        if (error instanceof Refused && error.code === "NOT_FOUND") return true;
        throw error;
      },
    );
    if (!gone) holds(!(await runs(box)), "no compute after StopSandbox", "it runs");
  },
);

// Beyond the table of rules

check(
  "DC-150",
  "MUST",
  "A sandbox whose workload has ended by itself can be stopped and started",
  {
    source: "gateway 0.0.112, compute/mod.rs:2057 and 2153: it stops and starts all that should run",
    harm: "After the machine was rebooted no sandbox comes back: each has ended, and is refused its start.",
  },
  async (trial) => {
    const kill = trial.backend("kill");
    const box = await trial.running();
    await kill(box.id);
    await box.until("a sandbox whose end is known", (snapshot) => !isUp(snapshot));
    await box.stop();
    await box.start();
    await box.up();
  },
);

check(
  "DC-151",
  "SHOULD",
  "StopSandbox and StartSandbox act on the id, whatever name comes with it",
  {
    source: "contract, DriverSandbox: the id is the key",
    harm: "A gateway and a driver that differ about a name leave a sandbox that nobody can stop.",
  },
  async (trial) => {
    const box = await trial.running();
    const misnamed = { id: box.id, name: "somebody-else" };
    await trial.driver.stop(misnamed, trial.subject.stopMs);
    holds(!(await runs(box)), "no compute after StopSandbox", "it runs");
    await trial.driver.start(misnamed);
    await box.up();
  },
);

check(
  "DC-152",
  "SHOULD",
  "StopSandbox lets the workload end by itself before it kills it",
  {
    source: "Podman driver 0.0.112, --stop-timeout; Docker driver, 10 s",
    harm: "Programs lose what they had not written yet whenever a sandbox, or the gateway, is stopped.",
  },
  async (trial) => {
    const box = await trial.running();
    await box.started();
    await box.stop();
    const { running, exitCode } = await box.workload();
    holds(!running, "no compute after StopSandbox", "it runs");
    same("the exit code of a workload that ends by itself on SIGTERM", exitCode, 0);
  },
);
