// SPDX-License-Identifier: Apache-2.0

/**
 * `sweep`: remove what dead runs left, and nothing of runs that live. `sweep --run FOLDER`: of that one. `--guard` is
 * for a run's guard alone, which knows that its keeper is gone.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Command, connectable, eventually, EXIT, HarnessError } from "../harness.ts";
import { Child } from "../keeper/process.ts";
import { kill, processesOf, Run, RUN_MARK } from "../keeper/run.ts";
import { readable, say } from "../report/readable.ts";
import { readRecords, writeResults } from "../report/record.ts";
import { belongings, describeBelonging, Engine, removeBelongings } from "../keeper/engine.ts";

export const command: Command = async (settings, _args, { run: folder, guard }) => {
  let dead = 0;
  let failed = false;
  const named = folder === undefined ? undefined : await (guard ? Run.open(folder) : deadRun(folder));
  for (const run of named ? [named] : Run.all(settings)) {
    if (!existsSync(run.folder) || (!named && (await run.isLive()))) continue;
    dead++;
    const { removed, problem } = await sweepRun(run, settings.reports);
    for (const line of removed) say(`run ${run.id}: removed ${line}`);
    if (problem) {
      failed = true;
      console.error(readable(`run ${run.id}: ${problem}`));
    } else console.log(`run ${run.id}: clean`);
  }
  if (dead === 0) console.log("Nothing to sweep: no dead run has left anything");
  return failed ? EXIT.error : EXIT.ok;
};

/** The dead run that somebody names. @throws HarnessError for any other folder: all in it would be removed. */
async function deadRun(folder: string): Promise<Run> {
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
 * engine and all other processes; its folder. When the engine cannot be reached the folder stays, to be swept later.
 */
export async function sweepRun(run: Run, reports: string): Promise<{ removed: string[]; problem?: string }> {
  const removed: string[] = [];
  const end = (which: (process: RunProcess) => boolean) => {
    for (const { pid, command } of processesOf(run).filter(which)) {
      removed.push(`process ${pid} (${command})`);
      kill(pid);
    }
    return eventually(
      () => {
        // Not whether the pid exists: nobody may be there to collect an orphan's exit code.
        const [alive] = processesOf(run).filter(which);
        if (alive) throw new Error(`process ${alive.pid} lives`);
      },
      { what: "end the run's processes", deadlineMs: 5_000 },
    );
  };
  try {
    await end((each) => !isEngine(each));
    removed.push(...(await sweepEngine(run)));
    await end(() => true);
    writeResults([...readRecords(run.folder), { kind: "leftovers", lines: removed }], reports);
    run.remove();
    return { removed };
  } catch (error) {
    return { removed, problem: (error as Error).message };
  }
}

type RunProcess = ReturnType<typeof processesOf>[number];

const isEngine = ({ command }: RunProcess): boolean => command.includes("system service");

/** An engine that was the run's own and died with it is started again for as long as it takes. */
async function sweepEngine(run: Run): Promise<string[]> {
  if (!run.engine) return [];
  const { socket, command } = run.engine;
  const environment = { ...(process.env as Record<string, string>), [RUN_MARK]: run.id };
  const log = join(run.folder, "engine.log");
  const answers = await connectable(socket);
  if (!answers && command.length === 0)
    throw new HarnessError(
      `run ${run.id}: its engine does not answer: start what serves ${socket}, and sweep again`,
    );
  const revived = answers
    ? undefined
    : Child.start("engine", [...command, `unix://${socket}`], environment, log);
  try {
    await eventually(
      async () => {
        if (!(await connectable(socket))) throw new Error(`${socket} does not answer`);
      },
      { what: "reach the run's engine", deadlineMs: 10_000 },
    );
    const engine = new Engine(socket);
    const things = await belongings(engine, await engine.networks(run), run.sandboxIds);
    await removeBelongings(engine, things);
    return things.map(describeBelonging);
  } finally {
    // While it ends it writes to the run's folder, which must not come back.
    await revived?.stop(2_000);
  }
}
