// SPDX-License-Identifier: Apache-2.0

/** Drivers whose snapshots are wrong. */

import type { Interceptors } from "../../../harness/runtime/faults/tap.ts";
import { mutant } from "../../../harness/conformance/mutant.ts";
import { type Event, isStopped, type Snapshot, isUp } from "../../../harness/conformance/driver.ts";
import { told, idIn, changedEvents, noteStopped, gone, saysStopped, onlyEvents } from "./broken.ts";

mutant(
  "Beside Ready, watchers are told the Ready before",
  ["DC-91", "DC-177"],
  changedConditions((condition) => [condition, { ...condition, status: "Unknown" }]),
);

mutant(
  "While a sandbox comes up, its condition is ready",
  ["DC-91", "DC-177"],
  changedConditions((condition, snapshot) => [{ ...condition, type: isUp(snapshot) ? "ready" : "Ready" }]),
);

mutant("Watchers are first told that a sandbox is Pulling", ["DC-80", "DC-92", "DC-97", "DC-176"], () => {
  const known = new Set<string>();
  return {
    WatchSandboxes: (watch) => (event) => {
      const sandbox = event.sandbox?.sandbox;
      if (sandbox && !known.has(sandbox.id)) watch.send(told(withReason(sandbox, "Pulling")));
      known.add(idIn(event));
      watch.send(event);
    },
  };
});

mutant("Before they are told of a stop, watchers are told that a sandbox is Stopping", ["DC-176"], {
  WatchSandboxes: (watch) => (event) => {
    const sandbox = event.sandbox?.sandbox;
    if (sandbox && isStopped(sandbox)) watch.send(told(withReason(sandbox, "Stopping")));
    watch.send(event);
  },
});

mutant(
  "Stopped sandboxes are listed as ready",
  ["DC-61", "DC-93"],
  listed((snapshot) =>
    isStopped(snapshot)
      ? withConditions(snapshot, (condition) => [{ ...condition, status: "True" }])
      : snapshot,
  ),
);

mutant("Watchers are told that a workload that ended by itself is Starting", ["DC-94"], () => {
  const stopped = new Set<string>();
  const change = (snapshot: Snapshot) =>
    isStopped(snapshot) && !stopped.has(snapshot.id) ? withReason(snapshot, "Starting") : snapshot;
  return { ...noteStopped(stopped), ...changedSnapshots(change) };
});

mutant("Before each snapshot, watchers are told one without status", ["DC-80", "DC-95"], {
  WatchSandboxes: (watch) => (event) => {
    const sandbox = event.sandbox?.sandbox;
    if (sandbox) watch.send(told({ ...sandbox, status: null }));
    watch.send(event);
  },
});

mutant(
  "Listed sandboxes have no name on the platform",
  ["DC-96"],
  listed((snapshot) => withStatus(snapshot, { sandbox_name: "" })),
);

mutant(
  "Listed sandboxes have no instance",
  ["DC-96"],
  listed((snapshot) => withStatus(snapshot, { instance_id: "" })),
);

mutant(
  "Watchers are told that a container that cannot be inspected is lost",
  ["DC-97"],
  changedConditions((condition) => [
    condition.reason === "InspectFailed"
      ? { ...condition, status: "False", reason: "ContainerLost" }
      : condition,
  ]),
);

mutant(
  "Stopped sandboxes are listed as deleting",
  ["DC-98"],
  listed((snapshot) => withStatus(snapshot, { deleting: isStopped(snapshot) })),
);

mutant(
  "Times are told as people say them",
  ["DC-177"],
  changedConditions((condition) => [{ ...condition, last_transition_time: "2 hours ago" }]),
);

type Status = NonNullable<Snapshot["status"]>;

type Condition = Status["conditions"][number];

const withStatus = (snapshot: Snapshot, changes: Partial<Status>): Snapshot => ({
  ...snapshot,
  status: snapshot.status && { ...snapshot.status, ...changes },
});

const withConditions = (snapshot: Snapshot, change: (condition: Condition) => Condition[]): Snapshot =>
  withStatus(snapshot, { conditions: snapshot.status?.conditions.flatMap(change) });

const withReason = (snapshot: Snapshot, reason: string): Snapshot =>
  withConditions(snapshot, (condition) => [{ ...condition, status: "False", reason }]);

/** Changes each snapshot that watchers are told. */
function changedSnapshots(change: (snapshot: Snapshot) => Snapshot): Interceptors {
  return changedEvents((event) => (event.sandbox?.sandbox ? told(change(event.sandbox.sandbox)) : event));
}

/** Changes the conditions that watchers are told. */
function changedConditions(change: (condition: Condition, snapshot: Snapshot) => Condition[]): Interceptors {
  return changedSnapshots((snapshot) => withConditions(snapshot, (condition) => change(condition, snapshot)));
}

/** Changes each snapshot that is listed. */
function listed(change: (snapshot: Snapshot) => Snapshot): Interceptors {
  return { ListSandboxes: async (_, pass) => ({ sandboxes: (await pass()).sandboxes.map(change) }) };
}

mutant("An exit is not told of unless it was asked for", ["DC-94"], () => {
  const stopped = new Set<string>();
  const tell = (event: Event) => !saysStopped(event) || stopped.has(idIn(event));
  return { ...noteStopped(stopped), ...onlyEvents(tell) };
});

mutant("A stop is told of like an end, too", ["DC-178"], {
  WatchSandboxes: (watch) => (event) => {
    watch.send(event);
    if (saysStopped(event)) watch.send(gone(idIn(event)));
  },
});

mutant("What watchers are told carries the token", ["DC-175"], () => {
  const tokens = new Map<string, string>();
  return {
    CreateSandbox: (request, pass) => {
      const { id = "", spec } = request.sandbox ?? {};
      tokens.set(id, spec?.sandbox_token ?? "");
      return pass();
    },
    WatchSandboxes: (watch) => (event) => {
      const sandbox = event.sandbox?.sandbox;
      const spec = { sandbox_token: tokens.get(idIn(event)) };
      watch.send(sandbox ? { sandbox: { sandbox: { ...sandbox, spec } } } : event);
    },
  };
});
