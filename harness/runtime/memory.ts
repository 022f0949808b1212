// SPDX-License-Identifier: Apache-2.0

/**
 * A bound on the memory of every process of ours, and of every fake, so that a defect of the harness never takes a
 * machine down. Whatever exceeds its bound is ended, and its run with it.
 *
 * A process that runs away has no time for timers, so a thread of its own watches it (memory-thread.ts). The thread
 * watches the fakes below the process, too: a thread in each would cost every sandbox a fifth of its start. The programs
 * of users (a real gateway or engine, a driver, a command of `with`) may need any amount, and are not watched.
 *
 * Where there is no /proc (macOS), each process still watches itself, but nobody watches the fakes.
 */
import { ROOT } from "../base/root.ts";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { cachePlaces } from "./programs.ts";

/**
 * What each kind of process may use at most: resident memory, in MiB. A legitimate run must never reach it. Beside each
 * bound is the highest peak that was measured over `e2e`, `check`, `soak --sandboxes 200 --parallel 16 --chaos`,
 * `mutants` and all tests, on fakes.
 */
export const BOUNDS = {
  keeper: 2_048, //         365
  "test process": 4_096, // 629, with all tests in one process; 139 with scenarios
  command: 4_096, //        247, `mutants`; but `report` and `diff` read results of any size
  fake: 1_024, //           153, a supervisor that runs from its source; 82 compiled
};

/** A keeper whose event loop does not turn for so long is ended, too: everybody waits for it, and nobody else can tell. */
export const PATIENCE = { ms: 60_000 };
const TURN_MS = 1_000;

/** What a process of ours is to its user. */
export type Watched =
  { as: "keeper"; folder: string; inContainers: boolean } | { as: "test process" | "command" };

/** The file in a run's folder that says why its keeper had to end; empty while all is well. */
export const LAST_WORDS = "last-words";

/** What the thread is told. */
export interface Orders {
  name: string;
  bound: number;
  fakeBound: number;
  /** Our own folder, in which the fakes' sources are. */
  root: string;
  /** Where the compiled ones may be. */
  caches: string[];
  lastWords: typeof LAST_WORDS;
  /** A keeper's run: the folder, and whether its fake supervisors are in containers of a real engine. */
  run?: { folder: string; inContainers: boolean };
  /** Counts the turns of the keeper's event loop, one a second. */
  turns?: Int32Array;
  patienceMs: number;
}

/** Watches this process, and the fakes below it, for as long as it lives. Costs some 5 ms of CPU time. */
export function watchMemory(watched: Watched): void {
  const orders: Orders = {
    name: watched.as === "command" ? `bun harness.ts ${process.argv[2] ?? ""}`.trim() : `the ${watched.as}`,
    bound: BOUNDS[watched.as],
    fakeBound: BOUNDS.fake,
    root: ROOT,
    caches: cachePlaces(),
    lastWords: LAST_WORDS,
    patienceMs: PATIENCE.ms,
  };
  if (watched.as === "keeper") {
    const { folder, inContainers } = watched;
    // There before anybody connects.
    writeFileSync(join(folder, LAST_WORDS), "", { mode: 0o600 });
    const turns = new Int32Array(new SharedArrayBuffer(4));
    setInterval(() => Atomics.add(turns, 0, 1), TURN_MS).unref();
    Object.assign(orders, { run: { folder, inContainers }, turns });
  }
  new Worker(join(import.meta.dir, "memory-thread.ts"), { workerData: orders }).unref();
}
