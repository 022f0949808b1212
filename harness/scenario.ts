// SPDX-License-Identifier: Apache-2.0

/** Scenarios: how one is registered, takes its turn, and is proved. */
import { test } from "bun:test";
import { fail, HarnessError } from "./base/errors.ts";
import { readSettings } from "./base/settings.ts";
import { indent } from "./base/text.ts";
import { turns, within } from "./base/waiting.ts";
import { allCreated, type Gateway, type Sandbox } from "./client/gateway.ts";
import { withoutPreload } from "./preloaded.ts";
import { findKnown, outdated, whyOf } from "./report/known-failing.ts";
import { leaveOut } from "./report/leave-out.ts";
import type { ScenarioResult } from "./report/model.ts";
import { now, record } from "./report/record.ts";
import { type About, aboutCaller, recorded, recordSelection, recordSkip } from "./report/scenario.ts";
import { RunningStack, SETTLE_MS } from "./running-stack.ts";
import type { Parts } from "./runtime/places.ts";
import type { StackSpec } from "./runtime/stack.ts";
import { scenariosAtATime, sharedRun } from "./shared-run.ts";

/** What a scenario is given. */
export interface Given {
  /** The stack that all scenarios of a run share, and its gateway. */
  stack: RunningStack;
  gateway: Gateway;
  parts: Parts;
  /** A Ready sandbox of that stack, shared by the scenarios that do no more than run commands in one. */
  anySandbox: () => Promise<Sandbox>;
  /** Starts a stack of the scenario's own. It is stopped at the scenario's end. */
  startStack: (spec?: StackSpec) => Promise<RunningStack>;
  /** The stack of that spec which all scenarios share that ask for it; it runs until the run ends. */
  sharedStack: (spec: StackSpec) => Promise<RunningStack>;
}

/** How a scenario differs from the usual one. */
export interface ScenarioOptions {
  /** Why it does not apply here; shown beside its title. */
  skip?: string | false;
  /** What its body may take, in milliseconds. */
  deadlineMs?: number;
}

/** Above every deadline of ours before and after a body: the first start may pull an image. Bun's own default is 5 s. */
const BEFORE_AND_AFTER_MS = 720_000;

/**
 * A requirement with its stable id, and its proof, which may run beside others of its file. Sandboxes and stacks that
 * the body makes are removed when it ends; anything that is left after that fails the scenario.
 */
export function scenario(title: string, body: Body, options: ScenarioOptions = {}): void {
  const { skip, deadlineMs = 60_000 } = options;
  const about = aboutCaller(title, import.meta.path);
  if (skip) return skipped(about, skip);
  const run = () => inTurn(() => recorded(about, (result) => prove(body, deadlineMs, result)));
  register(title, () => test.concurrent(title, run, deadlineMs + BEFORE_AND_AFTER_MS));
}

/** The same for a scenario that looks at, or changes, what others would notice: it runs alone. */
scenario.alone = (title: string, body: Body, options: ScenarioOptions = {}): void => {
  const { skip, deadlineMs = 60_000 } = options;
  const about = aboutCaller(title, import.meta.path);
  if (skip) return skipped(about, skip);
  const run = () => recorded(about, (result) => prove(body, deadlineMs, result));
  registerAlone(title, () => test(title, run, deadlineMs + BEFORE_AND_AFTER_MS));
};

// Files as one

type Registration = () => unknown;

/** The tests of files that are being loaded as one: those of each file that run beside others, and those that do not. */
let loading: { files: Registration[][]; alone: Registration[] } | undefined;

/** Whether a test is to run. Ends the process where nothing would end the run that it begins. */
function select(title: string): boolean {
  const problem = withoutPreload();
  if (problem) fail(new HarnessError(problem));
  return recordSelection(title);
}

/** Registers a test that runs beside others: at once, or when all files are loaded. */
export function register(title: string, test: Registration): void {
  select(title);
  if (loading) loading.files.at(-1)!.push(test);
  else test();
}

/** Registers a test that runs alone: bun lets nothing run across it, so when files are loaded as one it comes last. */
export function registerAlone(title: string, test: Registration): void {
  select(title);
  if (loading) loading.alone.push(test);
  else test();
}

/**
 * Loads test files as if they were one, so that scenarios of different files run beside each other: of each file some all
 * the time, since in one they all compute and in another they all wait.
 */
export async function asOneFile(paths: string[]): Promise<void> {
  loading = { files: [], alone: [] };
  const { files, alone } = loading;
  for (const path of paths) {
    files.push([]);
    await import(path);
  }
  loading = undefined;
  const places = files.flatMap((tests) => tests.map((test, i) => ({ test, at: i / tests.length })));
  for (const { test } of places.toSorted((a, b) => a.at - b.at)) test();
  for (const test of alone) test();
}

function skipped(about: About, reason: string): void {
  const title = `${about.title} (skipped: ${reason})`;
  if (select(title)) recordSkip(about, reason);
  // Concurrent, though nothing runs: bun lets no scenario run across one that is not.
  test.concurrent.skip(title, () => {});
}

type Body = (given: Given) => Promise<void>;

/** How many scenarios that have a gateway of their own and no engine run at a time. */
export const GATEWAYS_AT_A_TIME = 8;

/** Does a test's work when it is its turn: so many run at a time as the settings say. */
export const inTurn = turns(() => scenariosAtATime(readSettings().settings));

/**
 * Proves a scenario. One that known-failing.toml lists is to fail.
 * @throws what it fails with, or HarnessError when it is listed and passes.
 */
async function prove(body: Body, deadlineMs: number, result: ScenarioResult): Promise<void> {
  const { known, parties } = await sharedRun();
  const listed = known.some(({ scenario }) => scenario === result.id);
  const entry = listed ? findKnown(known, result.id, await parties()) : undefined;
  if (!entry) return attempt(body, deadlineMs, result);
  const failure = await attempt(body, deadlineMs, result).then(
    () => undefined,
    (error: Error) => error,
  );
  const surprise = outdated(entry);
  if (!failure && surprise) throw new HarnessError(surprise);
  if (!failure) return;
  Object.assign(result, { verdict: "known", reason: `${whyOf(entry)}\n${failure.message}` });
  console.log(`(known) ${result.id}: ${whyOf(entry)}`);
}

export async function attempt(body: Body, deadlineMs: number, result: ScenarioResult): Promise<void> {
  const { keeper, stack: base, others, parts: found } = await sharedRun();
  const stack = base.forAnother();
  const used = [stack];
  const own: RunningStack[] = [];
  const starting: Promise<RunningStack>[] = [];
  let over = false;
  const borrowed = new Set<string>();
  // Also while it runs: whoever kills the run leaves a report all the same.
  const note = (changed?: RunningStack) => {
    if (changed) changed.gateway.onChange = () => note();
    result.stack = (own.at(-1) ?? used.at(-1) ?? stack).info.id;
    result.sandboxes = [...[...own, ...used].flatMap(({ gateway }) => gateway.created), ...borrowed];
    record({ kind: "running", scenario: result });
  };
  note(stack);
  const start = async (spec: StackSpec) => new RunningStack(keeper, await keeper.call("startStack", spec));
  const given: Given = {
    stack,
    gateway: stack.gateway,
    parts: found,
    anySandbox: async () => {
      const sandbox = await base.anySandbox();
      borrowed.add(sandbox.id);
      note();
      return sandbox;
    },
    startStack: (spec = {}) => {
      if (over) throw new HarnessError("The scenario is over: it starts no more stacks");
      const started = start(spec);
      starting.push(started);
      return started.then((stack) => {
        own.push(stack);
        note(stack);
        return stack;
      });
    },
    sharedStack: async (spec) => {
      const key = JSON.stringify(spec);
      if (!others.has(key)) others.set(key, start(spec));
      const other = (await others.get(key)!).forAnother();
      used.push(other);
      note(other);
      return other;
    },
  };
  let failure: Error | undefined;
  try {
    await within(deadlineMs, "The scenario", body(given));
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
    result.failedMs = Math.round(now() - result.at);
    const suspect = own.at(-1) ?? used.slice(1).at(-1) ?? stack;
    // What cannot be told about a failure must not take its place.
    Object.assign(result, await suspect.excerpts(result.at).catch(() => ({})));
  }
  over = true;
  await Promise.allSettled(starting);
  note();
  const left: string[] = [];
  const undo = async (lines: Promise<string[]>) =>
    void left.push(...(await lines.catch((error: Error) => [error.message])));
  // What a failed scenario leaves is no news.
  const settleMs = failure ? 0 : SETTLE_MS;
  for (const each of own.toReversed()) await undo(each.stop(settleMs));
  for (const each of used) await undo(each.cleanUp(settleMs));
  // Of a stack of its own, which is gone, nothing more can be asked.
  if (!failure && left.length > 0 && own.length === 0)
    Object.assign(result, await (used.at(-1) ?? stack).excerpts(result.at).catch(() => ({})));
  leaveOut(allCreated.difference(new Set(result.sandboxes)), result);
  if (failure) throw failure;
  if (left.length > 0) throw new HarnessError(`Left behind:\n${indent(left.join("\n"), "  ")}`);
}
