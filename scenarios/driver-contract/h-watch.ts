// SPDX-License-Identifier: Apache-2.0

/** What a driver tells whoever watches: everything, in order, to each watcher, for as long as it stays. */
import { readdirSync } from "node:fs";
import { group } from "../../harness/conformance/check.ts";
import { holds, same } from "../../harness/conformance/finding.ts";
import {
  describeEvent,
  type Event,
  isStopped,
  isUp,
  phaseOf,
  type Watch,
} from "../../harness/conformance/driver.ts";
import { FrameCall } from "../../harness/conformance/frame-call.ts";
import { agree, becomes, type Trial, UP_MS } from "../../harness/conformance/trial.ts";

const check = group("H WatchSandboxes");

/** How long a driver is given to do what it must not do, in milliseconds. */
const QUIET_MS = 250;
/** How long a check of several stops and starts may take on a busy machine, in milliseconds. */
const LONG_MS = 60_000;
/** How many sandboxes DC-170 makes. The reports that it is after begin at 300; the default is what seconds allow. */
const MANY = Number(process.env.OPENSHELL_CHECK_SANDBOXES ?? 12);

check(
  "DC-80",
  "MUST",
  "A watch begins with a snapshot of every sandbox, stopped ones included",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520",
    harm: "After a restart of gateway or driver, users see sandboxes as they were before it.",
  },
  async (trial) => {
    const boxes = await Promise.all([trial.running(), trial.running()]);
    await boxes[1].stop();
    const watch = trial.driver.watch();
    for (const box of boxes) {
      await watch.until(`a snapshot of ${box.name}`, () => watch.of(box.id).length > 0);
      agree(`the first snapshot of ${box.name}`, watch.of(box.id)[0]!, await box.get());
    }
  },
);

check(
  "DC-81",
  "MUST",
  "A watch stays open while nothing happens",
  {
    source: "gateway 0.0.112, compute/mod.rs:2566",
    harm: "The gateway watches again only after two seconds, and is late for all that happens meanwhile.",
  },
  async (trial) => {
    const watch = trial.driver.watch();
    await Bun.sleep(QUIET_MS);
    const box = await trial.create();
    await watch.until("a snapshot of a sandbox made later", () => watch.of(box.id).length > 0);
  },
);

check(
  "DC-82",
  "MUST",
  "A watch tells when a sandbox is created, and when it is started again",
  {
    source: "gateway 0.0.112, compute/mod.rs:2691",
    harm: "Users wait for a phase that was reached long ago, until the next sweep a minute later.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const watch = trial.driver.watch();
    const box = await trial.running();
    let before = 0;
    const up = () => watch.events.slice(before).some((event) => stageIn(event, box.id) === "up");
    await watch.until("a snapshot of the created sandbox", up);
    await box.stop();
    before = watch.events.length;
    await box.start();
    await watch.until("a snapshot of the sandbox that was started again", up);
  },
);

check(
  "DC-180",
  "SHOULD",
  "A watch tells when a sandbox is stopped, though whoever asked for it knows",
  {
    source: "gateway 0.0.112, compute/mod.rs:2691 and 1112: the one that asked does not need it",
    harm: "Any other watcher, such as a second gateway or an operator's tool, shows the sandbox as running.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const watch = trial.driver.watch();
    const box = await trial.running();
    await box.stop();
    await watch.until("a snapshot of the stop", () => watch.of(box.id).some(isStopped));
  },
);

check(
  "DC-83",
  "MUST",
  "A watch tells, by the sandbox's id, when a sandbox was removed behind the driver's back",
  {
    source: "gateway 0.0.112, compute/mod.rs:2698; Podman driver 0.0.112, watcher.rs:251",
    harm: "A sandbox that somebody removed by hand stays READY in users' lists, and every exec in it fails.",
  },
  async (trial) => {
    const remove = trial.backend("remove");
    const watch = trial.driver.watch();
    const box = await trial.running();
    await watch.until("a snapshot of the sandbox", () => watch.of(box.id).length > 0);
    await remove(box.id);
    await watch.until(`a Deleted event of ${box.id}`, () => watch.deleted(box.id));
  },
);

check(
  "DC-84",
  "SHOULD",
  "A change that happens while a watch is opened is not lost",
  {
    source: "Docker driver 0.0.112, lib.rs:1662; Podman driver 0.0.112, watcher.rs:140",
    harm: "Once in a while, after a reconnect, a sandbox keeps a phase that it no longer has.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const box = await trial.running();
    await box.stop();
    const start = box.start();
    const watches = [trial.driver.watch()];
    const opening = setInterval(() => watches.length < 6 && watches.push(trial.driver.watch()), 4);
    await start.finally(() => clearInterval(opening));
    watches.push(trial.driver.watch());
    const knows = (watch: Watch) => watch.events.some((event) => stageIn(event, box.id) === "up");
    await Promise.all(watches.map((watch) => watch.until("a snapshot of the start", () => knows(watch))));
  },
);

check(
  "DC-85",
  "MUST",
  "Every watcher is told everything",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520",
    harm: "After a gateway's restart its old stream, which the driver still holds, gets what the new one should.",
  },
  async (trial) => {
    const watches = [trial.driver.watch(), trial.connect().watch()];
    // So that both see the create; a driver may be silent until it has something to tell.
    await Promise.race([Promise.all(watches.map(({ began }) => began)), Bun.sleep(QUIET_MS)]);
    const all = (what: string, seen: (watch: Watch) => boolean) =>
      Promise.all(watches.map((watch) => watch.until(what, () => seen(watch))));
    const box = await trial.create();
    await all("a snapshot of the sandbox on each watch", (watch) => watch.of(box.id).length > 0);
    await box.delete();
    await all("a Deleted event on each watch", (watch) => watch.deleted(box.id));
  },
);

check(
  "DC-86",
  "SHOULD",
  "A watch ends with an error when the driver loses its backend, and a new one begins anew when it is back",
  {
    source: "Podman driver 0.0.112, watcher.rs:213",
    harm: "The gateway listens to a stream on which nothing comes any more, and shows old phases for ever.",
  },
  async (trial) => {
    const engine = await trial.engineProxy();
    const started = await trial.startDriver({ podman_socket: engine.socket });
    const driver = await started.answers(trial);
    const box = await trial.create(trial.sandbox(), driver);
    const watch = driver.watch();
    await watch.until("a snapshot of the sandbox", () => watch.of(box.id).length > 0);
    engine.close();
    await becomes(
      "the watch to end",
      () => watch.ended !== undefined,
      () => "it is open",
    );
    holds(watch.ended !== "OK", "an error status", watch.ended);
    await engine.listen();
    const next = driver.watch();
    await next.until("a snapshot of the sandbox on a new watch", () => next.of(box.id).length > 0);
  },
);

check(
  "DC-87",
  "SHOULD",
  "A watch is accepted at once, even when there is nothing to tell",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520",
    harm: "The gateway waits for the response's headers before it listens at all.",
    // Others' sandboxes would give it something to tell.
    alone: true,
  },
  async ({ driver }) => {
    const watch = driver.watch();
    let accepted = false;
    void watch.began.then(() => (accepted = true));
    await becomes(
      "response headers",
      () => accepted,
      () => watch.ended ?? "nothing",
      2_000,
    );
  },
);

check(
  "DC-88",
  "MUST",
  "Watchers may come and go: sandboxes and later watches are as before",
  {
    source: "gateway 0.0.112, compute/mod.rs:2533; Podman driver 0.0.112, watcher.rs:176",
    harm: "Each restart of the gateway takes something away, until the driver must be restarted, too.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const box = await trial.running();
    const started = await startOf(trial, box.id);
    const watches = Array.from({ length: 10 }, () => trial.connect().watch());
    const told = (watch: Watch) => watch.until("a snapshot on each watch", () => watch.of(box.id).length > 0);
    await Promise.all(watches.map(told));
    for (const watch of watches) watch.close();
    await told(trial.driver.watch());
    holds(isUp(await box.get()), "the sandbox up", phaseOf(await box.get()));
    same("when its compute was started", await startOf(trial, box.id), started);
  },
);

check(
  "DC-89",
  "SHOULD",
  "What a watch says of a sandbox comes in the order in which it happened",
  {
    source: "gateway 0.0.112, compute/mod.rs:2549",
    harm: "A stopped sandbox turns up as running, or one that is gone comes back.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    const watch = trial.driver.watch();
    const box = await trial.running();
    await box.stop();
    await box.delete();
    await watch.until("a Deleted event", () => watch.deleted(box.id));
    await Bun.sleep(QUIET_MS);
    const stages = watch.events.map((event) => stageIn(event, box.id)).filter(Boolean);
    const order = stages.filter((stage, at) => stage !== stages[at - 1]);
    // A change that is followed by the next at once need not be told of.
    const expected = (["up", "stopped", "gone"] as const).filter((stage) => order.includes(stage));
    same("the order of what was said", order, expected);
  },
);

check(
  "DC-90",
  "SHOULD",
  "Platform events name their sandbox, and spell the keys of their progress as the gateway reads them",
  {
    source: "contract, WatchSandboxesPlatformEvent; gateway 0.0.112, progress.rs:9",
    harm: "Users who wait for an image pull see no progress.",
  },
  async (trial) => {
    const watch = trial.driver.watch();
    const box = await trial.running();
    await watch.until("a snapshot of the sandbox", () => watch.of(box.id).length > 0);
    const events = watch.events.flatMap(({ platform_event }) => platform_event ?? []);
    if (events.length === 0) trial.skip("the driver sends no platform events, which are optional");
    for (const { sandbox_id, event } of events) {
      holds(sandbox_id !== "", "a platform event with a sandbox_id", event);
      holds(event !== null, "a platform event with an event", `none, of ${sandbox_id}`);
      const wrong = Object.keys(event.metadata).filter((key) => /progress/i.test(key) && !PROGRESS.test(key));
      same("keys of progress that the gateway does not read", wrong, []);
    }
  },
);

check(
  "DC-170",
  "MUST",
  "A watch begins with a snapshot of every sandbox when there are many",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520; OPENSHELL_CHECK_SANDBOXES says how many, 12 unless set",
    harm: "With some hundred sandboxes the gateway, once restarted, is never told of any of them.",
    deadlineMs: 20_000 + MANY * 2_000,
  },
  async (trial) => {
    const asked = Array.from({ length: MANY }, () => trial.sandbox());
    const next = asked.values();
    const worker = async () => {
      for (const sandbox of next) await trial.create(sandbox);
    };
    await Promise.all(Array.from({ length: 4 }, worker));
    const watch = trial.driver.watch();
    const untold = () => asked.filter(({ id }) => watch.of(id).length === 0);
    await watch.until(`a snapshot of each of ${MANY} sandboxes`, () => untold().length === 0);
  },
);

check(
  "DC-171",
  "MUST",
  "A watcher that reads nothing for a while is told everything in the end",
  {
    source: "gateway 0.0.112, compute/mod.rs:2549: it reads the next event when it has stored the last",
    harm: "While the gateway's database is slow events are lost, and sandboxes keep phases that they no longer have.",
  },
  async (trial) => {
    using watch = await FrameCall.watch(trial.subject.socket);
    const gone = await trial.create();
    await gone.delete();
    const kept = await trial.create();
    watch.read();
    const ofGone = () => watch.events.some(({ deleted }) => deleted?.sandbox_id === gone.id);
    const ofKept = () => watch.events.some(({ sandbox }) => sandbox?.sandbox?.id === kept.id);
    const all = () => ofGone() && ofKept();
    const told = () => watch.problem !== undefined || all();
    await becomes("its Deleted event, and a snapshot of a later one", told, () => said(watch.events), 10_000);
    watch.mustBeReadable();
  },
);

check(
  "DC-172",
  "MUST",
  "A watcher that reads nothing holds up neither calls nor other watchers",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520: the stream of a gateway that died may linger",
    harm: "One gateway that hangs makes the driver useless for its successor.",
    deadlineMs: LONG_MS,
  },
  async (trial) => {
    using slow = await FrameCall.watch(trial.subject.socket);
    const box = await trial.running();
    await box.stop();
    const watch = trial.driver.watch();
    await watch.until("a snapshot on another watch", () => watch.of(box.id).length > 0);
    await box.delete();
    await watch.until("a Deleted event on another watch", () => watch.deleted(box.id));
    same("what the slow watcher has read", slow.events.length, 0);
  },
);

check(
  "DC-173",
  "MUST",
  "A watch that is opened amid a storm of creates misses none of them",
  {
    source: "gateway 0.0.112, compute/mod.rs:2520",
    harm: "Sandboxes that were created while the gateway reconnected stay PROVISIONING.",
  },
  async (trial) => {
    const asked = Array.from({ length: 6 }, () => trial.sandbox());
    const watches: Watch[] = [];
    await Promise.all(asked.map((sandbox) => trial.forget(sandbox)));
    const creating = asked.map(async (sandbox) => {
      await trial.driver.create(sandbox, UP_MS);
      watches.push(trial.driver.watch());
    });
    // On the heels of the creates: on a busy machine all may be made by the first answer.
    watches.push(trial.driver.watch());
    await Promise.all(creating);
    const untold = (watch: Watch) => asked.filter(({ id }) => watch.of(id).length === 0);
    const all = (watch: Watch) =>
      watch.until("a snapshot of each sandbox on each watch", () => untold(watch).length === 0);
    await Promise.all(watches.map(all));
  },
);

check(
  "DC-174",
  "SHOULD",
  "No event names a sandbox that nobody made",
  {
    source:
      "gateway 0.0.112, compute/mod.rs:2736 and 2698: it ignores them, and so the sandbox that was meant",
    harm: "The sandbox that the event was about stays in Deleting, or in its old phase.",
    // Others' sandboxes are known to nobody here.
    alone: true,
  },
  async (trial) => {
    const before = await trial.driver.list();
    const watch = trial.driver.watch();
    const box = await trial.create();
    await box.delete();
    await watch.until("a Deleted event", () => watch.deleted(box.id));
    await Bun.sleep(50);
    const known = new Set([box.id, ...before.map(({ id }) => id)]);
    const strange = watch.events.filter((event) => !known.has(idIn(event)));
    same("events of unknown sandboxes", said(strange), []);
  },
);

check(
  "DC-179",
  "SHOULD",
  "A driver holds no files open for watches that are over",
  {
    source:
      "contract, WatchSandboxes; a gateway opens one watch after the other for as long as the driver runs",
    harm: "After some hundred reconnects the driver can open no file, and every call fails until it is restarted.",
    alone: true,
  },
  async (trial) => {
    const open = await openFiles(trial);
    const once = async () => {
      const watch = trial.driver.watch();
      const box = await trial.create();
      await watch.until("a snapshot", () => watch.of(box.id).length > 0);
      watch.close();
      await box.delete();
    };
    await once();
    const before = open();
    const box = await trial.create();
    const watches = Array.from({ length: 20 }, () => trial.driver.watch());
    const told = (watch: Watch) => watch.until("a snapshot on each watch", () => watch.of(box.id).length > 0);
    await Promise.all(watches.map(told));
    for (const watch of watches) watch.close();
    // A driver may find out only when it has something to tell.
    await once();
    await becomes(`at most ${before + 5} open files`, () => open() <= before + 5, open, 10_000);
  },
);

const said = (events: Event[]): string[] => events.map(describeEvent);

/** The sandbox that an event names. */
const idIn = ({ sandbox, deleted, platform_event }: Event): string =>
  deleted?.sandbox_id ?? platform_event?.sandbox_id ?? sandbox?.sandbox?.id ?? "";

const PROGRESS = /^openshell\.progress\.(complete_step|complete_label|active_step|active_detail)$/;

/** How far an event says that a sandbox is; undefined if it says nothing of that. */
function stageIn({ sandbox, deleted }: Event, id: string): "up" | "stopped" | "gone" | undefined {
  if (deleted?.sandbox_id === id) return "gone";
  const snapshot = sandbox?.sandbox;
  if (snapshot?.id !== id) return undefined;
  if (isStopped(snapshot)) return "stopped";
  const certain = snapshot.status?.conditions.some(({ status }) => status !== "Unknown");
  return certain && isUp(snapshot) ? "up" : undefined;
}

/** When a sandbox's compute was started; undefined where nobody can tell. */
const startOf = async ({ subject }: Trial, id: string): Promise<string | undefined> =>
  (await subject.backend?.inspect?.(id))?.started;

/** Counts the files that the driver's process has open. */
async function openFiles(trial: Trial): Promise<() => number> {
  const { owned } = trial.subject;
  if (!owned) return trial.skip("the driver was started by somebody else, so its process is not known");
  const { serving } = await owned.keeper.call("driverState", owned.stack.id, 0);
  const folder = `/proc/${serving}/fd`;
  try {
    readdirSync(folder);
  } catch {
    return trial.skip("the driver's open files cannot be seen here");
  }
  return () => readdirSync(folder).length;
}
