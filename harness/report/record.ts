// SPDX-License-Identifier: Apache-2.0

/**
 * How a run is recorded: test process and keeper append what happens, a line of JSON each, to files in the run's folder.
 * So whoever is killed, the other one, or the sweep after both, can still write down what was known: results.json.
 */
import { closeSync, openSync, readdirSync, writeSync } from "node:fs";
import { textOf } from "../base/file.ts";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import {
  type CallRecord,
  count,
  isRed,
  type Mark,
  type PhaseRecord,
  type ProcessSpan,
  type Results,
  type ScenarioResult,
  type Standing,
} from "./model.ts";
import { excerpt } from "../base/log.ts";
import { leaveOut } from "./leave-out.ts";
import { tell } from "./progress.ts";
import { shareSecrets } from "../base/secrets.ts";

/** What is recorded. Each `at` is in milliseconds since 1970 here; the results have it since the run's start. */
export type Entry =
  | { kind: "begin"; at: number; run: string; command: string; stack: Record<string, Standing> }
  /** A scenario has begun; it is `cut` if nothing more is heard of it. */
  | { kind: "running"; scenario: ScenarioResult }
  | { kind: "scenario"; scenario: ScenarioResult }
  /** `-t` leaves that one out. */
  | { kind: "unselected"; title: string }
  | { kind: "process"; process: ProcessSpan }
  | { kind: "ready"; pid: number; at: number }
  | { kind: "ended"; pid: number; at: number; ending: string; told: boolean }
  | { kind: "calls"; calls: CallRecord[] }
  | { kind: "phase"; phase: PhaseRecord }
  | { kind: "mark"; mark: Mark }
  | { kind: "leftovers"; lines: string[] }
  /** Everything was said: the run was not cut off. */
  | { kind: "end"; at: number };

/** Milliseconds since 1970, with fractions. The processes of a run share the machine's clock. */
export const now = (): number => performance.timeOrigin + performance.now();

/** Of a program that makes no report, such as `soak`, nobody ever asks for them. */
const MOST_WAITING = 10_000;

/** Takes what one process records of a run. */
export class Recorder {
  #file: number | undefined;
  /** What was recorded while there is no run to record it of. */
  waiting: Entry[] = [];

  /** Writes entries to a file of the run's folder from now on, and those that waited for it. */
  to(folder: string, who: string): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = opened(join(folder, `records-${who}.jsonl`));
    const before = this.waiting;
    this.waiting = [];
    for (const entry of before) this.add(entry);
  }

  /** Records something. It waits in memory while there is no run. A disk that is full must not fail a run. */
  add(entry: Entry): void {
    if (this.#file === undefined)
      return void (this.waiting.length < MOST_WAITING && this.waiting.push(entry));
    try {
      writeSync(this.#file, `${JSON.stringify(entry)}\n`);
    } catch {
      // What cannot be recorded is missing from the report, and from nothing else.
    }
  }
}

/** A file that lines are added to; undefined where there can be none. */
function opened(path: string): number | undefined {
  try {
    return openSync(path, "a", 0o600);
  } catch {
    return undefined;
  }
}

const ours = new Recorder();

/** Records something of this process' run, and tells the process that started it of scenarios that begin and end. */
export function record(entry: Entry): void {
  ours.add(entry);
  if (entry.kind === "begin") tell({ run: entry.run });
  if (entry.kind === "running") tell({ begun: entry.scenario.id });
  if (entry.kind === "scenario") tell({ ended: entry.scenario.id, verdict: entry.scenario.verdict });
}

/** Says where this process' run is recorded. */
export const recordTo = (folder: string, who: string): void => ours.to(folder, who);

/** What waits, for a run that has no folder. */
export const waitingEntries = (): Entry[] => ours.waiting;

/**
 * Everything that was recorded in a run's folder, by all or by those who are chosen; what a scenario in whose midst the
 * run ended could not say itself, the logs of its stack do. The last line of a process that was killed may be half a line.
 */
export function readRecords(folder: string, choose: (who: string) => boolean = () => true): Entry[] {
  shareSecrets(folder);
  const files = readdirSync(folder).filter((name) => {
    const [, who] = /^records-(.*)\.jsonl$/.exec(name) ?? [];
    return who !== undefined && choose(who);
  });
  const entries = files.flatMap((name) =>
    (textOf(join(folder, name)) ?? "").split("\n").flatMap((line) => parsed(line) ?? []),
  );
  const known = new Set(entries.flatMap((entry) => ("scenario" in entry ? entry.scenario.sandboxes : [])));
  for (const scenario of unfinished(entries)) {
    const { stack, at, logs } = scenario;
    const lines = (who: string) => excerpt(join(folder, String(stack), `${who}.log`), at, Infinity);
    if (stack === 0) continue;
    Object.assign(logs, { gateway: lines("gateway"), driver: lines("driver") });
    leaveOut(known.difference(new Set(scenario.sandboxes)), scenario);
  }
  return entries;
}

/** The scenarios that have begun and not ended, as they were last heard of. */
function unfinished(entries: Entry[]): ScenarioResult[] {
  const underWay = new Map<string, ScenarioResult>();
  for (const entry of entries) if (entry.kind === "running") underWay.set(entry.scenario.id, entry.scenario);
  for (const entry of entries) if (entry.kind === "scenario") underWay.delete(entry.scenario.id);
  return [...underWay.values()];
}

function parsed(line: string): Entry | undefined {
  try {
    return line ? (JSON.parse(line) as Entry) : undefined;
  } catch {
    return undefined;
  }
}

const NOTHING: Standing = { real: false, label: "unknown", program: "" };

/**
 * The results of a run, made of what was recorded; undefined if no scenario was.
 * @param since leaves out what was recorded before, in milliseconds since 1970: for a run on a stack that others used.
 */
export function assemble(entries: Entry[], since = 0): Results | undefined {
  const of = <Kind extends Entry["kind"]>(kind: Kind) =>
    entries.filter((entry): entry is Extract<Entry, { kind: Kind }> => entry.kind === kind);
  const begin = of("begin").at(-1);
  const begun = Math.max(begin?.at ?? 0, since);
  const done = Map.groupBy(
    of("scenario").map(({ scenario }) => scenario),
    ({ id }) => id,
  );
  const end = of("end").at(-1)?.at;
  const ended = end ?? lastOf(entries);
  const scenarios = [...done.values()].map(oneOf);
  for (const scenario of unfinished(entries)) {
    const ms = round(Math.max(0, ended - scenario.at));
    scenarios.push({ ...scenario, verdict: "cut", reason: "the run was cut off", ms });
  }
  if (!begin || scenarios.length === 0) return undefined;

  const relative = <Timed extends { at: number }>(item: Timed): Timed => ({
    ...item,
    at: round(item.at - begun),
  });
  const recent = <Timed extends { at: number }>(items: Timed[]): Timed[] =>
    items.filter(({ at }) => at >= since).map(relative);
  const endings = new Map(of("ended").map((entry) => [entry.pid, entry]));
  const readiness = new Map(of("ready").map((entry) => [entry.pid, entry]));
  const processes = of("process").map(({ process }) => {
    const [ready, ended] = [readiness.get(process.pid), endings.get(process.pid)];
    return {
      ...relative(process),
      ...(ready && { readyMs: round(ready.at - process.at) }),
      ...(ended && { ms: round(ended.at - process.at), ending: ended.ending, told: ended.told }),
    };
  });
  // A tap that stays is recorded more than once: each time with all that it has.
  const known = new Map(
    of("calls").flatMap(({ calls }) => calls.map((call) => [`${call.stack}.${call.seq}`, call])),
  );
  // A watch that was open before is one of this run too, with what it sent since.
  const isRecent = ({ at, ms = Infinity, events }: CallRecord) =>
    at >= since || (events !== undefined && at + ms >= since);
  const calls = [...known.values()]
    .filter(isRecent)
    .map(relative)
    .map((call) => (call.events ? { ...call, events: recent(call.events) } : call));
  const unselected = new Set(of("unselected").map(({ title }) => title)).size;
  return {
    schema: 1,
    run: {
      id: begin.run,
      startedAt: new Date(begun).toISOString(),
      ms: round(Math.max(0, ended - begun)),
      command: begin.command,
      cutOff: !end,
      ...(unselected > 0 && { unselected }),
    },
    stack: {
      gateway: begin.stack.gateway ?? NOTHING,
      driver: begin.stack.driver ?? NOTHING,
      engine: begin.stack.engine ?? NOTHING,
      supervisor: begin.stack.supervisor ?? NOTHING,
    },
    machine: {
      os: process.platform,
      arch: process.arch,
      cpus: cpus().length,
      memoryMb: Math.round(totalmem() / 2 ** 20),
      bun: Bun.version,
    },
    contract: "0.0",
    counts: count(scenarios),
    leftovers: of("leftovers").flatMap(({ lines }) => lines),
    // The first ones begin before the run: they wait for what all share.
    scenarios: scenarios.map(relative).map((each) => ({ ...each, at: Math.max(0, each.at) })),
    processes,
    calls: calls.toSorted((a, b) => a.at - b.at),
    phases: recent(of("phase").map(({ phase }) => phase)),
    marks: recent(of("mark").map(({ mark }) => mark)),
  };
}

/** When something was last heard of a run that was killed. */
function lastOf(entries: Entry[]): number {
  const times = entries.flatMap((entry) => {
    if (entry.kind === "running" || entry.kind === "scenario")
      return [entry.scenario.at + (entry.kind === "scenario" ? entry.scenario.ms : 0)];
    if (entry.kind === "calls") return entry.calls.map(({ at, ms = 0 }) => at + ms);
    if (entry.kind === "phase") return [entry.phase.at];
    if (entry.kind === "mark") return [entry.mark.at];
    return "at" in entry ? [entry.at] : [];
  });
  return times.reduce((a, b) => Math.max(a, b), 0);
}

/** Of a scenario that ran more than once, the first time that it failed: a later success does not undo it. */
function oneOf(runs: ScenarioResult[]): ScenarioResult {
  const failed = runs.filter(({ verdict }) => isRed(verdict));
  const one = failed[0] ?? runs.at(-1)!;
  return runs.length > 1 ? { ...one, times: { run: runs.length, failed: failed.length } } : one;
}

const round = (ms: number): number => Math.round(ms * 10) / 10;
