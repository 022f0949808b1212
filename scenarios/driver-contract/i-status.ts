// SPDX-License-Identifier: Apache-2.0

/** What snapshots say of a sandbox, and what a gateway makes of it. */
import { group } from "../../harness/conformance/check.ts";
import { holds, same, show } from "../../harness/conformance/finding.ts";
import {
  describeEvent,
  describeSnapshot,
  isStopped,
  isUp,
  phaseOf,
  type Snapshot,
} from "../../harness/conformance/driver.ts";
import { becomes, type Box, type Subject, type Trial } from "../../harness/conformance/trial.ts";

const check = group("I Status");

/** How long a whole life may take on a busy machine, in milliseconds. */
const LONG_MS = 60_000;

check(
  "DC-91",
  "MUST",
  "There is at most one condition Ready, and it is spelled so",
  {
    source: "gateway 0.0.112, compute/mod.rs:3992",
    harm: "The gateway does not see the condition, and shows a failed sandbox as READY or PROVISIONING for ever.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const { all } = await life(trial);
    for (const snapshot of all) {
      const types = (snapshot.status?.conditions ?? []).map(({ type }) => type.trim());
      const ready = types.filter((type) => type.toLowerCase() === "ready");
      holds(ready.length <= 1 && ready.every((type) => type === "Ready"), "at most one Ready", ready);
    }
  },
);

check(
  "DC-92",
  "MUST",
  "A sandbox that comes up is never shown as failed, stopped or deleted on the way",
  {
    source: "gateway 0.0.112, compute/mod.rs:4049",
    harm: "The sandbox is in ERROR, which is final, though it runs a second later.",
  },
  async (trial) => {
    const watch = trial.driver.watch();
    const box = await trial.create();
    const all: Snapshot[] = [];
    const look = async () => {
      all.push(...(await ask(box)));
      return watch.of(box.id).length > 0 && isUp(all.at(-1)!);
    };
    await becomes("a sandbox that is up", look, () => describeSnapshot(all.at(-1)!), 15_000);
    await box.up();
    for (const snapshot of [...all, ...watch.of(box.id)]) comesUp(snapshot);
  },
);

check(
  "DC-93",
  "MUST",
  "A sandbox is up without a supervisor's session, and Ready=True is said only while its compute is",
  {
    source: "gateway 0.0.112, compute/mod.rs:3860: the session is the gateway's own business",
    harm: "Sandboxes wait for each other for ever, or users are sent to one that does not run.",
  },
  async (trial) => {
    // What runs in it is no supervisor, and there is no gateway that one could have a session with.
    const box = await trial.running();
    await box.stop();
    for (const snapshot of await ask(box))
      holds(phaseOf(snapshot) !== "READY", "no Ready=True of stopped compute", describeSnapshot(snapshot));
  },
);

check(
  "DC-94",
  "MUST",
  "A workload that ends by itself is told of as a final failure",
  {
    source: "gateway 0.0.112, compute/mod.rs, test 7678",
    harm: "A sandbox that crashed stays PROVISIONING or READY; whoever waits for it waits for ever.",
  },
  async (trial) => {
    const kill = trial.backend("kill");
    const watch = trial.driver.watch();
    const box = await trial.running();
    await kill(box.id);
    const failed = (snapshot: Snapshot) => phaseOf(snapshot) === "ERROR";
    await watch.until("a snapshot that a gateway shows as ERROR", () => watch.of(box.id).some(failed));
    holds(failed(await box.get()), "the same from GetSandbox", saidOf(await box.get()));
  },
);

check(
  "DC-95",
  "SHOULD",
  "Every snapshot has a status",
  {
    source: "gateway 0.0.112, compute/mod.rs:3728",
    harm: "A snapshot without one changes nothing: what it was to tell is not told.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    for (const snapshot of (await life(trial)).all)
      holds(snapshot.status !== null, "a snapshot with a status", describeSnapshot(snapshot));
  },
);

check(
  "DC-96",
  "SHOULD",
  "The status of a sandbox that is up names the platform's object and its instance",
  {
    source: "contract, DriverSandboxStatus; gateway 0.0.112, compute/mod.rs:3688",
    harm: "Operators cannot find a user's sandbox on the platform.",
  },
  async (trial) => {
    const box = await trial.running();
    for (const { status } of await ask(box)) {
      holds(Boolean(status?.sandbox_name), "status.sandbox_name", "it is empty");
      holds(Boolean(status?.instance_id), "status.instance_id", "it is empty");
    }
  },
);

check(
  "DC-97",
  "SHOULD",
  "A sandbox of which the backend can tell nothing is neither failed nor gone",
  {
    source: "Podman driver 0.0.112, watcher.rs:315",
    harm: "A hiccup of the engine puts running sandboxes into ERROR, which is final, or loses them.",
  },
  async (trial) => {
    const engine = await trial.engineProxy();
    const started = await trial.startDriver({ podman_socket: engine.socket });
    const driver = await started.answers(trial);
    const box = await trial.create(trial.sandbox(), driver);
    engine.rules = [CANNOT_INSPECT];
    const watch = driver.watch();
    await soon(() => watch.of(box.id).length > 0);
    const listed = (await driver.list().catch(() => [])).filter(({ id }) => id === box.id);
    for (const snapshot of [...listed, ...watch.of(box.id)]) comesUp(snapshot);
    const got = await driver.get(box).then(describeSnapshot, ({ message }: Error) => message);
    holds(!got.startsWith("NOT_FOUND") && !watch.deleted(box.id), "a sandbox that is there", got);
    const refused = engine.calls.some(({ status }) => status === CANNOT_INSPECT.fail.status);
    if (!refused) trial.skip("the driver asked its engine nothing that could be refused");
  },
);

check(
  "DC-98",
  "MUST",
  "`deleting` is said only of a sandbox that is being deleted",
  {
    source: "gateway 0.0.112, compute/mod.rs:3980 and 2751",
    harm: "The sandbox is in DELETING for ever: from then on the gateway ignores all that is said of it.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    for (const snapshot of (await life(trial)).all)
      holds(!snapshot.status?.deleting, "no `deleting`: nobody deletes it", describeSnapshot(snapshot));
  },
);

check(
  "DC-175",
  "MUST",
  "Neither a snapshot nor an event carries the sandbox's token",
  {
    source: "contract, DriverSandboxSpec.sandbox_token",
    harm: "Whoever may look at sandboxes, or at a log of what a driver says, can act in a sandbox's name.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const { box, all, watch } = await life(trial);
    const token = box.asked.spec!.sandbox_token!;
    const carries = (thing: unknown) => JSON.stringify(thing).includes(token);
    // What carried it is not shown: it would be in the report.
    same("how many snapshots carry the token", all.filter(carries).length, 0);
    same("how many events carry the token", watch.events.filter(carries).length, 0);
  },
);

check(
  "DC-176",
  "MUST",
  "Nothing that is said of a healthy sandbox would show it to users as ERROR",
  {
    source: "gateway 0.0.112, compute/mod.rs:3979 (derive_phase)",
    harm: "A sandbox that is stopped and started as usual ends in ERROR, which is final.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const { up, all, again } = await life(trial);
    for (const snapshot of [...up, ...again]) comesUp(snapshot);
    for (const snapshot of all)
      holds(phaseOf(snapshot) !== "ERROR" || isStopped(snapshot), "no ERROR", saidOf(snapshot));
  },
);

check(
  "DC-177",
  "SHOULD",
  "Conditions are of the usual form: distinct types, True, False or Unknown, a reason in one word, RFC 3339 times",
  {
    source: "contract, DriverCondition; Kubernetes' conventions, which it follows",
    harm: "Whoever reads conditions, such as `kubectl`-like tools and dashboards, reads them wrong.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    for (const { status } of (await life(trial)).all) {
      const conditions = status?.conditions ?? [];
      const types = conditions.map(({ type }) => type);
      same("types of conditions", types, [...new Set(types)]);
      for (const condition of conditions) {
        const { type, status, reason, last_transition_time: time } = condition;
        holds(/^[A-Z]\w*$/.test(type), "a type in one word", show(condition));
        holds(/^(True|False|Unknown)$/.test(status), "True, False or Unknown", show(condition));
        holds(/^[A-Z]\w*$/.test(reason), "a reason in one word", show(condition));
        holds(time === "" || RFC_3339.test(time), "an RFC 3339 time, or none", show(condition));
      }
    }
  },
);

check(
  "DC-178",
  "MUST",
  "A sandbox that is stopped, or started again, is not called deleted",
  {
    source: "gateway 0.0.112, compute/mod.rs:2698",
    harm: "The gateway drops its record: a stopped sandbox is lost to its user, with all that is in it.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const { box, watch } = await life(trial);
    holds(!watch.deleted(box.id), "no Deleted event", watch.events.slice(-8).map(describeEvent));
  },
);

/** The request with which an engine is asked how a container is. */
const CANNOT_INSPECT = {
  call: "GET containers/*/json",
  fail: { status: 500, message: "broken on purpose" },
};

const RFC_3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

/** What GetSandbox and ListSandboxes say of a sandbox now. */
async function ask(box: Box): Promise<Snapshot[]> {
  const [got, listed] = await Promise.all([box.get(), box.listed()]);
  return [got, listed].filter((snapshot) => snapshot !== undefined);
}

const lives = new WeakMap<Subject, ReturnType<typeof live>>();

/** What a driver said of a healthy sandbox in all its life: it is lived once, for every rule that judges it. */
async function life(trial: Trial): ReturnType<typeof live> {
  const known = lives.get(trial.subject);
  const lived = known && (await known.catch(() => undefined));
  if (lived) return lived;
  // Nobody does, or what went wrong there may be another check's affair.
  const own = live(trial);
  lives.set(trial.subject, own);
  return own;
}

/** Makes a sandbox, stops it, and starts it again. Resolves with what was said of it, whoever was asked. */
async function live(trial: Trial) {
  const watch = trial.driver.watch();
  const box = await trial.running();
  const up = await ask(box);
  await box.stop();
  await soon(() => watch.of(box.id).some(isStopped));
  const stopped = await ask(box);
  const told = watch.of(box.id).length;
  await box.start();
  await soon(() => watch.of(box.id).slice(told).some(isUp));
  await box.up();
  const again = await ask(box);
  // What comes after this life, its end, is none of what it told.
  watch.close();
  return { box, watch, up, again, all: [...up, ...stopped, ...again, ...watch.of(box.id)] };
}

/** Waits a while for something that a driver should say: that it says it at all is what other rules are about. */
const soon = (said: () => boolean): Promise<void> =>
  becomes("said", said, () => "nothing", 1_000).catch(() => {});

/** @throws Violation if a gateway would show a sandbox that comes up as anything else. A snapshot without status changes nothing. */
function comesUp(snapshot: Snapshot): void {
  const harmless = isUp(snapshot) || snapshot.status === null;
  holds(harmless, "a sandbox that a gateway shows as PROVISIONING or READY", saidOf(snapshot));
}

/** A snapshot, and what becomes of it. */
const saidOf = (snapshot: Snapshot): string => `${phaseOf(snapshot)}: ${describeSnapshot(snapshot)}`;
