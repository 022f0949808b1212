// SPDX-License-Identifier: Apache-2.0

/**
 * What comes after a process that started runs: their keepers, or after them their guards, clear away. Usually nobody
 * has to wait for that. But when the first process of a container ends, the kernel kills all others in it, and when a
 * step of a CI job ends, many a runner does.
 */
import { existsSync } from "node:fs";
import os from "node:os";
import type { Settings } from "../base/settings.ts";
import { ENDING } from "../base/signals.ts";
import { eventually } from "../base/waiting.ts";
import { Connection } from "./connection.ts";
import { describeProcess, processTable } from "./processes.ts";
import { Run } from "./run.ts";

/** A keeper gives each program some seconds to end, and a guard starts a dead engine again. In milliseconds. */
const CLEARING_MS = 30_000;
/** After so long it is said what is waited for, in milliseconds. */
const SILENT_MS = 2_000;

/** Waits until the runs that a process had started are cleared away, or nobody is left who would do that. */
export async function clearedAway(starter: number, settings: Settings): Promise<void> {
  const left = () => Run.all(settings).filter((run) => run.starter === starter);
  const runs = left();
  if (runs.length === 0) return;
  // Keeper and guard have the folder in their command lines.
  const busy = ({ folder }: Run) =>
    existsSync(folder) ? processTable().filter(({ words }) => words.includes(folder)) : [];
  const names = runs.map(({ id }) => `run ${id}`).join(", ");
  const slow = setTimeout(() => console.error(`openshell-e2e: ${names}: being cleared away`), SILENT_MS);
  const none = () => {
    const [process] = runs.flatMap(busy);
    if (process) throw new Error(describeProcess(process));
  };
  await eventually(none, { what: `${names}: be cleared away`, deadlineMs: CLEARING_MS })
    .catch((error: Error) => console.error(`openshell-e2e: ${error.message}`))
    .finally(() => clearTimeout(slow));
}

/**
 * The first process of a container is sent no signal that it does not handle. So it handles those that end it, unless its
 * verb does. Does nothing in any other process.
 */
export function endAsFirstProcess(settings: Settings): void {
  if (process.pid !== 1) return;
  for (const signal of ENDING)
    process.on(signal, () => {
      if (process.listenerCount(signal) > 1) return;
      Connection.closeAll();
      const ended = () => process.exit(128 + os.constants.signals[signal]);
      ending = clearedAway(process.pid, settings).then(ended, ended);
    });
}

let ending: Promise<never> | undefined;

/** Once a signal ends this process: never. Whatever fails meanwhile, because the keeper goes, ends nothing before. */
export const unlessEnding = (): Promise<never> | undefined => ending;
