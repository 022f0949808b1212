// SPDX-License-Identifier: Apache-2.0

/** What several groups of mutants break a driver with. */
import type { Interceptors, RawCall, TappedWatch } from "../../../harness/runtime/faults/tap.ts";
import { refusal } from "../../../harness/conformance/mutant.ts";
import type { DriverSandbox__Output as Sandbox } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { type Event, isStopped, type Snapshot } from "../../../harness/conformance/driver.ts";

export type Code = Parameters<typeof refusal>[0];

/** Whether a call failed with this code. */
export const has = (error: unknown, code: Code): boolean =>
  (error as { code?: number }).code === (refusal(code) as Error & { code?: number }).code;

/** Answers a failure with another code. */
export const failing = (from: Code, to: Code) => (error: unknown) => {
  throw has(error, from) ? refusal(to) : error;
};

/** What all drivers of the machine made. */
export const made = new Map<string, Sandbox>();

export type Ask = RawCall["ask"];

/** What the driver has under this id. @throws its own NOT_FOUND */
export const find = async (ask: Ask, sandbox_id: string): Promise<Snapshot> =>
  (await ask("GetSandbox", { sandbox_id })).sandbox!;

/** The id of the first sandbox of that name; empty if there is none. */
export const idOf = async (ask: Ask, name: string): Promise<string> =>
  (await ask("ListSandboxes", {})).sandboxes.find((sandbox) => sandbox.name === name)?.id ?? "";

/** Refuses one more call than `most` at a time for the same `key` of a request. */
export function atMost(most: number, key: (request: { sandbox_id: string }) => string) {
  const underWay = new Map<string, number>();
  return async <Answer>(request: { sandbox_id: string }, pass: () => Promise<Answer>): Promise<Answer> => {
    const mine = key(request);
    const before = underWay.get(mine) ?? 0;
    if (before >= most) throw refusal("ABORTED");
    underWay.set(mine, before + 1);
    return pass().finally(() => underWay.set(mine, underWay.get(mine)! - 1));
  };
}

export const told = (sandbox: Snapshot): Event => ({
  sandbox: { sandbox },
  deleted: null,
  platform_event: null,
});

export const idIn = ({ sandbox, deleted }: Event): string =>
  deleted?.sandbox_id ?? sandbox?.sandbox?.id ?? "";

export function changedEvents(change: (event: Event) => Event): Interceptors {
  return { WatchSandboxes: (watch) => (event) => watch.send(change(event)) };
}

/** Before it is stopped: its end is told while the call is under way. */
export function noteStopped(ids: Set<string>): Interceptors {
  return {
    StopSandbox: ({ sandbox_id }, pass) => {
      ids.add(sandbox_id);
      return pass();
    },
  };
}

export const gone = (sandbox_id: string): Event => ({
  sandbox: null,
  deleted: { sandbox_id },
  platform_event: null,
});

export const saysStopped = ({ sandbox }: Event): boolean =>
  Boolean(sandbox?.sandbox && isStopped(sandbox.sandbox));

/** Lets watchers have only these events. */
export function onlyEvents(tell: (event: Event, watch: TappedWatch) => boolean): Interceptors {
  return { WatchSandboxes: (watch) => (event) => void (tell(event, watch) && watch.send(event)) };
}
