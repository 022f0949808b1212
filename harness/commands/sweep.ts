// SPDX-License-Identifier: Apache-2.0

/**
 * `sweep`: remove what dead runs left, and nothing of runs that live. `sweep --run FOLDER`: of that one. `--guard` is
 * for a run's guard alone, which knows that its keeper is gone.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "../command-line.ts";
import { connectable } from "../base/system.ts";
import { eventually } from "../base/waiting.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import type { Settings } from "../base/settings.ts";
import {
  birthOf,
  commandProcesses,
  describeProcess,
  kill,
  processesOf,
  type RunProcess,
  strayRuns,
} from "../runtime/processes.ts";
import { urlPath } from "../base/machine.ts";
import { Child } from "../runtime/process.ts";
import { removeDeadCompilers } from "../runtime/programs.ts";
import { writeReports } from "../runtime/reports.ts";
import { Run } from "../runtime/run.ts";
import { RUN_LABEL } from "../runtime/marks.ts";
import { readable, say } from "../base/readable.ts";
import { type Entry, readRecords } from "../report/record.ts";
import { belongings, describeBelonging, Engine, removeBelongings } from "../runtime/engine.ts";

export const command: Command = async (settings, _args, { run: folder, guard }) => {
  let failed = false;
  const { dead, silent } = await findRuns(settings, folder, guard !== undefined);
  for (const run of dead) {
    const { removed, problems } = await sweepRun(run, settings.reports);
    for (const line of removed) say(`run ${run.id}: removed ${line}`);
    for (const problem of problems) console.error(readable(`run ${run.id}: ${problem}`));
    if (problems.length > 0) failed = true;
    else console.log(`run ${run.id}: clean`);
  }
  removeDeadCompilers();
  for (const run of silent) console.error(`run ${run.id}: ${run.silence}`);
  if (dead.length === 0) console.log("Nothing to sweep: no dead run has left anything");
  return failed || silent.length > 0 ? EXIT.error : EXIT.ok;
};

/**
 * The dead run that is named, or all: those whose folder is there, and those of which only processes are left. A run whose
 * keeper is stopped or stuck is not dead: whoever stopped it may let it go on.
 */
async function findRuns(settings: Settings, folder: string | undefined, guard: boolean) {
  if (folder !== undefined) return { dead: [guard ? Run.of(folder) : await namedRun(folder)], silent: [] };
  const dead: Run[] = [];
  const silent: Run[] = [];
  const runs = Run.all(settings);
  for (const run of runs) {
    if (!existsSync(run.folder)) continue;
    const state = await run.state();
    if (state === "dead") dead.push(run);
    if (state === "silent") silent.push(run);
  }
  const known = new Set(runs.map(({ id }) => id));
  const strays = strayRuns(Run.root(settings)).filter((id) => !known.has(id));
  return { dead: [...dead, ...strays.map((id) => Run.of(join(Run.root(settings), id)))], silent };
}

/** The dead run that somebody names. @throws HarnessError for any other folder: all in it would be removed. */
async function namedRun(folder: string): Promise<Run> {
  if (!existsSync(folder)) throw new HarnessError(`--run: no such folder: ${folder}`);
  const run = await Promise.try(Run.open, folder).catch(() => undefined);
  if (!run?.isMarked)
    throw new HarnessError(`--run: ${folder} is not the folder of a run. \`doctor\` lists them`);
  if (await run.isLive())
    throw new HarnessError(`--run: run ${run.id} is alive: end it first, then nothing is left`);
  return run;
}

/**
 * Removes all of a dead run: its gateway and driver, so that nobody makes anything new; what is on its engine; the
 * engine and all other processes; its folder. When the engine cannot be reached, what a later sweep needs of the folder
 * stays, and no more: no key and no token.
 * @returns what was removed, and what went wrong, a line each
 */
export async function sweepRun(
  run: Run,
  reports: string,
): Promise<{ removed: string[]; problems: string[] }> {
  const removed: string[] = [];
  const problems: string[] = [];
  const attempt = async (work: () => Promise<unknown>): Promise<boolean> => {
    try {
      await work();
      return true;
    } catch (error) {
      problems.push((error as Error).message);
      return false;
    }
  };
  const ended = async (which: (process: RunProcess) => boolean) =>
    removed.push(...(await end(run, which)).map(describeProcess));
  await attempt(() => ended(({ isEngine }) => !isEngine));
  const engine = await attempt(async () => removed.push(...(await sweepEngine(run, problems))));
  await attempt(() => ended(() => true));
  // Whatever comes of the reports, the folder goes: it holds keys.
  if (run.isThere) {
    const entries = (): Entry[] => [...readRecords(run.folder), { kind: "leftovers", lines: removed }];
    const { problem } = writeReports({ entries, reports, run, unlessLater: true });
    if (problem) problems.push(problem);
  }
  await attempt(async () => (engine ? run.remove() : run.strip()));
  return { removed, problems };
}

const ENDING_MS = 5_000;

/** Ends processes of a run, and those that they start meanwhile. Resolves with them. */
async function end(run: Run, which: (process: RunProcess) => boolean): Promise<RunProcess[]> {
  const seen = new Map<string, RunProcess>();
  const none = () => {
    for (const each of [...processesOf(run), ...commandProcesses(run.commands)].filter(which))
      seen.set(`${each.pid} ${each.birth}`, each);
    // Not whether the pid exists: nobody may be there to collect an orphan's exit code.
    const alive = [...seen.values()].filter(({ pid, birth }) => birthOf(pid) === birth);
    for (const each of alive) kill(each);
    if (alive[0]) throw new Error(`process ${alive[0].pid} lives`);
  };
  await eventually(none, { what: "end the run's processes", deadlineMs: ENDING_MS });
  return [...seen.values()];
}

/** An engine that was the run's own and died with it is started again for as long as it takes. */
async function sweepEngine(run: Run, problems: string[]): Promise<string[]> {
  const { engine } = run;
  if (engine === "unknown") {
    // It will be no better known later.
    problems.push(
      "engine.json cannot be read, so its engine is not known. " +
        `What it left on an engine of others carries the label ${RUN_LABEL}=${run.id}`,
    );
    return [];
  }
  if (!engine) return [];
  const { socket, command } = engine;
  const answers = await connectable(socket);
  if (!answers && command.length === 0)
    throw new HarnessError(`its engine does not answer: start what serves ${socket}, and sweep again`);
  const revived = answers
    ? undefined
    : Child.start(
        "engine",
        [...command, `unix://${urlPath(socket)}`],
        process.env as Record<string, string>,
        join(run.folder, "engine.log"),
      );
  try {
    await eventually(
      async () => {
        if (!(await connectable(socket))) throw new Error(`${socket} does not answer`);
      },
      { what: "reach the run's engine", deadlineMs: 10_000 },
    );
    const client = new Engine(socket);
    const things = await belongings(client, await client.networks(run), run.sandboxIds);
    await removeBelongings(client, things);
    return things.map(describeBelonging);
  } finally {
    // While it ends it writes to the run's folder, which must not come back.
    await revived?.stop(2_000);
  }
}
