// SPDX-License-Identifier: Apache-2.0

/** The run that all scenarios of a test process share: its keeper, its stack, its end. */
import { knowEnvironment } from "./base/secrets.ts";
import { basename } from "node:path";
import { loadGrpc } from "../proto/contract.ts";
import { EXIT, fail, HarnessError } from "./base/errors.ts";
import { readable } from "./base/readable.ts";
import { type Place, PLACES, readSettings, type Settings } from "./base/settings.ts";
import { inColour, shellQuoted, shownPath, widthOf } from "./base/text.ts";
import { within } from "./base/waiting.ts";
import type { Gateway } from "./client/gateway.ts";
import { follow } from "./report/follow.ts";
import { type Known, type Parties, readKnown, scenarioIds } from "./report/known-failing.ts";
import type { Standing } from "./report/model.ts";
import { now, record, recordTo, waitingEntries } from "./report/record.ts";
import { recordAbandoned } from "./report/scenario.ts";
import { RunningStack } from "./running-stack.ts";
import { unlessEnding } from "./runtime/aftermath.ts";
import { attach, type Connection, startKeeper } from "./runtime/connection.ts";
import { describeParts, findParts, type Parts } from "./runtime/places.ts";
import { floodWords } from "./runtime/process.ts";
import { type Reported, writeReports } from "./runtime/reports.ts";
import { newRunId, Run } from "./runtime/run.ts";
import type { StackInfo } from "./runtime/stack.ts";

interface SharedRun {
  keeper: Connection;
  stack: RunningStack;
  /** The other shared stacks, by their spec. */
  others: Map<string, Promise<RunningStack>>;
  parts: Parts;
  /** What is known to fail, and who is at work: asked only when a scenario is listed. */
  known: Known[];
  parties: () => Promise<Parties>;
}

interface SharedKeeper {
  keeper: Connection;
  parts: Parts;
  /** The stack that `up` keeps, when we are attached to it. */
  kept: StackInfo | undefined;
  own: boolean;
}

// A test process has no command line of ours that would say which variables hold secrets.
knowEnvironment(process.env.OPENSHELL_DRIVER_ENV ?? "");

let sharedConnection: Promise<SharedKeeper> | undefined;

/** When this run began, in milliseconds since 1970. */
let beganAt = 0;

let unfollow = (): void => {};

/** Shows what the settings ask for, of the programs of a run, while it goes on. */
function followIfAsked(folder: string, { verbose, trace }: Settings): () => void {
  if (verbose !== "1" && trace !== "1") return () => {};
  const colour = inColour(process.stderr);
  const print = (line: string) => console.error(line);
  return follow(folder, { verbose: verbose === "1", trace: trace === "1", colour, print });
}

let shared: Promise<SharedRun> | undefined;

/** The run's keeper, started or attached to when the first test needs it. */
export function sharedKeeper(): Promise<SharedKeeper> {
  mustNotBeOver();
  return (sharedConnection ??= (async () => {
    const { settings } = readSettings();
    const at = now();
    const attached = await attach(settings);
    const starting = attached ?? startKeeper(Run.create(settings), settings);
    loadGrpc();
    const keeper = await starting;
    const { run } = keeper;
    const { parts, stack } = await keeper.call("hello");
    if (!process.env.OPENSHELL_E2E_ANNOUNCED) console.log(describeParts(parts));
    recordTo(run.folder, `test-${process.pid}`);
    unfollow = followIfAsked(run.folder, settings);
    record({ kind: "begin", at, run: run.id, command: commandLine(), stack: standings(parts) });
    beganAt = at;
    return { keeper, parts, kept: attached && stack, own: !attached };
  })().catch((error) => abandon(error)));
}

/** As it was typed, as far as we know. */
const commandLine = (): string =>
  process.env.OPENSHELL_E2E_COMMAND ?? ["bun", "test", ...process.argv.slice(2)].map(shellQuoted).join(" ");

/** What stands in each place, as a report has it: no path of this machine. */
export const standings = (parts: Parts): Record<Place, Standing> =>
  Object.fromEntries(
    PLACES.map((place) => {
      const { real, label, command, image } = parts[place];
      return [place, { real, label, program: basename(command[0] ?? ""), image }];
    }),
  ) as Record<Place, Standing>;

/** The stack that scenarios share, started when the first of them needs it. */
export function sharedRun(): Promise<SharedRun> {
  mustNotBeOver();
  return (shared ??= (async () => {
    const { keeper, parts, kept } = await sharedKeeper();
    const info = kept ?? (await keeper.call("startStack", {}));
    const stack = new RunningStack(keeper, info);
    const known = readKnown("scenario", scenarioIds());
    let parties: Promise<Parties> | undefined;
    return {
      keeper,
      parts,
      stack,
      others: new Map(),
      known,
      parties: () => (parties ??= partiesOf(stack.gateway)),
    };
  })().catch(async (error) => abandon(error, await sharedKeeper())));
}

/** The keeper gives each program some seconds to end. */
const CLOSING_MS = 30_000;

/** Ends the run, explained, when what all scenarios share is missing: each of them would fail with the same words. */
async function abandon(error: unknown, run?: SharedKeeper): Promise<never> {
  await unlessEnding();
  if (!(error instanceof HarnessError)) fail(error);
  const scenario = recordAbandoned(readable(error.message));
  // With its end the keeper writes the report.
  const closing = async (keeper: Connection) => {
    await keeper.call("close");
    return keeper.call("reported");
  };
  const closed = run?.own
    ? await within(CLOSING_MS, "close the keeper", closing(run.keeper)).catch(() => undefined)
    : undefined;
  if (!scenario) fail(error);
  const { problem } = closed ?? (run ? {} : reportAlone(standings(parts())));
  const { explainOnTerminal } = await import("./report/terminal.ts");
  const { settings } = readSettings();
  console.error(`openshell-e2e: the run cannot go on: what all scenarios share did not start\n`);
  const shown = { colour: inColour(process.stderr), width: widthOf(process.stderr) };
  console.error(explainOnTerminal(scenario, [], shown));
  console.error(
    problem
      ? `\nopenshell-e2e: ${problem}`
      : `\nAll of it: bun harness.ts report ${shellQuoted(shownPath(settings.reports))} --format html`,
  );
  process.exit(EXIT.error);
}

/** Who is at work, by what gateway and driver say of themselves. */
async function partiesOf(gateway: Gateway): Promise<Parties> {
  const [{ version }, [driver]] = await Promise.all([gateway.health(), gateway.drivers()]);
  const { driver_name = "", driver_version = "" } = driver?.capabilities ?? {};
  return { gateway: { version }, driver: { name: driver_name, version: driver_version } };
}

/** Reports what this process alone recorded, where there is no keeper to do it. */
function reportAlone(stack: Record<string, Standing>): Reported {
  const { settings } = readSettings();
  record({ kind: "begin", at: performance.timeOrigin, run: newRunId(), command: commandLine(), stack });
  record({ kind: "end", at: now() });
  return writeReports({ entries: waitingEntries(), reports: settings.reports });
}

let isEnded = false;

/** Ends the process where bun goes on after the end, with --rerun-each: what is left to run has no stack, and would fail. */
function mustNotBeOver(): void {
  if (!isEnded) return;
  const loop = "for i in $(seq 20); do bun run e2e -- -t ID || break; done";
  fail(
    new HarnessError(
      `bun runs its last file again after the run's end (--rerun-each). In a loop it works: ${loop}`,
    ),
  );
}

/** How a run ended: what it left behind, a line each, and what came of its reports. */
export type Ended = Reported & { left: string[] };

/** Ends the run, if one was begun. Called once, by the preload. */
export async function endRun(): Promise<Ended> {
  isEnded = true;
  if (!sharedConnection) {
    // Tests that need no keeper are a run without leftovers: the scenarios of gateway-adapter.
    return { left: [], ...reportAlone({ gateway: standings(parts()).gateway }) };
  }
  const { keeper, own } = await sharedConnection;
  const run = await shared;
  const others = await Promise.allSettled(run?.others.values() ?? []);
  const stacks = [
    ...(run ? [run.stack] : []),
    ...others.flatMap((other) => (other.status === "fulfilled" ? [other.value] : [])),
  ];
  const left = (await Promise.all(stacks.map((stack) => stack.cleanUp()))).flat();
  for (const stack of stacks) stack.gateway.close();
  unfollow();
  for (const flood of await keeper.call("floods")) console.error(floodWords(flood));
  record({ kind: "leftovers", lines: left });
  record({ kind: "end", at: now() });
  const { reports } = readSettings().settings;
  if (own) left.push(...(await keeper.call("close")));
  const reported = own
    ? await keeper.call("reported")
    : await keeper.call("report", `test-${process.pid}`, beganAt, reports);
  keeper.close();
  return { left, ...reported };
}

export let found: Parts | undefined;

/** What stands in each place, as far as settings and file system tell; for a scenario that only applies to some. */
export function parts(): Parts {
  try {
    return (found ??= findParts(readSettings().settings));
  } catch (error) {
    fail(error);
  }
}

/**
 * How many scenarios run at a time. Most of a scenario is waiting for processes, but a busy real gateway can read the
 * report of a sandbox's end after the sandbox was started again, and then takes it for failed; and a busy Podman can
 * fail to remove a container that is just ending.
 */
export function scenariosAtATime(settings: Settings): number {
  const { gateway, engine } = findParts(settings);
  return Number(settings.parallel) || (gateway.real || engine.real ? 1 : 6);
}
